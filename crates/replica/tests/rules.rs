//! The rules of the engine, one claim each, on plain files.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::fault::code;
use protocol::{Attempt, BlockMap, EpochHeader, Extent, ItemId, Lineage, PointKind};
use replica::{Content, DiskHome, DiskRecord, Epoch, Payload, Place, Replica, ReplicaError, Spec, Write, open_inside};

const SIZE: u64 = 1 << 20;

struct Site {
    directory: tempfile::TempDir,
    lineage: Lineage,
    disks: usize,
}

impl Site {
    fn new(disks: usize) -> Site {
        Site { directory: tempfile::tempdir().unwrap(), lineage: Lineage::fresh(), disks }
    }
    fn place(&self) -> Place {
        Place { directory: self.directory.path().join("replica"), retention: self.directory.path().join("journal") }
    }
    fn spec(&self, content: Content) -> Spec {
        let disks = (0..self.disks)
            .map(|n| DiskRecord { key: format!("disk{n}").parse().unwrap(), size: SIZE, home: DiskHome::Inside })
            .collect();
        Spec { item: item(), lineage: self.lineage, disks, content }
    }
    fn create(&self) -> Replica {
        Replica::create(&self.place(), &self.spec(Content::Empty), &open_inside).unwrap()
    }
    fn open(&self) -> Result<Replica, ReplicaError> {
        Replica::open(&self.place(), &open_inside)
    }
    fn header(&self, number: u64, base: Option<u64>) -> EpochHeader {
        EpochHeader {
            lineage: self.lineage,
            attempt: at(number),
            base: base.map(at),
            basis: Basis::Tracked,
            cut_at_ms: 1000 + number,
            disks: (0..self.disks)
                .map(|n| DiskSize { disk: format!("disk{n}").parse().unwrap(), size: SIZE })
                .collect(),
            kind: PointKind::CrashConsistent,
            freeze: None,
            expected_bytes: 0,
        }
    }
    fn begin(&self, replica: &Replica, number: u64) -> Epoch {
        let base = replica.newest().map(|point| point.attempt.number);
        replica.begin(&self.header(number, base)).unwrap()
    }
    fn epoch(&self, replica: &Replica, number: u64, writes: &[Write]) {
        let mut epoch = self.begin(replica, number);
        epoch.apply(writes).unwrap();
        epoch.seal(2000 + number).unwrap();
    }
    fn segments(&self) -> Vec<std::path::PathBuf> {
        let files = std::fs::read_dir(self.place().retention).unwrap().map(|entry| entry.unwrap().path());
        let mut segments: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "segment")).collect();
        segments.sort();
        segments
    }
}

fn item() -> ItemId {
    "web01".parse().unwrap()
}
fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}
fn data(disk: u16, offset: u64, length: usize, byte: u8) -> Write {
    Write { disk, offset, payload: Payload::Data(Bytes::from(vec![byte; length])) }
}
fn zero(disk: u16, offset: u64, length: u64) -> Write {
    Write { disk, offset, payload: Payload::Zero(length) }
}
fn map(extents: &[(u64, u64)]) -> BlockMap {
    extents.iter().map(|(offset, length)| Extent::new(*offset, *length)).collect()
}
/// The whole content of a disk at a point.
fn content(replica: &Replica, number: u64, disk: usize) -> Vec<u8> {
    let mut all = vec![0xaa; SIZE as usize];
    replica.view(at(number)).unwrap().read(disk, 0, &mut all).unwrap();
    all
}
fn runs(content: &[u8]) -> Vec<(usize, u8)> {
    let mut runs: Vec<(usize, u8)> = Vec::new();
    for (offset, byte) in content.iter().enumerate() {
        if runs.last().is_none_or(|(_, last)| last != byte) {
            runs.push((offset, *byte));
        }
    }
    runs
}
fn present(place: &Place, disk: usize) -> Vec<u8> {
    std::fs::read(place.directory.join(format!("disk{disk}.raw"))).unwrap()
}

