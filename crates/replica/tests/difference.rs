//! What two points differ in, compared with reading both of them whole.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, BlockMap, EpochHeader, Extent, ItemId, Lineage, PointKind};
use replica::{Content, DiskHome, DiskRecord, PIECE, Payload, Place, Replica, ReplicaError, Spec, Write, open_inside};

/// Not a multiple of a piece: the last one of each disk is short.
const SIZE: u64 = (1 << 20) + 512;
const DISKS: usize = 2;

fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

fn create(directory: &Path) -> Replica {
    let item: ItemId = "web01".parse().unwrap();
    let disks = (0..DISKS)
        .map(|n| DiskRecord { key: format!("disk{n}").parse().unwrap(), size: SIZE, home: DiskHome::Inside })
        .collect();
    let spec = Spec { item, lineage: Lineage::fresh(), disks, content: Content::Empty };
    let place = Place { directory: directory.join("replica"), retention: directory.join("journal") };
    Replica::create(&place, &spec, &open_inside).unwrap()
}

fn epoch(replica: &Replica, number: u64, writes: &[Write]) {
    let header = EpochHeader {
        lineage: replica.manifest().lineage,
        attempt: at(number),
        base: replica.newest().map(|point| point.attempt),
        basis: Basis::Tracked,
        cut_at_ms: number,
        disks: (0..DISKS).map(|n| DiskSize { disk: format!("disk{n}").parse().unwrap(), size: SIZE }).collect(),
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    };
    let mut epoch = replica.begin(&header).unwrap();
    epoch.apply(writes).unwrap();
    epoch.seal(number).unwrap();
}

fn write(disk: u16, offset: u64, length: u64, byte: u8) -> Write {
    let length = length.min(SIZE - offset);
    let payload =
        if byte == 0 { Payload::Zero(length) } else { Payload::Data(Bytes::from(vec![byte; length as usize])) };
    Write { disk, offset, payload }
}

fn content(replica: &Replica, number: u64, disk: usize) -> Vec<u8> {
    let mut all = vec![0xaa; SIZE as usize];
    replica.view(at(number)).unwrap().read(disk, 0, &mut all).unwrap();
    all
}

/// The model: both points read whole.
fn model(replica: &Replica, one: u64, other: u64, disk: usize) -> BlockMap {
    let (one, other) = (content(replica, one, disk), content(replica, other, disk));
    let pieces = one.chunks(PIECE as usize).zip(other.chunks(PIECE as usize)).enumerate();
    let unequal = pieces.filter(|(_, (here, there))| here != there);
    unequal.map(|(n, (piece, _))| Extent::new(n as u64 * PIECE, piece.len() as u64)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_difference_of_any_two_points_is_what_reading_both_of_them_tells(
        epochs in prop::collection::vec(
            prop::collection::vec((0u16..DISKS as u16, 0u64..SIZE / 512, 1u64..200_000, 0u8..3), 0..4), 2..7),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let replica = create(directory.path());
        for (number, writes) in epochs.iter().enumerate() {
            let writes: Vec<Write> = writes.iter().map(|w| write(w.0, w.1 * 512, w.2, w.3)).collect();
            epoch(&replica, number as u64 + 1, &writes);
        }
        for one in 1..=epochs.len() as u64 {
            for other in 1..=epochs.len() as u64 {
                let told = replica.diff(at(one), at(other)).unwrap();
                prop_assert_eq!(told.len(), DISKS);
                for (disk, map) in told.values().enumerate() {
                    prop_assert_eq!(map, &model(&replica, one, other, disk), "disk {} of {} and {}", disk, one, other);
                }
            }
        }
    }
}

#[test]
fn what_was_written_with_the_same_bytes_does_not_differ() {
    let directory = tempfile::tempdir().unwrap();
    let replica = create(directory.path());
    epoch(&replica, 1, &[write(0, 0, 300_000, 1)]);
    epoch(&replica, 2, &[write(0, 0, 300_000, 1), write(0, 8192, 1, 2)]);
    let told = replica.diff(at(1), at(2)).unwrap();
    let maps: Vec<_> = told.values().collect();
    assert_eq!(maps[0].extents(), [Extent::new(8192, PIECE)]);
    assert!(maps[1].is_empty());
}

#[test]
fn a_point_that_is_not_kept_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let replica = create(directory.path());
    for number in 1..=3 {
        epoch(&replica, number, &[write(0, 0, 4096, number as u8)]);
    }
    replica.prune_before(at(2)).unwrap();
    assert!(matches!(replica.diff(at(1), at(3)), Err(ReplicaError::PointGone(gone)) if gone == at(1)));
    assert!(matches!(replica.diff(at(3), at(9)), Err(ReplicaError::PointGone(gone)) if gone == at(9)));
    assert_eq!(replica.diff(at(2), at(3)).unwrap().values().next().unwrap().bytes(), PIECE);
}
