//! Writes the ledger, one durable block at a time, in the one order that [`crate::verify`] relies on.
//!
//! ```text
//!   resume: finish the newest record if it was in flight ─► append n ─► append n+1 ...
//!   append: ring A ─► scribble A ─► ring B ─► scribble B ─► the caller may say ACK
//! ```
//! # If power fails
//! Between two of the writes: the next `resume` writes the same four blocks again from the record found on A, which
//! changes nothing where they were already written. Numbers are never reused: a record seen on any disk stays in history.

use crate::BLOCK_BYTES;
use crate::checksum::scramble;
use crate::disk::{AlignedBuffer, DiskFault, WriteAt};
use crate::layout::{Layout, Role};
use crate::record::{Record, Scribbled};
use crate::report::Report;
use crate::scan::Scan;
use crate::verify;

/// What a record overwrites beside its slot in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pattern {
    /// Nothing: two 4 KiB writes a record, one after the other through the rings.
    Append,
    /// One scribble on each disk with every record: four writes, half of them scattered.
    Overwrite,
    /// Every second record as in `Overwrite`.
    #[default]
    Mixed,
}

impl Pattern {
    /// The name used on the kernel command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Overwrite => "overwrite",
            Self::Mixed => "mixed",
        }
    }

    /// The pattern of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Append, Self::Overwrite, Self::Mixed].into_iter().find(|pattern| pattern.name() == name)
    }
}

/// Writes records to two disks.
pub struct Writer<D> {
    a: D,
    b: D,
    layout_a: Layout,
    layout_b: Layout,
    pattern: Pattern,
    boot_id: u64,
    newest: Option<Record>,
    boot: u32,
    block: AlignedBuffer,
}

impl<D: WriteAt> Writer<D> {
    /// Reads both disks, reports, and stands ready to write after the highest record. A ledger that is not consistent
    /// gives no writer: it shall stay as it is, as evidence. `boot_id` must differ from boot to boot.
    /// Nothing is written before the first [`Writer::append`].
    pub fn resume(a: D, b: D, pattern: Pattern, boot_id: u64) -> Result<(Report, Option<Self>), DiskFault> {
        let (scan_a, scan_b) = (Scan::read(&a, Role::A)?, Scan::read(&b, Role::B)?);
        let report = verify::judge(&scan_a, &scan_b);
        if !report.consistent() {
            return Ok((report, None));
        }
        let newest = scan_a.record(scan_a.highest);
        let boot = newest.map_or(0, |record| record.boot) + 1;
        let (layout_a, layout_b) = (scan_a.layout, scan_b.layout);
        let block = AlignedBuffer::new(BLOCK_BYTES);
        Ok((report, Some(Self { a, b, layout_a, layout_b, pattern, boot_id, newest, boot, block })))
    }

    /// Finishes the newest record if it was in flight. To be called once, before the first [`Writer::append`].
    pub fn finish_newest(&mut self) -> Result<(), DiskFault> {
        match self.newest {
            Some(newest) => self.put(newest).map(|_| ()),
            None => Ok(()),
        }
    }

    /// The number that the next record will have.
    pub fn next_number(&self) -> u64 {
        self.newest.map_or(0, |record| record.number) + 1
    }

    /// Writes the next record and gives its number. When this returns, it is durable on both disks.
    pub fn append(&mut self, now_ms: u64) -> Result<u64, DiskFault> {
        let number = self.next_number();
        let before = self.newest;
        let scribbles = before.map_or(0, |record| record.scribbles);
        let scribbling = match self.pattern {
            Pattern::Append => false,
            Pattern::Overwrite => true,
            Pattern::Mixed => number.is_multiple_of(2),
        };
        let mut record = Record {
            number,
            made_ms: now_ms,
            boot_id: self.boot_id,
            boot: self.boot,
            previous_checksum: before.map_or(0, |record| record.checksum),
            scribbles: scribbles + u64::from(scribbling),
            scribble: None,
            checksum: 0,
        };
        if scribbling {
            let mut entry = |layout: &Layout| {
                let block = scattered(scribbles, layout);
                let checksum = record.encode_scribble(layout.role, block, self.block.bytes_mut());
                Scribbled { block, checksum }
            };
            record.scribble = Some([entry(&self.layout_a), entry(&self.layout_b)]);
        }
        self.newest = Some(self.put(record)?);
        Ok(number)
    }

    /// The up to four writes of a record, in order.
    fn put(&mut self, mut record: Record) -> Result<Record, DiskFault> {
        for (disk, layout) in [(&self.a, &self.layout_a), (&self.b, &self.layout_b)] {
            let doing = |what: &str| format!("writing {what} of record {} to disk {:?}", record.number, layout.role);
            let fault = DiskFault::io(doing("the ring slot"));
            record.encode(self.block.bytes_mut());
            disk.write_at(layout.slot_offset(record.number), self.block.bytes()).map_err(fault)?;
            let Some(entries) = record.scribble else { continue };
            let block = entries[layout.role.index() as usize].block;
            record.encode_scribble(layout.role, block, self.block.bytes_mut());
            let fault = DiskFault::io(format!("writing scribble {block} of record {}", record.number));
            disk.write_at(layout.scribble_block_offset(block), self.block.bytes()).map_err(fault)?;
        }
        Ok(record)
    }
}

/// The block that scribble number `count` goes to: each round over the blocks visits all of them once, in an order of
/// its own. So the newest write of any block is at most two rounds old, and the ring, being four rounds long, names it.
fn scattered(count: u64, layout: &Layout) -> u64 {
    let blocks = layout.scribble_blocks;
    let (round, step) = (count / blocks, count % blocks);
    let shape = scramble(round * 2 + u64::from(layout.role.index()));
    // An odd factor maps the power of two of blocks onto itself.
    step.wrapping_mul(shape | 1).wrapping_add(shape >> 32) % blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_of_scribbles_visits_every_block_once() {
        let layout = Layout::plan(Role::B, 64 << 20, 1, 0).unwrap();
        for round in [0, 1, 17] {
            let start = round * layout.scribble_blocks;
            let mut seen: Vec<u64> =
                (start..start + layout.scribble_blocks).map(|count| scattered(count, &layout)).collect();
            assert_ne!(seen[..8], (seen[0]..seen[0] + 8).collect::<Vec<_>>()[..], "scattered, not in order");
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..layout.scribble_blocks));
        }
    }

    #[test]
    fn patterns_are_known_by_name() {
        for pattern in [Pattern::Append, Pattern::Overwrite, Pattern::Mixed] {
            assert_eq!(Pattern::named(pattern.name()), Some(pattern));
        }
        assert_eq!(Pattern::named("sequential"), None);
    }
}
