//! Kept leaves and the scrub: what is kept is what the disks held, also after power cuts, and damage is found and named.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::simulated::{Dice, Machine, SimulatedDisk, SimulatedVolume};
use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::leaf::{LeafSize, Recipe};
use protocol::{Attempt, BLOCK, EpochHeader, Extent, Lineage, PointKind};
use replica::{
    Content, Disk, DiskHome, DiskRecord, Leaves, Payload, Place, Replica, ReplicaError, Spec, Stores, Verified, Write,
    open_inside, verify,
};

/// More than one page of leaves, and not a whole number of them.
const SIZE: u64 = 130 * BLOCK + 4096;

pub fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

pub fn epoch(replica: &Replica, number: u64, writes: &[Write]) -> Result<(), ReplicaError> {
    let mut epoch = replica.begin(&header(replica, number))?;
    epoch.apply(writes)?;
    epoch.seal(0).map(drop)
}

fn header(replica: &Replica, number: u64) -> EpochHeader {
    let disks = replica.disks().iter().map(|r| DiskSize { disk: r.key.clone(), size: r.size }).collect();
    EpochHeader {
        lineage: replica.manifest().lineage,
        attempt: at(number),
        base: replica.newest().map(|point| point.attempt),
        basis: Basis::Tracked,
        cut_at_ms: 0,
        disks,
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    }
}

fn noise(dice: &mut Dice, length: u64) -> Bytes {
    (0..length).map(|_| dice.roll() as u8).collect::<Vec<u8>>().into()
}

pub fn write(disk: u16, offset: u64, bytes: Bytes) -> Write {
    Write { disk, offset, payload: Payload::Data(bytes) }
}

pub fn spec(sizes: &[u64]) -> Spec {
    let record = |(n, size): (usize, &u64)| DiskRecord {
        key: format!("disk{n}").parse().unwrap(),
        size: *size,
        home: DiskHome::Inside,
    };
    let disks = sizes.iter().enumerate().map(record).collect();
    Spec { item: "web01".parse().unwrap(), lineage: Lineage::fresh(), disks, content: Content::Empty }
}

fn place(directory: &Path) -> Place {
    Place { directory: directory.join("replica"), retention: directory.join("journal") }
}

/// One disk with two points; the first is hashed.
fn made(directory: &Path) -> (Replica, Leaves) {
    let replica = Replica::create(&place(directory), &spec(&[SIZE]), &open_inside).unwrap();
    let mut dice = Dice(1);
    let first = [write(0, 0, noise(&mut dice, 5 * BLOCK)), write(0, SIZE - 4096, noise(&mut dice, 4096))];
    epoch(&replica, 1, &first).unwrap();
    let leaves = Leaves::open(&replica, LeafSize::default()).unwrap();
    leaves.update(&|| false).unwrap();
    epoch(&replica, 2, &[write(0, BLOCK + 5, noise(&mut dice, 10_000))]).unwrap();
    (replica, leaves)
}

fn scrub(replica: &Replica, leaves: &Leaves) -> Verified {
    let mut last = 0;
    let found = verify(replica, leaves, &mut |done, all| {
        assert!(last <= done && done <= all, "{last} {done} {all}");
        last = done;
        true
    });
    found.unwrap().unwrap()
}

