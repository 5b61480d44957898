//! Readers of recovery points against an engine that applies, seals and rolls back epochs at full speed.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::simulated::{Dice, Machine, SimulatedDisk, SimulatedVolume};
use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, EpochHeader, Lineage, PointKind};
use replica::{Content, Disk, DiskHome, DiskRecord, Payload, Replica, Spec, Stores, View, Write};

const SIZE: usize = 256 * 1024;

fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

fn header(lineage: Lineage, number: u64, base: Option<Attempt>) -> EpochHeader {
    EpochHeader {
        lineage,
        attempt: at(number),
        base,
        basis: Basis::Tracked,
        cut_at_ms: 0,
        disks: vec![DiskSize { disk: "disk0".parse().unwrap(), size: SIZE as u64 }],
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    }
}

/// Some writes, done to `content` too.
fn batch(dice: &mut Dice, content: &mut [u8]) -> Vec<Write> {
    let one = |_| {
        let offset = dice.below(SIZE as u64) as usize;
        let length = (1 + dice.below(20_000) as usize).min(SIZE - offset);
        let payload = if dice.chance(20) {
            content[offset..offset + length].fill(0);
            Payload::Zero(length as u64)
        } else {
            content[offset..offset + length].fill(dice.roll() as u8);
            Payload::Data(Bytes::copy_from_slice(&content[offset..offset + length]))
        };
        Write { disk: 0, offset: offset as u64, payload }
    };
    (0..4).map(one).collect()
}

#[test]
fn a_reader_of_a_point_never_sees_a_byte_of_another_epoch() {
    let machine = Machine::new(1);
    let disk = SimulatedDisk::new(&machine, vec![0; SIZE], true);
    let (directory, retention) = (SimulatedVolume::new(&machine), SimulatedVolume::new(&machine));
    let stores = Stores { directory, retention, path: PathBuf::new() };
    let lineage = Lineage::fresh();
    let record = DiskRecord { key: "disk0".parse().unwrap(), size: SIZE as u64, home: DiskHome::Inside };
    let spec = Spec { item: "web01".parse().unwrap(), lineage, disks: vec![record], content: Content::Empty };
    let open = |_: &DiskRecord, _: &Path| Ok(disk.clone() as Arc<dyn Disk>);
    let replica = Replica::create_on(stores, &spec, &open).unwrap();
    let mut content = vec![3; SIZE];
    let mut epoch = replica.begin(&header(lineage, 1, None)).unwrap();
    epoch.apply(&[Write { disk: 0, offset: 0, payload: Payload::Data(Bytes::from(content.clone())) }]).unwrap();
    epoch.seal(0).unwrap();

    // The views that are read, newest last, with what they must show.
    let views: Mutex<Vec<(View, Arc<Vec<u8>>)>> = Mutex::new(vec![]);
    let publish = |replica: &Replica, number: u64, content: &[u8]| {
        let mut views = views.lock().unwrap();
        views.push((replica.view(at(number)).unwrap(), Arc::new(content.to_vec())));
        if views.len() > 6 {
            views.remove(0);
        }
    };
    publish(&replica, 1, &content);
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (views, done, reads) = (&views, &done, &reads);
            scope.spawn(move || {
                let mut dice = Dice(100 + reader);
                while !done.load(Ordering::Relaxed) {
                    let (view, wanted) = {
                        let views = views.lock().unwrap();
                        views[dice.below(views.len() as u64) as usize].clone()
                    };
                    let offset = dice.below(SIZE as u64) as usize;
                    let length = (1 + dice.below(64 * 1024) as usize).min(SIZE - offset);
                    let mut found = vec![0x5a; length];
                    view.read(0, offset as u64, &mut found).unwrap();
                    let wrong = found.iter().zip(&wanted[offset..]).position(|(a, b)| a != b);
                    assert_eq!(wrong, None, "{} from {offset}", view.point().attempt);
                    let data = view.data(0, offset as u64, length as u64).unwrap();
                    let mut hollow = found;
                    for extent in data.extents() {
                        hollow[extent.offset as usize - offset..extent.end() as usize - offset].fill(0);
                    }
                    assert!(hollow.iter().all(|byte| *byte == 0));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            // Whatever fails here, the readers must end.
            struct End<'a>(&'a AtomicBool);
            impl Drop for End<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Relaxed);
                }
            }
            let _end = End(&done);
            let mut dice = Dice(7);
            let mut base = at(1);
            let started = std::time::Instant::now();
            for number in 2..200 {
                // On a loaded machine fewer epochs must do.
                if number > 20 && started.elapsed().as_secs() > 5 {
                    break;
                }
                let mut epoch = replica.begin(&header(lineage, number, Some(base))).unwrap();
                let mut changed = content.clone();
                for _ in 0..3 {
                    epoch.apply(&batch(&mut dice, &mut changed)).unwrap();
                }
                if dice.chance(40) {
                    epoch.roll_back().unwrap();
                } else {
                    epoch.seal(0).unwrap();
                    (base, content) = (at(number), changed);
                    publish(&replica, number, &content);
                    replica.prune_before(at(number)).unwrap();
                }
            }
        });
    });
    assert!(reads.load(Ordering::Relaxed) > 50, "only {reads:?} reads");
}

