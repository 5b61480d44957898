//! Which points are kept: thinned, pruned, pinned, tended; and what a long history costs those who read behind it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::simulated::{Dice, Machine, SimulatedDisk, SimulatedVolume};
use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::fault::code;
use protocol::retention::{Budget, Space, Spacing};
use protocol::{Attempt, EpochHeader, Lineage, PointKind, Retention};
use replica::{
    Content, Did, Disk, DiskHome, DiskRecord, Payload, Place, Replica, ReplicaError, Spec, Stores, Volume, Write,
    open_inside,
};

const SIZE: usize = 256 * 1024;

fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

fn spec(size: usize) -> Spec {
    let disk = DiskRecord { key: "disk0".parse().unwrap(), size: size as u64, home: DiskHome::Inside };
    Spec { item: "web01".parse().unwrap(), lineage: Lineage::fresh(), disks: vec![disk], content: Content::Empty }
}

/// An epoch that writes `fill` to some extents of a disk whose content is `content`.
fn epoch(replica: &Replica, number: u64, content: &mut [u8], extents: &[(usize, usize)], fill: u8) {
    let header = EpochHeader {
        lineage: replica.manifest().lineage,
        attempt: at(number),
        base: replica.newest().map(|point| point.attempt),
        basis: Basis::Tracked,
        cut_at_ms: 0,
        disks: replica.disks().iter().map(|r| DiskSize { disk: r.key.clone(), size: r.size }).collect(),
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    };
    let mut epoch = replica.begin(&header).unwrap();
    for (offset, length) in extents {
        content[*offset..offset + length].fill(fill);
        let payload = match fill {
            0 => Payload::Zero(*length as u64),
            _ => Payload::Data(Bytes::from(vec![fill; *length])),
        };
        epoch.apply(&[Write { disk: 0, offset: *offset as u64, payload }]).unwrap();
    }
    epoch.seal(number * 1000).unwrap();
}

fn read(replica: &Replica, number: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0x55; size];
    replica.view(at(number)).unwrap().read(0, 0, &mut bytes).unwrap();
    bytes
}

fn numbers(replica: &Replica) -> Vec<u64> {
    replica.points().iter().map(|point| point.attempt.number).collect()
}

struct Made {
    directory: tempfile::TempDir,
    replica: Replica,
    contents: Vec<Vec<u8>>,
}

fn place(directory: &Path) -> Place {
    Place { directory: directory.join("replica"), retention: directory.join("journal") }
}

/// Points 1 to `points`, each with its content.
fn made(points: u64) -> Made {
    let directory = tempfile::tempdir().unwrap();
    let replica = Replica::create(&place(directory.path()), &spec(SIZE), &open_inside).unwrap();
    let mut dice = Dice(3);
    let (mut content, mut contents) = (vec![0; SIZE], vec![vec![]]);
    for number in 1..=points {
        let extents: Vec<(usize, usize)> = (0..4)
            .map(|_| {
                let offset = dice.below(SIZE as u64 - 1) as usize;
                (offset, 1 + dice.below((SIZE - offset).min(50_000) as u64) as usize)
            })
            .collect();
        epoch(&replica, number, &mut content, &extents, (number % 7) as u8);
        contents.push(content.clone());
    }
    Made { directory, replica, contents }
}

impl Made {
    fn segments(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(place(self.directory.path()).retention).unwrap();
        let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "segment"));
        files.sort();
        files
    }
    fn check(&self) {
        for number in numbers(&self.replica) {
            assert!(read(&self.replica, number, SIZE) == self.contents[number as usize], "point {number}");
        }
    }
    fn reopened(self) -> Made {
        let Made { directory, replica, contents } = self;
        drop(replica);
        let replica = Replica::open(&place(directory.path()), &open_inside).unwrap();
        Made { directory, replica, contents }
    }
}

