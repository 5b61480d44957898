//! Tends a replica's history after each point, aside: which points stay, and the indexes over them.
//!
//! ```text
//!   seal ─► acknowledge ─┐
//!   another policy ──────┼─► begin ─► step, step, … until nothing is left to do    (a blocking thread, one at a time)
//!   an epoch did not fit ┘
//! ```
//! A step that fails is tried again after the next point: nothing depends on it but space and speed.
//!
//! # When space runs short
//! The journal may take what the policy's budget says, and never so much that the volume has less left than a reserve
//! for the epoch that is open. Beyond that, points go (the order is [`protocol::retention`]'s), until only the newest and
//! pinned ones are left. An epoch that does not fit even so is not taken: replication waits until history has made room for
//! it. What epochs took lately, or wanted, is part of the reserve.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use component::clock::now_ms;
use protocol::keeping::KeepingStatus;
use protocol::retention::{Budget, Space};
use protocol::{Attempt, Fault, ItemId, Retention};
use replica::{Did, Replica};
use tokio::task::JoinHandle;

use crate::retention;

/// The part of a volume that is kept free for open epochs, unless [`LARGEST_RESERVE`] is less (percent).
const RESERVE_PERCENT: u64 = 5;
const LARGEST_RESERVE: u64 = 1 << 30;
/// From which part of what there is on people are told, where the policy has no budget of its own.
const ALARM_PERCENT: u8 = 80;

/// What is going on for one item.
pub(crate) struct Tending {
    /// The directory on the retention volume whose journal it is.
    journal: PathBuf,
    task: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    turn: Mutex<Turn>,
    wanted: Mutex<Wanted>,
    told: Mutex<Told>,
}

/// Whether a round is going on, and whether another one follows because something changed meanwhile.
#[derive(Default)]
struct Turn {
    running: bool,
    again: bool,
}

/// What a round goes by.
#[derive(Debug, Clone, Default)]
struct Wanted {
    policy: Retention,
    /// Points that stay whatever the policy says.
    keep: Vec<Attempt>,
    /// So much must be left free (bytes), for epochs like those that came or did not fit.
    room_for: u64,
}

impl Shared {
    /// Changes what must be left free. Of `wanted` and `told` neither is ever taken while the other is held.
    fn room(&self, change: impl FnOnce(u64) -> u64) {
        let mut wanted = lock(&self.wanted);
        wanted.room_for = change(wanted.room_for);
    }
}