type Hook = Box<dyn FnOnce() + Send>;

/// A disk on which something happens before and after the next read.
struct Interrupted {
    disk: Arc<SimulatedDisk>,
    hooks: Mutex<Option<(Hook, Hook)>>,
}

impl Interrupted {
    fn interrupted<T>(&self, read: impl FnOnce() -> T) -> T {
        let hooks = self.hooks.lock().unwrap().take();
        let (before, after) = hooks.unwrap_or_else(|| (Box::new(|| ()), Box::new(|| ())));
        before();
        let result = read();
        after();
        result
    }
}

impl Disk for Interrupted {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.interrupted(|| self.disk.read_at(offset, buffer))
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.disk.write_at(offset, bytes)
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> std::io::Result<()> {
        self.disk.write_zeroes(offset, length)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.disk.flush()
    }
    fn data(&self, offset: u64, length: u64) -> std::io::Result<protocol::BlockMap> {
        self.interrupted(|| self.disk.data(offset, length))
    }
}

/// Reads a point while, between the look-up and the read of the disk, an epoch writes, and after it `ends` as told.
fn read_across(ends: fn(Option<replica::Epoch>)) {
    let machine = Machine::new(1);
    let disk = SimulatedDisk::new(&machine, vec![0; SIZE], false);
    let disk = Arc::new(Interrupted { disk, hooks: Mutex::default() });
    let stores = Stores {
        directory: SimulatedVolume::new(&machine),
        retention: SimulatedVolume::new(&machine),
        path: "".into(),
    };
    let lineage = Lineage::fresh();
    let record = DiskRecord { key: "disk0".parse().unwrap(), size: SIZE as u64, home: DiskHome::Inside };
    let spec = Spec { item: "web01".parse().unwrap(), lineage, disks: vec![record], content: Content::Empty };
    let open = |_: &DiskRecord, _: &Path| Ok(disk.clone() as Arc<dyn Disk>);
    let replica = Arc::new(Replica::create_on(stores, &spec, &open).unwrap());
    let mut epoch = replica.begin(&header(lineage, 1, None)).unwrap();
    epoch.apply(&[Write { disk: 0, offset: 0, payload: Payload::Data(Bytes::from(vec![1; 8192])) }]).unwrap();
    epoch.seal(0).unwrap();
    let view = replica.view(at(1)).unwrap();
    let arm = |number: u64, payload: Payload| {
        let slot: Arc<Mutex<Option<replica::Epoch>>> = Arc::default();
        let (replica, filled) = (replica.clone(), slot.clone());
        let before = move || {
            let base = replica.newest().map(|point| point.attempt);
            let mut epoch = replica.begin(&header(lineage, number, base)).unwrap();
            epoch.apply(&[Write { disk: 0, offset: 0, payload }]).unwrap();
            *filled.lock().unwrap() = Some(epoch);
        };
        let after = move || ends(slot.lock().unwrap().take());
        *disk.hooks.lock().unwrap() = Some((Box::new(before), Box::new(after)));
    };
    arm(2, Payload::Data(Bytes::from(vec![2; 12_288])));
    let mut found = vec![9; 16_384];
    view.read(0, 0, &mut found).unwrap();
    assert!(found[..8192].iter().all(|byte| *byte == 1) && found[8192..].iter().all(|byte| *byte == 0));
    assert!(disk.hooks.lock().unwrap().is_none(), "the read was interrupted");
    let view = replica.view(replica.newest().unwrap().attempt).unwrap();
    arm(3, Payload::Zero(8192));
    let data = view.data(0, 0, 8192).unwrap();
    assert_eq!(data.bytes(), 8192, "zeroed meanwhile, and data at the point");
    assert!(disk.hooks.lock().unwrap().is_none());
}

#[test]
fn a_read_that_an_epoch_overtakes_gives_the_point() {
    read_across(|epoch| {
        epoch.unwrap().seal(0).unwrap();
    });
}

#[test]
fn a_read_across_an_epoch_that_is_rolled_back_gives_the_point() {
    read_across(|epoch| epoch.unwrap().roll_back().unwrap());
}
