//! What lies beneath a machine that was raised from a replica, known in hashes: a compare reads here only what the machine
//! has written since.
//!
//! ```text
//!   kept leaves of the replica's newest point (master target of this site)
//!     with all that changed since (standpoint ∪ overlay) taken out ─► leaves of the cut ─► compared with the other site
//! ```
//! What changed counts as different from whatever the other site has: it is sent, and read once. Where nothing is known, or
//! the master target leaves, the disks are read as ever: nothing depends on it but the reading.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use component::link::LinkError;
use futures::FutureExt;
use futures::future::BoxFuture;
use platforms::Cut;
use protocol::epoch::DiskSize;
use protocol::leaf::{Leaf, Recipe, SPOILT_LEAF};
use protocol::order::Replication;
use protocol::position::Changes;
use protocol::session::Message;
use protocol::{Attempt, BlockMap, DiskKey, Extent, Lineage};
use tokio::sync::Mutex;
use transfer::{Known, Reader};

use crate::reach::Reach;

/// The leaves of a cut, as far as they are known without reading it.
pub(crate) struct Beneath {
    /// Taken while it is asked: an answer that nobody waited for would be taken for another. None when it is over.
    session: Mutex<Option<transfer::Session>>,
    disks: BTreeMap<u16, Disk>,
    /// How the leaves are made.
    pub(crate) recipe: Recipe,
    /// Equals no block's, at either end.
    unlike: Leaf,
    /// Counts what the master target read.
    read: Arc<AtomicU64>,
}

/// One of our disks.
struct Disk {
    /// Its index at the master target.
    there: u16,
    changed: BlockMap,
}

impl Beneath {
    /// Asks the master target of this site; none where it knows nothing that holds for this cut.
    pub(crate) async fn consult(
        reach: &Reach,
        wish: &Replication,
        cut: &Cut,
        readers: &[Reader],
        read: Arc<AtomicU64>,
    ) -> Option<Beneath> {
        let changed = changed(wish, cut)?;
        let peer = wish.beneath.as_ref()?;
        match Beneath::ask(reach, wish, peer).await {
            Ok((session, there, recipe)) => {
                let disks = readers.iter().map(|reader| {
                    let place = there.iter().position(|disk| (&disk.disk, disk.size) == (&reader.key, reader.size))?;
                    let changed = changed.get(&reader.key).cloned().unwrap_or_default();
                    let changed = changed.aligned(recipe.bytes.bytes(), reader.size);
                    Some((reader.disk, Disk { there: u16::try_from(place).ok()?, changed }))
                });
                let disks = disks.collect::<Option<_>>()?;
                // Whoever would make a block with this hash has to find a preimage.
                let unlike = recipe.leaf(Lineage::fresh().0.as_bytes());
                Some(Beneath { session: Mutex::new(Some(session)), disks, recipe, unlike, read })
            }
            Err(error) => {
                let fault = error.fault();
                tracing::info!(item = %wish.item, %fault, cause = %fault.cause, "its disks will be read to be compared");
                None
            }
        }
    }

    async fn ask(
        reach: &Reach,
        wish: &Replication,
        peer: &protocol::replication::Peer,
    ) -> Result<(transfer::Session, Vec<DiskSize>, Recipe), LinkError> {
        let mut session = transfer::Session::over(reach.dialler.dial(peer).await?);
        let consult =
            Message::Consult { item: wish.item.clone(), token: wish.token.clone(), generation: wish.generation };
        match session.ask(consult, "consulted").await? {
            Message::Consulted { disks, leaves } => Ok((session, disks, leaves)),
            other => Err(session.other_than(&other, "consulted")),
        }
    }

    async fn look(&self, disk: u16, extent: Extent) -> Option<Vec<Leaf>> {
        let Disk { there, changed } = self.disks.get(&disk)?;
        let mut slot = self.session.lock().await;
        let mut session = slot.take()?;
        let (mut leaves, read) = match session.leaves(*there, extent).await {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(%error, "what lies beneath is told no longer; the disks are read");
                return None;
            }
        };
        *slot = Some(session);
        drop(slot);
        self.read.fetch_add(read, Ordering::Relaxed);
        if leaves.len() != self.recipe.count(extent.length) {
            return None;
        }
        #[cfg(feature = "sabotage")]
        if protocol::sabotage::is("changed-since-raised-ignored") {
            return Some(leaves);
        }
        let here: BlockMap = [extent].into_iter().collect();
        for piece in changed.intersection(&here).pieces(self.recipe.bytes.bytes()) {
            leaves[self.recipe.count(piece.offset - extent.offset)] = self.unlike;
        }
        leaves.iter_mut().filter(|leaf| **leaf == SPOILT_LEAF).for_each(|leaf| *leaf = self.unlike);
        Some(leaves)
    }
}

impl Known for Beneath {
    fn leaves(&self, disk: u16, extent: Extent) -> BoxFuture<'_, Option<Vec<Leaf>>> {
        self.look(disk, extent).boxed()
    }
}

/// In which blocks the cut may differ from the newest point of the replica that the machine was raised from; none where
/// that is not known.
fn changed(wish: &Replication, cut: &Cut) -> Option<BTreeMap<DiskKey, BlockMap>> {
    let since_raised = cut.since == Some(Attempt::start_of(wish.generation));
    let standpoint = wish.standpoint.as_ref().filter(|_| since_raised)?;
    match standpoint.changes.union(&cut.changes) {
        Changes::Known(maps) => Some(maps),
        Changes::Unknown(_) => None,
    }
}