#[test]
fn thinning_takes_a_point_and_leaves_all_others_as_they_were() {
    let mut made = made(12);
    let before = made.replica.journal_bytes();
    for number in [5, 6, 2, 11, 4] {
        assert!(made.replica.thin(at(number)).unwrap());
        assert!(matches!(made.replica.view(at(number)), Err(ReplicaError::PointGone(_))));
        made.check();
    }
    assert_eq!(numbers(&made.replica), [1, 3, 7, 8, 9, 10, 12]);
    assert_eq!(made.segments().len(), 6, "the merged files are gone");
    assert!(made.replica.journal_bytes() < before);
    for end in [1, 12, 5] {
        assert!(matches!(made.replica.thin(at(end)), Err(ReplicaError::PointGone(_))));
    }
    for _ in 0..2 {
        made = made.reopened();
        made.check();
        assert_eq!(numbers(&made.replica), [1, 3, 7, 8, 9, 10, 12]);
        assert_eq!(made.segments().len(), 6);
    }
    made.replica.roll_back_to(at(3), at(13), 0).unwrap();
    assert!(read(&made.replica, 13, SIZE) == made.contents[3]);
}

#[test]
fn a_pinned_point_survives_whatever_else_goes_and_pruning_passes_it() {
    let mut made = made(12);
    for pinned in [3, 7] {
        made.replica.pin(at(pinned)).unwrap();
        made.replica.pin(at(pinned)).unwrap();
    }
    assert!(!made.replica.thin(at(7)).unwrap());
    made.replica.prune_before(at(10)).unwrap();
    assert_eq!(numbers(&made.replica), [3, 7, 10, 11, 12]);
    made.check();
    let nothing = Retention { all_for_seconds: 0, then: vec![], app_consistent: None, budget: None };
    while made.replica.tend(&nothing, 20_000, &[]).unwrap().did != Did::Nothing {
        made.check();
    }
    assert_eq!(numbers(&made.replica), [3, 7, 12]);
    made = made.reopened();
    assert_eq!(made.replica.pins(), [at(3), at(7)]);
    assert_eq!(numbers(&made.replica), [3, 7, 12]);
    made.check();
    made.replica.unpin(at(3)).unwrap();
    made.replica.unpin(at(12)).unwrap();
    made.replica.prune_before(at(12)).unwrap();
    assert_eq!(numbers(&made.replica), [7, 12]);
    assert!(matches!(made.replica.pin(at(3)), Err(ReplicaError::PointGone(_))));
    made.check();
}

#[test]
fn a_point_that_a_view_holds_is_not_thinned_away_and_goes_when_the_view_does() {
    let made = made(8);
    let view = made.replica.view(at(4)).unwrap();
    assert!(!made.replica.thin(at(4)).unwrap());
    let few = Retention { all_for_seconds: 0, then: vec![], app_consistent: None, budget: None };
    while made.replica.tend(&few, 8000, &[at(2)]).unwrap().did != Did::Nothing {}
    assert_eq!(numbers(&made.replica), [2, 4, 8]);
    let mut bytes = vec![0; SIZE];
    view.read(0, 0, &mut bytes).unwrap();
    assert!(bytes == made.contents[4]);
    drop(view);
    while made.replica.tend(&few, 8000, &[]).unwrap().did != Did::Nothing {}
    assert_eq!(numbers(&made.replica), [8]);
    assert!(made.segments().is_empty());
}

#[test]
fn over_its_budget_a_journal_is_thinned_then_loses_its_oldest_and_says_when_nothing_is_left_to_take() {
    let made = made(30);
    made.replica.pin(at(9)).unwrap();
    let log = 128 * 1024;
    let policy = |bytes| Retention {
        all_for_seconds: 100,
        then: vec![Spacing { one_every_seconds: 10, until_seconds: 2000 }],
        app_consistent: None,
        budget: Some(Budget { bytes, alarm_percent: 50 }),
    };
    let run = |bytes| {
        let mut all = Vec::new();
        loop {
            let tended = made.replica.tend(&policy(bytes), 30_000, &[]).unwrap();
            all.push(tended.did);
            if tended.did == Did::Nothing {
                made.check();
                return (all, tended.space);
            }
        }
    };
    let before = made.replica.journal_bytes();
    assert_eq!(run(before * 3).1, Space::Enough);
    let (did, space) = run(before * 3 / 5);
    assert_eq!(space, Space::Alarm);
    assert!(did.iter().any(|did| matches!(did, Did::Thinned { .. })), "{did:?}");
    let left = numbers(&made.replica);
    assert!(left.len() > 4, "thinned before the oldest go: {left:?}");
    let (_, space) = run(log);
    assert_eq!((numbers(&made.replica), space), (vec![9, 30], Space::Exceeded));
}

