//! Proving a replica: its journal against its checksums, its disks against the kept hashes (`sockeye verify`).
//!
//! Epochs, views and machines go on meanwhile. First what changed since the last pass is hashed, so that the answer is about
//! the newest point, then everything is read.

use std::sync::Arc;

use component::Ticket;
use protocol::fault::code;
use protocol::order::Outcome;
use protocol::verified::{DAMAGES_MOST, Damage, Verified};
use protocol::{Fault, ItemId};

use crate::item::Item;
use crate::shelf::blocking;

/// Reads everything that is kept of `item`. What is damaged is an outcome, no fault.
pub(crate) async fn verify(item: &Arc<Item>, ticket: &Ticket) -> Result<Outcome, Fault> {
    ticket.step("hashing what changed last", None);
    let (item, ticket) = (item.clone(), ticket.clone());
    blocking(move || {
        let failed = |error: replica::ReplicaError| item.fault(&error);
        let leaves = item.leaves().map_err(failed)?;
        leaves.update(&|| ticket.is_cancelled()).map_err(failed)?;
        let mut told = None;
        let mut progress = |done: u64, all: u64| {
            let percent = (done.saturating_mul(100) / all.max(1)) as u8;
            if told != Some(percent) {
                told = Some(percent);
                ticket.step("reading journal and disks", Some(percent));
            }
            !ticket.is_cancelled()
        };
        let found = replica::verify(&item.replica, &leaves, &mut progress).map_err(failed)?;
        let found = found.ok_or_else(|| cancelled(&item.id()))?;
        let damage_count = found.damage.len() as u64;
        let told = found.damage.into_iter().take(DAMAGES_MOST);
        let verified = Verified {
            at: found.at,
            journal_bytes: found.journal_bytes,
            disk_bytes: found.disk_bytes,
            damage_count,
            damage: told.map(|one| Damage::of(one.disk, &one.extents, one.why, one.newest)).collect(),
        };
        Ok(Outcome::Verified { verified })
    })
    .await
}

fn cancelled(item: &ItemId) -> Fault {
    Fault::new(code::CANCELLED, format!("verifying {item} was cancelled"), "somebody asked for it")
}
