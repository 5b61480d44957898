//! An epoch onto disks with content whose way back was given up (H14): half written until it is sealed, and durably so
//! before its first write.

#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::fault::code;
use protocol::{Attempt, EpochHeader, Lineage, PointKind};
use replica::{Content, DiskHome, DiskRecord, Payload, Place, Replica, ReplicaError, Spec, Write, open_inside};

const SIZE: usize = 1 << 20;

fn at(number: u64) -> Attempt {
    Attempt { generation: 2, number }
}

fn header(replica: &Replica, number: u64) -> EpochHeader {
    EpochHeader {
        lineage: replica.manifest().lineage,
        attempt: at(number),
        base: replica.newest().map(|point| point.attempt),
        basis: Basis::Full,
        cut_at_ms: 0,
        disks: replica.disks().iter().map(|r| DiskSize { disk: r.key.clone(), size: r.size }).collect(),
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    }
}

fn write(offset: usize, length: usize, fill: u8) -> Write {
    Write { disk: 0, offset: offset as u64, payload: Payload::Data(Bytes::from(vec![fill; length])) }
}

/// A replica around a disk full of ones, kept as point 1.
fn home() -> (tempfile::TempDir, Place, Replica) {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { directory: directory.path().join("replica"), retention: directory.path().join("journal") };
    std::fs::create_dir(&place.directory).unwrap();
    std::fs::write(place.directory.join("disk0.raw"), vec![1; SIZE]).unwrap();
    let disks = vec![DiskRecord { key: "disk0".parse().unwrap(), size: SIZE as u64, home: DiskHome::Inside }];
    let spec = Spec { item: "web01".parse().unwrap(), lineage: Lineage::fresh(), disks, content: Content::Existing };
    let replica = Replica::create(&place, &spec, &open_inside).unwrap();
    replica.keep(at(1), 0, 0, PointKind::Unreplicated).unwrap();
    (directory, place, replica)
}

fn disk(place: &Place) -> Vec<u8> {
    std::fs::read(place.directory.join("disk0.raw")).unwrap()
}

#[test]
fn without_a_way_back_nothing_is_journalled_and_the_disk_is_half_written_until_it_is_sealed() {
    let (_directory, place, replica) = home();
    let before = replica.journal_bytes();
    let mut epoch = replica.begin_without_way_back(&header(&replica, 2)).unwrap();
    assert!(replica.is_half_written(), "before the first write");
    assert_eq!((replica.points(), disk(&place)), (vec![], vec![1; SIZE]));
    epoch.apply(&[write(0, SIZE / 2, 2)]).unwrap();
    assert_eq!(replica.journal_bytes(), before, "before-images were kept all the same");
    drop(epoch);
    drop(replica);
    // It ends in the middle: no opening takes the mark away, nothing is undone, and nothing can be had from the disk.
    for _ in 0..2 {
        let replica = Replica::open(&place, &open_inside).unwrap();
        assert!(replica.is_half_written() && replica.points().is_empty());
        let kept = replica.keep(at(3), 0, 0, PointKind::CrashConsistent).unwrap_err();
        assert!(kept.fault(&"web01".parse().unwrap()).is(code::DAMAGED), "{kept}");
        assert!(matches!(replica.view(at(1)), Err(ReplicaError::PointGone(_))));
    }
    assert!(disk(&place)[..SIZE / 2].iter().all(|byte| *byte == 2));
    // The next epoch brings everything, and is again not journalled.
    let replica = Replica::open(&place, &open_inside).unwrap();
    let mut epoch = replica.begin(&header(&replica, 4)).unwrap();
    epoch.apply(&[write(0, SIZE, 4)]).unwrap();
    assert!(replica.is_half_written());
    epoch.seal(1000).unwrap();
    assert!(!replica.is_half_written());
    assert_eq!(replica.journal_bytes(), before);
    // From here on there is a history again.
    let mut epoch = replica.begin(&header(&replica, 5)).unwrap();
    epoch.apply(&[write(0, 4096, 5)]).unwrap();
    epoch.roll_back().unwrap();
    assert!(!replica.is_half_written());
    drop(replica);
    let replica = Replica::open(&place, &open_inside).unwrap();
    assert_eq!(replica.newest().unwrap().attempt, at(4));
    assert_eq!(disk(&place), vec![4; SIZE]);
}

#[test]
fn an_epoch_without_a_way_back_that_is_sealed_is_a_point_like_any_other() {
    let (_directory, place, replica) = home();
    let mut epoch = replica.begin_without_way_back(&header(&replica, 2)).unwrap();
    epoch.apply(&[write(8192, 4096, 2)]).unwrap();
    epoch.seal(1000).unwrap();
    let mut epoch = replica.begin(&header(&replica, 3)).unwrap();
    epoch.apply(&[write(0, SIZE, 3)]).unwrap();
    epoch.seal(2000).unwrap();
    drop(replica);
    let replica = Replica::open(&place, &open_inside).unwrap();
    let mut wanted = vec![1; SIZE];
    wanted[8192..12_288].fill(2);
    let mut found = vec![0; SIZE];
    replica.view(at(2)).unwrap().read(0, 0, &mut found).unwrap();
    assert!(found == wanted);
    assert!(matches!(replica.view(at(1)), Err(ReplicaError::PointGone(_))), "there is no way back to it");
}

#[test]
fn the_way_back_is_not_given_up_while_somebody_reads_a_point() {
    let (_directory, place, replica) = home();
    let view = replica.view(at(1)).unwrap();
    let refused = replica.begin_without_way_back(&header(&replica, 2)).err();
    assert!(matches!(refused, Some(ReplicaError::Busy(_))), "{refused:?}");
    assert!(!replica.is_half_written());
    assert_eq!(replica.points().len(), 1);
    drop(view);
    drop(replica);
    let replica = Replica::open(&place, &open_inside).unwrap();
    assert_eq!(replica.points().len(), 1);
    replica.begin_without_way_back(&header(&replica, 2)).unwrap();
    assert!(replica.is_half_written());
}