fn flip(file: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Every leaf of every disk is that of the newest point.
pub fn check(replica: &Replica, leaves: &Leaves) {
    let newest = replica.newest().unwrap().attempt;
    let view = replica.view(newest).unwrap();
    for disk in 0..replica.disks().len() {
        let size = view.size(disk);
        let (recipe, grain) = (leaves.recipe(), leaves.recipe().bytes.bytes());
        let kept = leaves.kept(&recipe, newest, disk, 0, size).unwrap();
        for (n, offset) in (0..size).step_by(grain as usize).enumerate() {
            let mut block = vec![0; grain.min(size - offset) as usize];
            view.read(disk, offset, &mut block).unwrap();
            assert!(kept[n] == recipe.leaf(&block), "disk {disk}, leaf {n}");
        }
    }
}

#[test]
fn only_what_changed_is_read_again_and_leaves_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    assert_eq!(leaves.at(), Some(at(1)), "an epoch later they still stand for the first point");
    assert_eq!(leaves.kept(&leaves.recipe(), at(2), 0, 0, SIZE), None);
    let hashed = leaves.update(&|| false).unwrap();
    assert_eq!((hashed.at, hashed.read), (Some(at(2)), 2 * BLOCK), "a block that was written in part is proven first");
    check(&replica, &leaves);
    assert_eq!(leaves.update(&|| false).unwrap().read, 0);
    let some = leaves.kept(&leaves.recipe(), at(2), 0, 126 * BLOCK, 4 * BLOCK + 4096).unwrap();
    assert_eq!(some, leaves.kept(&leaves.recipe(), at(2), 0, 0, SIZE).unwrap()[126..]);
    let recipe = leaves.recipe();
    drop((leaves, replica));
    let replica = Replica::open(&place(directory.path()), &open_inside).unwrap();
    let leaves = Leaves::open(&replica, LeafSize::default()).unwrap();
    assert_eq!((leaves.recipe(), leaves.at()), (recipe, Some(at(2))));
    // The point that they stand for is let go: everything is hashed.
    epoch(&replica, 3, &[write(0, 7 * BLOCK, vec![9; 4096].into())]).unwrap();
    replica.prune_before(at(3)).unwrap();
    assert_eq!(leaves.at(), Some(at(2)), "it is held, so what changed since is known");
    assert_eq!(leaves.update(&|| false).unwrap().read, 2 * BLOCK);
    check(&replica, &leaves);
    // Only a point that nobody held meanwhile is gone: everything is hashed.
    drop(leaves);
    epoch(&replica, 4, &[write(0, 7 * BLOCK, vec![8; 4096].into())]).unwrap();
    replica.prune_before(at(4)).unwrap();
    let leaves = Leaves::open(&replica, LeafSize::default()).unwrap();
    assert_eq!(leaves.at(), None);
    assert_eq!(leaves.update(&|| false).unwrap().read, 6 * BLOCK + 4096);
    check(&replica, &leaves);
    replica.delete().unwrap();
    let left: Vec<_> = std::fs::read_dir(place(directory.path()).retention).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(leaves.update(&|| false).is_err(), "nothing is written where no replica is");
}

#[test]
fn an_epoch_without_a_way_back_waits_for_the_leaves_to_let_go_and_then_everything_is_hashed() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    assert!(matches!(replica.begin_without_way_back(&header(&replica, 3)), Err(ReplicaError::Busy(_))));
    leaves.let_go();
    assert_eq!(leaves.at(), None);
    let mut epoch = replica.begin_without_way_back(&header(&replica, 3)).unwrap();
    epoch.apply(&[write(0, 9 * BLOCK, vec![7; BLOCK as usize].into())]).unwrap();
    epoch.seal(0).unwrap();
    assert_eq!(leaves.update(&|| false).unwrap().read, 6 * BLOCK + 4096);
    check(&replica, &leaves);
}

#[test]
fn stopped_half_way_the_leaves_stand_for_nothing_until_they_are_hashed_again() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    epoch(&replica, 3, &[write(0, 129 * BLOCK, vec![5; 4096].into())]).unwrap();
    let asked = std::cell::Cell::new(0);
    let second = || asked.replace(asked.get() + 1) == 1;
    assert_eq!(leaves.update(&second).unwrap().at, None);
    assert_eq!((leaves.at(), leaves.kept(&leaves.recipe(), at(3), 0, 0, BLOCK)), (None, None));
    drop(leaves);
    let leaves = Leaves::open(&replica, LeafSize::default()).unwrap();
    assert_eq!(leaves.at(), None);
    assert_eq!(leaves.update(&|| false).unwrap().read, 2 * BLOCK, "what changed since the first point");
    check(&replica, &leaves);
}

#[test]
fn leaves_of_another_size_than_is_wanted_serve_until_a_pass_makes_them_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    leaves.update(&|| false).unwrap();
    let before = leaves.recipe();
    leaves.want("256K".parse().unwrap());
    assert!(!leaves.is_as_wanted() && leaves.kept(&before, at(2), 0, 0, SIZE).is_some());
    // Asked as the other end makes them: not believed to be that.
    let wanted = Recipe { bytes: "256K".parse().unwrap(), ..before };
    assert_eq!(leaves.kept(&wanted, at(2), 0, 0, SIZE), None);
    assert!(!leaves.adopt(Recipe { key: [9; 32], ..before }).unwrap(), "a size that is not wanted any more");
    // Broken off they stand for none, and the next pass goes on as wanted.
    assert_eq!(leaves.update(&|| true).unwrap().at, None);
    assert_eq!((leaves.kept(&before, at(2), 0, 0, SIZE), leaves.recipe()), (None, wanted));
    drop(leaves);
    let leaves = Leaves::open(&replica, wanted.bytes).unwrap();
    assert_eq!(leaves.update(&|| false).unwrap().read, 10 * BLOCK + 4096);
    assert_eq!((leaves.recipe(), leaves.kept(&wanted, at(2), 0, 0, SIZE).unwrap().len()), (wanted, 33));
    check(&replica, &leaves);
    assert_eq!(scrub(&replica, &leaves).damage, []);
    flip(&place(directory.path()).directory.join("disk0.raw"), 5 * BLOCK);
    assert_eq!(scrub(&replica, &leaves).damage[0].extents.extents(), [Extent::new(4 * BLOCK, 4 * BLOCK)]);
}

