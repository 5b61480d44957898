//! Dialling process servers that cannot dial here: one link per item, kept up while control wants it.
//!
//! ```text
//!   keepings (sender: a process server) ─► per item: dial ─► Offer ─► a session like any other ─► dial again …
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use component::{Dialler, Link, LinkError};
use protocol::ItemId;
use protocol::keeping::Keeping;
use protocol::replication::Peer;
use protocol::session::Message;
use tokio::task::JoinHandle;

use crate::session;
use crate::shelf::Shelf;

/// Pause between a link's end and the next try: it doubles from the first to the last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// The links that are kept up.
pub(crate) struct Dialling {
    dialler: Dialler,
    shelf: Arc<Shelf>,
    tasks: Mutex<BTreeMap<ItemId, Task>>,
}

struct Task {
    sender: Peer,
    task: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dialling {
    pub(crate) fn new(dialler: Dialler, shelf: Arc<Shelf>) -> Dialling {
        Dialling { dialler, shelf, tasks: Mutex::default() }
    }

    /// Dials whom `keepings` name, and nobody else any more.
    pub(crate) fn follow(&self, keepings: &[Keeping]) {
        let wanted: BTreeMap<&ItemId, &Peer> =
            keepings.iter().filter_map(|keeping| Some((&keeping.item, keeping.sender.as_ref()?))).collect();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|item, task| wanted.get(item) == Some(&&task.sender));
        for (item, sender) in wanted {
            tasks.entry(item.clone()).or_insert_with(|| {
                let keeps_up = keep_up(self.dialler.clone(), self.shelf.clone(), item.clone(), sender.clone());
                Task { sender: sender.clone(), task: tokio::spawn(keeps_up) }
            });
        }
    }
}

async fn keep_up(dialler: Dialler, shelf: Arc<Shelf>, item: ItemId, sender: Peer) {
    let mut pause = PAUSE.0;
    loop {
        match offer(&dialler, &item, &sender).await {
            Ok(link) => {
                pause = PAUSE.0;
                // It ends when the sender has left, or when a later session takes its place.
                session::begin(link, &shelf, None).await;
            }
            Err(error) => {
                let fault = error.fault();
                tracing::info!(%item, %sender, code = fault.code, cause = %fault.cause, "a process server cannot be dialled");
                pause = (pause * 2).min(PAUSE.1);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

async fn offer(dialler: &Dialler, item: &ItemId, sender: &Peer) -> Result<Link, LinkError> {
    let mut link = dialler.dial(sender).await?;
    link.outgoing.say(Message::Offer { item: item.clone() }).await?;
    Ok(link)
}
