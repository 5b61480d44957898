//! Sequences: which steps an operation takes on an item, in order.
//!
//! ```text
//!   unplanned   stop? · end replication · close · raise (paused) · AUTHORISE · release
//!   planned     learn? · converge · shut down · last delta · end replication · close · raise · AUTHORISE · release · let go
//!   change      discard · raise (paused) · AUTHORISE · release
//!   reprotect   settle · take over · standpoint · replicate · first copy
//!   failback    reprotect (unless protected) · converge · wait for Complete · planned
//!   elsewhere   relocate? · make disks · standpoint · replicate (full), in the place of settle · take over
//!   commit      absorb · COMMIT · fold (at home)
//!
//!   a move, and a test, ends with the guest's addresses where some were given
//! ```
//!
//! `S` is the side where the machine runs, `T` the other one: no sequence exists for one direction only. Capitals mark
//! the point of no return.

use protocol::guest::Place;
use protocol::operation::Landing;
use protocol::order::Sync;
use protocol::rest::{FailoverKind, Operation};
use protocol::stage::{Side, Stage};

use crate::beside::View;
use crate::guest_network;
use crate::item::Item;
use crate::stage_table::Event;
use crate::work::Work;

/// How long a guest may take to shut down where nobody said.
pub const SHUT_DOWN_MS: u64 = 60_000;

/// The steps of `protect`; the item does not exist yet.
pub fn protect(operation: &Operation) -> Vec<Work> {
    let Operation::Protect { machine, from, to, interval_ms, policy, networks, addresses } = operation else {
        return vec![];
    };
    let (machine, from, to, networks) = (machine.clone(), from.clone(), to.clone(), networks.clone());
    let (interval_ms, policy) = (*interval_ms, policy.clone());
    let learnt = (!addresses.is_empty()).then_some(Work::LearnGuest);
    let addresses = addresses.clone();
    let created = Work::CreateItem { machine, from, to, interval_ms, policy, networks, addresses };
    let begun = [created].into_iter().chain(learnt);
    begun
        .chain([
            Work::PrepareReplica { at: Side::Away },
            Work::Replicate { from: Side::Home, sync: Sync::Full, offline: false },
            Work::AwaitFirst { from: Side::Home, then: Some(Event::FirstPoint) },
        ])
        .collect()
}

/// The steps of any other operation that is a job of its own.
pub fn steps(item: &Item, operation: &Operation) -> Vec<Work> {
    let here = item.stage.runs_at();
    match operation {
        Operation::Protect { .. } => protect(operation),
        Operation::Unprotect { delete } => unprotect(item, *delete),
        Operation::Failover { kind, point } => failover(item, *kind, *point),
        Operation::ChangePoint { point } => change_point(item, *point),
        Operation::TestFailover { point, network } => {
            let raised = Work::RaiseTest { at: item.keeper(), point: *point, network: network.clone() };
            [raised].into_iter().chain(guest_network::steps(item, Place::Test)).collect()
        }
        Operation::Cleanup {} => end_test(item, true),
        Operation::View { point, writable, .. } => {
            let served = beside(item, operation).map(|at| Work::ServeView { at, point: *point, writable: *writable });
            served.into_iter().collect()
        }
        Operation::Verify { .. } => beside(item, operation).map(|at| Work::Verify { at }).into_iter().collect(),
        Operation::EndView { view } => end_views(item, |other| other.number == *view, true),
        Operation::Commit { keep_history } => commit(item, *keep_history),
        Operation::Fold {} => vec![
            Work::Stage { event: Event::Fold, undo: None },
            Work::Fold { at: item.stage.runs_at(), required: true },
        ],
        Operation::Reprotect { sync, shut_down, no_way_back, landing } => {
            let mut steps = vec![Work::Stage { event: Event::Reprotect, undo: Some(Event::UndoneUnprotected) }];
            match landing {
                Some(landing) => steps.extend(create(item, landing, false)),
                None => steps.extend(reverse(here, *sync, *shut_down, false, *no_way_back)),
            }
            steps.push(Work::AwaitFirst { from: here, then: Some(Event::FirstPoint) });
            steps
        }
        Operation::Failback { .. } => failback(item, operation),
        Operation::Cancel {} => take_back(item),
        Operation::Complete { .. } => vec![],
    }
}