#[test]
fn a_whole_replica_is_found_whole_and_every_damage_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    let found = scrub(&replica, &leaves);
    assert_eq!((found.at, found.disk_bytes, &found.damage[..]), (Some(at(1)), SIZE, &[][..]));
    assert!(found.journal_bytes >= 8192, "{found:?}");
    assert_eq!(verify(&replica, &leaves, &mut |_, _| false).unwrap(), None, "it can be stopped");

    let disk = place(directory.path()).directory.join("disk0.raw");
    // In the last, short leaf; and in a block that was never written.
    for (offset, leaf) in [(SIZE - 100, Extent::new(130 * BLOCK, 4096)), (20 * BLOCK, Extent::new(20 * BLOCK, BLOCK))] {
        flip(&disk, offset);
        let found = scrub(&replica, &leaves);
        let [damage] = &found.damage[..] else { panic!("{found:?}") };
        assert_eq!((damage.disk.as_str(), damage.extents.extents(), damage.newest), ("disk0", &[leaf][..], true));
        flip(&disk, offset);
    }
    let segment = |path: &PathBuf| path.to_string_lossy().contains("-1.2-0.");
    let files = std::fs::read_dir(place(directory.path()).retention).unwrap().map(|entry| entry.unwrap().path());
    let segment = files.into_iter().find(segment).unwrap();
    flip(&segment, 1024 + 100);
    let found = scrub(&replica, &leaves);
    let [damage] = &found.damage[..] else { panic!("{found:?}") };
    assert!(!damage.newest && damage.why.contains("checksum"), "{damage:?}");
    assert!(damage.extents.extents().iter().all(|e| e.offset / BLOCK == 1), "{damage:?}");
    flip(&segment, 1024 + 100);
    flip(&place(directory.path()).retention.join("leaves-0.hashes"), 50);
    let found = scrub(&replica, &leaves);
    let [damage] = &found.damage[..] else { panic!("{found:?}") };
    assert!(damage.why.contains("kept hashes") && damage.extents.bytes() == 127 * BLOCK, "{damage:?}");
    // Hashing makes the page anew.
    leaves.update(&|| false).unwrap();
    assert_eq!(scrub(&replica, &leaves).damage, []);
}

#[test]
fn damage_beside_what_an_epoch_writes_is_not_hashed_over() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    let disk = place(directory.path()).directory.join("disk0.raw");
    flip(&disk, BLOCK + 40_000);
    assert_eq!(leaves.update(&|| false).unwrap().spoilt, 1);
    let damaged = |found: Verified| {
        let extents = found.damage.iter().flat_map(|damage| damage.extents.extents().to_vec());
        extents.collect::<Vec<_>>()
    };
    assert_eq!(damaged(scrub(&replica, &leaves)), [Extent::new(BLOCK, BLOCK)]);
    // Written in part once more it is as damaged as before, also where a pass is broken off and begun again.
    epoch(&replica, 3, &[write(0, BLOCK, vec![1; 4096].into())]).unwrap();
    leaves.update(&|| true).unwrap();
    leaves.update(&|| false).unwrap();
    assert_eq!(damaged(scrub(&replica, &leaves)), [Extent::new(BLOCK, BLOCK)]);
    epoch(&replica, 4, &[write(0, BLOCK, vec![2; BLOCK as usize].into())]).unwrap();
    leaves.update(&|| false).unwrap();
    assert_eq!(damaged(scrub(&replica, &leaves)), []);
}

#[test]
fn without_kept_leaves_the_journal_alone_is_proven_and_it_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, leaves) = made(directory.path());
    drop(leaves);
    flip(&place(directory.path()).retention.join("leaves.json"), 30);
    let leaves = Leaves::open(&replica, LeafSize::default()).unwrap();
    let found = scrub(&replica, &leaves);
    assert_eq!((found.at, found.disk_bytes, found.damage.len()), (None, 0, 0));
    assert!(found.journal_bytes > 0);
}