#[test]
fn every_point_is_bit_exact_and_the_newest_is_on_the_plain_disk() {
    let site = Site::new(2);
    let replica = site.create();
    assert!(!replica.has_content() && replica.newest().is_none());
    site.epoch(&replica, 1, &[data(0, 0, 200_000, 1), data(1, 65536, 65536, 1)]);
    site.epoch(&replica, 2, &[data(0, 100, 70_000, 2), zero(1, 65536, 4096)]);
    site.epoch(&replica, 3, &[data(0, 50_000, 100_000, 3), zero(0, 0, 10), data(1, SIZE - 512, 512, 3)]);
    let check = |replica: &Replica| {
        assert_eq!(runs(&content(replica, 1, 0)), [(0, 1), (200_000, 0)]);
        assert_eq!(runs(&content(replica, 1, 1)), [(0, 0), (65536, 1), (131072, 0)]);
        assert_eq!(runs(&content(replica, 2, 0)), [(0, 1), (100, 2), (70_100, 1), (200_000, 0)]);
        assert_eq!(runs(&content(replica, 2, 1)), [(0, 0), (69632, 1), (131072, 0)]);
        assert_eq!(runs(&content(replica, 3, 0)), [(0, 0), (10, 1), (100, 2), (50_000, 3), (150_000, 1), (200_000, 0)]);
        for disk in 0..2 {
            assert_eq!(content(replica, 3, disk), present(&site.place(), disk));
        }
        assert_eq!(replica.points().iter().map(|p| p.attempt).collect::<Vec<_>>(), [at(1), at(2), at(3)]);
    };
    check(&replica);
    drop(replica);
    let replica = site.open().unwrap();
    assert!(replica.has_content());
    check(&replica);
    let newest = replica.newest().unwrap();
    assert_eq!((newest.cut_at_ms, newest.sealed_at_ms, newest.changed_bytes), (1003, 2003, 100_000 + 10 + 512));
}

#[test]
fn a_view_stays_as_it_was_while_the_open_epoch_writes_and_after_its_seal() {
    let site = Site::new(1);
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, 65536, 1)]);
    let view = replica.view(at(1)).unwrap();
    let mut read = vec![0; 65536];
    let mut epoch = site.begin(&replica, 2);
    epoch.apply(&[data(0, 4096, 4096, 2)]).unwrap();
    view.read(0, 0, &mut read).unwrap();
    assert_eq!(runs(&read), [(0, 1)]);
    epoch.apply(&[data(0, 4096, 8192, 3)]).unwrap();
    epoch.seal(0).unwrap();
    site.epoch(&replica, 3, &[data(0, 0, 65536, 4)]);
    view.read(0, 0, &mut read).unwrap();
    assert_eq!(runs(&read), [(0, 1)]);
    assert_eq!((view.size(0), view.size(7), view.point().attempt), (SIZE, 0, at(1)));
    assert!(matches!(view.read(0, SIZE - 1, &mut [0; 2]), Err(ReplicaError::OutOfBounds(_))));
    assert!(matches!(view.read(1, 0, &mut [0; 2]), Err(ReplicaError::OutOfBounds(_))));
    assert!(matches!(view.read(0, u64::MAX, &mut [0; 2]), Err(ReplicaError::OutOfBounds(_))));
}

#[test]
fn within_an_epoch_the_first_before_image_wins_and_is_kept_once() {
    let site = Site::new(1);
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, 65536, 1)]);
    let mut epoch = site.begin(&replica, 2);
    epoch.apply(&[data(0, 0, 65536, 2)]).unwrap();
    let before = std::fs::metadata(&site.segments()[0]).unwrap().len();
    epoch.apply(&[data(0, 0, 65536, 3), data(0, 100, 5000, 4)]).unwrap();
    assert_eq!(std::fs::metadata(&site.segments()[0]).unwrap().len(), before);
    assert_eq!(epoch.applied_bytes(), 2 * 65536 + 5000);
    epoch.seal(0).unwrap();
    assert_eq!(runs(&content(&replica, 1, 0)), [(0, 1), (65536, 0)]);
}

