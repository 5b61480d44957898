//! Reading a cut: its disks, and the pieces that an epoch is made of.
//!
//! Reads honour the export's limit (QEMU 7.2 answers longer ones with live data, see `platforms`), so parallelism comes
//! from many small reads in flight. A piece that holds only zeroes travels as a range.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use platforms::{Cut, CutDisk};
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::{BLOCK, BlockMap, DiskKey, Extent, Fault};

/// How many reads of a disk are in flight at once. Guessed: enough to hide an NBD round trip on a unix socket.
const READS: usize = 16;
/// The longest range that one zero frame declares.
const LONGEST_ZERO: u64 = 1 << 30;
const ALLOCATION: &str = "base:allocation";

/// A piece of a disk at the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes.
    Data { disk: u16, offset: u64, bytes: Bytes },
    /// A range of zeroes.
    Zero { disk: u16, offset: u64, length: u64 },
}

impl Piece {
    /// The piece as a frame with its number.
    pub(crate) fn frame(&self, sequence: u64) -> Frame {
        match self {
            Piece::Data { disk, offset, bytes } => {
                Frame::Data { sequence, disk: *disk, offset: *offset, bytes: bytes.clone() }
            }
            Piece::Zero { disk, offset, length } => {
                Frame::Zero { sequence, disk: *disk, offset: *offset, length: *length }
            }
        }
    }

    /// What `bytes` of `disk` at `offset` are as a piece.
    pub(crate) fn of(disk: u16, offset: u64, bytes: Bytes) -> Piece {
        if is_zero(&bytes) {
            Piece::Zero { disk, offset, length: bytes.len() as u64 }
        } else {
            Piece::Data { disk, offset, bytes }
        }
    }
}

/// Whether all bytes are zero, eight at a time.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// One disk of an open cut, connected.
#[derive(Clone)]
pub(crate) struct CutReader {
    pub(crate) disk: u16,
    pub(crate) key: DiskKey,
    pub(crate) size: u64,
    limit: u64,
    client: nbd::Client,
    beneath: Option<nbd::Client>,
    read: Arc<AtomicU64>,
}

/// Connects to all disks of a cut, in the cut's order. Bytes read are added to `read`.
pub(crate) async fn open(cut: &Cut, read: Arc<AtomicU64>) -> Result<Vec<CutReader>, Fault> {
    let mut readers = Vec::with_capacity(cut.disks.len());
    for (index, CutDisk { key, size, export, beneath, read_limit }) in cut.disks.iter().enumerate() {
        let options = nbd::Options { contexts: vec![ALLOCATION.into()], ..Default::default() };
        let client = nbd::Client::connect(export, &options).await.map_err(|error| lost(key, &error))?;
        let beneath = match beneath {
            Some(uri) => Some(nbd::Client::connect(uri, &options).await.map_err(|error| lost(key, &error))?),
            None => None,
        };
        readers.push(CutReader {
            disk: index as u16,
            key: key.clone(),
            size: *size,
            limit: (*read_limit).clamp(4096, BLOCK),
            client,
            beneath,
            read: read.clone(),
        });
    }
    Ok(readers)
}

impl CutReader {
    /// The bytes of `extent`, which lies within one [`BLOCK`].
    pub(crate) async fn read(&self, extent: Extent) -> Result<Bytes, Fault> {
        self.read.fetch_add(extent.length, Ordering::Relaxed);
        if extent.length <= self.limit && extent.offset / self.limit == (extent.end() - 1) / self.limit {
            let read = self.client.read(extent.offset, extent.length as u32).await;
            return read.map_err(|error| lost(&self.key, &error));
        }
        let mut whole = Vec::with_capacity(extent.length as usize);
        let parts: BlockMap = [extent].into_iter().collect();
        for part in parts.pieces(self.limit) {
            let bytes = self.client.read(part.offset, part.length as u32).await;
            whole.extend_from_slice(&bytes.map_err(|error| lost(&self.key, &error))?);
        }
        Ok(whole.into())
    }