#[test]
fn damage_keeps_points_from_being_thinned_and_nothing_else_from_being_tended() {
    let made = made(12);
    let segments = made.segments();
    let mut bytes = std::fs::read(&segments[5]).unwrap();
    let footer = bytes.len() - 512;
    bytes[footer..].fill(0xAA);
    std::fs::write(&segments[5], &bytes).unwrap();
    let made = made.reopened();
    let refused = made.replica.thin(at(6)).err().unwrap();
    assert!(refused.fault(&"web01".parse().unwrap()).is(code::JOURNAL_DAMAGED), "{refused}");
    let few = Retention { all_for_seconds: 0, then: vec![], app_consistent: None, budget: None };
    while made.replica.tend(&few, 12_000, &[at(2)]).unwrap().did != Did::Nothing {}
    let left = numbers(&made.replica);
    assert!(left[0] == 2 && left.contains(&6) && left.contains(&7), "{left:?}");
    for number in left.into_iter().filter(|number| *number >= 7) {
        assert!(read(&made.replica, number, SIZE) == made.contents[number as usize]);
    }
    while made.replica.tend(&few, 12_000, &[]).unwrap().did != Did::Nothing {}
    assert_eq!(numbers(&made.replica), [12], "it goes with the oldest");
}

#[test]
fn history_is_thinned_while_epochs_arrive_and_views_read() {
    let machine = Machine::new(1);
    let disk = SimulatedDisk::new(&machine, vec![0; SIZE], true);
    let stores = Stores {
        directory: SimulatedVolume::new(&machine),
        retention: SimulatedVolume::new(&machine),
        path: PathBuf::new(),
    };
    let replica = Replica::create_on(stores, &spec(SIZE), &|_, _| Ok(disk.clone() as Arc<dyn Disk>)).unwrap();
    let known: Mutex<Vec<(u64, Vec<u8>)>> = Mutex::default();
    let done = AtomicBool::new(false);
    let policy = Retention {
        all_for_seconds: 10,
        then: vec![Spacing { one_every_seconds: 5, until_seconds: 120 }],
        app_consistent: None,
        budget: None,
    };
    let counts = std::thread::scope(|scope| {
        let tending = scope.spawn(|| {
            let (mut thinned, mut indexed) = (0, 0);
            loop {
                let last = done.load(Ordering::Acquire);
                match replica.tend(&policy, u64::MAX, &[]).unwrap().did {
                    Did::Thinned { points } => thinned += points,
                    Did::Indexed => indexed += 1,
                    Did::Nothing if last => return (thinned, indexed),
                    _ => {}
                }
            }
        });
        for reader in 0..2 {
            let (replica, known, done) = (&replica, &known, &done);
            scope.spawn(move || {
                let mut dice = Dice(reader);
                while !done.load(Ordering::Acquire) {
                    let point = {
                        let known = known.lock().unwrap();
                        if known.is_empty() {
                            continue;
                        }
                        known[dice.below(known.len() as u64) as usize].clone()
                    };
                    let Ok(view) = replica.view(at(point.0)) else { continue };
                    let mut bytes = vec![0; SIZE];
                    view.read(0, 0, &mut bytes).unwrap();
                    assert!(bytes == point.1, "point {}", point.0);
                }
            });
        }
        scope.spawn(|| {
            struct End<'a>(&'a AtomicBool);
            impl Drop for End<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Release);
                }
            }
            let _end = End(&done);
            let (mut dice, mut content) = (Dice(9), vec![0; SIZE]);
            for number in 1..160 {
                let extents: Vec<(usize, usize)> =
                    (0..3).map(|_| (dice.below(60) as usize * 4096, 4096 * (1 + dice.below(4) as usize))).collect();
                epoch(&replica, number, &mut content, &extents, number as u8);
                known.lock().unwrap().push((number, content.clone()));
            }
        });
        tending.join().unwrap()
    });
    assert!(counts.0 > 40 && counts.1 > 5, "thinned and indexed: {counts:?}");
    for (number, content) in known.into_inner().unwrap() {
        if replica.point(at(number)).is_some() {
            assert!(read(&replica, number, SIZE) == content, "point {number}");
        }
    }
}

