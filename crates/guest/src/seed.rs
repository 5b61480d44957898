//! Makes a ledger disk: header, empty ring, and a file system's worth of mixed data around it; and checks that data.
//!
//! Of every eight seeded chunks (1 MiB) three hold text, two tables, two noise and one zeros that were really written.
//! Each block that is not zero carries its own number and a checksum, so a reader without this code can check it too;
//! this code regenerates it from the seed and compares bit for bit.
//!
//! # If power fails
//! The header is written last: a disk that was seeded halfway is not a ledger disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::BLOCK_BYTES;
use crate::checksum::Numbers;
use crate::disk::{AlignedBuffer, DiskFault, ReadAt};
use crate::layout::{CHUNK_BYTES, HEADER_OFFSET, Layout, Role};
use crate::record::{put_u64, seal};
use crate::report::Report;
use crate::scan::is_zero;

/// Where a seeded block carries its number (8 bytes) before the checksum (4 bytes at the end).
const NUMBER_AT: usize = 4080;
const WORDS: [&str; 16] = [
    "river ",
    "salmon ",
    "the ",
    "returns ",
    "harbour ",
    "to ",
    "and ",
    "a ",
    "stone ",
    "upstream\n",
    "water ",
    "of ",
    "estuary ",
    "in ",
    "current ",
    "spawns ",
];

/// Creates (or replaces) the sparse raw file `path` of `disk_bytes` as ledger disk `role`, about `written_bytes` of it
/// seeded from `seed`. Both disks of a pair get the same seed; their data differs all the same.
pub fn seed_disk(path: &Path, role: Role, disk_bytes: u64, seed: u64, written_bytes: u64) -> Result<Layout, DiskFault> {
    let layout = Layout::plan(role, disk_bytes, seed, written_bytes)?;
    let file = File::create(path).map_err(DiskFault::io(format!("creating {}", path.display())))?;
    let writing = || DiskFault::io(format!("seeding {}", path.display()));
    file.set_len(layout.disk_bytes).map_err(writing())?;
    let mut chunk = vec![0u8; CHUNK_BYTES as usize];
    for (number, kind) in layout.seeding() {
        let Some(ordinal) = kind else { continue };
        fill_chunk(&layout, number, ordinal, &mut chunk);
        file.write_all_at(&chunk, number * CHUNK_BYTES).map_err(writing())?;
    }
    let mut header = vec![0u8; BLOCK_BYTES];
    layout.encode(&mut header);
    file.write_all_at(&header, HEADER_OFFSET).map_err(writing())?;
    Ok(layout)
}

/// Makes disks A and B side by side, as [`seed_disk`] does each.
pub fn seed_pair(
    path_a: &Path,
    path_b: &Path,
    disk_bytes: u64,
    seed: u64,
    written_bytes: u64,
) -> Result<(), DiskFault> {
    std::thread::scope(|threads| {
        let a = threads.spawn(|| seed_disk(path_a, Role::A, disk_bytes, seed, written_bytes));
        let b = seed_disk(path_b, Role::B, disk_bytes, seed, written_bytes);
        a.join().expect("seeding does not panic").and(b).map(|_| ())
    })
}

/// Compares all data of a disk with what was seeded, and that nothing stands where nothing was.
pub(crate) fn check_data(disk: &impl ReadAt, layout: &Layout, report: &mut Report) -> Result<(), DiskFault> {
    let role = layout.role;
    let mut found = AlignedBuffer::new(CHUNK_BYTES as usize);
    let mut expected = vec![0u8; CHUNK_BYTES as usize];
    for (number, kind) in layout.seeding() {
        let offset = number * CHUNK_BYTES;
        report.data_blocks_checked += CHUNK_BYTES / BLOCK_BYTES as u64;
        if kind.is_none() && disk.is_hole(offset, CHUNK_BYTES) {
            continue;
        }
        let reading = DiskFault::io(format!("reading disk {role:?} at byte {offset}"));
        disk.read_at(offset, found.bytes_mut()).map_err(reading)?;
        match kind {
            Some(ordinal) => fill_chunk(layout, number, ordinal, &mut expected),
            None if is_zero(found.bytes()) => continue,
            None => expected.fill(0),
        }
        if found.bytes() == expected {
            continue;
        }
        let pairs = found.bytes().chunks_exact(BLOCK_BYTES).zip(expected.chunks_exact(BLOCK_BYTES)).enumerate();
        for (index, _) in pairs.filter(|(_, (found, expected))| found != expected) {
            let at = offset + (index * BLOCK_BYTES) as u64;
            report.data_blocks_bad += 1;
            report.problem(|| format!("data of disk {role:?} at byte {at} is not what was seeded"));
        }
    }
    Ok(())
}