    /// Which blocks may hold anything but zeroes.
    pub(crate) async fn data(&self, within: Extent) -> Result<BlockMap, Fault> {
        let (data, unsaid) = self.status(&self.client, within).await?;
        let Some(beneath) = &self.beneath else { return Ok(data.union(&unsaid).aligned(BLOCK, self.size)) };
        // A hole that is not said to be zero shows what lies beneath, which may well be zero.
        let (data_there, unsaid_there) = self.status(beneath, within).await?;
        Ok(data.union(&unsaid.intersection(&data_there.union(&unsaid_there))).aligned(BLOCK, self.size))
    }

    /// What a range of an export holds: bytes, and holes of which it does not say that they are zero.
    async fn status(&self, client: &nbd::Client, within: Extent) -> Result<(BlockMap, BlockMap), Fault> {
        if !client.has_context(ALLOCATION) {
            return Ok(([within].into_iter().collect(), BlockMap::new()));
        }
        let told = client.block_status(ALLOCATION, within.offset, within.length).await;
        let told = told.map_err(|error| lost(&self.key, &error))?;
        let of = |flags: u32| -> BlockMap {
            let these = told.iter().filter(|extent| extent.flags & (nbd::status::HOLE | nbd::status::ZERO) == flags);
            these.map(|extent| Extent::new(extent.offset, extent.length)).collect()
        };
        Ok((of(0), of(nbd::status::HOLE)))
    }
}

fn lost(disk: &DiskKey, error: &nbd::Error) -> Fault {
    Fault::new(code::CAPTURE_LOST, format!("the open cut of {disk} cannot be read"), error.to_string())
}

/// What is to become pieces: blocks to read and ranges known to be zero, disk by disk, ascending.
pub(crate) struct Pieces {
    waiting: VecDeque<(CutReader, bool, VecDeque<Extent>)>,
    reading: FuturesOrdered<BoxFuture<'static, Result<Piece, Fault>>>,
}

impl Pieces {
    /// Reads `read` and declares `zero` of each disk.
    pub(crate) fn new(parts: Vec<(CutReader, BlockMap, BlockMap)>) -> Pieces {
        let mut waiting = VecDeque::new();
        for (reader, read, zero) in parts {
            waiting.push_back((reader.clone(), true, read.extents().iter().copied().collect()));
            waiting.push_back((reader, false, zero.extents().iter().copied().collect()));
        }
        Pieces { waiting, reading: FuturesOrdered::new() }
    }

    /// What was not begun yet, by disk.
    pub(crate) fn waiting(&self) -> Vec<(CutReader, BlockMap)> {
        let mut maps: Vec<(CutReader, BlockMap)> = Vec::new();
        for (reader, _, extents) in &self.waiting {
            let more: BlockMap = extents.iter().copied().collect();
            match maps.last_mut().filter(|(last, _)| last.disk == reader.disk) {
                Some((_, map)) => *map = map.union(&more),
                None => maps.push((reader.clone(), more)),
            }
        }
        maps
    }

    /// The next piece; none at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, Fault> {
        while self.reading.len() < READS {
            let Some((reader, is_read, extent)) = self.pop() else { break };
            self.reading.push_back(Box::pin(async move {
                if !is_read {
                    return Ok(Piece::Zero { disk: reader.disk, offset: extent.offset, length: extent.length });
                }
                Ok(Piece::of(reader.disk, extent.offset, reader.read(extent).await?))
            }));
        }
        self.reading.next().await.transpose()
    }

    /// Cuts the next bit of work off the front: a block to read, or a stretch of zeroes.
    fn pop(&mut self) -> Option<(CutReader, bool, Extent)> {
        loop {
            let (reader, is_read, extents) = self.waiting.front_mut()?;
            let Some(first) = extents.front_mut() else {
                self.waiting.pop_front();
                continue;
            };
            let most = if *is_read { BLOCK - first.offset % BLOCK } else { LONGEST_ZERO };
            let work = (reader.clone(), *is_read, Extent::new(first.offset, first.length.min(most)));
            first.offset += work.2.length;
            first.length -= work.2.length;
            if first.length == 0 {
                extents.pop_front();
            }
            return Some(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_not_zero() {
        for length in [0, 1, 7, 8, 9, 4096, 4099] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length.saturating_sub(1)] {
                if at < length {
                    bytes[at] = 1;
                    assert!(!is_zero(&bytes), "{at} of {length}");
                    bytes[at] = 0;
                }
            }
        }
    }
}
