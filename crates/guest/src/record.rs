//! Records and scribbles: the two kinds of blocks the guest writes, to bytes and back.
//!
//! Everything a scribble holds follows from the record that caused it, so an unfinished record can be finished from
//! itself after a crash. Offsets and fields are told in `docs/ledger.md`; change both or neither.

use crate::BLOCK_BYTES;
use crate::checksum::{Numbers, crc32, scramble};
use crate::layout::Role;

const RECORD_MAGIC: &[u8; 8] = b"SKRECORD";
const SCRIBBLE_MAGIC: &[u8; 8] = b"SKSCRIBL";
/// Where the checksum stands in every block: the last four bytes.
pub(crate) const CHECKSUM_AT: usize = BLOCK_BYTES - 4;
const RECORD_FILL_AT: usize = 96;
const SCRIBBLE_FILL_AT: usize = 32;
/// Noise up to here, repeated bytes after it: a block that compresses to about half, like real ones.
const NOISE_END: usize = BLOCK_BYTES / 2;

/// One entry of the ledger. The same bytes go to both disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// From 1, without gaps.
    pub number: u64,
    /// The guest's wall clock when the record was made, in milliseconds since 1970.
    pub made_ms: u64,
    /// Drawn anew at each boot: records of two machines that both went on from the same number differ.
    pub boot_id: u64,
    /// Boots so far, from 1.
    pub boot: u32,
    /// The checksum field of record number - 1; 0 before the first. This chains the ledger.
    pub previous_checksum: u32,
    /// Scribbles per disk up to and including this record.
    pub scribbles: u64,
    /// The blocks this record overwrites beside the ring: one on each disk, or none.
    pub scribble: Option<[Scribbled; 2]>,
    /// This record's own checksum field.
    pub checksum: u32,
}

/// What a record says about a scribble block it overwrites; its generation is the record's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scribbled {
    /// Index of the block in the scribbles of the disk.
    pub block: u64,
    /// The checksum field of the new content.
    pub checksum: u32,
}

impl Record {
    /// Fills `block` with this record and notes its checksum in it.
    pub(crate) fn encode(&mut self, block: &mut [u8]) {
        block[..8].copy_from_slice(RECORD_MAGIC);
        put_u64(block, 8, self.number);
        put_u64(block, 16, self.made_ms);
        put_u64(block, 24, self.boot_id);
        put_u32(block, 32, self.boot);
        put_u32(block, 36, self.previous_checksum);
        put_u64(block, 40, self.scribbles);
        put_u64(block, 48, u64::from(self.scribble.is_some()));
        for role in [Role::A, Role::B] {
            let at = 56 + 16 * role.index() as usize;
            let entry = self.scribble.map(|entries| entries[role.index() as usize]);
            put_u64(block, at, entry.map_or(0, |entry| entry.block));
            put_u64(block, at + 8, entry.map_or(0, |entry| u64::from(entry.checksum)));
        }
        put_u64(block, 88, 0);
        fill(block, RECORD_FILL_AT, self.boot_id, self.number);
        self.checksum = seal(block);
    }

    /// Reads a record; `None` if the block is not one, or not whole.
    pub(crate) fn decode(block: &[u8]) -> Option<Self> {
        let checksum = sealed(block, RECORD_MAGIC)?;
        let entry = |at: usize| {
            Some(Scribbled { block: get_u64(block, at), checksum: u32::try_from(get_u64(block, at + 8)).ok()? })
        };
        let scribble = match get_u64(block, 48) {
            0 => None,
            1 => Some([entry(56)?, entry(72)?]),
            _ => return None,
        };
        Some(Self {
            number: get_u64(block, 8),
            made_ms: get_u64(block, 16),
            boot_id: get_u64(block, 24),
            boot: get_u32(block, 32),
            previous_checksum: get_u32(block, 36),
            scribbles: get_u64(block, 40),
            scribble,
            checksum,
        })
    }