#[test]
fn holes_and_zeroes_cost_no_journal_space() {
    let site = Site::new(1);
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, 4096, 1), data(0, 8192, 4096, 0)]);
    site.epoch(&replica, 2, &[data(0, 0, SIZE as usize, 2)]);
    let length = std::fs::metadata(&site.segments()[0]).unwrap().len();
    assert!(length < 4096 + 4096 + 2048, "{length} bytes for 4096 of data");
    assert_eq!(runs(&content(&replica, 1, 0)), [(0, 1), (4096, 0)]);
    let view = replica.view(at(1)).unwrap();
    assert_eq!(view.data(0, 0, SIZE).unwrap(), map(&[(0, 4096)]));
    assert!(replica.view(at(2)).unwrap().data(0, 0, SIZE).unwrap().bytes() == SIZE);
}

#[test]
fn the_first_copy_keeps_no_before_images_and_no_point_before_its_seal() {
    let site = Site::new(1);
    let replica = site.create();
    let mut epoch = site.begin(&replica, 1);
    epoch.apply(&[data(0, 0, 65536, 1)]).unwrap();
    assert!(site.segments().is_empty() && replica.points().is_empty());
    drop(epoch);
    let kept = replica.keep(at(5), 0, 0, PointKind::CrashConsistent);
    assert!(matches!(&kept, Err(error @ ReplicaError::Inconsistent) if error.fault(&item()).is(code::DAMAGED)));
    drop(replica);
    let replica = site.open().unwrap();
    assert!(replica.has_content() && replica.newest().is_none());
    // The same sender may begin the same attempt again.
    site.epoch(&replica, 1, &[data(0, 0, SIZE as usize, 7)]);
    assert_eq!(runs(&content(&replica, 1, 0)), [(0, 7)]);
}

#[test]
fn an_epoch_without_its_point_record_leaves_no_trace() {
    let site = Site::new(2);
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, 65536, 1), data(1, 0, 4096, 1)]);
    let before = [present(&site.place(), 0), present(&site.place(), 1)];
    let mut epoch = site.begin(&replica, 2);
    epoch.apply(&[data(0, 1000, 80_000, 2)]).unwrap();
    epoch.apply(&[zero(1, 0, 4096), data(0, 500_000, 1, 2)]).unwrap();
    assert_ne!(present(&site.place(), 0), before[0]);
    std::mem::drop((epoch, replica));
    let replica = site.open().unwrap();
    assert_eq!([present(&site.place(), 0), present(&site.place(), 1)], before);
    assert_eq!(replica.newest().unwrap().attempt, at(1));
    assert!(site.segments().is_empty());

    // By request, and by the next epoch.
    let mut epoch = site.begin(&replica, 2);
    epoch.apply(&[data(1, 0, 65536, 3)]).unwrap();
    epoch.roll_back().unwrap();
    assert_eq!(present(&site.place(), 1), before[1]);
    let mut epoch = site.begin(&replica, 3);
    epoch.apply(&[data(1, 0, 65536, 3)]).unwrap();
    drop(epoch);
    drop(site.begin(&replica, 4));
    assert_eq!(present(&site.place(), 1), before[1]);
}

#[test]
fn an_attempt_is_sealed_once_and_an_older_one_never() {
    let site = Site::new(1);
    let replica = site.create();
    site.epoch(&replica, 1, &[]);
    site.begin(&replica, 4).roll_back().unwrap();
    site.begin(&replica, 4).roll_back().unwrap();
    for used in [1, 2, 3] {
        let refused = replica.begin(&site.header(used, Some(1))).err().unwrap();
        assert!(matches!(refused, ReplicaError::AttemptUsed { newest, .. } if newest == at(4)), "{refused}");
        assert!(refused.fault(&item()).is(code::BASE_MISMATCH));
    }
    drop(replica);
    let replica = site.open().unwrap();
    assert!(matches!(replica.begin(&site.header(3, Some(1))), Err(ReplicaError::AttemptUsed { .. })));
    site.epoch(&replica, 4, &[]);
    assert!(matches!(replica.begin(&site.header(4, Some(4))), Err(ReplicaError::AttemptUsed { .. })));
    assert!(matches!(replica.keep(at(4), 0, 0, PointKind::Final), Err(ReplicaError::AttemptUsed { .. })));
    // Another generation counts for itself.
    let other = Attempt { generation: 2, number: 1 };
    replica.begin(&EpochHeader { attempt: other, ..site.header(0, Some(4)) }).unwrap().seal(0).unwrap();
    assert_eq!(replica.newest().unwrap().attempt, other);
}

