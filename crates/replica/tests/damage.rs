//! Damaged files: each is cut, refused with its code, or makes no difference. Never wrong data, never a panic.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::fault::code;
use protocol::{Attempt, EpochHeader, Lineage, PointKind};
use replica::{Content, DiskHome, DiskRecord, Epoch, Payload, Place, Replica, ReplicaError, Spec, Write, open_inside};

const SIZE: u64 = 512 * 1024;

fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

fn place(directory: &Path) -> Place {
    Place { directory: directory.join("replica"), retention: directory.join("journal") }
}

fn begin(replica: &Replica, number: u64) -> Epoch {
    let disks = replica.disks().iter().map(|r| DiskSize { disk: r.key.clone(), size: r.size }).collect();
    let header = EpochHeader {
        lineage: replica.manifest().lineage,
        attempt: at(number),
        base: replica.newest().map(|point| point.attempt),
        basis: Basis::Tracked,
        cut_at_ms: 0,
        disks,
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    };
    replica.begin(&header).unwrap()
}

/// Bytes without a blank sector, different for every seed; every third stretch of them can be compressed.
fn noise(seed: u64, length: usize) -> Bytes {
    let byte = |n: u64| match n / 40_000 % 3 {
        2 => ((n * 31 + seed * 7919) >> 3) as u8 | 1,
        _ => {
            let mixed = (n + seed * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 41) as u8 | 1
        }
    };
    (0..length as u64).map(byte).collect::<Vec<u8>>().into()
}

fn write(disk: u16, offset: u64, length: usize, seed: u64) -> Write {
    Write { disk, offset, payload: Payload::Data(noise(seed, length)) }
}

/// Two disks, three points, and what they hold.
struct Made {
    directory: tempfile::TempDir,
    contents: Vec<[Vec<u8>; 2]>,
}

fn made() -> Made {
    let directory = tempfile::tempdir().unwrap();
    let record = |n| DiskRecord { key: format!("disk{n}").parse().unwrap(), size: SIZE, home: DiskHome::Inside };
    let disks = vec![record(0), record(1)];
    let spec = Spec { item: "web01".parse().unwrap(), lineage: Lineage::fresh(), disks, content: Content::Empty };
    let replica = Replica::create(&place(directory.path()), &spec, &open_inside).unwrap();
    let mut contents = Vec::new();
    for number in 1..=3 {
        let mut epoch = begin(&replica, number);
        match number {
            1 => epoch.apply(&[write(0, 0, SIZE as usize, 1), write(1, 0, 100_000, 2)]).unwrap(),
            _ => {
                epoch.apply(&[write(0, number * 10_000, 150_000, number)]).unwrap();
                epoch.apply(&[write(1, 50_000, 20_000, number), write(0, 400_000, 5000, number)]).unwrap();
            }
        }
        epoch.seal(0).unwrap();
        contents.push([0, 1].map(|disk| present(directory.path(), disk)));
    }
    Made { directory, contents }
}

fn present(directory: &Path, disk: usize) -> Vec<u8> {
    std::fs::read(place(directory).directory.join(format!("disk{disk}.raw"))).unwrap()
}

fn segments(directory: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(place(directory).retention).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "segment")).collect();
    files.sort();
    files
}

fn open(directory: &Path) -> Result<Replica, ReplicaError> {
    Replica::open(&place(directory), &open_inside)
}

fn damaged<T>(result: Result<T, ReplicaError>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) if error.fault(&"web01".parse().unwrap()).is(code::JOURNAL_DAMAGED) => true,
        Err(error) => panic!("{error:?}"),
    }
}

