//! Fuzz targets: the pages, tables and sectors of a retention volume. See CONTRIBUTING.md for how to run one for longer.

use std::time::Duration;

use protocol::{Attempt, Lineage};
use twox_hash::XxHash3_64;

use crate::run::Window;
use crate::segment::{SegmentId, Table};
use crate::{index, leaves, log_sector, run, segment};

/// For each target in a run of all tests.
const WHILE: Duration = Duration::from_secs(6);

fn id() -> SegmentId {
    let attempt = Attempt { generation: 1, number: 7 };
    SegmentId { lineage: Lineage::fresh(), attempt, opened: 9, disk: 1, disk_size: 1 << 30, disks: 2 }
}

/// The bytes at the length they must have, under a magic that is right and a checksum that is true.
fn under_checksum(bytes: &[u8], length: usize, head: &[u8]) -> Vec<u8> {
    let mut whole = bytes.to_vec();
    whole.resize(length, 0);
    whole[..head.len()].copy_from_slice(head);
    let checksum = XxHash3_64::oneshot(&whole[..length - 8]);
    whole[length - 8..].copy_from_slice(&checksum.to_le_bytes());
    whole
}

#[test]
fn a_page_of_an_index() {
    let id = id();
    bolero::check!().with_max_len(4096).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        // Magic, any count, the segment's own number and the first page's tag: what a page must begin with.
        let mut head = segment_page_head(&id);
        if let Some(count) = bytes.get(4..6) {
            head[4..6].copy_from_slice(count);
        }
        let page = under_checksum(bytes, segment::PAGE as usize, &head);
        if let Some(entries) = index::decode_page(&id, 0, &page) {
            assert!(entries.iter().all(|entry| entry.offset + entry.length <= id.disk_size));
        }
        let sector = under_checksum(bytes, 512, &[]);
        let _ = index::decode_footer(&id, u64::from_le_bytes(sector[504..].try_into().unwrap()), &sector);
    });
}

fn segment_page_head(id: &SegmentId) -> [u8; 24] {
    let entry = segment::Entry::zeroes(4096, 4096);
    let (page, _) = index::encode_index(id, 512, [entry].into_iter());
    page[..24].try_into().unwrap()
}

#[test]
fn a_table_of_a_segment() {
    let id = id();
    bolero::check!().with_max_len(2048).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let _ = Table::decode(&id, 512, bytes);
        // One to four records of a segment that is this one's.
        let records = u32::from(bytes.first().copied().unwrap_or_default() % 4) + 1;
        let payload = u64::from(bytes.get(1).copied().unwrap_or_default()) * 512;
        let mut table = segment::FRAME_MAGIC.to_le_bytes().to_vec();
        table.extend_from_slice(&records.to_le_bytes());
        for number in [id.opened, 1, payload] {
            table.extend_from_slice(&number.to_le_bytes());
        }
        table.extend_from_slice(&2u32.to_le_bytes());
        table.extend_from_slice(&1u32.to_le_bytes());
        let used = 40 + 2 * 8 + records as usize * 32 + 8;
        let mut rest = bytes.get(2..).unwrap_or_default().to_vec();
        rest.resize(used, 0);
        let mut whole = under_checksum(&[&table[..], &rest].concat()[..used], used, &table);
        whole.resize(used.next_multiple_of(512), 0);
        if let Some(table) = Table::decode(&id, 512, &whole) {
            assert_eq!(table.entries.len(), records as usize);
            assert!(table.entries.iter().all(|entry| entry.offset + entry.length <= id.disk_size));
        }
    });
}

#[test]
fn a_page_of_a_run() {
    let window = Window { level: 2, start: 256 };
    bolero::check!().with_max_len(4096).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let mut head = [0; 32];
        head[..4].copy_from_slice(&run::PAGE_MAGIC.to_le_bytes());
        head[4] = bytes.first().copied().unwrap_or_default();
        head[8..16].copy_from_slice(&window.start.to_le_bytes());
        head[16] = window.level;
        head[24] = 7;
        if let Some(entries) = run::decode(window, 7, &under_checksum(bytes, 4096, &head)) {
            let ascend =
                |pair: &[run::Oldest]| (pair[0].disk, pair[0].extent.end()) <= (pair[1].disk, pair[1].extent.offset);
            assert!(entries.windows(2).all(ascend));
        }
    });
}

#[test]
fn a_sector_of_the_log() {
    bolero::check!().with_max_len(512).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let sector = under_checksum(bytes, 512, b"SKPL");
        if let Some(part) = log_sector::decode(sector[..].try_into().unwrap()) {
            assert!(part.part < part.parts && part.text.len() <= 480 + 8);
        }
    });
}

#[test]
fn a_page_of_leaves() {
    bolero::check!().with_max_len(4096).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let _ = leaves::decode(0, bytes);
        assert_eq!(leaves::decode(0, &under_checksum(bytes, 4096, &[])).map(|leaves| leaves.len()), Some(127));
    });
}
