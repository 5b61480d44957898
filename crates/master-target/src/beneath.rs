//! What lies beneath a raised machine, told to the process server of this site in hashes: a compare then reads only what
//! the machine has written since.
//!
//! ```text
//!   kept leaves of the newest point ─► here ─► process server: all but what changed since ─► compared with the other site
//! ```
//! # Always true
//! - All answers of a session are of one point: the replica takes no epochs while its machine runs.

use std::sync::Arc;

use component::link::{Incoming, LinkError, Outgoing, refuse};
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::leaf::{Leaf, Recipe};
use protocol::session::{MOST_ASKED, Message};
use protocol::{Attempt, Extent, Fault};
use replica::DiskHome;
use transfer::{Hashed, Question, Trees};

use crate::item::{Item, is_secret, protocol_fault};
use crate::leaves::ItemLeaves;
use crate::shelf::blocking;

/// The copy beneath a raised machine.
pub(crate) struct Beneath {
    item: Arc<Item>,
    generation: u64,
    at: Attempt,
}

impl Beneath {
    /// Checks who asks, and whether something is known here without being read.
    pub(crate) fn of(item: Arc<Item>, token: &str, generation: u64) -> Result<Beneath, Fault> {
        let record = item.record();
        let message = format!("the hashes of {} are not told", record.item);
        let raised = record.raised.filter(|raised| raised.generation == generation);
        let raised = raised.ok_or_else(|| {
            Fault::new(code::REPLICA_CLOSED, &*message, "no machine that writes this generation stands on its replica")
        })?;
        if !raised.reader.is_some_and(|reader| is_secret(token, &reader)) {
            return Err(Fault::new(code::NOT_AUTHORISED, message, "the secret is not the one that control gave out"));
        }
        let at = item.replica.newest().ok_or_else(|| item.damaged("there is no point"))?.attempt;
        Ok(Beneath { item, generation, at })
    }

    /// Answers until the other end leaves.
    pub(crate) async fn tell(self, mut incoming: Incoming, mut outgoing: Outgoing) -> Result<(), LinkError> {
        let of = self.item.clone();
        let leaves = match blocking(move || known(of)).await {
            Ok(leaves) => leaves,
            Err(fault) => return refuse(&mut incoming, outgoing, fault).await,
        };
        outgoing.say(Message::Consulted { disks: self.item.disks(), leaves: leaves.recipe() }).await?;
        let mut trees = Trees::new(Arc::new(Fixed { beneath: self, leaves }));
        loop {
            let fault = tokio::select! {
                next = incoming.next(), if trees.under_way() < MOST_ASKED => match next? {
                    None => return Ok(()),
                    Some((Frame::Message(Message::HashRequest { disk, level: 0, offset, length }), _)) => {
                        trees.ask(Question { disk, level: 0, extent: Extent::new(offset, length) }).err()
                    }
                    Some(_) => Some(protocol_fault("something else than a question for leaves came")),
                },
                answer = trees.next() => match answer {
                    Ok(answer) => {
                        outgoing.send(&answer).await?;
                        None
                    }
                    Err(fault) => Some(fault),
                },
            };
            if let Some(fault) = fault {
                return refuse(&mut incoming, outgoing, fault).await;
            }
        }
    }
}

/// The leaves of an item, if more is known of its disks here than by who asks. Blocks.
fn known(item: Arc<Item>) -> Result<ItemLeaves, Fault> {
    let inside = item.replica.disks().iter().all(|disk| disk.home == DiskHome::Inside);
    let leaves = item.leaves().map_err(|error| item.fault(&error))?;
    if !inside && !leaves.are_unbroken() {
        let message = format!("the hashes of {} are not told", item.id());
        let cause = "its disks are the platform's own, and nothing proves that nobody else wrote them";
        return Err(Fault::new(code::REPLICA_CLOSED, message, cause));
    }
    ItemLeaves::of(item)
}

/// The leaves of the point that the session began with.
struct Fixed {
    beneath: Beneath,
    leaves: ItemLeaves,
}

impl Hashed for Fixed {
    fn recipe(&self) -> Recipe {
        self.leaves.recipe()
    }

    fn size(&self, disk: u16) -> Option<u64> {
        self.leaves.size(disk)
    }

    fn leaves(&self, disk: u16, extent: Extent) -> Result<(Vec<Leaf>, u64), Fault> {
        let told = self.leaves.leaves(disk, extent)?;
        let Beneath { item, generation, at } = &self.beneath;
        // Looked at afterwards: what was told is of that point if it still is the newest.
        let stands = item.record().raised.is_some_and(|raised| raised.generation == *generation);
        match stands && item.replica.newest().is_some_and(|newest| newest.attempt == *at) {
            true => Ok(told),
            false => Err(Fault::new(
                code::REPLICA_CLOSED,
                format!("the hashes of {} are told no longer", item.id()),
                "its machine does not stand on it any more",
            )),
        }
    }
}
