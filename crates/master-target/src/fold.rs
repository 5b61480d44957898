//! Folding a machine into the disks that its replica was made around: its owner has the original disks back.
//!
//! ```text
//!   overlay ─► view of the newest point ─► replica ─► disks        as it was raised; pinned points are written out as files
//!   overlay ─────────────────────────────────────────► disks        stand_on; the record says folded, the replica is closed
//!                                           machine ─► disks        fold; then the journal is deleted
//! ```
//! # Always true
//! - The replica is closed before anything but the engine writes its disks, and is never opened again: from the record
//!   on there is no history here. (The other site's goes on.)
//! # If power fails
//! Before the record: everything is as it was, the view is served again. After it: the machine stands on its disks, the
//! order is given again and finishes.

use std::sync::Arc;

use component::Ticket;
use protocol::fault::code;
use protocol::machine::{DiskSource, DiskSpec};
use protocol::order::Outcome;
use protocol::{Fault, ItemId};
use replica::DiskHome;

use crate::export;
use crate::item::Item;
use crate::made;
use crate::record::Folded;
use crate::shelf::{Shelf, blocking};
use crate::standpoint::standpoint;
use crate::view::Use;

/// Folds the machine raised from `item`, whose gate the caller holds; goes on with a fold when there is only a record.
pub(crate) async fn fold(
    shelf: &Shelf,
    id: &ItemId,
    item: Option<Arc<Item>>,
    ticket: &Ticket,
) -> Result<Outcome, Fault> {
    let folded = match item {
        Some(item) => begin(shelf, &item, ticket).await?,
        None => shelf.folded(id).ok_or_else(|| {
            let message = format!("there is no replica of {id} here");
            Fault::new(code::REPLICA_ABSENT, message, "nothing was raised from one")
        })?,
    };
    ticket.step("writing the overlays into the machine's own disks", None);
    shelf.end_programs(id, &folded.record.disks).await?;
    shelf.platform.fold(&folded.record.machine, folded.lineage).await?;
    shelf.delete_journal(id).await?;
    made::keep(shelf, id)?;
    Ok(Outcome::Folded { position: folded.record.position, exported: folded.record.exported })
}

/// What is left of an item whose replica is gone.
pub(crate) struct Left {
    pub(crate) lineage: protocol::Lineage,
    pub(crate) record: Folded,
}

/// Puts the machine on its own disks and closes the replica for good.
async fn begin(shelf: &Shelf, item: &Arc<Item>, ticket: &Ticket) -> Result<Left, Fault> {
    // Nothing comes to stand on the replica beside the machine from here on.
    let _turn = item.beside.lock().await;
    let (id, record) = (item.id(), item.record());
    let refuse = |why: &str| Fault::new(code::NOT_FOLDED, format!("{id} cannot be folded here"), why);
    let raised = record.raised.ok_or_else(|| refuse("its machine does not stand on a replica at this site"))?;
    if record.grant.is_some() {
        return Err(refuse("its replica takes epochs"));
    }
    if item.replica.newest().map(|newest| newest.attempt) != Some(raised.point) {
        return Err(refuse(
            "its machine was started from a point that is not the newest, so its disks hold something else",
        ));
    }
    if record.test.is_some() || !record.views.is_empty() {
        return Err(refuse("a test or a view stands on its replica, which would go").with_remedy(format!(
            "end it: sockeye cleanup {id}, or sockeye view {id} --end NUMBER; then: sockeye fold {id}"
        )));
    }
    let mut own = Vec::new();
    for disk in item.replica.disks() {
        let DiskHome::Outside { path, format } = &disk.home else {
            return Err(refuse("the disks beneath it are the replica's, not the platform's own"));
        };
        let source = DiskSource::Own { path: path.clone(), format: *format };
        own.push(DiskSpec { key: disk.key.clone(), size: disk.size, source });
    }
    let exported = export::pinned(shelf, item, ticket).await?;
    let position = standpoint(item).await?;
    shelf.platform.stand_on(&raised.spec.name, &own).await?;
    let disks = own.into_iter().map(|disk| disk.key).collect();
    let folded = Folded { machine: raised.spec.name, position, disks, exported };
    item.change(|record| (record.raised, record.folded) = (None, Some(folded.clone())))?;
    shelf.withdraw_view(item, raised.point, Use::Raised).await;
    shelf.bury(&id);
    item.end_tending().await;
    let closed = item.clone();
    blocking(move || {
        closed.rest()?;
        closed.replica.close();
        Ok(())
    })
    .await?;
    Ok(Left { lineage: record.lineage, record: folded })
}
