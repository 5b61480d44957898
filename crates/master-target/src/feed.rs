//! The batches of a session: one is gathered and its before-images are read while the one before is applied.
//!
//! ```text
//!   batch 7   gather ─► prepare ─► apply ──────────────────────► Received
//!   batch 8                        gather ─► prepare ─► (waits)  apply ─► …
//! ```
//! At most one batch is applied at a time, in order; a batch grows while the one before is applied, so a slow journal
//! syncs less often. A session that is cut off leaves the batch that is being applied to the item, and drops the next.

use std::sync::Arc;

use component::link::LinkError;
use protocol::Fault;
use protocol::frame::Frame;
use replica::{Payload, Write};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinHandle;

use crate::item::{Item, Numbered};
use crate::shelf::blocking;

/// A batch is closed when it holds this many bytes: each costs one sync of the journal.
const BATCH_BYTES: usize = 8 << 20;

/// A frame and its payload's checksum.
pub(crate) type Checked = (Frame, u64);
pub(crate) type Queued = Result<Checked, LinkError>;

/// The batch that is being applied.
#[derive(Default)]
pub(crate) enum Feed {
    #[default]
    Idle,
    Applying(JoinHandle<Result<u64, Fault>>),
    Applied(Result<u64, Fault>),
}

impl Feed {
    /// Waits for the batch that is being applied and gives the number up to which frames were taken; none without one.
    pub(crate) async fn finish(&mut self) -> Result<Option<u64>, Fault> {
        if let Feed::Applying(task) = self {
            *self = Feed::Applied(outcome(task.await));
        }
        match std::mem::take(self) {
            Feed::Applied(result) => result.map(Some),
            Feed::Idle | Feed::Applying(_) => Ok(None),
        }
    }

    /// The next frame; none at the end of the session, or when a batch was applied before one came.
    pub(crate) async fn next(&mut self, queue: &mut Receiver<Queued>) -> Result<Option<Checked>, LinkError> {
        match self {
            Feed::Applying(task) => tokio::select! {
                biased;
                next = queue.recv() => next.transpose(),
                done = task => {
                    *self = Feed::Applied(outcome(done));
                    Ok(None)
                }
            },
            _ => queue.recv().await.transpose(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Feed::Idle)
    }

    /// A batch of data frames: what is queued already or comes while the batch before is applied, up to the bound.
    /// Also the frame that ended it, if one did.
    pub(crate) async fn gather(
        &mut self,
        first: Checked,
        queue: &mut Receiver<Queued>,
    ) -> Result<(Vec<Numbered>, Option<Checked>), LinkError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some((frame, checksum)) = next.take() {
            match frame {
                Frame::Data { sequence, disk, offset, bytes: data } => {
                    bytes += data.len();
                    let data_bytes = data.len() as u64;
                    let write = Write { disk, offset, payload: Payload::Data(data) };
                    batch.push(Numbered { sequence, checksum, data_bytes, zero_bytes: 0, write });
                }
                Frame::Zero { sequence, disk, offset, length } => {
                    let write = Write { disk, offset, payload: Payload::Zero(length) };
                    batch.push(Numbered { sequence, checksum, data_bytes: 0, zero_bytes: length, write });
                }
                other => return Ok((batch, Some((other, checksum)))),
            }
            if bytes >= BATCH_BYTES {
                break;
            }
            next = match queue.try_recv() {
                Ok(next) => Some(next?),
                Err(_) if matches!(self, Feed::Applying(_)) => self.next(queue).await?,
                Err(_) => None,
            };
        }
        Ok((batch, None))
    }

    /// Prepares the batch, waits for the one before (whose number is given back) and begins to apply it.
    pub(crate) async fn start(&mut self, item: &Arc<Item>, batch: Vec<Numbered>) -> Result<Option<u64>, Fault> {
        let of = item.clone();
        let ready = blocking(move || of.prepare(batch)).await;
        // When the one before failed, its epoch is gone, and this one fails because of that.
        let (before, ready) = (self.finish().await?, ready?);
        let of = item.clone();
        *self = Feed::Applying(tokio::spawn(blocking(move || of.apply(ready))));
        Ok(before)
    }
}

fn outcome(done: Result<Result<u64, Fault>, tokio::task::JoinError>) -> Result<u64, Fault> {
    done.unwrap_or_else(|stopped| {
        Err(Fault::new(protocol::fault::code::INTERNAL, "a batch was not applied", stopped.to_string()))
    })
}
