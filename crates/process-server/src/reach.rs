//! How a process server comes by a link to a master target: it dials, or is dialled where the target cannot be.
//!
//! ```text
//!   Target::Dial(peer)   ─► dialler ─────────────────────────────► link
//!   Target::Await(name)  ─► offers ◄─ Offer{item} ◄─ door ◄─ target   ─┘ taken when there is something to send
//! ```
//!
//! # Always true
//! - A link is used for an item only if the master target that control named is at its other end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use component::link::{Dialler, Door, Link, LinkError};
use protocol::ItemId;
use protocol::replication::Target;
use protocol::session::Message;
use tokio::sync::Notify;

/// How long somebody who dialled may take to say what for.
const OFFER: Duration = Duration::from_secs(10);
/// How long a master target that dials is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Offers that wait. More are of items that nobody replicates.
const MOST_OFFERS: usize = 10_000;

/// Both ways.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) dialler: Dialler,
    pub(crate) offers: Arc<Offers>,
}

impl Reach {
    /// A link to the master target.
    pub(crate) async fn link(&self, item: &ItemId, target: &Target) -> Result<Link, LinkError> {
        match target {
            Target::Dial(peer) => self.dialler.dial(peer).await,
            Target::Await(name) => {
                let taken = tokio::time::timeout(PATIENCE, self.offers.take(item, name)).await;
                taken.map_err(|_| LinkError::Io { peer: name.clone(), source: std::io::ErrorKind::TimedOut.into() })
            }
        }
    }
}

/// Links of master targets that dialled, by what they take epochs of.
#[derive(Default)]
pub(crate) struct Offers {
    waiting: Mutex<BTreeMap<ItemId, Link>>,
    came: Notify,
}

impl Offers {
    /// Takes what comes through a door, for ever.
    pub(crate) async fn accept(self: Arc<Offers>, door: Option<Door>) {
        let Some(mut door) = door else { return std::future::pending().await };
        while let Some(link) = door.next().await {
            let offers = self.clone();
            tokio::spawn(async move { offers.hear(link).await });
        }
    }

    async fn hear(&self, mut link: Link) {
        let said = tokio::time::timeout(OFFER, link.incoming.message("an offer")).await;
        let Ok(Ok(Message::Offer { item })) = said else {
            tracing::info!(peer = link.incoming.peer(), "somebody dialled and offered nothing");
            return;
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < MOST_OFFERS || waiting.contains_key(&item) {
            // A later offer of the same item takes the place of one that may be dead by now.
            waiting.insert(item, link);
            self.came.notify_waiters();
        }
    }

    /// The link over which the master target of that name offered to take epochs of `item`.
    async fn take(&self, item: &ItemId, from: &str) -> Link {
        loop {
            let came = self.came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            let offered = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(item);
            match offered {
                Some(link) if link.is_from(from) => return link,
                Some(link) => {
                    tracing::warn!(%item, peer = link.incoming.peer(), from, "another component offered to take its epochs");
                }
                None => came.await,
            }
        }
    }
}
