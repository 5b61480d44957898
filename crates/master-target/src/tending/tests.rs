//! Which points go, on real replicas: by age, within a budget, and on a volume that is really full.

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::fault::code;
use protocol::leaf::LeafSize;
use protocol::order::Grant;
use protocol::{Changes, EpochHeader, EpochTotals, Lineage, Point, PointKind, Position};
use replica::{Content, DiskHome, DiskRecord, Payload, Place, Spec, Write, open_inside};

use super::*;
use crate::item::{Item, Numbered};
use crate::record::{Record, Standing};

const PIECE: u64 = 64 << 10;

pub(crate) fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

/// A volume of its own, really as small as it says.
struct Volume(tempfile::TempDir);

impl Volume {
    fn of_mib(mib: u64) -> Volume {
        let directory = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "this test mounts a volume: run it as root");
        Volume(directory)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// An item whose disk is in `disks` and whose journal is on `volume`, with one sealed point.
pub(crate) struct Bench {
    pub(crate) item: Item,
    lineage: Lineage,
    disks: Vec<DiskSize>,
}

impl Bench {
    pub(crate) fn new(disks: &Path, volume: &Path, size: u64) -> Bench {
        let (lineage, id): (Lineage, ItemId) = (Lineage::fresh(), "web01".parse().unwrap());
        let disk = DiskRecord { key: "disk0".parse().unwrap(), size, home: DiskHome::Inside };
        let place = Place { directory: disks.join("replica"), retention: volume.join("web01") };
        let sizes = vec![DiskSize { disk: disk.key.clone(), size }];
        let spec = Spec { item: id.clone(), lineage, disks: vec![disk], content: Content::Empty };
        let replica = Replica::create(&place, &spec, &open_inside).unwrap();
        let grant = Some(Grant { generation: 1, token: "t".into() });
        let item = Item::new(replica, Record::new(id, lineage, grant), disks.join("web01.json"), place.retention);
        Bench { item, lineage, disks: sizes }
    }

    pub(crate) fn header(&self, number: u64, expected_bytes: u64) -> EpochHeader {
        let base = self.item.replica.newest().map(|point| point.attempt);
        let (basis, kind, disks) = (Basis::Tracked, PointKind::CrashConsistent, self.disks.clone());
        EpochHeader {
            lineage: self.lineage,
            attempt: at(number),
            base,
            basis,
            cut_at_ms: 0,
            disks,
            kind,
            freeze: None,
            expected_bytes,
        }
    }

    /// Sends an epoch that fills the first `pieces` of the disk with noise of its own.
    fn epoch(&self, number: u64, pieces: u64) -> Result<Point, Fault> {
        self.item.open_epoch(&self.header(number, pieces * PIECE))?;
        let mut totals = EpochTotals::default();
        for piece in 0..pieces {
            let bytes = noise(number * 10_000 + piece);
            totals.count(PIECE, 0, piece);
            let write = Write { disk: 0, offset: piece * PIECE, payload: Payload::Data(bytes) };
            let numbered = Numbered { sequence: piece + 1, checksum: piece, data_bytes: PIECE, zero_bytes: 0, write };
            self.item.apply(self.item.prepare(vec![numbered])?)?;
        }
        self.item.seal(at(number), totals).map(|(point, _)| point)
    }

    /// The same, and then what follows a point.
    async fn point(&self, number: u64, pieces: u64) -> Result<Point, Fault> {
        let point = self.epoch(number, pieces);
        self.item.tend();
        self.item.tended().await;
        point
    }