#[test]
fn an_epoch_that_does_not_continue_the_replica_is_refused() {
    let site = Site::new(2);
    let replica = site.create();
    assert!(matches!(replica.begin(&site.header(1, Some(1))), Err(ReplicaError::Base { .. })));
    site.epoch(&replica, 1, &[]);
    let wrong = |header: EpochHeader, entry| {
        let error = replica.begin(&header).err().unwrap();
        assert!(error.fault(&item()).is(entry), "{error}");
    };
    wrong(site.header(2, None), code::BASE_MISMATCH);
    wrong(EpochHeader { lineage: Lineage::fresh(), ..site.header(2, Some(1)) }, code::BASE_MISMATCH);
    let mut grown = site.header(2, Some(1));
    grown.disks[1].size += 512;
    wrong(grown, code::DISK_MISMATCH);
    let mut fewer = site.header(2, Some(1));
    fewer.disks.pop();
    wrong(fewer, code::DISK_MISMATCH);
    let mut twice = site.header(2, Some(1));
    twice.disks.push(twice.disks[0].clone());
    wrong(twice, code::DISK_MISMATCH);

    let mut epoch = site.begin(&replica, 2);
    wrong(site.header(3, Some(1)), code::REPLICA_BUSY);
    assert!(matches!(replica.keep(at(3), 0, 0, PointKind::Final), Err(ReplicaError::Busy(_))));
    for outside in [data(0, SIZE - 1, 2, 1), data(2, 0, 1, 1), zero(1, u64::MAX, 2), zero(0, 0, SIZE + 1)] {
        assert!(matches!(epoch.apply(&[data(0, 0, 9, 9), outside]), Err(ReplicaError::OutOfBounds(_))));
    }
    epoch.seal(0).unwrap();
    assert_eq!(runs(&content(&replica, 2, 0)), [(0, 0)]);
}

#[test]
fn rolling_back_to_a_point_is_an_epoch_so_newer_points_survive() {
    let site = Site::new(2);
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, 65536, 1), data(1, 0, 65536, 1)]);
    site.epoch(&replica, 2, &[data(0, 0, 65536, 2), zero(1, 0, 65536)]);
    site.epoch(&replica, 3, &[data(0, 4096, 300_000, 3)]);
    let point = replica.roll_back_to(at(1), at(4), 9000).unwrap();
    assert_eq!((point.kind, point.cut_at_ms, point.sealed_at_ms), (PointKind::RolledBack, 1001, 9000));
    drop(replica);
    let replica = site.open().unwrap();
    for disk in 0..2 {
        assert_eq!(content(&replica, 4, disk), content(&replica, 1, disk));
        assert_eq!(content(&replica, 4, disk), present(&site.place(), disk));
    }
    assert_eq!(runs(&content(&replica, 3, 0)), [(0, 2), (4096, 3), (304_096, 0)]);
    assert_eq!(runs(&content(&replica, 2, 1)), [(0, 0)]);
    replica.roll_back_to(at(3), at(5), 0).unwrap();
    assert_eq!(content(&replica, 5, 0), content(&replica, 3, 0));
    assert!(matches!(replica.roll_back_to(at(9), at(10), 0), Err(ReplicaError::PointGone(_))));
}

#[test]
fn what_changed_since_a_point_includes_the_open_epoch() {
    let site = Site::new(2);
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, SIZE as usize, 1)]);
    site.epoch(&replica, 2, &[data(0, 4096, 4096, 2)]);
    site.epoch(&replica, 3, &[data(1, 100, 5000, 3)]);
    let mut epoch = site.begin(&replica, 4);
    epoch.apply(&[data(0, 65536, 1, 4)]).unwrap();
    let since = |number| replica.changed_since(at(number)).unwrap().into_values().collect::<Vec<_>>();
    assert_eq!(since(1), [map(&[(4096, 4096), (65536, 4096)]), map(&[(0, 8192)])]);
    assert_eq!(since(2), [map(&[(65536, 4096)]), map(&[(0, 8192)])]);
    assert_eq!(since(3), [map(&[(65536, 4096)]), map(&[])]);
    replica.prune_before(at(2)).unwrap();
    let gone = replica.changed_since(at(1)).err().unwrap();
    assert!(gone.fault(&item()).is(code::POINT_GONE));
}

