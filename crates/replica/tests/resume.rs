//! An epoch that was left unfinished and is gone on with: what it had written stays, and nothing of it is believed.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;

use crate::simulated::{Machine, SimulatedDisk, SimulatedVolume};
use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, BLOCK, EpochHeader, Lineage, PointKind};
use replica::{Content, Disk, DiskHome, DiskRecord, Epoch, Payload, Replica, ReplicaError, Spec, Stores, Write};

/// Two whole blocks and a part of one.
const SIZE: usize = 2 * BLOCK as usize + 8192;

fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

fn write(offset: usize, length: usize, fill: u8) -> Write {
    Write { disk: 0, offset: offset as u64, payload: Payload::Data(Bytes::from(vec![fill; length])) }
}

/// A replica of one disk of ones, kept as point 1, whose disk shows what it was last told whether that is durable or not.
struct World {
    disk: Arc<SimulatedDisk>,
    directory: Arc<SimulatedVolume>,
    retention: Arc<SimulatedVolume>,
    machine: Arc<Machine>,
    lineage: Lineage,
}

impl World {
    fn new() -> (World, Replica) {
        let machine = Machine::new(7);
        let world = World {
            disk: SimulatedDisk::new(&machine, vec![1; SIZE], false),
            directory: SimulatedVolume::new(&machine),
            retention: SimulatedVolume::new(&machine),
            machine,
            lineage: Lineage::fresh(),
        };
        let disks = vec![DiskRecord { key: "disk0".parse().unwrap(), size: SIZE as u64, home: DiskHome::Inside }];
        let spec = Spec { item: "web01".parse().unwrap(), lineage: world.lineage, disks, content: Content::Existing };
        let replica = Replica::create_on(world.stores(), &spec, &world.opener()).unwrap();
        replica.keep(at(1), 0, 0, PointKind::Unreplicated).unwrap();
        (world, replica)
    }

    fn stores(&self) -> Stores {
        let (directory, retention) = (self.directory.clone(), self.retention.clone());
        Stores { directory, retention, path: PathBuf::from("simulated") }
    }

    fn opener(&self) -> impl Fn(&DiskRecord, &std::path::Path) -> std::io::Result<Arc<dyn Disk>> + use<> {
        let disk = self.disk.clone();
        move |_, _| Ok(disk.clone() as Arc<dyn Disk>)
    }

    fn header(&self, number: u64, base: u64) -> EpochHeader {
        EpochHeader {
            lineage: self.lineage,
            attempt: at(number),
            base: Some(at(base)),
            basis: Basis::Tracked,
            cut_at_ms: number,
            disks: vec![DiskSize { disk: "disk0".parse().unwrap(), size: SIZE as u64 }],
            kind: PointKind::CrashConsistent,
            freeze: None,
            expected_bytes: 0,
        }
    }

    /// The process ends and is started again.
    fn reopen(&self, replica: Replica) -> Replica {
        drop(replica);
        Replica::open_unfinished_on(self.stores(), &self.opener()).unwrap()
    }

    /// The power goes, and an opening undoes what was not sealed.
    fn power_cut(&self, replica: Replica) -> Replica {
        drop(replica);
        self.directory.crash();
        self.retention.crash();
        self.disk.crash();
        Replica::open_on(self.stores(), &self.opener()).unwrap()
    }
}

/// What the epoch says of its blocks: what they hold, for those that it wrote.
fn look(epoch: &mut Epoch) -> Vec<Option<Vec<u8>>> {
    let blocks = (0..SIZE).step_by(BLOCK as usize).map(|offset| {
        let mut block = vec![0; (BLOCK as usize).min(SIZE - offset)];
        epoch.look(0, offset as u64, &mut block).unwrap().then_some(block)
    });
    blocks.collect()
}

#[test]
fn what_had_arrived_stays_and_becomes_a_point_of_the_later_attempt() {
    let (world, replica) = World::new();
    let mut epoch = replica.begin(&world.header(2, 1)).unwrap();
    epoch.apply(&[write(0, BLOCK as usize, 2), write(2 * BLOCK as usize, 4096, 2)]).unwrap();
    drop(epoch);
    let replica = world.reopen(replica);
    assert_eq!(replica.unfinished(), Some(at(2)));
    let mut epoch = replica.resume(&world.header(3, 1)).unwrap();
    assert!(epoch.is_resumed() && epoch.attempt() == at(3));
    let found = look(&mut epoch);
    assert_eq!(found[0], Some(vec![2; BLOCK as usize]));
    assert_eq!(found[1], None, "nothing was written there");
    assert_eq!(found[2].as_deref(), Some([[2; 4096], [1; 4096]].concat().as_slice()));
    epoch.apply(&[write(BLOCK as usize, 4096, 3)]).unwrap();
    let point = epoch.seal(1000).unwrap();
    assert_eq!((point.attempt, point.cut_at_ms), (at(3), 3));
    let replica = world.power_cut(replica);
    assert_eq!(replica.newest(), Some(point));
    let newest = world.disk.bytes();
    assert_eq!((newest[0], newest[BLOCK as usize], newest[2 * BLOCK as usize], newest[SIZE - 1]), (2, 3, 2, 1));
    let mut before = vec![0; SIZE];
    replica.view(at(1)).unwrap().read(0, 0, &mut before).unwrap();
    assert!(before == vec![1; SIZE], "the point before is not what it was");
}

