//! Leaves of disks that somebody else may write, and of compares that came before there were any.

#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::simulated::{Machine, SimulatedDisk, SimulatedVolume};
use crate::trust::{at, check, epoch, spec, write};
use protocol::leaf::{Leaf, LeafSize};
use protocol::{BLOCK, Extent};
use replica::{Disk, DiskRecord, Leaves, Replica, Stores, verify};

/// More than two pages of leaves.
const SIZE: u64 = 260 * BLOCK + 512;

/// A disk with a name for the time in which nobody else wrote it.
struct Named {
    disk: Arc<SimulatedDisk>,
    name: Arc<Mutex<Option<String>>>,
}

impl Disk for Named {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.write_zeroes(offset, length)
    }
    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn unbroken(&self) -> Option<String> {
        self.name.lock().unwrap().clone()
    }
}

struct Bench {
    disk: Arc<SimulatedDisk>,
    name: Arc<Mutex<Option<String>>>,
    stores: Stores,
}

impl Bench {
    /// A replica whose disk is full of ones, at its first point.
    fn new() -> (Bench, Replica) {
        let machine = Machine::new(1);
        let disk = SimulatedDisk::new(&machine, vec![1; SIZE as usize], false);
        let stores = Stores {
            directory: SimulatedVolume::new(&machine),
            retention: SimulatedVolume::new(&machine),
            path: "simulated".into(),
        };
        let bench = Bench { disk, name: Arc::new(Mutex::new(Some("a".into()))), stores };
        let replica = Replica::create_on(bench.stores.clone(), &spec(&[SIZE]), &|_, _| Ok(bench.opened())).unwrap();
        epoch(&replica, 1, &[write(0, 0, vec![2; 4096].into())]).unwrap();
        (bench, replica)
    }

    fn opened(&self) -> Arc<dyn Disk> {
        Arc::new(Named { disk: self.disk.clone(), name: self.name.clone() })
    }

    fn reopened(&self) -> Replica {
        Replica::open_on(self.stores.clone(), &|_: &DiskRecord, _: &Path| Ok(self.opened())).unwrap()
    }

    fn call(&self, name: Option<&str>) {
        *self.name.lock().unwrap() = name.map(String::from);
    }

    /// Somebody else writes.
    fn touch(&self, block: u64, name: &str) {
        self.disk.write_at(block * BLOCK, &[99; 512]).unwrap();
        self.disk.flush().unwrap();
        self.call(Some(name));
    }
}

fn open(replica: &Replica) -> Leaves {
    Leaves::open(replica, LeafSize::default()).unwrap()
}

fn told(replica: &Replica, leaves: &Leaves) -> Option<Vec<Leaf>> {
    leaves.kept(&leaves.recipe(), replica.newest().unwrap().attempt, 0, 0, SIZE)
}

/// A compare hashes `part` through a view.
fn teach(replica: &Replica, leaves: &Leaves, part: Extent) {
    let (recipe, view) = (leaves.recipe(), replica.view(replica.newest().unwrap().attempt).unwrap());
    let hashed = (part.offset..part.end()).step_by(BLOCK as usize).map(|offset| {
        let mut block = vec![0; BLOCK.min(part.end() - offset) as usize];
        view.read(0, offset, &mut block).unwrap();
        recipe.leaf(&block)
    });
    leaves.learn(&recipe, &view, 0, part.offset, &hashed.collect::<Vec<_>>());
}

#[test]
fn leaves_of_a_disk_that_somebody_else_wrote_are_told_to_nobody_until_each_is_proven() {
    let (bench, replica) = Bench::new();
    let leaves = open(&replica);
    leaves.update(&|| false).unwrap();
    assert!(leaves.are_unbroken() && told(&replica, &leaves).is_some());
    bench.touch(150, "b");
    assert!(!leaves.are_unbroken() && told(&replica, &leaves).is_none());
    // The pass reads all of it, and does not hash over what somebody else wrote.
    epoch(&replica, 2, &[write(0, 5 * BLOCK, vec![3; BLOCK as usize].into())]).unwrap();
    let hashed = leaves.update(&|| false).unwrap();
    assert_eq!((hashed.spoilt, hashed.read), (1, SIZE));
    assert!(leaves.are_unbroken());
    let spoilt = told(&replica, &leaves).unwrap();
    assert_eq!(spoilt[150], protocol::leaf::SPOILT_LEAF);
    let found = verify(&replica, &leaves, &mut |_, _| true).unwrap().unwrap();
    assert_eq!(found.damage[0].extents.extents(), [Extent::new(150 * BLOCK, BLOCK)]);
    // A compare has it written whole: it is as it should be again, and no more is read than that.
    epoch(&replica, 3, &[write(0, 150 * BLOCK, vec![4; BLOCK as usize].into())]).unwrap();
    assert_eq!(leaves.update(&|| false).unwrap().read, BLOCK);
    check(&replica, &leaves);
}

