//! How a replication stands, as it is told to control.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::order::{AppStatus, Moved, Progress, Replication, ReplicationPhase, ReplicationStatus};
use protocol::pace::Pace;

/// The status, to be looked at or changed.
pub(crate) fn lock(status: &Mutex<ReplicationStatus>) -> MutexGuard<'_, ReplicationStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// That of a replication that begins.
pub(crate) fn fresh(wish: &Replication) -> ReplicationStatus {
    ReplicationStatus {
        item: wish.item.clone(),
        generation: wish.generation,
        phase: ReplicationPhase::Connecting,
        newest: None,
        sync: None,
        distrust: None,
        first: Progress::default(),
        first_moved: None,
        moved: Moved::default(),
        epochs: 0,
        pauses_us: Vec::new(),
        rpo_ms: Vec::new(),
        pace: Pace::default(),
        fault: None,
        capped: None,
        app: AppStatus::default(),
    }
}

/// Notes how long the guest stood still for a cut.
pub(crate) fn note_pause(status: &mut ReplicationStatus, paused: Duration) {
    push_bounded(&mut status.pauses_us, paused.as_micros() as u64, 64);
}

/// Notes how old the newest point was when another one took its place.
pub(crate) fn note_age(status: &mut ReplicationStatus, age_ms: u64) {
    push_bounded(&mut status.rpo_ms, age_ms, 256);
}

fn push_bounded(list: &mut Vec<u64>, value: u64, most: usize) {
    if list.len() >= most {
        list.remove(0);
    }
    list.push(value);
}