#[test]
fn existing_content_is_journalled_from_the_first_write_and_kept_as_a_point() {
    let site = Site::new(1);
    let place = site.place();
    std::fs::create_dir_all(&place.directory).unwrap();
    std::fs::write(place.directory.join("disk0.raw"), vec![9; SIZE as usize]).unwrap();
    let replica = Replica::create(&place, &site.spec(Content::Existing), &open_inside).unwrap();
    assert!(replica.has_content());
    // Even before any point: an unfinished epoch is undone.
    let mut epoch = site.begin(&replica, 1);
    epoch.apply(&[data(0, 0, 100_000, 1)]).unwrap();
    drop((epoch, replica));
    let replica = site.open().unwrap();
    assert_eq!(runs(&present(&place, 0)), [(0, 9)]);
    let kept = replica.keep(at(2), 5, 6, PointKind::Unreplicated).unwrap();
    assert_eq!((kept.kind, kept.changed_bytes), (PointKind::Unreplicated, 0));
    site.epoch(&replica, 3, &[data(0, 0, 100_000, 1)]);
    assert_eq!(runs(&content(&replica, 2, 0)), [(0, 9)]);
    replica.roll_back_to(at(2), at(4), 0).unwrap();
    assert_eq!(runs(&present(&place, 0)), [(0, 9)]);
}

#[test]
fn pruning_drops_the_oldest_and_a_view_pins_what_it_needs() {
    let site = Site::new(1);
    let replica = site.create();
    for number in 1..=5 {
        site.epoch(&replica, number, &[data(0, number * 4096, 65536, number as u8)]);
    }
    let view = replica.view(at(2)).unwrap();
    let mut before = vec![0; SIZE as usize];
    view.read(0, 0, &mut before).unwrap();
    assert_eq!(site.segments().len(), 4);
    replica.prune_before(at(4)).unwrap();
    assert_eq!(replica.points().len(), 2);
    assert!(matches!(replica.view(at(2)), Err(ReplicaError::PointGone(_))));
    assert_eq!(site.segments().len(), 3, "the view of 2 needs what leads back from 3, 4 and 5");
    site.epoch(&replica, 6, &[data(0, 0, SIZE as usize, 6)]);
    let mut after = vec![0; SIZE as usize];
    view.read(0, 0, &mut after).unwrap();
    assert!(before == after);
    drop(view);
    assert_eq!(site.segments().len(), 2);
    replica.prune_before(at(4)).unwrap();
    assert!(matches!(replica.prune_before(at(1)), Err(ReplicaError::PointGone(_))));
    drop(replica);
    let replica = site.open().unwrap();
    assert_eq!(replica.points().iter().map(|p| p.attempt.number).collect::<Vec<_>>(), [4, 5, 6]);
    assert_eq!(site.segments().len(), 2);
    let _ = content(&replica, 4, 0);
    assert!(matches!(replica.begin(&site.header(3, Some(6))), Err(ReplicaError::AttemptUsed { .. })));
}

#[test]
fn a_replica_is_open_once_and_closing_lets_go() {
    let site = Site::new(1);
    let replica = site.create();
    site.epoch(&replica, 1, &[]);
    let busy = site.open().err().unwrap();
    assert!(busy.fault(&item()).is(code::REPLICA_BUSY), "{busy}");
    let (view, epoch) = (replica.view(at(1)).unwrap(), site.begin(&replica, 2));
    replica.close();
    assert!(matches!(view.read(0, 0, &mut [0]), Err(ReplicaError::Closed)));
    assert!(matches!(epoch.seal(0), Err(ReplicaError::Closed)));
    assert!(matches!(replica.keep(at(3), 0, 0, PointKind::Final), Err(ReplicaError::Closed)));
    let again = site.open().unwrap();
    assert_eq!(again.newest().unwrap().attempt, at(1));
    drop((view, replica));
    site.epoch(&again, 2, &[]);
}

