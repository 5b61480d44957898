//! How the model's components carry orders out.

use protocol::BlockMap;
use protocol::beside::ServedDisk;
use protocol::difference::{Difference, DiskDifference};
use protocol::epoch::{Point, PointKind};
use protocol::extent::Extent;
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, Lineage};
use protocol::machine::{Power, Settled};
use protocol::order::{Moved, Order, Outcome, Replication};
use protocol::position::{Changes, Distrust, Position};
use protocol::verified::Verified;

use super::model::{CELLS, Cells, MACHINE, Model, Replica, Vm, disk, fault, now_ms};

impl Model {
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
        if !matches!(
            order,
            Order::ListPoints { .. }
                | Order::DiffPoints { .. }
                | Order::TellChanged { .. }
                | Order::TellGuest { .. }
                | Order::AppPoint { .. }
                | Order::PinPoint { .. }
                | Order::AddPoint { .. }
        ) {
            self.history.push(format!("{at} {word} {}", if result.is_ok() { "ok" } else { "failed" }));
        }
        self.acted.insert(id.into(), result.clone());
        result
    }

    fn carry_out(&mut self, at: &str, order: &Order, wishes: &[Replication]) -> Result<Outcome, Fault> {
        let split = self.split;
        match order {
            Order::TellGuest { .. } => match self.guest.clone() {
                Some(network) => Ok(Outcome::Guest { network }),
                None => Err(fault(code::NO_GUEST_AGENT, "no agent")),
            },
            Order::SetGuest { machine, what, .. } => {
                self.given.push((machine.clone(), what.clone()));
                match self.guest_refuses.clone() {
                    Some(fault) => Err(fault),
                    None => Ok(Outcome::GuestSet { told: vec!["it has them".into()] }),
                }
            }
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
                Ok(Outcome::Final { point, moved: Moved { sent: 1, ..Moved::default() }, stamps, seal_ms: 0 })
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
            Order::TellChanged { .. } => {
                let bytes = self.vm(at)?.map.as_ref().map(BlockMap::bytes);
                Ok(Outcome::Changed { bytes })
            }
            Order::AppPoint { item } => {
                let Some(wish) = wishes.iter().find(|wish| wish.item == *item) else {
                    return Err(fault(code::UNKNOWN_ITEM, "not one of my replications"));
                };
                if self.no_agent {
                    return Err(fault(code::NO_GUEST_AGENT, "no agent answers"));
                }
                Ok(Outcome::Added { point: self.epoch(at, wish, PointKind::AppConsistent)? })
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
                            pins: Default::default(),
                            lineage: *lineage,
                            cells: [0; CELLS],
                            position: None,
                            points: vec![],
                            grant: Some((grant.generation, grant.token.clone())),
                            before: None,
                            no_way_back: false,
                        });
                        Ok(Outcome::Nothing)
                    }
                }
            }
            Order::TakeOver { lineage, settled, authored, grant, no_way_back, .. } => {
                let grant = (grant.generation, grant.token.clone());
                self.take_over(at, *lineage, settled, *authored, grant, *no_way_back)
            }
            Order::CloseReplica { .. } => {
                let replica = self.replica(at)?;
                replica.grant = None;
                Ok(Outcome::Closed { newest: replica.points.last().map(|(point, _)| point.clone()) })
            }
            Order::Raise { spec, point, generation, .. } => {
                self.raised = Some(spec.clone());
                self.raise(at, *point, *generation)
            }
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
                            freeze: None,
                        };
                        // Kept in the past of the newest point: the replica stands where it stood.
                        let newest = replica.points.len().saturating_sub(1);
                        replica.points.insert(newest, (point, vm.cells));
                    }
                    // One that nothing is kept of may be torn down as it runs.
                    if vm.power == Power::Running && *keep {
                        self.breaches.push("a running machine was lowered whose writes are to be kept".into());
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
                    freeze: None,
                };
                replica.cells = vm.cells;
                replica.points.push((point.clone(), vm.cells));
                replica.position = Some(Position { lineage, base: *attempt, authored: None, changes: Changes::none() });
                self.site(at).vm = None;
                Ok(Outcome::Absorbed { point })
            }
            Order::Standpoint { reader, .. } => {
                let Some(position) = self.vm(at)?.raised.clone() else {
                    return Err(fault(code::HYPERVISOR, "nothing was raised"));
                };
                let site = self.site(at);
                site.reader = reader.clone().or(site.reader.take());
                Ok(Outcome::Stands { position })
            }
            Order::Fold { .. } => {
                let site = self.site(at);
                if site.test.is_some() || !site.views.is_empty() {
                    return Err(fault(code::NOT_FOLDED, "a test or a view stands on it"));
                }
                let vm = self.vm(at)?;
                let Some(position) = vm.raised.take() else {
                    return Err(fault(code::NOT_FOLDED, "nothing was raised"));
                };
                if vm.power != Power::Running {
                    return Err(fault(code::HYPERVISOR, "it does not run"));
                }
                let site = self.site(at);
                if site.replica.as_ref().is_some_and(|replica| replica.grant.is_some()) {
                    self.breaches.push(format!("a replica at {at} was folded while it takes epochs"));
                }
                let site = self.site(at);
                (site.replica, site.under) = (None, None);
                Ok(Outcome::Folded { position, exported: vec![] })
            }
            Order::GiveBack { .. } => {
                let site = self.site(at);
                if let Some(replica) = site.replica.as_mut().filter(|replica| replica.no_way_back) {
                    // The machine is still described there, on disks that are half one thing and half another.
                    site.vm = replica.before.as_ref().and_then(|before| before.0.clone());
                    if let Some(vm) = &mut site.vm {
                        (vm.map, vm.power) = (None, Power::Off);
                    }
                    return Err(fault(code::DAMAGED, "half of it was overwritten"));
                }
                if let Some(before) = site.replica.as_mut().and_then(|replica| replica.before.take()) {
                    (site.vm, site.replica) = *before;
                }
                Ok(Outcome::Closed { newest: None })
            }
            Order::RaiseTest { spec, point, .. } => {
                let (point, cells) = self.kept(at, *point)?;
                if spec.name == MACHINE {
                    self.breaches.push("a test under the machine's own name".into());
                }
                let site = self.site(at);
                if site.test.as_ref().is_some_and(|(_, stands, _)| *stands != point.attempt) {
                    return Err(fault(code::REPLICA_BUSY, "another test is under way"));
                }
                site.test = Some((spec.name.clone(), point.attempt, cells));
                Ok(Outcome::Raised { point })
            }
            Order::LowerTest { .. } => {
                self.site(at).test = None;
                Ok(Outcome::Nothing)
            }
            Order::ServeView { view, point, .. } => {
                let (point, _) = self.kept(at, *point)?;
                self.site(at).views.insert(*view, point.attempt);
                let uri = format!("nbd+unix:///view{view}?socket=/model");
                Ok(Outcome::Serves { point, disks: vec![ServedDisk { disk: disk(), uri }] })
            }
            Order::EndView { view, .. } => {
                self.site(at).views.remove(view);
                Ok(Outcome::Nothing)
            }
            Order::Verify { .. } => {
                let damage = self.site(at).damage.clone();
                let at = self.replica(at)?.points.last().map(|(point, _)| point.attempt);
                let damage_count = damage.len() as u64;
                let verified = Verified { at, journal_bytes: 4096, disk_bytes: 65536, damage_count, damage };
                Ok(Outcome::Verified { verified })
            }
            Order::DropReplica { .. } => {
                let site = self.site(at);
                if site.test.is_some() || !site.views.is_empty() {
                    self.breaches.push(format!("a replica at {at} was dropped that is stood on"));
                }
                self.site(at).replica = None;
                Ok(Outcome::Nothing)
            }
            Order::ListPoints { .. } => {
                let replica = self.replica(at)?;
                let points = replica.points.iter().map(|(point, _)| point.clone()).collect();
                Ok(Outcome::Points { points, pins: replica.pins.iter().copied().collect() })
            }
            Order::PinPoint { point, pinned, .. } => {
                let replica = self.replica(at)?;
                if !replica.points.iter().any(|(kept, _)| kept.attempt == *point) {
                    return Err(fault(code::POINT_GONE, "not kept"));
                }
                if *pinned {
                    replica.pins.insert(*point)
                } else {
                    replica.pins.remove(point)
                };
                Ok(Outcome::Nothing)
            }
            Order::AddPoint { .. } => {
                let replica = self.replica(at)?;
                let Some((point, _)) = replica.points.last().cloned() else {
                    return Err(fault(code::POINT_GONE, "none yet"));
                };
                replica.pins.insert(point.attempt);
                Ok(Outcome::Added { point })
            }
            Order::DiffPoints { points, .. } => {
                let kept = &self.replica(at)?.points;
                let find = |wanted| kept.iter().rev().find(|(point, _)| point.attempt == wanted).cloned();
                let (Some(from), Some(to)) = (find(points.from), find(points.to)) else {
                    return Err(fault(code::POINT_GONE, "not kept"));
                };
                let differs = (0..CELLS).filter(|cell| from.1[*cell] != to.1[*cell]);
                let map = differs.map(|cell| Extent::new(cell as u64, 1)).collect();
                let disks = vec![DiskDifference::of(disk(), &map)];
                let difference = Difference { from: from.0, to: to.0, piece_bytes: 1, disks };
                Ok(Outcome::Differ { difference })
            }
        }
    }

    /// The point that is asked for, or the newest.
    fn kept(&mut self, at: &str, wanted: Option<Attempt>) -> Result<(Point, Cells), Fault> {
        let points = &self.replica(at)?.points;
        let found = match wanted {
            Some(wanted) => points.iter().rev().find(|(kept, _)| kept.attempt == wanted),
            None => points.last(),
        };
        found.cloned().ok_or_else(|| fault(code::POINT_GONE, "not kept"))
    }

    fn take_over(
        &mut self,
        at: &str,
        lineage: Lineage,
        settled: &Settled,
        authored: Option<u64>,
        grant: (u64, String),
        no_way_back: bool,
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
            freeze: None,
        };
        let mut points = site.replica.as_ref().map(|replica| replica.points.clone()).unwrap_or_default();
        points.push((kept.clone(), cells));
        let changed_bytes = changes.bytes();
        site.replica = Some(Replica {
            pins: Default::default(),
            lineage,
            cells,
            position: Some(Position { lineage, base, authored, changes }),
            points,
            grant: Some(grant),
            before: Some(before),
            no_way_back,
        });
        (site.vm, site.under) = (None, None);
        Ok(Outcome::Taken { kept: Some(kept), distrust, changed_bytes })
    }

    fn raise(&mut self, at: &str, point: Option<Attempt>, generation: u64) -> Result<Outcome, Fault> {
        let replica = self.replica(at)?.clone();
        if replica.grant.is_some() {
            self.breaches.push(format!("a replica at {at} was raised while it takes epochs"));
        }
        let (point, cells) = self.kept(at, point)?;
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
}