/// How it went last.
#[derive(Default)]
struct Told {
    budget_bytes: u64,
    space: Option<Space>,
    /// Why the last round failed.
    failed: Option<Fault>,
    /// Why the last epoch was not taken.
    refused: Option<Fault>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tending {
    /// Of a replica whose journal is in the directory `journal`.
    pub(crate) fn new(journal: PathBuf) -> Tending {
        Tending { journal, task: Mutex::default(), shared: Arc::default() }
    }

    /// Begins a round, or has one follow the one that is going on; nothing once it was ended for good. `let_go` gives up
    /// what holds points for convenience only, when space runs out. To be called inside the runtime.
    pub(crate) fn begin(
        &self,
        item: ItemId,
        replica: &Arc<Replica>,
        policy: Retention,
        let_go: impl Fn() + Send + 'static,
    ) {
        lock(&self.shared.wanted).policy = policy;
        let mut task = lock(&self.task);
        if self.shared.ended.load(Ordering::Acquire) {
            return;
        }
        let mut turn = lock(&self.shared.turn);
        if turn.running && task.as_ref().is_some_and(|task| !task.is_finished()) {
            turn.again = true;
            return;
        }
        *turn = Turn { running: true, again: false };
        let (replica, shared, journal) = (replica.clone(), self.shared.clone(), self.journal.clone());
        *task = Some(tokio::task::spawn_blocking(move || {
            loop {
                round(&item, &replica, &journal, &shared, &let_go);
                let mut turn = lock(&shared.turn);
                if !std::mem::take(&mut turn.again) {
                    turn.running = false;
                    return;
                }
            }
        }));
    }

    /// These points stay whatever the policy says, from the next step on.
    pub(crate) fn keep(&self, points: Vec<Attempt>) {
        lock(&self.shared.wanted).keep = points;
    }

    /// An epoch of `bytes` did not fit on the volume: room is made for its before-images from the next round on.
    pub(crate) fn starved(&self, bytes: u64, why: Fault) {
        self.shared.room(|room_for| room_for.max(before_images(bytes)));
        lock(&self.shared.told).refused = Some(why);
    }

    /// An epoch was taken by which the journal grew by `bytes`: the next ones may be as large, less and less probably so.
    pub(crate) fn taken(&self, bytes: u64) {
        self.shared.room(|room_for| (room_for / 8 * 7).max(before_images(bytes)));
        lock(&self.shared.told).refused = None;
    }

    /// How the history of `replica` stands.
    pub(crate) fn status(&self, item: ItemId, replica: &Replica) -> KeepingStatus {
        let (points, oldest) = replica.reach();
        let journal_bytes = replica.journal_bytes();
        let policy = lock(&self.shared.wanted).clone();
        let told = lock(&self.shared.told);
        // Before the first round nothing was told yet.
        let bounded = told.space.is_none().then(|| within(&policy, journal_bytes, &self.journal).ok()).flatten();
        let budget = bounded.as_ref().and_then(|policy| policy.budget).map_or(told.budget_bytes, |budget| budget.bytes);
        KeepingStatus {
            item,
            points,
            oldest_cut_at_ms: oldest.map(|point| point.cut_at_ms),
            journal_bytes,
            budget_bytes: budget,
            space: told.space.unwrap_or_else(|| bounded.map_or(Space::Enough, |policy| policy.space(journal_bytes))),
            fault: told.refused.clone().or_else(|| told.failed.clone()),
        }
    }

    /// Waits until nothing is going on.
    #[cfg(test)]
    pub(crate) async fn done(&self) {
        let task = lock(&self.task).take();
        if let Some(task) = task {
            task.await.unwrap();
        }
    }

    /// Lets nothing begin any more, and waits for what is going on: it uses the replica no longer then.
    pub(crate) async fn end(&self) {
        self.shared.ended.store(true, Ordering::Release);
        let task = lock(&self.task).take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::warn!("tending a replica ended with a failure of its own");
        }
    }
}

/// What the before-images of an epoch of `bytes` may take, with their index.
fn before_images(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 8).saturating_add(1 << 20)
}

/// The policy with the budget that it has on this volume now.
fn within(wanted: &Wanted, journal_bytes: u64, journal: &Path) -> std::io::Result<Retention> {
    let room = retention::room(journal)?;
    let reserve = (room.capacity_bytes / 100 * RESERVE_PERCENT).min(LARGEST_RESERVE).max(wanted.room_for);
    let there = journal_bytes.saturating_add(room.free_bytes).saturating_sub(reserve);
    let budget = wanted.policy.budget.unwrap_or(Budget { bytes: u64::MAX, alarm_percent: ALARM_PERCENT });
    let budget = Some(Budget { bytes: budget.bytes.min(there), ..budget });
    Ok(Retention { budget, ..wanted.policy.clone() })
}

/// Steps until nothing is left to do.
fn round(item: &ItemId, replica: &Replica, journal: &Path, shared: &Shared, let_go: &dyn Fn()) {
    let mut gave_up = false;
    while !shared.ended.load(Ordering::Acquire) {
        let wanted = lock(&shared.wanted).clone();
        let policy = within(&wanted, replica.journal_bytes(), journal).unwrap_or_else(|error| {
            tracing::warn!(%item, %error, "the retention volume does not tell what room it has");
            wanted.policy.clone()
        });
        match replica.tend(&policy, now_ms(), &wanted.keep) {
            Ok(tended) => {
                let mut told = lock(&shared.told);
                if told.space != Some(tended.space) && tended.space != Space::Enough {
                    tracing::warn!(%item, tended.journal_bytes, ?tended.space, "the history's space runs short");
                }
                (told.space, told.failed) = (Some(tended.space), None);
                told.budget_bytes = policy.budget.map_or(0, |budget| budget.bytes);
                if tended.did == Did::Nothing {
                    drop(told);
                    if tended.space != Space::Exceeded || gave_up {
                        return;
                    }
                    let_go();
                    gave_up = true;
                }
                tracing::debug!(%item, ?tended.did, "tended a replica");
            }
            Err(error) => {
                tracing::warn!(%item, %error, "the history of a replica could not be tended");
                lock(&shared.told).failed = Some(error.fault(item));
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
