//! The pieces that travel: stretches of blocks that are read a few ahead, and ranges of zeroes that are not read at all.
//!
//! What is read together travels together, but for blocks of zeroes in it, which are declared and not sent.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use protocol::frame::Frame;
use protocol::leaf::is_zero;
use protocol::{BLOCK, BlockMap, Extent, Fault};

use crate::Reader;

/// How many stretches are read ahead.
const READS: usize = 8;
/// Bytes of a stretch: what is read at once, and the longest data that one frame carries (measured, docs/performance.md).
const STRETCH: u64 = 256 * 1024;
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

    /// What `bytes` of `disk` at `offset` are as pieces: runs of blocks that are zero, and runs of others.
    fn of(disk: u16, offset: u64, bytes: &Bytes) -> VecDeque<Piece> {
        let mut pieces = VecDeque::new();
        let mut begin = 0;
        let zero: Vec<bool> = bytes.chunks(BLOCK as usize).map(is_zero).collect();
        for run in zero.chunk_by(|one, next| one == next) {
            let end = (begin + run.len() * BLOCK as usize).min(bytes.len());
            let offset = offset + begin as u64;
            pieces.push_back(match run[0] {
                true => Piece::Zero { disk, offset, length: (end - begin) as u64 },
                false => Piece::Data { disk, offset, bytes: bytes.slice(begin..end) },
            });
            begin = end;
        }
        pieces
    }
}

/// What came of one reading.
type Read = Result<VecDeque<Piece>, Fault>;

/// What is to become pieces: blocks to read and ranges known to be zero.
#[derive(Default)]
pub struct Pieces {
    waiting: VecDeque<(Reader, bool, VecDeque<Extent>)>,
    reading: FuturesOrdered<BoxFuture<'static, Read>>,
    ready: VecDeque<Piece>,
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
        self.waiting.is_empty() && self.reading.is_empty() && self.ready.is_empty()
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
        loop {
            while self.reading.len() < READS {
                let Some((reader, is_read, extent)) = self.pop() else { break };
                self.reading.push_back(Box::pin(async move {
                    let Extent { offset, length } = extent;
                    match is_read {
                        false => Ok([Piece::Zero { disk: reader.disk, offset, length }].into()),
                        true => Ok(Piece::of(reader.disk, offset, &reader.read(extent).await?)),
                    }
                }));
            }
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            match self.reading.next().await {
                Some(read) => self.ready = read?,
                None => return Ok(None),
            }
        }
    }

    /// Cuts the next bit of work off the front: a stretch to read, or one of zeroes.
    fn pop(&mut self) -> Option<(Reader, bool, Extent)> {
        loop {
            let (reader, is_read, extents) = self.waiting.front_mut()?;
            let Some(first) = extents.front_mut() else {
                self.waiting.pop_front();
                continue;
            };
            let most = if *is_read { STRETCH - first.offset % STRETCH } else { LONGEST_ZERO };
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