/// One byte of a disk differs, and the scrub names its leaf; then it is as it was.
fn find_a_flip(disks: &[Arc<SimulatedDisk>], dice: &mut Dice, replica: &Replica, leaves: &Leaves) {
    let disk = dice.below(disks.len() as u64) as usize;
    let offset = dice.below(disks[disk].size());
    let byte = disks[disk].bytes()[offset as usize];
    disks[disk].write_at(offset, &[byte ^ 1]).unwrap();
    let found = scrub(replica, leaves);
    let [damage] = &found.damage[..] else { panic!("{found:?}") };
    let grain = leaves.recipe().bytes.bytes();
    let start = offset / grain * grain;
    let named = Extent::new(start, grain.min(disks[disk].size() - start));
    assert_eq!((&damage.disk, damage.extents.extents()), (&replica.disks()[disk].key, &[named][..]));
    disks[disk].write_at(offset, &[byte]).unwrap();
    // A power cut would bring the flip alone back.
    disks[disk].flush().unwrap();
}

#[test]
fn after_any_power_cut_the_leaves_are_true_a_scrub_finds_nothing_and_then_the_byte_that_was_flipped() {
    let (mut cuts, mut hashes, mut flips) = (0, 0, 0);
    for seed in 0..120 {
        let mut dice = Dice(seed);
        let machine = Machine::new(dice.roll());
        let (directory, retention) = (SimulatedVolume::new(&machine), SimulatedVolume::new(&machine));
        let sizes = [9 * BLOCK, 2 * BLOCK + 512];
        let disks = sizes.map(|size| SimulatedDisk::new(&machine, vec![0; size as usize], false));
        let stores = || Stores { directory: directory.clone(), retention: retention.clone(), path: "simulated".into() };
        let open = |record: &DiskRecord, _: &Path| {
            let disk = disks[record.key.as_str()[4..].parse::<usize>().unwrap()].clone();
            disk.reopen();
            Ok(disk as Arc<dyn Disk>)
        };
        let mut replica = Replica::create_on(stores(), &spec(&sizes), &open).unwrap();
        let size = |dice: &mut Dice| LeafSize::try_from(BLOCK << dice.below(3)).unwrap();
        let mut leaves = Leaves::open(&replica, size(&mut dice)).unwrap();
        let mut number = 0;
        for _ in 0..6 {
            machine.power().cut_after = dice.chance(70).then(|| dice.below(60));
            for _ in 0..1 + dice.below(3) {
                number += 1;
                let disk = dice.below(2) as u16;
                let length = if dice.chance(20) { BLOCK } else { 3000 };
                let offset = dice.below(sizes[usize::from(disk)] - length);
                let bytes = noise(&mut dice, length);
                let sealed = epoch(&replica, number, &[write(disk, offset, bytes)]);
                assert!(sealed.is_ok() || machine.power().off, "seed {seed}: {sealed:?}");
                if dice.chance(15)
                    && let Some(newest) = replica.newest()
                {
                    let _ = replica.prune_before(newest.attempt);
                }
            }
            let hashed = leaves.update(&|| false);
            let off = machine.power().off;
            assert!(off || hashed.is_ok(), "seed {seed}: {hashed:?}");
            if off || dice.chance(40) {
                let leaves_before = leaves.recipe().bytes;
                drop((replica, leaves));
                directory.crash();
                retention.crash();
                disks.iter().for_each(|disk| disk.crash());
                machine.power().off = false;
                machine.power().cut_after = None;
                cuts += u64::from(off);
                replica = Replica::open_on(stores(), &open).unwrap();
                let wanted = if dice.chance(20) { size(&mut dice) } else { leaves_before };
                leaves = Leaves::open(&replica, wanted).unwrap();
            }
            machine.power().cut_after = None;
            if let Ok(hashed) = hashed {
                hashes += 1;
                assert_eq!(leaves.at(), hashed.at, "seed {seed}: what was said to be durable is gone");
            }
            let Some(newest) = replica.newest() else { continue };
            assert_eq!(scrub(&replica, &leaves).damage, [], "seed {seed}: nothing is damaged");
            if leaves.at() == Some(newest.attempt) {
                check(&replica, &leaves);
            }
            if dice.chance(50) {
                assert_eq!(leaves.update(&|| false).unwrap().spoilt, 0, "seed {seed}");
                check(&replica, &leaves);
                find_a_flip(&disks, &mut dice, &replica, &leaves);
                flips += 1;
            }
        }
    }
    assert!(cuts > 100 && hashes > 100 && flips > 100, "{cuts} cuts, {hashes} hashes, {flips} flips");
}
