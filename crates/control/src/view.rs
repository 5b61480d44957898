//! Views: items, jobs and machines as people see them, with health and the next command.

use protocol::fault::{Fault, code};
use protocol::id::{ItemId, SiteName};
use protocol::machine::Power;
use protocol::order::{AppStatus, ReplicationPhase, ReplicationStatus, Role};
use protocol::rest::{AuditEntry, ComponentView, Health, ItemView, Job, JobState, MachineView, SiteView};
use protocol::retention::Space;
use protocol::stage::{MovePhase, Side, Stage};

use crate::beside::Lane;
use crate::clock::now_ms;
use crate::component::Fleet;
use crate::database::failed;
use crate::item::{Item, for_item};
use crate::job::JobRow;
use crate::stage_table::{Decision, Event, decide};
use crate::{Control, audit, item, job};

impl Control {
    /// All items.
    pub async fn items(&self) -> Result<Vec<ItemView>, Fault> {
        let mut views = Vec::new();
        let jobs = job::unfinished(self.database()).await?;
        for item in item::all(self.database()).await? {
            let job = jobs.iter().find(|job| job.item == item.name && Lane::of(&job.operation) == Lane::Item);
            views.push(item_view(&self.fleet(), &item, job));
        }
        Ok(views)
    }

    /// One item.
    pub async fn item(&self, name: &ItemId) -> Result<ItemView, Fault> {
        let item = item::load(self.database(), name).await?;
        let mut on = self.database().readers().acquire().await.map_err(failed)?;
        let job = job::at_work_on(&mut on, name).await?;
        Ok(item_view(&self.fleet(), &item, job.as_ref()))
    }

    /// The newest jobs, oldest first.
    pub async fn jobs(&self) -> Result<Vec<Job>, Fault> {
        let mut views = Vec::new();
        for row in job::newest(self.database(), 200).await? {
            views.push(self.job_view(&row).await?);
        }
        Ok(views)
    }

    /// One job.
    pub async fn job(&self, id: i64) -> Result<Job, Fault> {
        self.job_view(&job::load(self.database(), id).await?).await
    }

    pub(crate) async fn job_view(&self, row: &JobRow) -> Result<Job, Fault> {
        let log = job::log(self.database(), row.id).await?;
        let telling = self.telling().get(&row.id).cloned();
        Ok(job::view(row, &log, telling.as_ref()))
    }

    /// Every site that has a component.
    pub fn sites(&self) -> Vec<SiteView> {
        let fleet = self.fleet();
        let view = |name: SiteName| {
            let all = [Role::ProcessServer, Role::MasterTarget].map(|role| fleet.all_at(&name, role));
            let teller = fleet.at(&name, Role::ProcessServer).and_then(|name| fleet.components.get(&name));
            SiteView {
                platform: fleet.platform(&name).map(String::from),
                components: all.into_iter().flatten().collect(),
                machines: teller.map_or(0, |teller| teller.machines.len() as u64),
                facts: fleet.facts(&name).cloned(),
                fault: teller.and_then(|teller| teller.fault.clone()),
                name,
            }
        };
        fleet.sites().into_iter().map(view).collect()
    }

    /// All components.
    pub fn components(&self) -> Vec<ComponentView> {
        self.fleet().views()
    }

    /// The machines at one site or at all, as their process servers last told.
    pub async fn machines(&self, site: Option<&SiteName>) -> Result<Vec<MachineView>, Fault> {
        let items = item::all(self.database()).await?;
        let fleet = self.fleet();
        let sites = fleet.sites();
        if let Some(site) = site
            && !sites.contains(site)
        {
            return Err(unknown_site(&fleet, site));
        }
        let mut views = Vec::new();
        for place in sites.iter().filter(|place| site.is_none_or(|site| site == *place)) {
            let Some(component) = fleet.at(place, Role::ProcessServer).and_then(|name| fleet.components.get(&name))
            else {
                continue;
            };
            if let (Some(fault), Some(_)) = (&component.fault, site) {
                // A list that cannot be read is an error, not an empty list (R2).
                return Err(fault.clone());
            }
            views.extend(component.machines.iter().map(|machine| {
                MachineView {
                    site: place.clone(),
                    machine: machine.clone(),
                    item: items
                        .iter()
                        .find(|item| {
                            item.spec.name == machine.spec.name && (item.home == *place || item.away == *place)
                        })
                        .map(|item| item.name.clone()),
                    test_of: test_of(&items, place, &machine.spec.name).cloned(),
                }
            }));
        }
        Ok(views)
    }

    /// The newest entries of the audit log, oldest first.
    pub async fn audit(&self) -> Result<Vec<AuditEntry>, Fault> {
        audit::newest(self.database(), 1000).await
    }
}

/// The item of which a machine is a test, if it is one.
pub(crate) fn test_of<'a>(items: &'a [Item], site: &SiteName, machine: &str) -> Option<&'a ItemId> {
    let is = |item: &&Item| item.test_machine().is_some_and(|test| test.site == *site && test.machine == machine);
    items.iter().find(is).map(|item| &item.name)
}

