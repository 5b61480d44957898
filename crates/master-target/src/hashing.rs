//! Keeps the hashes of an item's replica near its newest point, aside.
//!
//! ```text
//!   seal ─► acknowledge ─► begin ─► a pass over what changed since the last one    (a blocking thread, one at a time)
//! ```
//! What changes every second is hashed once a minute: a pass costs some syncs of the retention volume, which epochs need
//! more. Whoever wants the hashes of the newest point has the rest hashed then. A pass that fails is made again after
//! another point; until then the hashes stand for none, and nobody relies on them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::ItemId;
use protocol::leaf::LeafSize;
use replica::{Leaves, Replica, ReplicaError};
use tokio::task::JoinHandle;

/// From the end of a pass to the next one (guessed).
const EVERY: Duration = Duration::from_secs(60);

/// What is going on for one item.
#[derive(Default)]
pub(crate) struct Hashing {
    leaves: Mutex<Option<Arc<Leaves>>>,
    /// Of which size they are to be.
    size: Mutex<LeafSize>,
    last: Mutex<Option<Instant>>,
    task: Mutex<Option<JoinHandle<()>>>,
    ended: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hashing {
    /// The replica's leaves. Blocks.
    pub(crate) fn leaves(&self, replica: &Replica) -> Result<Arc<Leaves>, ReplicaError> {
        let mut leaves = lock(&self.leaves);
        match &*leaves {
            Some(leaves) => Ok(leaves.clone()),
            None => Ok(leaves.insert(Arc::new(Leaves::open(replica, *lock(&self.size))?)).clone()),
        }
    }

    /// Leaves are to be of that size: the next pass, which need not wait its time, makes those that are not anew.
    pub(crate) fn want(&self, size: LeafSize) {
        let leaves = lock(&self.leaves);
        if std::mem::replace(&mut *lock(&self.size), size) != size {
            if let Some(leaves) = &*leaves {
                leaves.want(size);
            }
            *lock(&self.last) = None;
        }
    }

    /// Begins a pass, unless one goes on, the last one ended just now, or it was ended for good.
    pub(crate) fn begin(self: &Arc<Self>, item: ItemId, replica: &Arc<Replica>) {
        let mut task = lock(&self.task);
        let at_work = task.as_ref().is_some_and(|task| !task.is_finished());
        let rested = lock(&self.last).is_none_or(|last| last.elapsed() >= EVERY);
        if at_work || !rested || self.ended.load(Ordering::Acquire) {
            return;
        }
        let (this, replica) = (self.clone(), replica.clone());
        *task = Some(tokio::task::spawn_blocking(move || {
            let stop = || this.ended.load(Ordering::Acquire);
            match this.leaves(&replica).and_then(|leaves| leaves.update(&stop)) {
                // There is no point yet: the first one is hashed when it comes.
                Ok(hashed) if hashed.at.is_none() => return,
                Ok(hashed) if hashed.spoilt > 0 => {
                    tracing::error!(%item, blocks = hashed.spoilt, "blocks of the replica are damaged: sockeye verify {item}");
                }
                Ok(hashed) => tracing::debug!(%item, hashed.read, "hashed what changed"),
                Err(error) => tracing::warn!(%item, %error, "the hashes of a replica could not be kept"),
            }
            *lock(&this.last) = Some(Instant::now());
        }));
    }

    /// Lets go of the point that the hashes stand for, and of the journal's files that it holds, until the next pass.
    pub(crate) fn let_go(&self) {
        if let Some(leaves) = &*lock(&self.leaves) {
            leaves.let_go();
        }
        *lock(&self.last) = Some(Instant::now());
    }

    /// Lets nothing begin any more, waits for what is going on, and lets go of the leaves.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let task = lock(&self.task).take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::warn!("hashing a replica ended with a failure of its own");
        }
        lock(&self.leaves).take();
    }
}