    /// Fills `block` with the scribble that this record puts on the disk `role` at index `scribble_block`; gives its
    /// checksum.
    pub(crate) fn encode_scribble(&self, role: Role, scribble_block: u64, block: &mut [u8]) -> u32 {
        block[..8].copy_from_slice(SCRIBBLE_MAGIC);
        put_u64(block, 8, self.number);
        put_u64(block, 16, scribble_block);
        put_u64(block, 24, u64::from(role.index()));
        fill(block, SCRIBBLE_FILL_AT, self.boot_id ^ scramble(u64::from(role.index())), self.number);
        seal(block)
    }
}

/// A scribble block as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scribble {
    /// Number of the record that wrote it.
    pub generation: u64,
    /// Its checksum field.
    pub checksum: u32,
}

impl Scribble {
    /// Reads the scribble that should stand at index `scribble_block` of the disk `role`; `None` if it is another, or
    /// not whole.
    pub(crate) fn decode(block: &[u8], role: Role, scribble_block: u64) -> Option<Self> {
        let checksum = sealed(block, SCRIBBLE_MAGIC)?;
        let in_place = get_u64(block, 16) == scribble_block && get_u64(block, 24) == u64::from(role.index());
        in_place.then(|| Self { generation: get_u64(block, 8), checksum })
    }
}

fn fill(block: &mut [u8], from: usize, seed: u64, number: u64) {
    Numbers::new(seed, number).fill(&mut block[from..NOISE_END]);
    for word in block[NOISE_END..].chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
}

/// Writes the checksum of all that stands before it, and gives it.
pub(crate) fn seal(block: &mut [u8]) -> u32 {
    let checksum = crc32(&block[..CHECKSUM_AT]);
    put_u32(block, CHECKSUM_AT, checksum);
    checksum
}

fn sealed(block: &[u8], magic: &[u8; 8]) -> Option<u32> {
    if block.len() != BLOCK_BYTES || !block.starts_with(magic) {
        return None;
    }
    let checksum = get_u32(block, CHECKSUM_AT);
    (crc32(&block[..CHECKSUM_AT]) == checksum).then_some(checksum)
}

pub(crate) fn put_u64(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The number at `at`; callers have checked that `block` is a whole block.
pub(crate) fn get_u64(block: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&block[at..at + 8]);
    u64::from_le_bytes(word)
}

/// The number at `at`; callers have checked that `block` is a whole block.
pub(crate) fn get_u32(block: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&block[at..at + 4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_record() -> Record {
        let scribble = Some([Scribbled { block: 3, checksum: 9 }, Scribbled { block: 5, checksum: u32::MAX }]);
        Record {
            number: 12,
            made_ms: 1_700_000_000_000,
            boot_id: 0xABCD,
            boot: 2,
            previous_checksum: 77,
            scribbles: 6,
            scribble,
            checksum: 0,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let mut block = vec![0xFF; BLOCK_BYTES];
        let mut record = a_record();
        record.encode(&mut block);
        assert_eq!(Record::decode(&block), Some(record));
        record.scribble = None;
        record.encode(&mut block);
        assert_eq!(Record::decode(&block), Some(record));
    }

    #[test]
    fn one_flipped_bit_anywhere_is_no_record() {
        let mut block = vec![0; BLOCK_BYTES];
        a_record().encode(&mut block);
        for at in [0, 9, 100, 2047, 2048, 4095] {
            block[at] ^= 0x10;
            assert_eq!(Record::decode(&block), None, "byte {at}");
            block[at] ^= 0x10;
        }
    }

    #[test]
    fn a_scribble_in_another_place_or_on_the_other_disk_is_refused() {
        let mut block = vec![0; BLOCK_BYTES];
        let checksum = a_record().encode_scribble(Role::A, 3, &mut block);
        assert_eq!(Scribble::decode(&block, Role::A, 3), Some(Scribble { generation: 12, checksum }));
        assert_eq!(Scribble::decode(&block, Role::A, 4), None);
        assert_eq!(Scribble::decode(&block, Role::B, 3), None);
    }
}