/// The refusal of a site that nobody registered for.
pub(crate) fn unknown_site(fleet: &Fleet, site: &SiteName) -> Fault {
    let known: Vec<String> = fleet.sites().iter().map(ToString::to_string).collect();
    Fault::new(code::UNKNOWN_SITE, format!("there is no site {site}"), format!("known sites: {}", known.join(", ")))
}

/// An item as people see it.
pub(crate) fn item_view(fleet: &Fleet, item: &Item, job: Option<&JobRow>) -> ItemView {
    let side = item.stage.runs_at();
    let generation = item.wish.as_ref().map_or(item.generation, |wish| wish.generation);
    let status = fleet
        .status(item.site(side), &item.name)
        .filter(|(status, _)| status.generation == generation && item.active_wish().is_some());
    let newest = status.and_then(|(status, _)| status.newest.clone());
    let rpo_ms = newest.as_ref().map(|point| now_ms().unsigned_abs().saturating_sub(point.cut_at_ms));
    let percent = status.and_then(|(status, _)| status.first.percent());
    let (health, health_reason) = health(fleet, item, status, rpo_ms);
    ItemView {
        item: item.name.clone(),
        stage: item.stage,
        stage_words: item.stage.words(percent),
        health,
        health_reason,
        runs_at: item.site(side).clone(),
        side,
        home: item.home.clone(),
        away: item.away.clone(),
        rpo_ms,
        rpo_limit_ms: item.rpo_limit_ms,
        policy: item.policy.clone(),
        history: fleet.keeping(item.site(side.other()), &item.name).cloned(),
        newest,
        failback: failback(fleet, item),
        next: fence_command(fleet, item, job).or_else(|| next_command(item, job)),
        generation: item.generation,
        job: job.map(|job| job.id),
        replication: status.map(|(status, _)| status.clone()),
        test: item.test_machine(),
        views: item.views.iter().map(|view| item.served(view)).collect(),
    }
}

fn health(
    fleet: &Fleet,
    item: &Item,
    status: Option<(&ReplicationStatus, bool)>,
    rpo_ms: Option<u64>,
) -> (Health, Option<String>) {
    if let Some(reason) = unauthorised(fleet, item) {
        return (Health::Critical, Some(reason));
    }
    match item.stage {
        Stage::Damaged { .. } => {
            let site = item.site(item.stage.runs_at().other());
            return (Health::Critical, Some(format!("the disks at {site} are half written and must not be started")));
        }
        Stage::NotProtected { .. } => return (Health::Warning, Some("NOT PROTECTED: nothing is replicated".into())),
        Stage::Unprotected => return (Health::Warning, Some("nothing is replicated".into())),
        Stage::CommitPending { .. } => {
            return (Health::Warning, Some("NOT PROTECTED until committed and reprotected".into()));
        }
        _ => {}
    }
    if item.active_wish().is_none() {
        return (Health::Ok, None);
    }
    let site = item.site(item.stage.runs_at());
    let Some((status, fresh)) = status else {
        let reason = fleet
            .need(site, Role::ProcessServer)
            .err()
            .map_or_else(|| "replication has not told how it stands yet".to_string(), |fault| fault.message);
        return (Health::Warning, Some(reason));
    };
    if let Some(rpo) = rpo_ms
        && rpo > item.rpo_limit_ms
    {
        let mut words =
            format!("the newest recovery point is {} s old; the limit is {} s", rpo / 1000, item.rpo_limit_ms / 1000);
        if let Some(capped) = status.capped.filter(|_| fresh) {
            let cap = protocol::bandwidth::rate(capped.bits_per_second);
            words.push_str(&format!("; the bandwidth cap of {}, {cap}, is what limits", capped.by));
        }
        return (Health::Critical, Some(words));
    }
    if !fresh {
        let words = fleet.need(site, Role::ProcessServer).err().map(|fault| fault.message);
        return (Health::Warning, words.or_else(|| Some(format!("{site} does not answer"))));
    }
    if let Some(power) = stands_still(fleet, item) {
        let words = format!("{} does not run at {site} (it is {power})", item.spec.name);
        return (Health::Warning, Some(words));
    }
    match (&status.fault, status.phase) {
        // The guest writes on, and nothing of it is protected until there is room.
        (Some(fault), ReplicationPhase::Waiting) if fault.is(code::NO_SPACE) => {
            (Health::Critical, Some(format!("replication is paused: {fault}")))
        }
        (Some(fault), ReplicationPhase::Waiting) => (Health::Warning, Some(fault.to_string())),
        _ => match history(fleet, item) {
            (Health::Ok, _) => applications(item, &status.app),
            other => other,
        },
    }
}