fn failover(item: &Item, kind: FailoverKind, point: Option<protocol::Attempt>) -> Vec<Work> {
    let from = item.stage.runs_at();
    let to = from.other();
    let generation = item.generation + 1;
    let mut steps = vec![Work::Stage { event: Event::Failover, undo: Some(Event::UndoneProtected) }];
    match kind {
        FailoverKind::Planned { shut_down_timeout_ms, then_power_off, max_downtime_ms } => {
            steps.extend(guest_network::learnt_first(item));
            steps.push(Work::Converge { max_downtime_ms });
            steps.push(Work::ShutDown { at: from, timeout_ms: shut_down_timeout_ms, then_power_off });
            steps.extend(completing(item));
        }
        FailoverKind::Unplanned { shut_down } => steps.extend([
            Work::StopFirst { at: from, how: shut_down },
            Work::StopReplication,
            Work::CloseReplica { at: to },
            Work::Raise { at: to, generation, point },
            Work::Authorise { at: to, generation, raised: true, planned: false },
            Work::Release { at: to },
            Work::Stage { event: Event::Started, undo: None },
        ]),
    }
    if matches!(kind, FailoverKind::Unplanned { .. }) {
        steps.extend(guest_network::steps(item, guest_network::place(to)));
    }
    steps
}

/// The machine that was raised makes room for one from another point. That one writes a generation of its own: nothing
/// that was ever said of the first one's disks can be mistaken for something said of the new ones.
fn change_point(item: &Item, point: Option<protocol::Attempt>) -> Vec<Work> {
    let at = item.stage.runs_at();
    let generation = item.generation + 1;
    let stands_on = item.last_move.as_ref().and_then(|last| last.point);
    let mut steps = vec![
        Work::Discard { at, generation: item.generation, point: stands_on },
        Work::Raise { at, generation, point },
        Work::Authorise { at, generation, raised: true, planned: false },
        Work::Release { at },
    ];
    steps.extend(guest_network::steps(item, guest_network::place(at)));
    steps
}

/// From the machine standing still to the move being ready for commit.
fn completing(item: &Item) -> Vec<Work> {
    let from = item.stage.runs_at();
    let to = from.other();
    let generation = item.generation + 1;
    let mut steps = vec![
        Work::FinalDelta { at: from },
        Work::StopReplication,
        Work::CloseReplica { at: to },
        Work::Raise { at: to, generation, point: None },
        Work::Authorise { at: to, generation, raised: true, planned: true },
        Work::Release { at: to },
        Work::LetGo { at: from, required: false },
        Work::Stage { event: Event::Started, undo: None },
    ];
    steps.extend(guest_network::steps(item, guest_network::place(to)));
    steps
}

/// From nothing being replicated to epochs on their way to the other side.
fn reverse(from: Side, sync: Sync, shut_down: bool, offline: bool, no_way_back: bool) -> Vec<Work> {
    vec![
        Work::Settle { at: from.other(), shut_down },
        Work::TakeOver { at: from.other(), no_way_back },
        Work::Standpoint { at: from },
        Work::Replicate { from, sync, offline },
    ]
}

/// The same where nothing of the machine is: everything travels.
fn create(item: &Item, landing: &Landing, offline: bool) -> Vec<Work> {
    let from = item.stage.runs_at();
    let mut steps = Vec::new();
    if let Some(to) = landing.site.as_ref().filter(|site| **site != item.home) {
        steps.push(Work::Relocate { from: item.home.clone(), to: to.clone() });
    }
    steps.extend([
        Work::MakeDisks { at: from.other(), datastore: landing.datastore.clone() },
        Work::Standpoint { at: from },
        Work::Replicate { from, sync: Sync::Full, offline },
    ]);
    steps
}

fn failback(item: &Item, operation: &Operation) -> Vec<Work> {
    let Operation::Failback {
        sync,
        offline,
        complete,
        shut_down,
        shut_down_timeout_ms,
        then_power_off,
        no_way_back,
        max_downtime_ms,
        landing,
        ..
    } = operation
    else {
        return vec![];
    };
    let (sync, offline, complete, shut_down) = (*sync, *offline, *complete, *shut_down);
    let (shut_down_timeout_ms, then_power_off) = (*shut_down_timeout_ms, *then_power_off);
    let (no_way_back, max_downtime_ms) = (*no_way_back, *max_downtime_ms);
    let from = item.stage.runs_at();
    let protected = matches!(item.stage, Stage::Protected { .. });
    let undo = if protected { Event::UndoneProtected } else { Event::UndoneUnprotected };
    let stop = Work::ShutDown { at: from, timeout_ms: shut_down_timeout_ms, then_power_off };
    let mut steps = vec![Work::Stage { event: Event::Failback, undo: Some(undo) }];
    // With the machine off there is no phase 1 to wait in: it runs through (H9).
    let waits = !complete && !offline;
    if offline {
        steps.push(stop.clone());
    }
    if !protected {
        match landing {
            Some(landing) => steps.extend(create(item, landing, offline)),
            None => steps.extend(reverse(from, sync, shut_down, offline, no_way_back)),
        }
        steps.push(Work::AwaitFirst { from, then: None });
    }
    if !offline {
        steps.push(Work::Converge { max_downtime_ms });
    }
    steps.push(Work::Stage { event: Event::Converged, undo: None });
    if waits {
        steps.push(Work::WaitForComplete { max_downtime_ms });
    }
    steps.push(Work::Stage { event: Event::Complete, undo: None });
    if !offline {
        steps.push(stop);
    }
    steps.extend(completing(item));
    steps
}

