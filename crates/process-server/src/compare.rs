//! Comparing: both sides hash the same stretch, only blocks whose hashes differ travel (H6).
//!
//! ```text
//!   HashRequest i ──►                  target hashes stretch i
//!   hash stretch i here                        │
//!   HashRequest i+1 ──►                        │      one stretch, or some small ones, are always asked for ahead
//!        ◄── Hashes i ─────────────────────────┘
//!   pieces that differ
//! ```
//!
//! Holes are not read on either side: a hole's hash is [`ZERO_LEAF`]. A target that keeps leaves reads nothing at all. The bytes of a stretch are kept while its hashes
//! are on the way, so that nothing is read twice. A flat list of hashes is exchanged here; a tree is *Movement*'s work.

use std::collections::VecDeque;

use bytes::Bytes;
use component::link::LinkError;
use futures::{StreamExt, TryStreamExt, stream};
use protocol::leaf::{Leaf, LeafKey, ZERO_LEAF, leaf};
use protocol::session::Message;
use protocol::{BLOCK, BlockMap, Extent, Fault};
use tokio::task::JoinHandle;

use crate::pieces::{CutReader, Piece};
use crate::session::Session;

/// Bytes hashed at once: two of them are in memory, or as many smaller ones.
const STRETCH: u64 = 16 << 20;
/// Stretches that are asked for ahead, however small they are: no more answers may wait.
const MOST_AHEAD: usize = 32;
const READS: usize = 16;

/// Why a compare could not go on: the link can be opened anew, a lost cut cannot.
pub(crate) enum Stopped {
    Link(LinkError),
    Cut(Fault),
}

impl From<LinkError> for Stopped {
    fn from(error: LinkError) -> Stopped {
        Stopped::Link(error)
    }
}

type Hashed = Vec<(Leaf, Bytes)>;

struct Stretch {
    reader: CutReader,
    /// Index of the disk in the target's own order.
    disk_there: u16,
    extent: Extent,
    here: JoinHandle<Result<Hashed, Fault>>,
}

/// A compare of all disks of a cut, stretch by stretch.
pub(crate) struct Compare {
    left: VecDeque<(CutReader, u16, Extent)>,
    ahead: VecDeque<Stretch>,
    /// The target's: both ends make leaves with it.
    key: LeafKey,
    done: u64,
    read_there: u64,
}

impl Compare {
    /// Compares these parts of each reader's disk, in whole blocks, with the target's disk of that index; `key` is the
    /// target's.
    pub(crate) fn new(parts: Vec<(CutReader, u16, BlockMap)>, key: LeafKey) -> Compare {
        let mut left = VecDeque::new();
        for (reader, there, map) in parts {
            left.extend(map.pieces(STRETCH).map(|stretch| (reader.clone(), there, stretch)));
        }
        Compare { left, ahead: VecDeque::new(), key, done: 0, read_there: 0 }
    }

    /// Bytes of the disks that were compared so far.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// Bytes that the target read for its hashes.
    pub(crate) fn read_there(&self) -> u64 {
        self.read_there
    }

    /// A new session: what was asked for in the old one is asked for again.
    pub(crate) async fn resume(&mut self, session: &mut Session) -> Result<(), LinkError> {
        let same = std::mem::replace(&mut self.key, session.leaf_key) == session.leaf_key;
        for stretch in &mut self.ahead {
            if !same {
                stretch.here.abort();
                stretch.here = tokio::spawn(hash(stretch.reader.clone(), stretch.extent, self.key));
            }
            session.say(request(stretch.disk_there, stretch.extent)).await?;
        }
        Ok(())
    }

    /// The pieces of the next stretch; none at the end.
    pub(crate) async fn next(&mut self, session: &mut Session) -> Result<Option<Vec<Piece>>, Stopped> {
        let asked = |ahead: &VecDeque<Stretch>| ahead.iter().map(|stretch| stretch.extent.length).sum::<u64>();
        while self.ahead.len() < MOST_AHEAD && asked(&self.ahead) <= STRETCH {
            let Some((reader, disk_there, extent)) = self.left.pop_front() else { break };
            let here = tokio::spawn(hash(reader.clone(), extent, self.key));
            self.ahead.push_back(Stretch { reader, disk_there, extent, here });
            session.say(request(disk_there, extent)).await?;
        }
        let Some(stretch) = self.ahead.front_mut() else { return Ok(None) };
        let (there, read_there) = session.hashes(stretch.disk_there, stretch.extent.offset).await?;
        let here = (&mut stretch.here).await;
        let (disk, extent) = (stretch.reader.disk, stretch.extent);
        self.ahead.pop_front();
        let here = here.map_err(|error| Stopped::Cut(broken(&error.to_string())))?.map_err(Stopped::Cut)?;
        if there.len() != here.len() {
            return Err(Stopped::Cut(broken("the target sent another number of hashes than it was asked for")));
        }
        self.done += extent.length;
        self.read_there += read_there;
        let mut pieces = Vec::new();
        for (index, ((leaf, bytes), leaf_there)) in here.into_iter().zip(there).enumerate() {
            let offset = extent.offset + index as u64 * BLOCK;
            let length = BLOCK.min(extent.end() - offset);
            match () {
                () if leaf == leaf_there => {}
                () if leaf == ZERO_LEAF => match pieces.last_mut() {
                    // A stretch of zeroes is one piece.
                    Some(Piece::Zero { offset: from, length: so_far, .. }) if *from + *so_far == offset => {
                        *so_far += length;
                    }
                    _ => pieces.push(Piece::Zero { disk, offset, length }),
                },
                () => pieces.push(Piece::Data { disk, offset, bytes }),
            }
        }
        Ok(Some(pieces))
    }
}

fn broken(why: &str) -> Fault {
    Fault::new(protocol::fault::code::PROTOCOL, "a compare could not be carried out", why)
}

fn request(disk: u16, extent: Extent) -> Message {
    Message::HashRequest { disk, offset: extent.offset, length: extent.length }
}

/// The leaves of a stretch and the bytes behind those that are not zero.
async fn hash(reader: CutReader, extent: Extent, key: LeafKey) -> Result<Hashed, Fault> {
    let data = reader.data(extent).await?;
    let blocks = (extent.offset..extent.end()).step_by(BLOCK as usize);
    let leaves = stream::iter(blocks.map(|offset| {
        let block = Extent::new(offset, BLOCK.min(extent.end() - offset));
        let is_hole = data.intersection(&[block].into_iter().collect()).is_empty();
        let reader = reader.clone();
        async move {
            if is_hole {
                return Ok((ZERO_LEAF, Bytes::new()));
            }
            let bytes = reader.read(block).await?;
            Ok((leaf(&key, &bytes), bytes))
        }
    }));
    leaves.buffered(READS).try_collect().await
}