#[test]
fn a_name_is_kept_with_the_leaves_and_none_at_all_is_never_believed_nor_proven_again_and_again() {
    let (bench, replica) = Bench::new();
    let leaves = open(&replica);
    leaves.update(&|| false).unwrap();
    drop((leaves, replica));
    let replica = bench.reopened();
    let leaves = open(&replica);
    assert!(told(&replica, &leaves).is_some(), "the same time goes on");
    drop((leaves, replica));
    bench.call(Some("another"));
    let replica = bench.reopened();
    let leaves = open(&replica);
    assert!(told(&replica, &leaves).is_none());
    bench.call(None);
    for number in 2..4 {
        epoch(&replica, number, &[write(0, 0, vec![5; BLOCK as usize].into())]).unwrap();
        assert_eq!(leaves.update(&|| false).unwrap().read, BLOCK);
        assert!(told(&replica, &leaves).is_none());
    }
}

#[test]
fn what_a_compare_hashed_is_not_read_again_whether_it_ended_or_not() {
    let (_bench, replica) = Bench::new();
    let leaves = open(&replica);
    // In no order, twice, and not all of it.
    for part in [(100, 60), (0, 100), (100, 60), (230, 10)] {
        teach(&replica, &leaves, Extent::new(part.0 * BLOCK, part.1 * BLOCK));
    }
    assert_eq!((leaves.at(), told(&replica, &leaves)), (None, None));
    let page = leaves.kept(&leaves.recipe(), at(1), 0, 0, 127 * BLOCK);
    assert_eq!(page.map(|page| page.len()), Some(127), "what is whole is told already");
    epoch(&replica, 2, &[write(0, 3 * BLOCK, vec![6; BLOCK as usize].into())]).unwrap();
    assert_eq!(leaves.kept(&leaves.recipe(), at(2), 0, 0, BLOCK), None, "of another point");
    assert_eq!(leaves.update(&|| false).unwrap().read, SIZE - 127 * BLOCK + BLOCK);
    check(&replica, &leaves);
}

#[test]
fn what_was_learnt_before_somebody_else_wrote_or_before_a_restart_is_read_again() {
    let (bench, replica) = Bench::new();
    let leaves = open(&replica);
    teach(&replica, &leaves, Extent::new(0, 254 * BLOCK));
    bench.touch(9, "b");
    assert_eq!(leaves.kept(&leaves.recipe(), at(1), 0, 0, BLOCK), None);
    assert_eq!(leaves.update(&|| false).unwrap().read, SIZE);
    check(&replica, &leaves);
    let (_bench, replica) = Bench::new();
    let leaves = open(&replica);
    teach(&replica, &leaves, Extent::new(0, SIZE));
    assert!(told(&replica, &leaves).is_some());
    drop(leaves);
    let leaves = open(&replica);
    assert_eq!((told(&replica, &leaves), leaves.update(&|| false).unwrap().read), (None, SIZE));
    drop(leaves);
    // Where nobody can tell nothing is learnt, and what changed is followed all the same.
    let (bench, replica) = Bench::new();
    bench.call(None);
    let leaves = open(&replica);
    teach(&replica, &leaves, Extent::new(0, SIZE));
    assert_eq!((told(&replica, &leaves), leaves.update(&|| false).unwrap().read), (None, SIZE));
    assert!(leaves.can_follow() && !leaves.are_unbroken());
    bench.call(Some("c"));
    assert!(!leaves.can_follow(), "they would have to be proven");
}