/// What is to be said of application-consistent points. That a guest never had an agent is no reason to warn of each one that
/// was protected without; that it is gone, or fails, is.
fn applications(item: &Item, app: &AppStatus) -> (Health, Option<String>) {
    match &app.fault {
        Some(fault) if item.app_interval_ms > 0 && (app.newest.is_some() || !fault.is(code::NO_GUEST_AGENT)) => {
            let words = format!("the last point that was to be app-consistent is not: {fault} ({})", fault.cause);
            (Health::Warning, Some(words))
        }
        _ => (Health::Ok, None),
    }
}

/// What is to be said of the history where the item is replicated to.
fn history(fleet: &Fleet, item: &Item) -> (Health, Option<String>) {
    let site = item.site(item.stage.runs_at().other());
    let Some(keeping) = fleet.keeping(site, &item.name) else { return (Health::Ok, None) };
    if let Some(fault) = &keeping.fault {
        let health = if fault.is(code::NO_SPACE) { Health::Critical } else { Health::Warning };
        return (health, Some(fault.to_string()));
    }
    let taken = match keeping.space {
        Space::Enough => return (Health::Ok, None),
        Space::Alarm => "fills",
        Space::Exceeded => "is full, points go before their time",
    };
    let (journal, budget) = (keeping.journal_bytes >> 20, keeping.budget_bytes >> 20);
    (Health::Warning, Some(format!("the space for history at {site} {taken}: {journal} of {budget} MiB")))
}

/// How a protected machine stands, if it does not run where it should (shut down by its owner, or left off by a move that
/// was undone and could not start it again).
fn stands_still(fleet: &Fleet, item: &Item) -> Option<&'static str> {
    let Stage::Protected { runs_at } = item.stage else { return None };
    match fleet.machine(item.site(runs_at), &item.spec.name)? {
        (machine, true) if machine.power == Power::Off => Some("off"),
        (machine, true) if machine.power == Power::Held => Some("shut down"),
        _ => None,
    }
}

/// Whether the machine runs at a side that is not authorised (seen on contact with that side).
fn unauthorised(fleet: &Fleet, item: &Item) -> Option<String> {
    if matches!(item.stage, Stage::Moving { .. } | Stage::Seeding | Stage::Unprotected) {
        return None;
    }
    let side = item.stage.runs_at();
    let other = item.site(side.other());
    fleet.runs(other, &item.spec.name).then(|| {
        format!(
            "{} also runs at {other}, which is not authorised: generation {} belongs to {}",
            item.spec.name,
            item.generation,
            item.site(side)
        )
    })
}

/// Where the next thing to do is to stop the machine that may not run.
fn fence_command(fleet: &Fleet, item: &Item, job: Option<&JobRow>) -> Option<String> {
    let can_reprotect = matches!(item.stage, Stage::NotProtected { .. } | Stage::Damaged { .. });
    (job.is_none() && can_reprotect && unauthorised(fleet, item).is_some())
        .then(|| format!("sockeye reprotect {} --shut-down", item.name))
}

fn failback(fleet: &Fleet, item: &Item) -> String {
    if item.stage.runs_at() == Side::Home && !matches!(item.stage, Stage::Moving { .. }) {
        let missing = [(item.site(Side::Home), Role::MasterTarget), (item.site(Side::Away), Role::ProcessServer)]
            .into_iter()
            .find_map(|(site, role)| fleet.need(site, role).err());
        return match missing {
            // R24: what prevents the way home is said while it can still be mended.
            Some(fault) => format!("not possible: {}", fault.message),
            None => "possible after a failover".into(),
        };
    }
    match decide(item.stage, Event::Failback) {
        Decision::Move(_) => {
            let missing = [Role::MasterTarget, Role::ProcessServer]
                .into_iter()
                .find_map(|role| fleet.need(item.site(Side::Home), role).err());
            missing.map_or_else(|| "possible".into(), |fault| format!("not possible: {}", fault.message))
        }
        Decision::AlreadyThere => "under way".into(),
        Decision::Refused(fault) => for_item(fault, &item.name).remedy,
    }
}

/// The next command for an item that no job but `job` works on.
pub(crate) fn next_command(item: &Item, job: Option<&JobRow>) -> Option<String> {
    if let Some(job) = job {
        return match job.state {
            JobState::Waiting => job.next.clone(),
            _ => Some(format!("sockeye job watch {}", job.id)),
        };
    }
    let verb = match item.stage {
        Stage::CommitPending { .. } => "commit",
        Stage::NotProtected { .. } | Stage::Damaged { .. } => "reprotect",
        Stage::Protected { runs_at: Side::Away } => "failback",
        Stage::Moving { phase: MovePhase::WaitingForComplete, .. } => "complete",
        _ => return None,
    };
    Some(format!("sockeye {verb} {}", item.name))
}

/// A machine's power in words.
pub(crate) fn power_words(power: Power) -> &'static str {
    match power {
        Power::Off => "off",
        Power::Running => "running",
        Power::Paused => "paused",
        Power::Held => "shut down, its disks held",
    }
}
