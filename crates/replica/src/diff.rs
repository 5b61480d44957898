//! What differs between two recovery points: exactly, and read only where that is possible at all.
//!
//! ```text
//!   older ──step──► … ──step──► newer         the indexes of what lies between them say where something was overwritten
//!     │                           │
//!   view                        view          only there both are read, and compared piece by piece
//! ```
//!
//! # Always true
//! - A byte outside the answer is the same at both points. A piece inside it differs in at least one byte.
//! - Points and files are pinned while they are read: pruning and applying go on meanwhile.

use std::collections::BTreeMap;

use protocol::{Attempt, BLOCK, BlockMap, DiskKey, Extent};

use crate::error::ReplicaError;
use crate::replica::Replica;

/// The pieces that are called equal or different, in bytes: the smallest unit that guests write.
pub const PIECE: u64 = 4096;

impl Replica {
    /// The pieces of [`PIECE`] bytes in which two points differ, by disk; every disk is named. The order of the two
    /// does not matter.
    ///
    /// # Errors
    /// `PointGone`; `Damaged` when what leads back cannot be read; I/O; `Closed` and `Failed`, also when the replica is
    /// closed meanwhile.
    pub fn diff(&self, one: Attempt, other: Attempt) -> Result<BTreeMap<DiskKey, BlockMap>, ReplicaError> {
        let (one, other) = (self.view(one)?, self.view(other)?);
        let mut buffers = (Vec::new(), Vec::new());
        let mut answer = BTreeMap::new();
        for (disk, record) in self.disks().iter().enumerate() {
            let map = match one.changed_until(&other, disk)? {
                Some(map) => map,
                None => other.changed_until(&one, disk)?.ok_or(ReplicaError::PointGone(one.point().attempt))?,
            };
            let mut differs = Vec::new();
            for part in map.aligned(PIECE, record.size).pieces(BLOCK) {
                buffers.0.resize(part.length as usize, 0);
                buffers.1.resize(part.length as usize, 0);
                one.read(disk, part.offset, &mut buffers.0)?;
                other.read(disk, part.offset, &mut buffers.1)?;
                let pieces = buffers.0.chunks(PIECE as usize).zip(buffers.1.chunks(PIECE as usize));
                let unequal = pieces.enumerate().filter(|(_, (here, there))| here != there);
                differs.extend(
                    unequal.map(|(n, (piece, _))| Extent::new(part.offset + n as u64 * PIECE, piece.len() as u64)),
                );
            }
            answer.insert(record.key.clone(), differs.into_iter().collect());
        }
        Ok(answer)
    }
}