/// A volume that notes which files are read.
struct Noting {
    inner: Arc<SimulatedVolume>,
    read: Mutex<BTreeSet<String>>,
    reads: std::sync::atomic::AtomicU64,
}

impl Volume for Noting {
    fn create(&self, name: &str) -> std::io::Result<()> {
        self.inner.create(name)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.inner.write_at(name, offset, bytes)
    }
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.read.lock().unwrap().insert(name.to_string());
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_at(name, offset, buffer)
    }
    fn length(&self, name: &str) -> std::io::Result<u64> {
        self.inner.length(name)
    }
    fn truncate(&self, name: &str, length: u64) -> std::io::Result<()> {
        self.inner.truncate(name, length)
    }
    fn sync(&self, name: &str) -> std::io::Result<()> {
        self.inner.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.inner.rename(from, to)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.inner.remove(name)
    }
    fn list(&self) -> std::io::Result<Vec<(String, u64)>> {
        self.inner.list()
    }
    fn sync_directory(&self) -> std::io::Result<()> {
        self.inner.sync_directory()
    }
    fn lock(&self) -> std::io::Result<Box<dyn Send + Sync>> {
        self.inner.lock()
    }
    fn describe(&self, name: &str) -> String {
        self.inner.describe(name)
    }
}

#[test]
fn behind_four_thousand_points_a_view_opens_without_reading_and_a_read_asks_few_files() {
    const POINTS: u64 = 4000;
    const SMALL: usize = 64 * 4096;
    let machine = Machine::new(1);
    let disk = SimulatedDisk::new(&machine, vec![0; SMALL], false);
    let inner = SimulatedVolume::new(&machine);
    let volume = Arc::new(Noting { inner, read: Mutex::default(), reads: 0.into() });
    let directory = SimulatedVolume::new(&machine);
    let stores = Stores { directory, retention: volume.clone(), path: PathBuf::new() };
    let opener = |_: &DiskRecord, _: &Path| Ok(disk.clone() as Arc<dyn Disk>);
    let replica = Replica::create_on(stores.clone(), &spec(SMALL), &opener).unwrap();
    let policy = Retention { all_for_seconds: u64::MAX, then: vec![], app_consistent: None, budget: None };
    let (mut content, mut contents) = (vec![0; SMALL], vec![vec![]]);
    for number in 1..=POINTS {
        // The last block is never written, so nobody knows without having asked everything.
        let block = (number * 37 % 63) as usize;
        epoch(&replica, number, &mut content, &[(block * 4096, 4096)], (number % 250) as u8 + 1);
        contents.push(content.clone());
        while replica.tend(&policy, 0, &[]).unwrap().did == Did::Indexed {}
    }
    assert_eq!(replica.points().len() as u64, POINTS);
    let check = |replica: &Replica, most: usize, most_reads: u64| {
        for number in [1, 2, 777, 2048, POINTS - 1] {
            volume.read.lock().unwrap().clear();
            let view = replica.view(at(number)).unwrap();
            assert!(volume.read.lock().unwrap().is_empty(), "opening a view reads nothing");
            let before = volume.reads.load(Ordering::Relaxed);
            let mut bytes = [0; 4096];
            view.read(0, 63 * 4096, &mut bytes).unwrap();
            assert_eq!(bytes, [0; 4096]);
            let (files, reads) = (volume.read.lock().unwrap().len(), volume.reads.load(Ordering::Relaxed) - before);
            assert!(files <= most && reads <= most_reads, "a read behind {number}: {files} files, {reads} reads");
            assert!(self::read(replica, number, SMALL) == contents[number as usize], "point {number}");
        }
    };
    // Seven runs or epochs of each level at both ends, four levels of them, a header and few pages of each.
    check(&replica, 2 * 7 * 4, 5 * 2 * 7 * 4);
    drop(replica);
    let replica = Replica::open_on(stores, &opener).unwrap();
    check(&replica, 2 * 7 * 4, 5 * 2 * 7 * 4);
    // Without the runs the same is found, at length.
    for run in volume.inner.ending(".run") {
        volume.inner.spoil(&run, 1000 * 4);
    }
    assert!(read(&replica, 3, SMALL) == contents[3]);
    assert!(read(&replica, 3990, SMALL) == contents[3990]);
}