/// Reads a point; `None` when it is refused as damaged.
fn read(replica: &Replica, number: u64, disk: usize) -> Option<Vec<u8>> {
    let view = match replica.view(at(number)) {
        Err(ReplicaError::Damaged { .. }) => return None,
        view => view.unwrap(),
    };
    let mut all = vec![0; SIZE as usize];
    match view.read(disk, 0, &mut all) {
        Err(ReplicaError::Damaged { .. }) => None,
        read => {
            read.unwrap();
            Some(all)
        }
    }
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_refused_or_makes_no_difference() {
    let made = made();
    let directory = made.directory.path();
    // What leads from point 3 back to 2, on disk 0; point 2 needs it, and point 1.
    let segment = segments(directory)[2].clone();
    let good = std::fs::read(&segment).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    // Every part of header, tables, index and footer, and every few hundred bytes of the data.
    let dense = |at: usize| at < 2048 || at + 8192 > good.len();
    for at in (0..good.len()).filter(|at| if dense(*at) { at % 13 == 0 } else { at % 997 == 0 }) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&segment, &bad).unwrap();
        let replica = open(directory).unwrap();
        assert!(read(&replica, 3, 0).unwrap() == made.contents[2][0], "the newest needs no segment");
        for number in [1, 2] {
            match read(&replica, number, 0) {
                None => refused += 1,
                Some(found) => {
                    assert!(found == made.contents[number as usize - 1][0], "wrong data with a flipped byte {at}");
                    harmless += 1;
                }
            }
        }
        assert!(read(&replica, 1, 1).unwrap() == made.contents[0][1], "the other disk is not concerned");
    }
    assert!(refused > 300 && harmless > 0, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_missing_truncated_or_swapped_segment_refuses_the_points_that_need_it() {
    type Harm = fn(&[PathBuf]);
    let harms: [(&str, Harm); 5] = [
        ("missing", |s| std::fs::remove_file(&s[2]).unwrap()),
        ("truncated", |s| std::fs::File::options().write(true).open(&s[2]).unwrap().set_len(4096).unwrap()),
        ("empty", |s| std::fs::write(&s[2], b"").unwrap()),
        ("longer", |s| {
            let mut bytes = std::fs::read(&s[2]).unwrap();
            bytes.extend([0; 512]);
            std::fs::write(&s[2], bytes).unwrap();
        }),
        ("swapped", |s| {
            let [a, b] = [&s[0], &s[2]].map(|path| std::fs::read(path).unwrap());
            std::fs::write(&s[0], b).unwrap();
            std::fs::write(&s[2], a).unwrap();
        }),
    ];
    for (name, harm) in harms {
        let made = made();
        let directory = made.directory.path();
        harm(&segments(directory));
        let replica = open(directory).unwrap();
        assert_eq!(replica.points().len(), 3, "{name}");
        assert!(read(&replica, 3, 0).unwrap() == made.contents[2][0], "{name}");
        for number in [1, 2] {
            assert!(read(&replica, number, 0).is_none(), "{name}: point {number}");
        }
        assert!(damaged(replica.changed_since(at(1))) && damaged(replica.roll_back_to(at(2), at(4), 0)), "{name}");
        // Nothing was changed by the attempt, and replication goes on.
        assert!(present(directory, 0) == made.contents[2][0], "{name}");
        begin(&replica, 5).seal(0).unwrap();
        assert_eq!(replica.newest().unwrap().attempt, at(5));
    }
}

/// Point 1, then an epoch that was never sealed, in three batches; what the disks held, and its segment of disk 0.
fn unfinished() -> (tempfile::TempDir, [Vec<u8>; 2], PathBuf) {
    let made = made();
    let directory = made.directory.path();
    let replica = open(directory).unwrap();
    let mut epoch = begin(&replica, 4);
    epoch.apply(&[write(0, 0, 50_000, 10), write(1, 0, 5000, 10)]).unwrap();
    epoch.apply(&[write(0, 100_000, 50_000, 11)]).unwrap();
    epoch.apply(&[write(0, 200_000, 50_000, 12)]).unwrap();
    drop((epoch, replica));
    let segment = segments(directory).into_iter().find(|path| path.to_string_lossy().contains("-1.4-0.")).unwrap();
    (made.directory, made.contents.into_iter().next_back().unwrap(), segment)
}

#[test]
fn a_torn_tail_is_cut_not_refused() {
    let made = made();
    let replica = open(made.directory.path()).unwrap();
    let mut epoch = begin(&replica, 4);
    epoch.apply(&[write(0, 0, 50_000, 10), write(1, 0, 5000, 10)]).unwrap();
    // The power goes while the next batch is appended: the disks are as they are now.
    let stopped = tempfile::tempdir().unwrap();
    copy_all(made.directory.path(), stopped.path());
    epoch.apply(&[write(0, 100_000, 9000, 11)]).unwrap();
    let name = |path: &PathBuf| path.to_string_lossy().contains("-1.4-0.");
    let whole = std::fs::read(segments(made.directory.path()).into_iter().find(name).unwrap()).unwrap();
    let segment = segments(stopped.path()).into_iter().find(name).unwrap();
    let start = std::fs::metadata(&segment).unwrap().len() as usize;
    let sectors = (whole.len() - start) / 512;
    assert!(sectors > 10);
    for seed in 0..60usize {
        // Any subset of the sectors that lacks at least one, with the end of the file missing or not.
        let mut torn = whole.clone();
        for sector in 0..sectors {
            if sector == seed % sectors || (seed * 2_654_435_761) >> (sector % 32) & 1 == 1 {
                torn[start + sector * 512..][..512].fill(0);
            }
        }
        if seed % 3 == 0 {
            torn.truncate(start + (seed * 97) % (whole.len() - start));
        }
        let copy = tempfile::tempdir().unwrap();
        copy_all(stopped.path(), copy.path());
        std::fs::write(copy.path().join("journal").join(segment.file_name().unwrap()), &torn).unwrap();
        let replica = open(copy.path()).unwrap();
        assert_eq!(replica.newest().unwrap().attempt, at(3));
        for (disk, content) in made.contents[2].iter().enumerate() {
            assert!(present(copy.path(), disk) == *content, "seed {seed}");
        }
    }
}

#[test]
fn damage_to_an_open_segment_is_refused_and_never_cut() {
    let (directory, contents, segment) = unfinished();
    let good = std::fs::read(&segment).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let (mut refused, mut harmless) = (0, 0);
    let mut try_with = |bytes: &[u8], what: String| {
        std::fs::write(&segment, bytes).unwrap();
        let copy = tempfile::tempdir_in(copy.path()).unwrap();
        copy_all(directory.path(), copy.path());
        let opened = open(copy.path());
        if opened.is_ok() {
            harmless += 1;
            assert!(present(copy.path(), 0) == contents[0] && present(copy.path(), 1) == contents[1], "{what}");
        } else {
            assert!(damaged(opened), "{what}");
            refused += 1;
        }
    };
    for at in (0..good.len()).step_by(1511).chain((0..1024).step_by(29)) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        try_with(&bad, format!("byte {at} flipped"));
    }
    // Blanked or cut off before the last batch: later frames, or those of other disks, tell that it was durable.
    for at in [0, 512, 1024, 20_480] {
        let mut bad = good.clone();
        bad[at..at + 512].fill(0);
        try_with(&bad, format!("a blank sector at {at}"));
    }
    assert!(refused > 50 && harmless < 20, "{refused} refused, {harmless} harmless");
    std::fs::remove_file(&segment).unwrap();
    assert!(damaged(open(directory.path())), "a missing segment");
}

