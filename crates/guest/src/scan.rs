//! Reads one disk's ring and scribbles into memory, block by block, judging nothing yet.

use crate::BLOCK_BYTES;
use crate::disk::{AlignedBuffer, DiskFault, ReadAt};
use crate::layout::{CHUNK_BYTES, Layout, Role};
use crate::record::{Record, Scribble};

/// What stands in a block that should carry a record or a scribble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// All zero, as formatted.
    Empty,
    /// Neither zero nor whole, or in the wrong place.
    Bad,
    /// A whole one.
    Good(T),
}

/// One disk, read.
pub(crate) struct Scan {
    /// Its header.
    pub layout: Layout,
    /// The slots of the ring, in order.
    pub ring: Vec<Found<Record>>,
    /// The scribbles, in order.
    pub scribbles: Vec<Found<Scribble>>,
    /// The highest number of a whole record; 0 if there is none.
    pub highest: u64,
}

impl Scan {
    /// Reads the disk `role`: header, ring, scribbles, in large reads.
    pub(crate) fn read(disk: &impl ReadAt, role: Role) -> Result<Self, DiskFault> {
        let layout = Layout::read(disk, role)?;
        let (slots, blocks) = (layout.ring_slots, layout.scribble_blocks);
        let ring = blocks_of(disk, role, layout.ring_offset, slots, |slot, block| {
            Record::decode(block).filter(|record| record.number > 0 && record.number % slots == slot)
        })?;
        let scribbles =
            blocks_of(disk, role, layout.scribble_offset, blocks, |index, block| Scribble::decode(block, role, index))?;
        let numbers = ring.iter().filter_map(|found| match found {
            Found::Good(record) => Some(record.number),
            Found::Empty | Found::Bad => None,
        });
        let highest = numbers.max().unwrap_or(0);
        Ok(Self { layout, ring, scribbles, highest })
    }

    /// What stands in the slot of record `number`.
    pub(crate) fn slot(&self, number: u64) -> Found<Record> {
        self.ring[(number % self.layout.ring_slots) as usize]
    }

    /// The record `number`, if it is there and whole.
    pub(crate) fn record(&self, number: u64) -> Option<Record> {
        match self.slot(number) {
            Found::Good(record) if record.number == number => Some(record),
            _ => None,
        }
    }

    /// The first number that the ring must still hold when `highest` is the newest.
    pub(crate) fn oldest(&self) -> u64 {
        self.highest.saturating_sub(self.layout.ring_slots) + 1
    }
}

fn blocks_of<T>(
    disk: &impl ReadAt,
    role: Role,
    offset: u64,
    count: u64,
    decode: impl Fn(u64, &[u8]) -> Option<T>,
) -> Result<Vec<Found<T>>, DiskFault> {
    let mut found = Vec::with_capacity(count as usize);
    let mut buffer = AlignedBuffer::new(CHUNK_BYTES as usize);
    let per_read = CHUNK_BYTES / BLOCK_BYTES as u64;
    for first in (0..count).step_by(per_read as usize) {
        let length = per_read.min(count - first) as usize * BLOCK_BYTES;
        let at = offset + first * BLOCK_BYTES as u64;
        let bytes = &mut buffer.bytes_mut()[..length];
        disk.read_at(at, bytes).map_err(DiskFault::io(format!("reading disk {role:?} at byte {at}")))?;
        for (index, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            found.push(match decode(first + index as u64, block) {
                Some(good) => Found::Good(good),
                None if is_zero(block) => Found::Empty,
                None => Found::Bad,
            });
        }
    }
    Ok(found)
}

/// Whether all of `bytes` (a multiple of eight) is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
