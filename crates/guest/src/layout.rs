//! Where things stand on a disk, and the header block that says so.
//!
//! ```text
//!   0        1 MiB    2 MiB                          half of the disk
//!   │ data   │ header │ ring of records │ data ...   │ scribbles │ data ...                        end │
//! ```
//! Data is whatever is neither header nor ring nor scribbles, in chunks of 1 MiB; only some groups of chunks are
//! written, evenly spread, the rest stays a hole.
//!
//! # Always true
//! - The scribbles are at most a quarter of the ring's slots, so the newest write of every scribble is still named by a
//!   record of the ring when every second record scribbles (pattern `mixed`), and the check of it is exact.

use crate::checksum::crc32;
use crate::disk::{AlignedBuffer, DiskFault, ReadAt};
use crate::{BLOCK_BYTES, record};

const MAGIC: &[u8; 8] = b"SKDISK01";
const VERSION: u32 = 1;
/// The header's place, on every ledger disk of every version.
pub(crate) const HEADER_OFFSET: u64 = 1 << 20;
const RING_OFFSET: u64 = 2 << 20;
/// The unit in which data is laid out and read.
pub(crate) const CHUNK_BYTES: u64 = 1 << 20;
/// Chunks that are seeded, or left out, together: an extent of some size, as files make them.
pub(crate) const GROUP_CHUNKS: u64 = 4;
/// 32 MiB of ring: the guest reads it in about a second under TCG, and a demo of minutes goes round it several times.
const RING_SLOTS_MOST: u64 = 8192;
/// A ring that this format accepts at most: bounds what a damaged header can make the reader allocate.
const RING_SLOTS_LIMIT: u64 = 1 << 20;

/// Which of the two disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Written first.
    A,
    /// Written second, after A acknowledged.
    B,
}

impl Role {
    /// 0 for A, 1 for B, as in the format.
    pub fn index(self) -> u32 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// The geometry of one ledger disk, as its header tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// A or B.
    pub role: Role,
    /// Size of the disk in bytes, a multiple of 1 MiB.
    pub disk_bytes: u64,
    /// What the seeded data follows from.
    pub seed: u64,
    /// Where the ring begins, in bytes.
    pub ring_offset: u64,
    /// Slots of the ring: record n stands in slot n modulo this.
    pub ring_slots: u64,
    /// Where the scribbles begin, in bytes.
    pub scribble_offset: u64,
    /// Scribble blocks, a power of two.
    pub scribble_blocks: u64,
    /// Groups of four data chunks that were seeded.
    pub seeded_groups: u64,
}

impl Layout {
    /// Plans a disk of `disk_bytes` with about `written_bytes` of seeded data.
    pub fn plan(role: Role, disk_bytes: u64, seed: u64, written_bytes: u64) -> Result<Self, DiskFault> {
        let disk_bytes = disk_bytes / CHUNK_BYTES * CHUNK_BYTES;
        if disk_bytes < 16 << 20 {
            return Err(DiskFault::not_a_ledger("a ledger disk has at least 16 MiB"));
        }
        // An eighth of a small disk, never more than the 32 MiB that boots quickly; a power of two of whole MiB.
        let ring_slots = (disk_bytes / 8 / BLOCK_BYTES as u64 + 1).next_power_of_two() / 2;
        let ring_slots = ring_slots.clamp(256, RING_SLOTS_MOST);
        let mut layout = Self {
            role,
            disk_bytes,
            seed,
            ring_offset: RING_OFFSET,
            ring_slots,
            scribble_offset: disk_bytes / 2 / CHUNK_BYTES * CHUNK_BYTES,
            scribble_blocks: ring_slots / 4,
            seeded_groups: 0,
        };
        let groups = layout.data_groups();
        layout.seeded_groups = written_bytes.div_ceil(CHUNK_BYTES * GROUP_CHUNKS).min(groups);
        Ok(layout)
    }

    /// Reads and checks the header of `disk`.
    pub fn read(disk: &impl ReadAt, role: Role) -> Result<Self, DiskFault> {
        let mut block = AlignedBuffer::new(BLOCK_BYTES);
        disk.read_at(HEADER_OFFSET, block.bytes_mut()).map_err(DiskFault::io(format!("reading header {role:?}")))?;
        let layout = Self::decode(block.bytes())?;
        if layout.role != role {
            return Err(DiskFault::not_a_ledger(format!("disk {role:?} was asked for, this is {:?}", layout.role)));
        }
        Ok(layout)
    }