    fn first_byte_of(&self, point: u64) -> u8 {
        let mut byte = [0];
        self.item.replica.view(at(point)).unwrap().read(0, 0, &mut byte).unwrap();
        byte[0]
    }
}

/// Bytes that do not compress.
fn noise(seed: u64) -> Bytes {
    let mut bytes = vec![0; PIECE as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}

fn first_noise(number: u64) -> u8 {
    noise(number * 10_000)[0]
}

#[tokio::test]
async fn after_a_point_old_ones_go_aside_but_those_that_are_needed() {
    let (disks, volume) = (tempfile::tempdir().unwrap(), Volume::of_mib(64));
    let bench = Bench::new(disks.path(), volume.0.path(), 1 << 20);
    let now = now_ms();
    // One every ten minutes, up to now: 48 hours of them.
    for number in 1..=288u64 {
        let mut epoch = bench.item.replica.begin(&bench.header(number, 0)).unwrap();
        let payload = Payload::Data(Bytes::from(vec![number as u8; 4096]));
        epoch.apply(&[Write { disk: 0, offset: 0, payload }]).unwrap();
        epoch.seal(now - (288 - number) * 600_000).unwrap();
    }
    let position = Position { lineage: bench.lineage, base: at(5), authored: None, changes: Changes::none() };
    bench.item.change(|record| record.kept = Some(Standing { at: at(5), position })).unwrap();
    bench.item.tend();
    bench.item.tended().await;
    let points = bench.item.replica.points();
    assert_eq!(points[0].attempt, at(5), "what a copy goes back to stays");
    assert_eq!(points[1..].iter().map(|p| p.attempt.number).collect::<Vec<_>>(), (145..=288).collect::<Vec<_>>());
    assert_eq!(bench.first_byte_of(5), 5);
    let status = bench.item.keeping();
    assert_eq!((status.points, status.space, status.fault), (145, Space::Enough, None));
    // Another policy: an hour and no more, at once.
    let none_older = Retention { then: vec![], app_consistent: None, ..Retention::default() };
    bench.item.keep_by(&none_older, LeafSize::default()).unwrap();
    bench.item.tended().await;
    let left: Vec<u64> = bench.item.replica.points().iter().map(|p| p.attempt.number).collect();
    assert_eq!(left, [vec![5], (283..=288).collect()].concat());
    bench.item.end_tending().await;
    assert_eq!(Arc::strong_count(&bench.item.replica), 1);
}

#[tokio::test]
async fn a_budget_is_kept_and_told_of_and_a_pinned_point_stays_whatever_it_costs() {
    let (disks, volume) = (tempfile::tempdir().unwrap(), Volume::of_mib(64));
    let bench = Bench::new(disks.path(), volume.0.path(), 4 << 20);
    let budget = Some(Budget { bytes: 6 << 20, alarm_percent: 50 });
    bench.item.keep_by(&Retention { budget, ..Retention::default() }, LeafSize::default()).unwrap();
    let mut seen = Vec::new();
    for number in 1..=12 {
        bench.point(number, 16).await.unwrap();
        if number == 2 {
            bench.item.replica.pin(at(2)).unwrap();
        }
        let status = bench.item.keeping();
        assert!(status.journal_bytes <= 6 << 20, "{status:?}");
        assert_eq!(status.budget_bytes, 6 << 20);
        seen.push(status.space);
    }
    assert_eq!(seen[0], Space::Enough);
    assert!(seen.contains(&Space::Alarm), "{seen:?}");
    let left: Vec<u64> = bench.item.replica.points().iter().map(|p| p.attempt.number).collect();
    assert!(left.contains(&2) && left.contains(&12) && left.len() < 9, "{left:?}");
    assert_eq!(bench.first_byte_of(2), first_noise(2));
}

#[tokio::test]
async fn a_volume_that_fills_costs_history_first_and_replication_last() {
    let (disks, volume) = (tempfile::tempdir().unwrap(), Volume::of_mib(12));
    let bench = Bench::new(disks.path(), volume.0.path(), 32 << 20);
    // A first copy has no before-images, however large it is.
    bench.point(1, 400).await.unwrap();
    // 1 MiB of them each: without letting go the volume would be full after ten.
    for number in 2..=30 {
        bench.point(number, 16).await.unwrap_or_else(|fault| panic!("epoch {number}: {fault:?}"));
    }
    let status = bench.item.keeping();
    assert!((2..30).contains(&status.points), "{status:?}");
    assert_eq!(status.fault, None);
    // One that does not fit beside the history that is there, but does without it.
    let refused = bench.epoch(31, 128).unwrap_err();
    assert!(refused.is(code::NO_SPACE), "{refused:?}");
    assert!(bench.item.keeping().fault.is_some_and(|fault| fault.is(code::NO_SPACE)));
    assert_eq!(bench.first_byte_of(30), first_noise(30), "what was taken stays as it was");
    bench.item.tended().await;
    let mut newest = 32;
    while bench.point(newest, 128).await.is_err() {
        newest += 1;
        assert!(newest < 37, "{:?}", bench.item.keeping());
    }
    assert_eq!(bench.item.keeping().fault, None, "it goes on by itself");
    // One that does not fit at all: refused each time, and nothing is lost.
    for number in newest + 1..newest + 4 {
        assert!(bench.point(number, 400).await.unwrap_err().is(code::NO_SPACE));
    }
    assert!(bench.item.keeping().fault.is_some_and(|fault| fault.is(code::NO_SPACE)));
    assert_eq!(bench.item.replica.newest().unwrap().attempt, at(newest));
    assert_eq!(bench.first_byte_of(newest), first_noise(newest));
    bench.point(newest + 4, 16).await.unwrap();
    assert_eq!(bench.item.keeping().fault, None);
    bench.item.end_tending().await;
}

#[tokio::test]
async fn a_point_that_is_asked_for_was_cut_after_it_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Arc::new(Bench::new(directory.path(), directory.path(), 1 << 20));
    bench.epoch(1, 1).unwrap();
    let asking = bench.clone();
    let asked = tokio::spawn(async move { asking.item.next_point().await });
    tokio::task::yield_now().await;
    bench.epoch(2, 1).unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!asked.is_finished(), "epoch 2 may have been cut before");
    bench.epoch(3, 1).unwrap();
    assert_eq!(asked.await.unwrap().unwrap().attempt, at(3));
}