/// The order's name.
pub fn word(order: &Order) -> &'static str {
    match order {
        Order::ShutDown { .. } => "shut-down",
        Order::StartMachine { .. } => "start",
        Order::FinalDelta { .. } => "final",
        Order::Settle { .. } => "settle",
        Order::TellChanged { .. } => "tell-changed",
        Order::AppPoint { .. } => "app-point",
        Order::TellGuest { .. } => "tell-guest",
        Order::SetGuest { .. } => "set-guest",
        Order::PrepareReplica { .. } => "prepare",
        Order::TakeOver { .. } => "take-over",
        Order::CloseReplica { .. } => "close",
        Order::Raise { .. } => "raise",
        Order::Release { .. } => "release",
        Order::Lower { .. } => "lower",
        Order::Absorb { .. } => "absorb",
        Order::Standpoint { .. } => "standpoint",
        Order::Fold { .. } => "fold",
        Order::GiveBack { .. } => "give-back",
        Order::DropReplica { .. } => "drop",
        Order::RaiseTest { .. } => "raise-test",
        Order::LowerTest { .. } => "lower-test",
        Order::ServeView { .. } => "serve",
        Order::EndView { .. } => "end-view",
        Order::ListPoints { .. } => "list-points",
        Order::PinPoint { .. } => "pin-point",
        Order::AddPoint { .. } => "add-point",
        Order::DiffPoints { .. } => "diff-points",
        Order::Verify { .. } => "verify",
    }
}