fn commit(item: &Item, keep_history: bool) -> Vec<Work> {
    let old = item.stage.runs_at().other();
    let mut steps = Vec::new();
    if absorbs(item) {
        steps.push(Work::Absorb { at: old });
    }
    steps.push(Work::Stage { event: Event::Commit, undo: None });
    if !keep_history && folds(item) {
        steps.push(Work::Fold { at: Side::Home, required: false });
    }
    steps
}

/// Whether there are disks of its own for the machine to be folded into: only at home.
pub fn folds(item: &Item) -> bool {
    item.stage.runs_at() == Side::Home && item.copy(Side::Home).raised
}

/// Whether commit removes a machine at the side that lost it: one that ran there on overlays and was stopped in order.
pub fn absorbs(item: &Item) -> bool {
    let old = item.stage.runs_at().other();
    item.copy(old).raised && item.last_move.as_ref().is_some_and(|last| last.planned)
}

/// Cancel of a move that is not committed: the machine goes back, what it wrote is kept as a point, and the side that
/// it leaves becomes its replica again.
fn take_back(item: &Item) -> Vec<Work> {
    let leaves = item.stage.runs_at();
    let back = leaves.other();
    let mut steps = vec![
        Work::ShutDown { at: leaves, timeout_ms: SHUT_DOWN_MS, then_power_off: true },
        Work::LetGo { at: leaves, required: true },
        Work::Authorise { at: back, generation: item.generation + 1, raised: false, planned: false },
        Work::StartAgain { at: back },
        Work::Stage { event: Event::UndoneUnprotected, undo: None },
        // From here on a failure leaves an item that is not protected, and reprotect takes over whatever stands there.
        Work::Lower { at: leaves },
        Work::Stage { event: Event::Reprotect, undo: Some(Event::UndoneUnprotected) },
    ];
    // Both copies went on since they were equal, one of them perhaps unseen: nothing less than a compare is honest.
    steps.extend(reverse(back, Sync::Compare, false, false, false));
    steps.extend(guest_network::steps(item, guest_network::place(back)));
    steps.push(Work::AwaitFirst { from: back, then: Some(Event::FirstPoint) });
    steps
}

/// The side at which something is to stand beside the item, if the operation is about that.
pub fn beside(item: &Item, operation: &Operation) -> Option<Side> {
    match operation {
        Operation::TestFailover { .. } => Some(item.keeper()),
        // A site that is none of the item's is refused by a check.
        Operation::View { site, .. } | Operation::Verify { site } => {
            Some(item.keeper_at(site.as_ref()).unwrap_or(item.keeper()))
        }
        Operation::Cleanup {} => Some(item.test.as_ref().map_or(item.keeper(), |test| test.side)),
        Operation::EndView { view } => Some(item.view(*view).map_or(item.keeper(), |view| view.side)),
        _ => None,
    }
}

fn end_test(item: &Item, required: bool) -> Vec<Work> {
    item.test.iter().map(|test| Work::LowerTest { at: test.side, required }).collect()
}

fn end_views(item: &Item, which: impl Fn(&View) -> bool, required: bool) -> Vec<Work> {
    let views = item.views.iter().filter(|view| which(view));
    views.map(|view| Work::EndView { at: view.side, view: view.number, required }).collect()
}

/// What stands beside the item goes with it.
fn unprotect(item: &Item, delete: bool) -> Vec<Work> {
    let mut steps = end_test(item, false);
    steps.extend(end_views(item, |_| true, false));
    steps.push(Work::StopReplication);
    if delete {
        steps.push(Work::DropReplica { at: item.stage.runs_at().other() });
    }
    steps.push(Work::RemoveItem);
    steps
}