fn fill_chunk(layout: &Layout, chunk_number: u64, ordinal: u64, chunk: &mut [u8]) {
    let first = chunk_number * (CHUNK_BYTES / BLOCK_BYTES as u64);
    for (index, block) in chunk.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        let number = first + index as u64;
        let mut numbers = Numbers::new(layout.seed ^ u64::from(layout.role.index()) << 63, number);
        match ordinal % 8 {
            0..=2 => fill_text(block, &mut numbers),
            3..=4 => fill_table(block, &mut numbers),
            5..=6 => numbers.fill(block),
            _ => {
                block.fill(0);
                continue;
            }
        }
        put_u64(block, NUMBER_AT, number);
        block[NUMBER_AT + 8..].fill(0);
        seal(block);
    }
}

fn fill_text(block: &mut [u8], numbers: &mut Numbers) {
    let (mut at, mut choice) = (0, 0u64);
    while at < block.len() {
        if choice == 0 {
            choice = numbers.next() | 1 << 63;
        }
        let word = WORDS[(choice & 15) as usize].as_bytes();
        choice >>= 4;
        let length = word.len().min(block.len() - at);
        block[at..at + length].copy_from_slice(&word[..length]);
        at += length;
    }
}

/// Rows of 32 bytes with growing keys and few distinct values, as databases have them.
fn fill_table(block: &mut [u8], numbers: &mut Numbers) {
    let mut key = numbers.next() >> 16;
    for row in block.chunks_exact_mut(32) {
        let value = numbers.next();
        key += value & 0xFF;
        put_u64(row, 0, key);
        put_u64(row, 8, value >> 48 & 0xFF);
        put_u64(row, 16, 0);
        put_u64(row, 24, value >> 40);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Scope, verify};

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_seeded_pair_is_sparse_consistent_and_checked_to_the_last_block() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        seed_pair(&a, &b, 256 * MIB, 5, 32 * MIB).unwrap();
        let report = verify(&a, &b, Scope::WholeDisk).unwrap();
        assert!(report.consistent(), "{:?}", report.problems);
        assert!(report.data_blocks_checked > 100_000, "{report:?}");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&a).unwrap()) * 512;
        assert!((32 * MIB..40 * MIB).contains(&blocks), "{blocks} bytes allocated");
        assert_ne!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    }

    #[test]
    fn one_changed_byte_of_data_and_one_where_nothing_was_are_both_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        seed_pair(&a, &b, 64 * MIB, 5, 8 * MIB).unwrap();
        let layout = Layout::plan(Role::A, 64 * MIB, 5, 8 * MIB).unwrap();
        let seeded = layout.seeding().find(|(_, kind)| *kind == Some(5)).unwrap().0;
        let hole = layout.seeding().find(|(_, kind)| kind.is_none()).unwrap().0;
        let file = File::options().read(true).write(true).open(&a).unwrap();
        for chunk in [seeded, hole] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, chunk * MIB + 5000).unwrap();
            file.write_all_at(&[byte[0] ^ 1], chunk * MIB + 5000).unwrap();
        }
        assert_eq!(verify(&a, &b, Scope::WholeDisk).unwrap().data_blocks_bad, 2);
        assert!(verify(&a, &b, Scope::Ledger).unwrap().consistent());
    }
}
