//! The model itself: a plain value that can be cloned, so that many futures can start from one past.

use std::collections::{BTreeMap, BTreeSet};

use protocol::epoch::{Point, PointKind};
use protocol::extent::Extent;
use protocol::fault::{Fault, code};
use protocol::guest::{GuestNetwork, GuestWish};
use protocol::id::{Attempt, Lineage};
use protocol::keeping::KeepingStatus;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, Machine, MachineSpec, Power, SiteFacts};
use protocol::order::{Moved, Outcome, Progress, Replication, ReplicationPhase, ReplicationStatus, Sync};
use protocol::pace::Pace;
use protocol::position::{Changes, Delta, Distrust, Position, delta};
use protocol::replication::Target;
use protocol::verified::Damage;
use protocol::{BlockMap, DiskKey};

pub const CELLS: usize = 24;
pub type Cells = [u32; CELLS];
pub const MACHINE: &str = "web01";

pub fn disk() -> DiskKey {
    "disk0".parse().unwrap()
}

/// A machine with one disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm {
    pub power: Power,
    pub cells: Cells,
    /// What changed since `since`; none when the map died.
    pub map: Option<BlockMap>,
    pub since: Attempt,
    /// Raised from a replica: the position it was raised at.
    pub raised: Option<Position>,
    pub stamp: u64,
    /// The (generation, token) whose first epoch was sent.
    pub first_sent: Option<(u64, String, Moved, Option<Distrust>, Sync)>,
    pub newest: Option<Point>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Replica {
    pub lineage: Lineage,
    pub cells: Cells,
    pub position: Option<Position>,
    pub points: Vec<(Point, Cells)>,
    pub pins: std::collections::BTreeSet<Attempt>,
    pub grant: Option<(u64, String)>,
    /// What it was before it was taken over.
    pub before: Option<Box<(Option<Vm>, Option<Replica>)>>,
    /// What it was is not kept.
    pub no_way_back: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Site {
    pub vm: Option<Vm>,
    /// The machine that a raised one stands in front of.
    pub under: Option<Vm>,
    pub replica: Option<Replica>,
    /// A test machine: its name, its point, and what it reads.
    pub test: Option<(String, Attempt, Cells)>,
    /// Points that are served, by number.
    pub views: BTreeMap<i64, Attempt>,
    /// What a scrub finds.
    pub damage: Vec<Damage>,
    /// Who may ask the master target for the hashes of what the raised machine stands on.
    pub reader: Option<String>,
    pub process_server: bool,
    pub master_target: bool,
}

#[derive(Debug, Clone)]
pub struct Model {
    pub sites: BTreeMap<String, Site>,
    /// What components remember of orders, for ever.
    pub acted: BTreeMap<String, Result<Outcome, Fault>>,
    /// Orders by the word in their debug form that are kept running for ever.
    pub hold: Option<&'static str>,
    /// Orders that fail.
    pub fail: Option<&'static str>,
    /// Two machines may run: the link was cut.
    pub split: bool,
    /// No agent answers in the guest.
    pub no_agent: bool,
    /// Which addresses the guest has; none where it has no agent that tells.
    pub guest: Option<GuestNetwork>,
    /// What the guest says to whoever gives it addresses; none: it takes them.
    pub guest_refuses: Option<Fault>,
    /// What was given to guests, and to which.
    pub given: Vec<(String, GuestWish)>,
    /// The machine as home tells of it.
    pub home_spec: MachineSpec,
    /// What the sites tell that they have.
    pub facts: Option<SiteFacts>,
    /// The machine as it was last to be brought up.
    pub raised: Option<MachineSpec>,
    pub breaches: Vec<String>,
    pub writes: u32,
    pub attempts: BTreeSet<Attempt>,
    /// Every order that was carried out, in order.
    pub history: Vec<String>,
    pub now: u64,
    /// How fast epochs go, as told.
    pub pace: Pace,
    /// How closely they followed each other, of each replication as it was last wished.
    pub interval_ms: u64,
    /// The same, every one that there was.
    pub intervals: BTreeSet<u64>,
    /// How the histories at the cloud stand, as told.
    pub keepings: Vec<KeepingStatus>,
}

pub(super) fn fault(entry: &protocol::fault::Entry, why: &str) -> Fault {
    Fault::new(entry, why, "the model says so")
}

/// A machine that changes little, over a line that carries much.
pub fn quiet() -> Pace {
    Pace {
        carried: 100 << 20,
        carrying_us: 1_000_000,
        changed: 1 << 20,
        changing_us: 1_000_000,
        last_bytes: Some(1 << 20),
        last_us: Some(20_000),
        ..Pace::default()
    }
}

impl Model {
    pub fn new() -> Model {
        let vm = Vm {
            power: Power::Running,
            cells: [0; CELLS],
            map: None,
            since: Attempt { generation: 0, number: 0 },
            raised: None,
            stamp: 1,
            first_sent: None,
            newest: None,
        };
        let site = |vm| Site { vm, process_server: true, master_target: true, ..Site::default() };
        Model {
            sites: [("home".into(), site(Some(vm))), ("cloud".into(), site(None))].into(),
            acted: BTreeMap::new(),
            hold: None,
            fail: None,
            split: false,
            no_agent: false,
            home_spec: spec(),
            guest: None,
            guest_refuses: None,
            given: vec![],
            facts: None,
            raised: None,
            breaches: vec![],
            writes: 0,
            attempts: BTreeSet::new(),
            history: vec![],
            now: 1,
            pace: quiet(),
            interval_ms: 0,
            intervals: BTreeSet::new(),
            keepings: vec![],
        }
    }

    pub fn site(&mut self, name: &str) -> &mut Site {
        self.sites.get_mut(name).unwrap()
    }

    pub fn other(name: &str) -> &'static str {
        if name == "home" { "cloud" } else { "home" }
    }

    /// The sites where the machine runs.
    pub fn running(&self) -> Vec<String> {
        let runs = |site: &Site| site.vm.as_ref().is_some_and(|vm| vm.power == Power::Running);
        self.sites.iter().filter(|(_, site)| runs(site)).map(|(name, _)| name.clone()).collect()
    }

    /// The disaster: everything at the site dies at once.
    pub fn burn(&mut self, name: &str) {
        let site = self.site(name);
        (site.process_server, site.master_target) = (false, false);
        if let Some(vm) = &mut site.vm {
            vm.power = Power::Off;
            vm.map = None;
            vm.stamp += 1;
        }
    }

    /// The link is cut: the machine runs on, the components are not heard.
    pub fn cut_off(&mut self, name: &str) {
        let site = self.site(name);
        (site.process_server, site.master_target) = (false, false);
        self.split = true;
    }

    pub fn back(&mut self, name: &str) {
        let site = self.site(name);
        (site.process_server, site.master_target) = (true, true);
    }

    /// Every running machine writes a little.
    pub fn work(&mut self) {
        let running = self.running();
        if running.len() > 1 && !self.split {
            self.breaches.push(format!("it runs at {running:?}"));
        }
        for name in running {
            self.writes += 1;
            let number = self.writes;
            let cell = (number as usize * 7) % CELLS;
            let Some(vm) = &mut self.site(&name).vm else { continue };
            vm.cells[cell] = number;
            vm.stamp += 1;
            if let Some(map) = &mut vm.map {
                map.insert(Extent::new(cell as u64, 1));
            }
        }
    }

    pub fn machines(&self, name: &str) -> Vec<Machine> {
        let site = &self.sites[name];
        let described = if name == "home" { self.home_spec.clone() } else { spec() };
        let vm = site.vm.iter().map(|vm| Machine { spec: described.clone(), power: vm.power, remarks: vec![] });
        let test = site.test.iter().map(|(name, ..)| Machine {
            spec: spec().isolated(name, None),
            power: Power::Running,
            remarks: vec![],
        });
        vm.chain(test).collect()
    }

    /// Does what a process server does with one replication, and tells how it stands.
    pub fn replicate(&mut self, at: &str, wish: &Replication) -> ReplicationStatus {
        let site = &self.sites[at];
        if site.vm.as_ref().is_some_and(|vm| vm.raised.is_some()) {
            assert_eq!(site.reader.as_ref(), Some(&wish.token), "it cannot ask for the hashes of what it stands on");
            assert_eq!(wish.beneath.as_ref().map(|peer| peer.name.as_str()), Some(&*format!("{at}-master-target")));
        }
        self.interval_ms = wish.interval_ms;
        self.intervals.insert(wish.interval_ms);
        let mut status = ReplicationStatus {
            item: wish.item.clone(),
            generation: wish.generation,
            phase: ReplicationPhase::Epochs,
            newest: None,
            sync: None,
            distrust: None,
            first: Progress { expected: CELLS as u64, done: 0, elapsed_ms: 0 },
            first_moved: None,
            moved: Moved::default(),
            epochs: self.attempts.len() as u64,
            pauses_us: vec![],
            rpo_ms: vec![],
            pace: self.pace,
            fault: None,
            capped: None,
            app: Default::default(),
        };
        if !wish.quiesced
            && let Err(why) = self.epoch(at, wish, PointKind::CrashConsistent)
        {
            status.phase = ReplicationPhase::Waiting;
            status.fault = Some(why);
        }
        if let Some(vm) = &self.sites[at].vm
            && let Some((generation, token, moved, distrust, sync)) = &vm.first_sent
            && (*generation, token) == (wish.generation, &wish.token)
        {
            status.newest.clone_from(&vm.newest);
            (status.first_moved, status.distrust, status.sync) = (Some(*moved), *distrust, Some(*sync));
        }
        status
    }

    /// One epoch from the machine at `at` to the replica at the other site.
    pub(super) fn epoch(&mut self, at: &str, wish: &Replication, kind: PointKind) -> Result<Point, Fault> {
        let to = Model::other(at);
        if !matches!(&wish.target, Target::Dial(peer) if peer.address == format!("{to}:1")) {
            self.breaches.push(format!("{at} is to send to {}", wish.target));
        }
        if !self.sites[to].master_target {
            return Err(fault(code::LINK, "the other site does not answer"));
        }
        self.now += 1;
        let now = self.now;
        let Some(mut vm) = self.sites[at].vm.clone() else { return Err(fault(code::MACHINE_ABSENT, "no machine")) };
        let still = matches!(vm.power, Power::Held | Power::Off);
        if still && kind != PointKind::Final && !wish.offline {
            return Err(fault(code::HYPERVISOR, "the machine does not run"));
        }
        let Some(mut replica) = self.sites[to].replica.clone() else { return Err(fault(code::REPLICA_ABSENT, "none")) };
        if replica.grant != Some((wish.generation, wish.token.clone())) {
            return Err(fault(code::NOT_AUTHORISED, "no such grant"));
        }
        let first = vm.first_sent.as_ref().is_none_or(|sent| (sent.0, &sent.1) != (wish.generation, &wish.token));
        let here = position_of(&vm, wish);
        let (copied, distrust, sync) = match (&replica.position, first, wish.sync) {
            (None, _, _) | (_, true, Sync::Full) => (BlockMap::whole(CELLS as u64), None, Sync::Full),
            (_, true, Sync::Compare) => (BlockMap::whole(CELLS as u64), Some(Distrust::Asked), Sync::Compare),
            (Some(there), _, _) => match delta(&here, there) {
                Delta::Tracked(maps) => (maps.get(&disk()).cloned().unwrap_or_default(), None, Sync::Tracked),
                Delta::Compare(why) => (BlockMap::whole(CELLS as u64), Some(why), Sync::Compare),
            },
        };
        for piece in copied.pieces(1) {
            replica.cells[piece.offset as usize] = vm.cells[piece.offset as usize];
        }
        if replica.cells != vm.cells {
            self.breaches
                .push(format!("{} epoch of generation {} from {at} is not all that differs", sync, wish.generation));
        }
        let number = self.attempts.iter().filter(|used| used.generation == wish.generation).count() as u64 + 1;
        let attempt = Attempt { generation: wish.generation, number };
        if !self.attempts.insert(attempt) {
            self.breaches.push(format!("attempt {attempt} is used twice"));
        }
        let changed = copied.bytes();
        let point =
            Point { attempt, cut_at_ms: now_ms(), sealed_at_ms: now, kind, changed_bytes: changed, freeze: None };
        replica.points.push((point.clone(), replica.cells));
        replica.position =
            Some(Position { lineage: wish.lineage, base: attempt, authored: None, changes: Changes::none() });
        if first {
            let moved = Moved { changed, read_source: changed, sent: changed, ..Moved::default() };
            vm.first_sent = Some((wish.generation, wish.token.clone(), moved, distrust, sync));
        }
        (vm.map, vm.since, vm.newest) = (Some(BlockMap::new()), attempt, Some(point.clone()));
        self.site(at).vm = Some(vm);
        self.site(to).replica = Some(replica);
        Ok(point)
    }

    pub(super) fn vm(&mut self, at: &str) -> Result<&mut Vm, Fault> {
        self.site(at).vm.as_mut().ok_or_else(|| fault(code::MACHINE_ABSENT, "no machine here"))
    }

    pub(super) fn replica(&mut self, at: &str) -> Result<&mut Replica, Fault> {
        self.site(at).replica.as_mut().ok_or_else(|| fault(code::REPLICA_ABSENT, "no replica here"))
    }

    pub(super) fn stamps(&self, at: &str) -> BTreeMap<DiskKey, String> {
        let vm = self.sites[at].vm.as_ref();
        vm.map(|vm| [(disk(), vm.stamp.to_string())].into()).unwrap_or_default()
    }
}

/// Where the machine's copy stands, as its process server would say.
fn position_of(vm: &Vm, wish: &Replication) -> Position {
    let own = match &vm.map {
        Some(map) => Changes::Known([(disk(), map.clone())].into()),
        None => Changes::Unknown(Distrust::MapAbsent),
    };
    // Until its first epoch is acknowledged a raised machine counts from where it was raised.
    match &wish.standpoint {
        Some(standpoint) if vm.since == Attempt::start_of(wish.generation) => Position {
            lineage: wish.lineage,
            base: standpoint.base,
            authored: standpoint.authored,
            changes: standpoint.changes.union(&own),
        },
        _ => Position { lineage: wish.lineage, base: vm.since, authored: Some(wish.generation), changes: own },
    }
}

pub fn spec() -> MachineSpec {
    MachineSpec {
        name: MACHINE.into(),
        memory_mib: 64,
        vcpus: 1,
        boot: Boot::Firmware,
        disks: vec![DiskSpec {
            key: disk(),
            size: CELLS as u64,
            source: DiskSource::Own { path: "disk0.raw".into(), format: DiskFormat::Raw },
        }],
        cards: vec![],
        seed: None,
        native: BTreeMap::new(),
    }
}

pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}
