//! Events: what changed, told to whoever listens. Nobody's progress depends on them.

use protocol::id::ItemId;
use protocol::rest::{ItemView, Job};
use tokio::sync::broadcast;

use crate::{Control, job};

/// Something that changed, as it is now.
#[derive(Debug, Clone)]
pub enum Event {
    /// A job.
    Job(Box<Job>),
    /// An item.
    Item(Box<ItemView>),
}

impl Control {
    /// What changes from now on. A listener that is too slow misses some and is told so.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Notes what a job's running step tells, and passes it on if it is new.
    pub(crate) fn tell(&self, id: i64, detail: Option<String>, percent: Option<u8>) {
        self.tell_all(id, job::Telling { detail, percent, moving: None });
    }

    /// The same with how far it is in bytes.
    pub(crate) fn tell_all(&self, id: i64, told: job::Telling) {
        let before = self.telling().insert(id, told.clone());
        if before.as_ref() != Some(&told) && self.inner.events.receiver_count() > 0 {
            let control = self.clone();
            tokio::spawn(async move { control.announce_job(id).await });
        }
    }

    pub(crate) fn forget_telling(&self, id: i64) {
        self.telling().remove(&id);
    }

    pub(crate) async fn announce_job(&self, id: i64) {
        if self.inner.events.receiver_count() > 0
            && let Ok(job) = self.job(id).await
        {
            let _ = self.inner.events.send(Event::Job(Box::new(job)));
        }
    }

    pub(crate) async fn announce_item(&self, item: &ItemId) {
        if self.inner.events.receiver_count() > 0
            && let Ok(view) = self.item(item).await
        {
            let _ = self.inner.events.send(Event::Item(Box::new(view)));
        }
    }
}
