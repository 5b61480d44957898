//! Tends a replica's history after each point, aside: which points stay, and the indexes over them.
//!
//! ```text
//!   seal ─► acknowledge ─► begin ─► step, step, … until nothing is left to do    (a blocking thread, one at a time)
//! ```
//! A step that fails is tried again after the next point: nothing depends on it but space and speed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use component::clock::now_ms;
use protocol::retention::Space;
use protocol::{Attempt, ItemId, Retention};
use replica::{Did, Replica};
use tokio::task::JoinHandle;

/// What is going on for one item.
#[derive(Default)]
pub(crate) struct Tending {
    task: Mutex<Option<JoinHandle<()>>>,
    ended: Arc<AtomicBool>,
}

impl Tending {
    /// Begins, unless it is going on already or was ended for good. `keep` stays whatever the policy says.
    pub(crate) fn begin(&self, item: ItemId, replica: &Arc<Replica>, keep: Vec<Attempt>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_some_and(|task| !task.is_finished()) || self.ended.load(Ordering::Acquire) {
            return;
        }
        let (replica, ended) = (replica.clone(), self.ended.clone());
        *task = Some(tokio::task::spawn_blocking(move || run(&item, &replica, &keep, &ended)));
    }

    /// Lets nothing begin any more, and waits for what is going on: it uses the replica no longer then.
    pub(crate) async fn end(&self) {
        self.ended.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::warn!("tending a replica ended with a failure of its own");
        }
    }
}

fn run(item: &ItemId, replica: &Replica, keep: &[Attempt], ended: &AtomicBool) {
    let policy = Retention::default();
    while !ended.load(Ordering::Acquire) {
        match replica.tend(&policy, now_ms(), keep) {
            Ok(tended) => {
                if tended.space != Space::Enough {
                    tracing::warn!(%item, tended.journal_bytes, ?tended.space, "the history's space runs short");
                }
                if tended.did == Did::Nothing {
                    return;
                }
                tracing::debug!(%item, ?tended.did, "tended a replica");
            }
            Err(error) => {
                tracing::warn!(%item, %error, "the history of a replica could not be tended");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use protocol::epoch::{Basis, DiskSize};
    use protocol::{EpochHeader, Lineage, PointKind};
    use replica::{Content, DiskHome, DiskRecord, Payload, Place, Spec, Write, open_inside};

    #[tokio::test]
    async fn after_a_point_old_ones_go_aside_but_those_that_are_needed() {
        let directory = tempfile::tempdir().unwrap();
        let (lineage, item): (Lineage, ItemId) = (Lineage::fresh(), "web01".parse().unwrap());
        let disk = DiskRecord { key: "disk0".parse().unwrap(), size: 1 << 20, home: DiskHome::Inside };
        let place = Place { directory: directory.path().join("r"), retention: directory.path().join("j") };
        let disks = vec![DiskSize { disk: disk.key.clone(), size: disk.size }];
        let spec = Spec { item: item.clone(), lineage, disks: vec![disk], content: Content::Empty };
        let replica = Arc::new(Replica::create(&place, &spec, &open_inside).unwrap());
        let at = |number| Attempt { generation: 1, number };
        let now = now_ms();
        // One every ten minutes, up to now: 48 hours of them.
        for number in 1..=288u64 {
            let base = replica.newest().map(|point| point.attempt);
            let (basis, kind) = (Basis::Tracked, PointKind::CrashConsistent);
            let (attempt, disks) = (at(number), disks.clone());
            let header = EpochHeader { lineage, attempt, base, basis, cut_at_ms: 0, disks, kind, expected_bytes: 0 };
            let mut epoch = replica.begin(&header).unwrap();
            let payload = Payload::Data(Bytes::from(vec![number as u8; 4096]));
            epoch.apply(&[Write { disk: 0, offset: 0, payload }]).unwrap();
            epoch.seal(now - (288 - number) * 600_000).unwrap();
        }
        let tending = Tending::default();
        tending.begin(item, &replica, vec![at(5)]);
        let task = tending.task.lock().unwrap().take().unwrap();
        task.await.unwrap();
        let points = replica.points();
        assert_eq!(points[0].attempt, at(5), "what a machine was raised from stays");
        assert_eq!(points[1..].iter().map(|p| p.attempt.number).collect::<Vec<_>>(), (145..=288).collect::<Vec<_>>());
        let mut read = vec![0; 4096];
        replica.view(at(5)).unwrap().read(0, 0, &mut read).unwrap();
        assert_eq!(read, [5; 4096]);
        tending.end().await;
        assert_eq!(Arc::strong_count(&replica), 1);
    }
}