    /// Puts the header into `block`.
    pub(crate) fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        block[..8].copy_from_slice(MAGIC);
        record::put_u32(block, 8, VERSION);
        record::put_u32(block, 12, self.role.index());
        let fields = [
            self.disk_bytes,
            self.seed,
            self.ring_offset,
            self.ring_slots,
            self.scribble_offset,
            self.scribble_blocks,
            self.seeded_groups,
        ];
        for (index, field) in fields.into_iter().enumerate() {
            record::put_u64(block, 16 + 8 * index, field);
        }
        record::seal(block);
    }

    fn decode(block: &[u8]) -> Result<Self, DiskFault> {
        let refuse = |because: &str| Err(DiskFault::not_a_ledger(because));
        if block.len() != BLOCK_BYTES || !block.starts_with(MAGIC) {
            return refuse("no header at 1 MiB");
        }
        if crc32(&block[..record::CHECKSUM_AT]) != record::get_u32(block, record::CHECKSUM_AT) {
            return refuse("the header's checksum is wrong");
        }
        if record::get_u32(block, 8) != VERSION {
            return refuse("its version is not 1");
        }
        let role = match record::get_u32(block, 12) {
            0 => Role::A,
            1 => Role::B,
            _ => return refuse("its role is neither A nor B"),
        };
        let field = |index: usize| record::get_u64(block, 16 + 8 * index);
        let layout = Self {
            role,
            disk_bytes: field(0),
            seed: field(1),
            ring_offset: field(2),
            ring_slots: field(3),
            scribble_offset: field(4),
            scribble_blocks: field(5),
            seeded_groups: field(6),
        };
        let sane = (1..=RING_SLOTS_LIMIT).contains(&layout.ring_slots)
            && layout.scribble_blocks.is_power_of_two()
            && layout.scribble_blocks <= layout.ring_slots
            && layout.disk_bytes.is_multiple_of(CHUNK_BYTES)
            && layout.ring_offset.is_multiple_of(CHUNK_BYTES)
            && layout.scribble_offset.is_multiple_of(CHUNK_BYTES)
            && layout.ring_offset > HEADER_OFFSET
            && layout.ring_offset.saturating_add(layout.ring_bytes()) <= layout.scribble_offset
            && layout.scribble_offset.saturating_add(layout.scribble_bytes()) <= layout.disk_bytes
            && layout.seeded_groups <= layout.data_groups();
        if sane { Ok(layout) } else { refuse("the header's geometry contradicts itself") }
    }

    /// Bytes of the ring.
    pub fn ring_bytes(&self) -> u64 {
        self.ring_slots * BLOCK_BYTES as u64
    }

    /// Bytes of the scribbles.
    pub fn scribble_bytes(&self) -> u64 {
        self.scribble_blocks * BLOCK_BYTES as u64
    }

    /// Where record `number` stands, in bytes from the start of the disk.
    pub fn slot_offset(&self, number: u64) -> u64 {
        self.ring_offset + number % self.ring_slots * BLOCK_BYTES as u64
    }

    /// Where scribble `block` stands, in bytes from the start of the disk.
    pub fn scribble_block_offset(&self, block: u64) -> u64 {
        self.scribble_offset + block * BLOCK_BYTES as u64
    }

    /// Numbers of the 1 MiB chunks that carry data, in order: all but the header's, the ring's and the scribbles'.
    pub(crate) fn data_chunks(&self) -> impl Iterator<Item = u64> + use<> {
        let ring = self.ring_offset / CHUNK_BYTES..(self.ring_offset + self.ring_bytes()).div_ceil(CHUNK_BYTES);
        let scribbles =
            self.scribble_offset / CHUNK_BYTES..(self.scribble_offset + self.scribble_bytes()).div_ceil(CHUNK_BYTES);
        let header = HEADER_OFFSET / CHUNK_BYTES;
        (0..self.disk_bytes / CHUNK_BYTES)
            .filter(move |chunk| *chunk != header && !ring.contains(chunk) && !scribbles.contains(chunk))
    }

    /// Groups of four data chunks; a last group may be incomplete and is never seeded.
    fn data_groups(&self) -> u64 {
        let ring = (self.ring_offset + self.ring_bytes()).div_ceil(CHUNK_BYTES) - self.ring_offset / CHUNK_BYTES;
        let scribbles = self.scribble_bytes().div_ceil(CHUNK_BYTES);
        (self.disk_bytes / CHUNK_BYTES).saturating_sub(1 + ring + scribbles) / GROUP_CHUNKS
    }

    /// The chunks of data with what they hold: `Some(k)` is the k-th seeded chunk, `None` a hole.
    pub(crate) fn seeding(&self) -> impl Iterator<Item = (u64, Option<u64>)> + use<> {
        let (groups, seeded) = (self.data_groups().max(1), self.seeded_groups);
        let mut ordinal = 0;
        self.data_chunks().enumerate().map(move |(index, chunk)| {
            let group = index as u64 / GROUP_CHUNKS;
            let holds = group < groups && (group + 1) * seeded / groups > group * seeded / groups;
            let kind = holds.then_some(ordinal);
            ordinal += u64::from(holds);
            (chunk, kind)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_header_comes_back_as_it_was_written() {
        let layout = Layout::plan(Role::B, 8 * GIB, 77, GIB).unwrap();
        let mut block = vec![0; BLOCK_BYTES];
        layout.encode(&mut block);
        assert_eq!(Layout::decode(&block).unwrap(), layout);
        block[40] ^= 1;
        assert!(Layout::decode(&block).is_err());
    }

    #[test]
    fn a_geometry_that_points_outside_the_disk_is_refused_even_with_a_right_checksum() {
        let good = Layout::plan(Role::A, 64 << 20, 1, 16 << 20).unwrap();
        let mut block = vec![0; BLOCK_BYTES];
        for bad in [
            Layout { ring_slots: u64::MAX, ..good.clone() },
            Layout { ring_slots: 0, ..good.clone() },
            Layout { scribble_offset: u64::MAX / CHUNK_BYTES * CHUNK_BYTES, ..good.clone() },
            Layout { disk_bytes: 1 << 20, ..good.clone() },
            Layout { seeded_groups: u64::MAX, ..good.clone() },
        ] {
            bad.encode(&mut block);
            assert!(Layout::decode(&block).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn eight_gib_with_one_gib_written_spreads_the_data_over_the_whole_disk() {
        let layout = Layout::plan(Role::A, 8 * GIB, 1, GIB).unwrap();
        assert_eq!((layout.ring_slots, layout.scribble_blocks), (8192, 2048));
        let seeded: Vec<u64> = layout.seeding().filter_map(|(chunk, kind)| kind.map(|_| chunk)).collect();
        assert_eq!(seeded.len() as u64 * CHUNK_BYTES, GIB);
        assert!(seeded[0] < 100 && *seeded.last().unwrap() > 8000);
    }
}