#[test]
fn nothing_becomes_a_point_that_was_neither_looked_at_nor_overwritten_whole() {
    let (world, replica) = World::new();
    let mut epoch = replica.begin(&world.header(2, 1)).unwrap();
    epoch.apply(&[write(0, 4096, 2), write(2 * BLOCK as usize, 8192, 2)]).unwrap();
    drop(epoch);
    let mut epoch = replica.resume(&world.header(3, 1)).unwrap();
    epoch.apply(&[write(4096, BLOCK as usize - 4096, 3), write(2 * BLOCK as usize, 8192, 3)]).unwrap();
    assert!(matches!(epoch.seal(1000), Err(ReplicaError::Unproven)), "4 KiB of it are of another cut");
    let mut epoch = replica.resume(&world.header(4, 1)).unwrap();
    epoch.apply(&[write(0, SIZE, 4)]).unwrap();
    epoch.seal(1000).unwrap();
    assert!(world.disk.bytes() == vec![4; SIZE]);
}

#[test]
fn what_does_not_build_on_the_same_point_is_undone() {
    let (world, replica) = World::new();
    let mut epoch = replica.begin(&world.header(2, 1)).unwrap();
    epoch.apply(&[write(0, SIZE, 2)]).unwrap();
    drop(epoch);
    assert!(matches!(replica.resume(&world.header(3, 7)), Err(ReplicaError::Base { .. })));
    assert_eq!((replica.unfinished(), world.disk.bytes()), (None, vec![1; SIZE]));
    let mut epoch = replica.begin(&world.header(4, 1)).unwrap();
    epoch.apply(&[write(0, SIZE, 4)]).unwrap();
    drop(epoch);
    assert!(!replica.begin(&world.header(5, 1)).unwrap().is_resumed());
    assert_eq!(world.disk.bytes(), vec![1; SIZE], "who does not resume it undoes it");
}

/// The flush of the seal fails, and what was written can be read all the same until the power goes.
#[test]
fn what_a_failed_flush_lost_is_written_again() {
    let (world, replica) = World::new();
    let mut epoch = replica.begin(&world.header(2, 1)).unwrap();
    epoch.apply(&[write(0, SIZE, 2)]).unwrap();
    world.machine.power().fail_sync_after = Some(0);
    assert!(epoch.seal(1000).is_err());
    world.machine.power().fail_sync_after = None;
    let replica = world.reopen(replica);
    let mut epoch = replica.resume(&world.header(3, 1)).unwrap();
    let found = look(&mut epoch);
    assert!(found.into_iter().all(|block| block.unwrap().iter().all(|byte| *byte == 2)));
    epoch.seal(1000).unwrap();
    let replica = world.power_cut(replica);
    assert_eq!(replica.newest().unwrap().attempt, at(3));
    assert!(world.disk.bytes() == vec![2; SIZE], "the point is not what was compared");
}

/// The sync of before-images fails, and they can be read all the same until the power goes.
#[test]
fn before_images_that_a_failed_sync_lost_are_written_again() {
    let (world, replica) = World::new();
    let mut epoch = replica.begin(&world.header(2, 1)).unwrap();
    world.machine.power().fail_sync_after = Some(0);
    assert!(epoch.apply(&[write(0, SIZE, 2)]).is_err());
    drop(epoch);
    world.machine.power().fail_sync_after = None;
    assert!(world.disk.bytes() == vec![1; SIZE], "written over before what was there is durable");
    let replica = world.reopen(replica);
    let mut epoch = replica.resume(&world.header(3, 1)).unwrap();
    epoch.apply(&[write(0, SIZE, 3)]).unwrap();
    epoch.seal(1000).unwrap();
    let replica = world.power_cut(replica);
    assert!(world.disk.bytes() == vec![3; SIZE]);
    let mut before = vec![0; SIZE];
    let read = replica.view(at(1)).and_then(|view| view.read(0, 0, &mut before));
    assert!(read.is_ok() && before == vec![1; SIZE], "the point before was lost: {read:?}");
}