#[test]
fn a_damaged_manifest_or_log_is_refused_and_the_replica_can_still_be_removed() {
    let made = made();
    let directory = made.directory.path();
    let log = place(directory).retention.join("points.log");
    let good = std::fs::read(&log).unwrap();
    let end = good.iter().rposition(|byte| *byte != 0).unwrap();
    for at in (0..end).step_by(101) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&log, &bad).unwrap();
        assert!(damaged(open(directory)), "byte {at}");
    }
    // A log that belongs to another replica.
    let other = self::made();
    std::fs::copy(place(other.directory.path()).retention.join("points.log"), &log).unwrap();
    assert!(damaged(open(directory)));
    std::fs::remove_file(&log).unwrap();
    assert!(damaged(open(directory)));
    Replica::delete_at(&place(directory)).unwrap();
    assert!(matches!(open(directory), Err(ReplicaError::Absent(_))));

    let directory = other.directory.path();
    let manifest = place(directory).directory.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    for bad in [
        &text[..text.len() / 2],
        "",
        "{}",
        &text.replace("web01", "web02"),
        &text.replace("\"format\": 2", "\"format\": 3"),
    ] {
        std::fs::write(&manifest, bad).unwrap();
        assert!(damaged(open(directory)), "{bad}");
        assert!(damaged(Replica::delete_at(&place(directory))));
    }
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_all(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
