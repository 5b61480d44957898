//! Drives the model: four components that exchange with a control server, which can die and be opened again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::{Control, Hooks, Settings};
use protocol::ItemId;
use protocol::fault::{Fault, code};
use protocol::order::{ExchangeRequest, Registration, Report, ReportState, Role};
use protocol::rest::Register;
use protocol::rest::{FailoverKind, ItemView, Job, JobState, Operation, Request, ShutDownFirst, Start};
use protocol::stage::Stage;

use super::model::{MACHINE, Model};
use super::orders::word;

/// A control server with two model sites around it.
pub struct World {
    pub folder: tempfile::TempDir,
    pub model: Arc<Mutex<Model>>,
    pub control: Arc<Mutex<Option<Control>>>,
    connected_within: Duration,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// A past from which worlds can start again and again.
#[derive(Clone)]
pub struct Past {
    files: BTreeMap<String, Vec<u8>>,
    model: Model,
}

pub fn item() -> ItemId {
    MACHINE.parse().unwrap()
}

fn folder() -> tempfile::TempDir {
    // Where there is a memory file system, syncing costs nothing and the tests are quick.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// How soon a component counts as lost: soon, where a test waits for that; late, where a busy machine must not seem to.
const SOON: Duration = Duration::from_secs(3);
const LATE: Duration = Duration::from_secs(20);

pub fn settings(connected_within: Duration, hooks: Hooks) -> Settings {
    Settings {
        connected_within,
        shut_down_first: Duration::from_secs(5),
        undo_patience: Duration::from_secs(1),
        agent_patience: Duration::from_secs(5),
        hooks,
    }
}

impl World {
    /// Two sites, a machine at home, nothing protected.
    pub async fn new() -> World {
        World::start(folder(), Model::new(), SOON, Hooks::default()).await
    }

    /// A world that goes on from `past`.
    pub async fn from(past: &Past, hooks: Hooks) -> World {
        let folder = folder();
        for (name, bytes) in &past.files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        World::start(folder, past.model.clone(), LATE, hooks).await
    }

    async fn start(folder: tempfile::TempDir, model: Model, connected_within: Duration, hooks: Hooks) -> World {
        let control = Control::open_with(folder.path(), settings(connected_within, hooks)).await.unwrap();
        for (site, role, name) in COMPONENTS {
            let registration = Registration {
                name: name.into(),
                site: site.parse().unwrap(),
                role,
                address: (role == Role::MasterTarget).then(|| format!("{site}:1")),
                version: "0".into(),
                platform: "model".into(),
            };
            let certificate_request = identity::Request::make().unwrap().pem;
            control.register(Register { registration, certificate_request }).await.unwrap();
        }
        let mut world = World {
            folder,
            model: Arc::new(Mutex::new(model)),
            control: Arc::new(Mutex::new(Some(control))),
            connected_within,
            tasks: vec![],
        };
        for (site, role, name) in COMPONENTS {
            world.tasks.push(tokio::spawn(component(world.model.clone(), world.control.clone(), site, role, name)));
        }
        world.until_connected().await;
        world
    }

    /// Waits until every component that is up is connected.
    pub async fn until_connected(&self) {
        for (site, role, name) in COMPONENTS {
            if self.with(|model| is_up(model, site, role)) {
                let known =
                    |world: &World| world.control().components().iter().any(|it| it.name == name && it.connected);
                self.until(name, known).await;
            }
        }
    }

    pub fn control(&self) -> Control {
        self.control.lock().unwrap().clone().unwrap()
    }

    /// Stops the server and opens another one on the same data.
    pub async fn reopen(&self, hooks: Hooks) {
        self.stop().await;
        self.open(hooks).await;
    }

    /// Stops the server.
    pub async fn stop(&self) {
        let old = self.control.lock().unwrap().take().unwrap();
        old.stop().await;
    }

    /// Opens it again.
    pub async fn open(&self, hooks: Hooks) {
        let control = Control::open_with(self.folder.path(), settings(self.connected_within, hooks)).await.unwrap();
        *self.control.lock().unwrap() = Some(control);
    }

    /// Stops the world and keeps it as a past.
    pub async fn freeze(self) -> Past {
        let old = self.control.lock().unwrap().take().unwrap();
        old.stop().await;
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let entry = entry.unwrap();
            files.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
        }
        Past { files, model: self.model.lock().unwrap().clone() }
    }

    pub fn with<T>(&self, look: impl FnOnce(&mut Model) -> T) -> T {
        look(&mut self.model.lock().unwrap())
    }

    pub async fn until(&self, what: &str, so: impl Fn(&World) -> bool) {
        for _ in 0..3000 {
            if so(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let control = self.control.lock().unwrap().clone();
        let jobs = match control {
            Some(control) => control.jobs().await.map(|jobs| jobs.last().cloned()),
            None => Ok(None),
        };
        panic!("it never came: {what}; {jobs:#?}; {:#?}", self.with(|model| model.history.clone()));
    }

    pub async fn start_job(&self, operation: Operation) -> Result<Job, Fault> {
        let request = Request { item: item(), operation };
        self.control().start(Start { request, fingerprint: None, reason: None, idempotency_key: None }).await
    }

    /// Waits for a job's end.
    pub async fn end_of(&self, id: i64) -> Job {
        self.reach(id, |job| job.state.ended()).await
    }

    pub async fn reach(&self, id: i64, so: impl Fn(&Job) -> bool) -> Job {
        for _ in 0..4000 {
            let control = self.control.lock().unwrap().clone();
            if let Some(control) = control
                && let Ok(job) = control.job(id).await
                && so(&job)
            {
                return job;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let job = self.control().job(id).await;
        panic!("job {id} does not get there: {job:#?}; {:#?}", self.with(|model| model.history.clone()));
    }

    /// Starts an operation and expects it to be done.
    pub async fn run(&self, operation: Operation) -> Job {
        let job = self.start_job(operation).await.unwrap();
        let job = self.end_of(job.id).await;
        assert_eq!(job.state, JobState::Done, "{job:#?}");
        job
    }

    pub async fn view(&self) -> Option<ItemView> {
        self.control().item(&item()).await.ok()
    }

    pub async fn stage(&self) -> Stage {
        self.view().await.map_or(Stage::Unprotected, |view| view.stage)
    }

    /// Waits until a recovery point is sealed that was cut after now.
    pub async fn new_point(&self) {
        let newest = |model: &mut Model| {
            model.sites.values().filter_map(|site| site.vm.as_ref()?.newest.clone()).map(|point| point.attempt).max()
        };
        let before = self.with(newest);
        self.until("a new recovery point", |world| world.with(newest) > before).await;
    }

    /// Gives every component time for a few exchanges.
    pub async fn new_point_free_rest(&self) {
        let before = self.with(|model| model.writes);
        self.until("a few exchanges", |world| world.with(|model| model.writes) > before + 10).await;
    }

    /// Nothing insane was asked for.
    pub fn assert_sane(&self) {
        let breaches = self.with(|model| model.breaches.clone());
        assert!(breaches.is_empty(), "{breaches:#?} {:#?}", self.with(|model| model.history.clone()));
    }
}

const COMPONENTS: [(&str, Role, &str); 4] = [
    ("home", Role::ProcessServer, "home-process-server"),
    ("home", Role::MasterTarget, "home-master-target"),
    ("cloud", Role::ProcessServer, "cloud-process-server"),
    ("cloud", Role::MasterTarget, "cloud-master-target"),
];

fn is_up(model: &Model, site: &str, role: Role) -> bool {
    match role {
        Role::ProcessServer => model.sites[site].process_server,
        Role::MasterTarget => model.sites[site].master_target,
    }
}

async fn component(
    model: Arc<Mutex<Model>>,
    control: Arc<Mutex<Option<Control>>>,
    site: &'static str,
    role: Role,
    name: &'static str,
) {
    let mut reports: Vec<Report> = vec![];
    let mut wishes = vec![];
    let mut seen = 0;
    loop {
        let current = control.lock().unwrap().clone();
        let up = is_up(&model.lock().unwrap(), site, role);
        let (Some(current), true) = (current, up) else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let (machines, replications) = {
            let mut model = model.lock().unwrap();
            let mut statuses = vec![];
            if role == Role::ProcessServer {
                if site == "home" || !model.sites["home"].process_server {
                    model.work();
                }
                statuses = wishes.iter().map(|wish| model.replicate(site, wish)).collect();
            }
            (model.machines(site), statuses)
        };
        let machines = (role == Role::ProcessServer).then_some(machines);
        let tells = role == Role::MasterTarget && site == "cloud";
        let keepings = if tells { model.lock().unwrap().keepings.clone() } else { vec![] };
        let told = if role == Role::ProcessServer { model.lock().unwrap().facts.clone() } else { None };
        let reports_now = reports.clone();
        let request = ExchangeRequest {
            machines,
            replications,
            keepings,
            reports: reports_now,
            wait_ms: 15,
            seen,
            fault: None,
            site: told,
        };
        let Ok(reply) = current.exchange(name, request).await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        reports.clear();
        seen = reply.number;
        wishes = reply.wishes.replications;
        let mut model = model.lock().unwrap();
        for order in reply.orders {
            let held = model.hold == Some(word(&order.order)) && !model.acted.contains_key(&order.id);
            let state = if held && order.cancelled {
                let gone = Err(Fault::new(code::CANCELLED, "cancelled", "it was cancelled"));
                model.acted.insert(order.id.clone(), gone);
                ReportState::Failed(Fault::new(code::CANCELLED, "cancelled", "it was cancelled"))
            } else if held {
                ReportState::Running { step: "held by the test".into(), percent: Some(7) }
            } else {
                match model.act(site, &order.id, &order.order, &wishes) {
                    Ok(outcome) => ReportState::Done(outcome),
                    Err(fault) => ReportState::Failed(fault),
                }
            };
            reports.push(Report { id: order.id, state });
        }
    }
}

pub fn protect() -> Operation {
    Operation::Protect {
        machine: MACHINE.into(),
        from: "home".parse().unwrap(),
        to: "cloud".parse().unwrap(),
        interval_ms: 1000,
        policy: protocol::PolicyName::standard(),
        networks: Default::default(),
        addresses: vec![],
    }
}

pub fn unplanned(shut_down: ShutDownFirst) -> Operation {
    Operation::Failover { kind: FailoverKind::Unplanned { shut_down }, point: None }
}

pub fn planned() -> Operation {
    Operation::Failover {
        kind: FailoverKind::Planned { shut_down_timeout_ms: 5000, then_power_off: true, max_downtime_ms: 5000 },
        point: None,
    }
}

pub fn test_failover() -> Operation {
    Operation::TestFailover { point: None, network: None }
}

pub fn view() -> Operation {
    Operation::View { point: None, site: None, writable: true }
}

pub fn reprotect(sync: protocol::order::Sync, shut_down: bool) -> Operation {
    Operation::Reprotect { sync, shut_down, no_way_back: false, landing: None }
}

pub fn failback(sync: protocol::order::Sync, offline: bool, complete: bool) -> Operation {
    Operation::Failback {
        sync,
        offline,
        complete,
        shut_down: false,
        shut_down_timeout_ms: 5000,
        then_power_off: true,
        no_way_back: false,
        max_downtime_ms: 5000,
        complete_at: None,
        landing: None,
    }
}