#[test]
fn making_a_replica_never_takes_over_what_is_there() {
    let site = Site::new(1);
    assert!(matches!(site.open(), Err(ReplicaError::Absent(_))));
    let replica = site.create();
    site.epoch(&replica, 1, &[data(0, 0, 1, 1)]);
    drop(replica);
    let create = |site: &Site| Replica::create(&site.place(), &site.spec(Content::Empty), &open_inside);
    assert!(create(&site).err().unwrap().fault(&item()).is(code::REPLICA_EXISTS));
    std::fs::remove_file(site.place().directory.join("manifest.json")).unwrap();
    assert!(matches!(create(&site), Err(ReplicaError::Exists(_))), "the journal has points");
    std::fs::remove_file(site.place().retention.join("points.log")).unwrap();
    assert!(create(&site).is_err(), "the disk holds data");
    std::fs::remove_file(site.place().directory.join("disk0.raw")).unwrap();
    create(&site).unwrap();

    let mut twice = site.spec(Content::Empty);
    twice.disks.push(twice.disks[0].clone());
    let elsewhere = |name: &str| Place {
        directory: site.directory.path().join(name).join("replica"),
        retention: site.directory.path().join(name).join("journal"),
    };
    assert!(matches!(Replica::create(&elsewhere("a"), &twice, &open_inside), Err(ReplicaError::Disks(_))));
    let none = Spec { disks: vec![], ..twice };
    assert!(matches!(Replica::create(&elsewhere("b"), &none, &open_inside), Err(ReplicaError::Disks(_))));
}

#[test]
fn deleting_removes_the_replica_and_never_a_disk_that_is_elsewhere() {
    let site = Site::new(2);
    let outside = site.directory.path().join("platform.raw");
    std::fs::write(&outside, vec![5; SIZE as usize]).unwrap();
    let mut spec = site.spec(Content::Existing);
    let format = protocol::machine::DiskFormat::Raw;
    spec.disks[1].home = DiskHome::Outside { path: outside.display().to_string(), format };
    std::fs::create_dir_all(site.place().directory).unwrap();
    std::fs::write(site.place().directory.join("disk0.raw"), vec![4; SIZE as usize]).unwrap();
    let open = |record: &DiskRecord, directory: &Path| match &record.home {
        DiskHome::Inside => open_inside(record, directory),
        DiskHome::Outside { path, .. } => {
            Ok(std::sync::Arc::new(replica::FileDisk::open(Path::new(path))?) as std::sync::Arc<dyn replica::Disk>)
        }
    };
    let replica = Replica::create(&site.place(), &spec, &open).unwrap();
    site.epoch(&replica, 1, &[data(0, 0, 1, 1), data(1, 0, 1, 1)]);
    site.epoch(&replica, 2, &[data(0, 0, 1, 2), data(1, 0, 1, 2)]);
    replica.delete().unwrap();
    assert_eq!(std::fs::read(&outside).unwrap()[..2], [2, 5]);
    let left = |path: &Path| {
        let names = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "lock").collect::<Vec<_>>()
    };
    assert!(left(&site.place().directory).is_empty() && left(&site.place().retention).is_empty());
    assert!(matches!(site.open(), Err(ReplicaError::Absent(_))));
    assert!(matches!(Replica::delete_at(&site.place()), Err(ReplicaError::Absent(_))));
    drop(site.create());
    Replica::delete_at(&site.place()).unwrap();
    assert!(matches!(site.open(), Err(ReplicaError::Absent(_))));
}

#[test]
fn a_disk_of_another_size_is_refused() {
    let site = Site::new(1);
    drop(site.create());
    let disk = std::fs::File::options().write(true).open(site.place().directory.join("disk0.raw")).unwrap();
    disk.set_len(SIZE * 2).unwrap();
    assert!(site.open().err().unwrap().fault(&item()).is(code::DISK_MISMATCH));
}

#[test]
fn a_retention_volume_that_is_not_mounted_is_not_an_empty_one() {
    let site = Site::new(1);
    drop(site.create());
    std::fs::rename(site.place().retention, site.directory.path().join("away")).unwrap();
    assert!(matches!(site.open(), Err(ReplicaError::Io { .. })));
    std::fs::create_dir(site.place().retention).unwrap();
    assert!(site.open().err().unwrap().fault(&item()).is(code::JOURNAL_DAMAGED));
}

#[test]
fn a_replica_its_views_and_its_epoch_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Replica>();
    shared::<replica::View>();
    sent::<Epoch>();
}
