//! The model itself: a plain value that can be cloned, so that many futures can start from one past.

use std::collections::{BTreeMap, BTreeSet};

use protocol::epoch::{Point, PointKind};
use protocol::extent::Extent;
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, Lineage};
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, Machine, MachineSpec, Power, Settled};
use protocol::order::{Moved, Order, Outcome, Progress, Replication, ReplicationPhase, ReplicationStatus, Sync};
use protocol::position::{Changes, Delta, Distrust, Position, delta};
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
    pub grant: Option<(u64, String)>,
    /// What it was before it was taken over.
    pub before: Option<Box<(Option<Vm>, Option<Replica>)>>,
}

#[derive(Debug, Clone, Default)]
pub struct Site {
    pub vm: Option<Vm>,
    /// The machine that a raised one stands in front of.
    pub under: Option<Vm>,
    pub replica: Option<Replica>,
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
    pub breaches: Vec<String>,
    pub writes: u32,
    pub attempts: BTreeSet<Attempt>,
    /// Every order that was carried out, in order.
    pub history: Vec<String>,
    pub now: u64,
}

fn fault(entry: &protocol::fault::Entry, why: &str) -> Fault {
    Fault::new(entry, why, "the model says so")
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
            breaches: vec![],
            writes: 0,
            attempts: BTreeSet::new(),
            history: vec![],
            now: 1,
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
        let Some(vm) = &self.sites[name].vm else { return vec![] };
        vec![Machine { spec: spec(), power: vm.power }]
    }

    /// Does what a process server does with one replication, and tells how it stands.
    pub fn replicate(&mut self, at: &str, wish: &Replication) -> ReplicationStatus {
        let mut status = ReplicationStatus {
            item: wish.item.clone(),
            generation: wish.generation,
            phase: ReplicationPhase::Epochs,
            newest: None,
            sync: None,
            distrust: None,
            first: Progress { expected: CELLS as u64, done: 0 },
            first_moved: None,
            moved: Moved::default(),
            epochs: 0,
            pauses_us: vec![],
            rpo_ms: vec![],
            fault: None,
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
    fn epoch(&mut self, at: &str, wish: &Replication, kind: PointKind) -> Result<Point, Fault> {
        let to = Model::other(at);
        if wish.target != format!("{to}:1") {
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
        let point = Point { attempt, cut_at_ms: now_ms(), sealed_at_ms: now, kind, changed_bytes: changed };
        replica.points.push((point.clone(), replica.cells));
        replica.position =
            Some(Position { lineage: wish.lineage, base: attempt, authored: None, changes: Changes::none() });
        if first {
            let moved = Moved { changed, read_source: changed, read_target: 0, sent: changed };
            vm.first_sent = Some((wish.generation, wish.token.clone(), moved, distrust, sync));
        }
        (vm.map, vm.since, vm.newest) = (Some(BlockMap::new()), attempt, Some(point.clone()));
        self.site(at).vm = Some(vm);
        self.site(to).replica = Some(replica);
        Ok(point)
    }

    /// Carries an order out, or tells what it did the first time.
    pub fn act(&mut self, at: &str, id: &str, order: &Order, wishes: &[Replication]) -> Result<Outcome, Fault> {
        if let Some(done) = self.acted.get(id) {
            return done.clone();
        }
        let word = word(order);
        let result = if self.fail == Some(word) {
            Err(fault(code::HYPERVISOR, "the model lets it fail"))
        } else {
            self.carry_out(at, order, wishes)
        };
        if !matches!(order, Order::ListPoints { .. }) {
            self.history.push(format!("{at} {word} {}", if result.is_ok() { "ok" } else { "failed" }));
        }
        self.acted.insert(id.into(), result.clone());
        result
    }

    fn carry_out(&mut self, at: &str, order: &Order, wishes: &[Replication]) -> Result<Outcome, Fault> {
        let split = self.split;
        match order {
            Order::ShutDown { .. } => {
                let vm = self.vm(at)?;
                if vm.power == Power::Running {
                    vm.power = Power::Held;
                }
                Ok(Outcome::Stopped { by_guest: true, at_ms: now_ms() })
            }
            Order::StartMachine { mark, .. } => {
                let vm = self.vm(at)?;
                if vm.power != Power::Running {
                    vm.power = Power::Running;
                    if vm.map.is_none() && mark.generation > 0 {
                        (vm.map, vm.since) = (Some(BlockMap::new()), *mark);
                    }
                }
                if self.running().len() > 1 && !split {
                    self.breaches.push(format!("{at} was started while it runs elsewhere"));
                }
                Ok(Outcome::Nothing)
            }
            Order::FinalDelta { item } => {
                let Some(wish) = wishes.iter().find(|wish| wish.item == *item) else {
                    return Err(fault(code::UNKNOWN_ITEM, "not one of my replications"));
                };
                if !wish.quiesced {
                    self.breaches.push("a final delta of a replication that is not quiesced".into());
                }
                if self.vm(at)?.power == Power::Running {
                    return Err(fault(code::MACHINE_RUNNING, "it runs"));
                }
                let point = self.epoch(at, wish, PointKind::Final)?;
                let stamps = self.stamps(at);
                Ok(Outcome::Final { point, moved: Moved { sent: 1, ..Moved::default() }, stamps })
            }
            Order::Settle { stop, .. } => {
                let vm = self.vm(at)?;
                let was_running = vm.power == Power::Running;
                if was_running && stop.is_none() {
                    return Err(fault(code::MACHINE_RUNS_AT_HOME, "it runs"));
                }
                vm.power = Power::Off;
                vm.stamp += 1;
                let changes = match &vm.map {
                    Some(map) => Changes::Known([(disk(), map.clone())].into()),
                    None => Changes::Unknown(Distrust::MapAbsent),
                };
                let since = vm.map.as_ref().map(|_| vm.since);
                let stamps = self.stamps(at);
                Ok(Outcome::Settled { settled: Settled { since, changes, stamps }, was_running })
            }
            Order::PrepareReplica { lineage, grant, .. } => {
                let site = self.site(at);
                match &mut site.replica {
                    Some(replica) if replica.lineage != *lineage => Err(fault(code::REPLICA_EXISTS, "another's")),
                    Some(replica) => {
                        replica.grant = Some((grant.generation, grant.token.clone()));
                        Ok(Outcome::Nothing)
                    }
                    None => {
                        site.replica = Some(Replica {
                            lineage: *lineage,
                            cells: [0; CELLS],
                            position: None,
                            points: vec![],
                            grant: Some((grant.generation, grant.token.clone())),
                            before: None,
                        });
                        Ok(Outcome::Nothing)
                    }
                }
            }
            Order::TakeOver { lineage, settled, authored, grant, .. } => {
                self.take_over(at, *lineage, settled, *authored, (grant.generation, grant.token.clone()))
            }
            Order::CloseReplica { .. } => {
                let replica = self.replica(at)?;
                replica.grant = None;
                Ok(Outcome::Closed { newest: replica.points.last().map(|(point, _)| point.clone()) })
            }
            Order::Raise { point, generation, .. } => self.raise(at, *point, *generation),
            Order::Release { .. } => {
                let vm = self.vm(at)?;
                if vm.raised.is_none() {
                    return Err(fault(code::HYPERVISOR, "nothing was raised"));
                }
                vm.power = Power::Running;
                if self.running().len() > 1 && !split {
                    self.breaches.push(format!("{at} was released while it runs elsewhere"));
                }
                Ok(Outcome::Nothing)
            }
            Order::Lower { keep, .. } => {
                let site = self.site(at);
                if let Some(vm) = site.vm.clone().filter(|vm| vm.raised.is_some()) {
                    site.vm = site.under.take();
                    if *keep && let Some(replica) = &mut site.replica {
                        let attempt = vm.since.next();
                        let point = Point {
                            attempt,
                            cut_at_ms: 0,
                            sealed_at_ms: 0,
                            kind: PointKind::Unreplicated,
                            changed_bytes: 0,
                        };
                        // Kept in the past of the newest point: the replica stands where it stood.
                        let newest = replica.points.len().saturating_sub(1);
                        replica.points.insert(newest, (point, vm.cells));
                    }
                    if vm.power == Power::Running {
                        self.breaches.push("a running machine was lowered".into());
                    }
                }
                Ok(Outcome::Nothing)
            }
            Order::Absorb { attempt, cut_at_ms, .. } => {
                let vm = self.vm(at)?.clone();
                if vm.power != Power::Off || vm.raised.is_none() {
                    return Err(fault(code::MACHINE_RUNNING, "it was not let go of"));
                }
                let replica = self.replica(at)?;
                let lineage = replica.lineage;
                let point = Point {
                    attempt: *attempt,
                    cut_at_ms: *cut_at_ms,
                    sealed_at_ms: *cut_at_ms,
                    kind: PointKind::Final,
                    changed_bytes: 0,
                };
                replica.cells = vm.cells;
                replica.points.push((point.clone(), vm.cells));
                replica.position = Some(Position { lineage, base: *attempt, authored: None, changes: Changes::none() });
                self.site(at).vm = None;
                Ok(Outcome::Absorbed { point })
            }
            Order::Standpoint { .. } => match &self.vm(at)?.raised {
                Some(position) => Ok(Outcome::Stands { position: position.clone() }),
                None => Err(fault(code::HYPERVISOR, "nothing was raised")),
            },
            Order::GiveBack { .. } => {
                let site = self.site(at);
                if let Some(before) = site.replica.as_mut().and_then(|replica| replica.before.take()) {
                    (site.vm, site.replica) = *before;
                }
                Ok(Outcome::Closed { newest: None })
            }
            Order::DropReplica { .. } => {
                self.site(at).replica = None;
                Ok(Outcome::Nothing)
            }
            Order::ListPoints { .. } => {
                let points = self.replica(at)?.points.iter().map(|(point, _)| point.clone()).collect();
                Ok(Outcome::Points { points })
            }
        }
    }

    fn take_over(
        &mut self,
        at: &str,
        lineage: Lineage,
        settled: &Settled,
        authored: Option<u64>,
        grant: (u64, String),
    ) -> Result<Outcome, Fault> {
        let stamps = self.stamps(at);
        let site = self.site(at);
        let before = Box::new((site.vm.clone(), site.replica.clone()));
        if site.vm.as_ref().is_some_and(|vm| vm.power == Power::Running) {
            return Err(fault(code::MACHINE_RUNNING, "it runs"));
        }
        let cells = match (&site.vm, &site.replica) {
            (Some(vm), _) => vm.cells,
            (None, Some(replica)) => replica.cells,
            (None, None) => return Err(fault(code::MACHINE_ABSENT, "there is nothing here")),
        };
        let changes = match &settled.changes {
            Changes::Known(_) if !settled.stamps.is_empty() && settled.stamps != stamps => {
                Changes::Unknown(Distrust::DiskTouched)
            }
            other => other.clone(),
        };
        let distrust = match &changes {
            Changes::Unknown(why) => Some(*why),
            Changes::Known(_) => None,
        };
        let base = settled.since.unwrap_or(Attempt { generation: 0, number: 0 });
        let kept = Point {
            attempt: base,
            cut_at_ms: 0,
            sealed_at_ms: 0,
            kind: PointKind::Unreplicated,
            changed_bytes: changes.bytes().unwrap_or(0),
        };
        let mut points = site.replica.as_ref().map(|replica| replica.points.clone()).unwrap_or_default();
        points.push((kept.clone(), cells));
        let changed_bytes = changes.bytes();
        site.replica = Some(Replica {
            lineage,
            cells,
            position: Some(Position { lineage, base, authored, changes }),
            points,
            grant: Some(grant),
            before: Some(before),
        });
        (site.vm, site.under) = (None, None);
        Ok(Outcome::Taken { kept, distrust, changed_bytes })
    }

    fn raise(&mut self, at: &str, point: Option<Attempt>, generation: u64) -> Result<Outcome, Fault> {
        let replica = self.replica(at)?.clone();
        if replica.grant.is_some() {
            self.breaches.push(format!("a replica at {at} was raised while it takes epochs"));
        }
        let found = match point {
            Some(point) => replica.points.iter().rev().find(|(kept, _)| kept.attempt == point),
            None => replica.points.last(),
        };
        let Some((point, cells)) = found.cloned() else { return Err(fault(code::POINT_GONE, "not kept")) };
        let newest = replica.position.clone().ok_or_else(|| fault(code::POINT_GONE, "no point yet"))?;
        let mut differs = BlockMap::new();
        (0..CELLS)
            .filter(|cell| cells[*cell] != replica.cells[*cell])
            .for_each(|cell| differs.insert(Extent::new(cell as u64, 1)));
        let position = Position { changes: Changes::Known([(disk(), differs)].into()), ..newest };
        let site = self.site(at);
        if let Some(vm) = &site.vm {
            if vm.raised.is_some() {
                return Ok(Outcome::Raised { point });
            }
            if vm.power == Power::Running {
                return Err(fault(code::MACHINE_EXISTS, "it runs here"));
            }
            site.under = site.vm.take();
        }
        site.vm = Some(Vm {
            power: Power::Paused,
            cells,
            map: Some(BlockMap::new()),
            since: Attempt::start_of(generation),
            raised: Some(position),
            stamp: 1,
            first_sent: None,
            newest: None,
        });
        Ok(Outcome::Raised { point })
    }

    fn vm(&mut self, at: &str) -> Result<&mut Vm, Fault> {
        self.site(at).vm.as_mut().ok_or_else(|| fault(code::MACHINE_ABSENT, "no machine here"))
    }

    fn replica(&mut self, at: &str) -> Result<&mut Replica, Fault> {
        self.site(at).replica.as_mut().ok_or_else(|| fault(code::REPLICA_ABSENT, "no replica here"))
    }

    fn stamps(&self, at: &str) -> BTreeMap<DiskKey, String> {
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
        native: BTreeMap::new(),
    }
}

/// The order's name.
pub fn word(order: &Order) -> &'static str {
    match order {
        Order::ShutDown { .. } => "shut-down",
        Order::StartMachine { .. } => "start",
        Order::FinalDelta { .. } => "final",
        Order::Settle { .. } => "settle",
        Order::PrepareReplica { .. } => "prepare",
        Order::TakeOver { .. } => "take-over",
        Order::CloseReplica { .. } => "close",
        Order::Raise { .. } => "raise",
        Order::Release { .. } => "release",
        Order::Lower { .. } => "lower",
        Order::Absorb { .. } => "absorb",
        Order::Standpoint { .. } => "standpoint",
        Order::GiveBack { .. } => "give-back",
        Order::DropReplica { .. } => "drop",
        Order::ListPoints { .. } => "list-points",
    }
}

pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}
