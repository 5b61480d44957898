//! The pieces that travel: blocks that are read a few ahead, and ranges of zeroes that are not read at all.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use protocol::frame::Frame;
use protocol::leaf::is_zero;
use protocol::{BLOCK, BlockMap, Extent, Fault};

use crate::Reader;

/// How many blocks are read ahead.
const READS: usize = 16;
/// The longest range that one zero frame declares.
const LONGEST_ZERO: u64 = 1 << 30;

/// A piece of a disk of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes.
    Data {
        /// Place of the disk in the sender's order.
        disk: u16,
        /// First byte.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// A range of zeroes.
    Zero {
        /// Place of the disk in the sender's order.
        disk: u16,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
}

impl Piece {
    /// The piece as a frame with its number.
    pub fn frame(&self, sequence: u64) -> Frame {
        match self {
            Piece::Data { disk, offset, bytes } => {
                Frame::Data { sequence, disk: *disk, offset: *offset, bytes: bytes.clone() }
            }
            Piece::Zero { disk, offset, length } => {
                Frame::Zero { sequence, disk: *disk, offset: *offset, length: *length }
            }
        }
    }

    /// The first byte of its range.
    pub fn offset(&self) -> u64 {
        match self {
            Piece::Data { offset, .. } | Piece::Zero { offset, .. } => *offset,
        }
    }

    /// How many bytes it stands for.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Data { bytes, .. } => bytes.len() as u64,
            Piece::Zero { length, .. } => *length,
        }
    }

    /// What `bytes` of `disk` at `offset` are as a piece.
    fn of(disk: u16, offset: u64, bytes: Bytes) -> Piece {
        if is_zero(&bytes) {
            Piece::Zero { disk, offset, length: bytes.len() as u64 }
        } else {
            Piece::Data { disk, offset, bytes }
        }
    }
}

/// What is to become pieces: blocks to read and ranges known to be zero.
#[derive(Default)]
pub struct Pieces {
    waiting: VecDeque<(Reader, bool, VecDeque<Extent>)>,
    reading: FuturesOrdered<BoxFuture<'static, Result<Piece, Fault>>>,
}

impl Pieces {
    /// Reads `read` and declares `zero`, after all that it was given before.
    pub fn push(&mut self, reader: &Reader, read: &BlockMap, zero: &BlockMap) {
        for (is_read, map) in [(true, read), (false, zero)] {
            if !map.is_empty() {
                self.waiting.push_back((reader.clone(), is_read, map.extents().iter().copied().collect()));
            }
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.reading.is_empty()
    }

    /// What was not begun yet, by disk.
    pub fn waiting(&self) -> Vec<(Reader, BlockMap)> {
        let mut maps: Vec<(Reader, BlockMap)> = Vec::new();
        for (reader, _, extents) in &self.waiting {
            let more: BlockMap = extents.iter().copied().collect();
            match maps.last_mut().filter(|(last, _)| last.disk == reader.disk) {
                Some((_, map)) => *map = map.union(&more),
                None => maps.push((reader.clone(), more)),
            }
        }
        maps
    }

    /// The next piece; none at the end. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// The source cannot be read.
    pub async fn next(&mut self) -> Result<Option<Piece>, Fault> {
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
    fn pop(&mut self) -> Option<(Reader, bool, Extent)> {
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
            if extents.is_empty() {
                self.waiting.pop_front();
            }
            return Some(work);
        }
    }
}
