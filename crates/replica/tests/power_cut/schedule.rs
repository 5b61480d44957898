//! One random schedule: what is done to the replica, when the power goes, and the model that everything is compared with.

use std::path::PathBuf;
use std::sync::Arc;

use crate::simulated::{Dice, Lie, Machine, SimulatedDisk, SimulatedVolume};
use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, EpochHeader, Lineage, PointKind};
use replica::{Content, Disk, DiskHome, DiskRecord, Epoch, Payload, Replica, ReplicaError, Spec, Stores, View, Write};

type Disks = Vec<Vec<u8>>;

/// What must be true: the points, oldest first, with all their bytes.
#[derive(Clone, Default)]
struct Model {
    points: Vec<(Attempt, Disks)>,
}

struct Run {
    machine: Arc<Machine>,
    dice: Dice,
    directory: Arc<SimulatedVolume>,
    retention: Arc<SimulatedVolume>,
    disks: Vec<Arc<SimulatedDisk>>,
    lineage: Lineage,
    content: Content,
    model: Model,
    /// What the disks held before the first epoch.
    original: Disks,
    views: Vec<(View, Disks)>,
    /// The number of the last attempt that was used.
    used: u64,
    counts: Counts,
}

/// What happened in a schedule.
#[derive(Default, Debug)]
pub struct Counts {
    pub sealed: u64,
    pub cuts: u64,
    pub failed_syncs: u64,
    pub full: u64,
    pub rolled_back: u64,
    pub views: u64,
    /// Logs written anew without their old records.
    pub rewrites: u64,
}

impl Run {
    fn new(seed: u64) -> Run {
        let mut dice = Dice(seed);
        let machine = Machine::new(dice.roll());
        let content = if dice.chance(30) { Content::Existing } else { Content::Empty };
        let sizes = [100_000u64, 70_144, 4096];
        let disks = sizes[..1 + dice.below(3) as usize].iter().map(|size| {
            let mut bytes = vec![0; *size as usize];
            if content == Content::Existing {
                bytes.chunks_mut(3000).for_each(|chunk| chunk.fill(dice.roll() as u8));
            }
            SimulatedDisk::new(&machine, bytes, false)
        });
        let disks: Vec<_> = disks.collect();
        Run {
            original: disks.iter().map(|disk| disk.bytes()).collect(),
            disks,
            directory: SimulatedVolume::new(&machine),
            retention: SimulatedVolume::new(&machine),
            machine,
            dice,
            lineage: Lineage::fresh(),
            content,
            model: Model::default(),
            views: vec![],
            used: 0,
            counts: Counts::default(),
        }
    }

    fn stores(&self) -> Stores {
        let (directory, retention) = (self.directory.clone(), self.retention.clone());
        Stores { directory, retention, path: PathBuf::from("simulated") }
    }

    fn records(&self) -> Vec<DiskRecord> {
        let record = |(n, disk): (usize, &Arc<SimulatedDisk>)| DiskRecord {
            key: format!("disk{n}").parse().unwrap(),
            size: disk.size(),
            home: DiskHome::Inside,
        };
        self.disks.iter().enumerate().map(record).collect()
    }

    fn opener(&self) -> impl Fn(&DiskRecord, &std::path::Path) -> std::io::Result<Arc<dyn Disk>> + use<> {
        let disks = self.disks.clone();
        move |record, _| {
            let disk = disks[record.key.as_str()[4..].parse::<usize>().unwrap()].clone();
            disk.reopen();
            Ok(disk as Arc<dyn Disk>)
        }
    }

    /// Makes the replica, with power cuts, until it exists.
    fn create(&mut self) -> Replica {
        let disks = self.records();
        let spec = Spec { item: "web01".parse().unwrap(), lineage: self.lineage, disks, content: self.content };
        loop {
            if self.dice.chance(50) {
                self.machine.power().cut_after = Some(self.dice.below(12));
            }
            match Replica::create_on(self.stores(), &spec, &self.opener()) {
                Ok(replica) => {
                    self.machine.power().cut_after = None;
                    return replica;
                }
                Err(ReplicaError::Exists(_)) => return self.open(),
                Err(_) => self.power_back(),
            }
        }
    }

    fn power_back(&mut self) {
        self.counts.cuts += 1;
        self.directory.crash();
        self.retention.crash();
        self.disks.iter().for_each(|disk| disk.crash());
        let mut power = self.machine.power();
        power.off = false;
        power.cut_after = None;
        power.fail_sync_after = None;
        power.space = None;
    }

    /// Opens the replica, with power cuts in the middle of the opening.
    fn open(&mut self) -> Replica {
        self.views.clear();
        loop {
            if self.dice.chance(30) {
                self.machine.power().cut_after = Some(self.dice.below(40));
            }
            let opened = Replica::open_on(self.stores(), &self.opener());
            let off = self.machine.power().off;
            match opened {
                Ok(replica) if !off => {
                    self.machine.power().cut_after = None;
                    return replica;
                }
                Ok(_) => self.power_back(),
                Err(_) if off => self.power_back(),
                Err(error) => panic!("refused to open: {error:?}"),
            }
        }
    }

    /// After an error, or at any time: the process ends, perhaps with the power, and the replica is opened anew. The
    /// model becomes `other` if that is what is found.
    fn start_over(&mut self, replica: Replica, other: Option<Model>) -> Replica {
        self.views.clear();
        drop(replica);
        if self.machine.power().off || self.dice.chance(50) {
            self.power_back();
        }
        {
            let mut power = self.machine.power();
            power.fail_sync_after = None;
            power.cut_after = None;
            power.space = None;
        }
        let replica = self.open();
        let found: Vec<Attempt> = replica.points().iter().map(|point| point.attempt).collect();
        let points = |model: &Model| model.points.iter().map(|(attempt, _)| *attempt).collect::<Vec<_>>();
        match other {
            Some(other) if points(&self.model) != found => {
                assert_eq!(points(&other), found, "neither the points before nor those after");
                self.model = other;
            }
            _ => assert_eq!(points(&self.model), found, "a sealed epoch was lost, or an unsealed one is there"),
        }
        self.check_disks();
        self.check_points(&replica);
        replica
    }

    /// The disks hold the newest point.
    fn check_disks(&self) {
        let original = (Attempt::start_of(0), self.original.clone());
        let existing = (self.content == Content::Existing).then_some(&original);
        if let Some((attempt, content)) = self.model.points.last().or(existing) {
            for (disk, (found, wanted)) in self.disks.iter().zip(content).enumerate() {
                assert!(
                    found.bytes() == *wanted,
                    "disk {disk} is not at {attempt}: {}",
                    differ(&found.bytes(), wanted)
                );
            }
        }
    }

    fn check_points(&mut self, replica: &Replica) {
        for (attempt, content) in self.model.points.clone() {
            if self.machine.power().off {
                return;
            }
            let view = replica.view(attempt).unwrap();
            self.check_view(&view, &content);
        }
    }

    fn check_view(&mut self, view: &View, content: &Disks) {
        if self.machine.power().off {
            // It went while a file was removed, which nobody waits for.
            return;
        }
        self.counts.views += 1;
        for (disk, wanted) in content.iter().enumerate() {
            let from = if self.dice.chance(50) { 0 } else { self.dice.below(wanted.len() as u64) as usize };
            let mut found = vec![0x55; 1 + self.dice.below((wanted.len() - from) as u64) as usize];
            view.read(disk, from as u64, &mut found).unwrap();
            let wanted = &wanted[from..from + found.len()];
            assert!(found == wanted, "{} disk {disk}: {}", view.point().attempt, differ(&found, wanted));
            let data = view.data(disk, from as u64, found.len() as u64).unwrap();
            let mut hollow = found.clone();
            for extent in data.extents() {
                hollow[extent.offset as usize - from..extent.end() as usize - from].fill(0);
            }
            assert!(hollow.iter().all(|byte| *byte == 0), "{} disk {disk}: data outside the map", view.point().attempt);
        }
    }

    fn header(&self, attempt: Attempt) -> EpochHeader {
        EpochHeader {
            lineage: self.lineage,
            attempt,
            base: self.model.points.last().map(|(attempt, _)| *attempt),
            basis: Basis::Tracked,
            cut_at_ms: 0,
            disks: self.records().into_iter().map(|r| DiskSize { disk: r.key, size: r.size }).collect(),
            kind: PointKind::CrashConsistent,
            expected_bytes: 0,
        }
    }

    fn attempt(&mut self) -> Attempt {
        self.used += 1;
        Attempt { generation: 1, number: self.used }
    }

    fn batch(&mut self, content: &mut Disks) -> Vec<Write> {
        let mut batch = Vec::new();
        for _ in 0..1 + self.dice.below(5) {
            let disk = self.dice.below(self.disks.len() as u64) as usize;
            let size = self.disks[disk].size();
            let offset = self.dice.below(size);
            let most = if self.dice.chance(10) { size } else { 9000 };
            let mut length = (1 + self.dice.below(most)).min(size - offset);
            let mut offset = offset;
            if self.dice.chance(40) {
                offset = offset / 4096 * 4096;
                length = length.next_multiple_of(4096).min(size - offset);
            }
            let range = offset as usize..(offset + length) as usize;
            let payload = if self.dice.chance(25) {
                content[disk][range].fill(0);
                Payload::Zero(length)
            } else {
                // Data with blank sectors in it now and then.
                let mut bytes = vec![self.dice.roll() as u8; length as usize];
                if self.dice.chance(50) {
                    bytes.fill_with(|| self.dice.roll() as u8);
                }
                for sector in bytes.chunks_mut(512) {
                    if self.dice.chance(10) {
                        sector.fill(0);
                    }
                }
                content[disk][range].copy_from_slice(&bytes);
                Payload::Data(Bytes::from(bytes))
            };
            batch.push(Write { disk: disk as u16, offset, payload });
        }
        batch
    }

    /// An epoch with its batches; gives the epoch back if it is still open.
    fn write(&mut self, replica: &Replica, attempt: Attempt, first: bool) -> Result<(Epoch, Disks), ReplicaError> {
        let mut epoch = replica.begin(&self.header(attempt))?;
        let mut content: Disks = match self.model.points.last() {
            Some((_, content)) => content.clone(),
            None => self.original.clone(),
        };
        if first {
            // A first copy onto disks of which nothing is known sends everything.
            for (disk, bytes) in content.iter_mut().enumerate() {
                bytes.chunks_mut(5000).for_each(|chunk| chunk.fill(self.dice.roll() as u8 & 3));
                let payload = Payload::Data(Bytes::from(bytes.clone()));
                epoch.apply(&[Write { disk: disk as u16, offset: 0, payload }])?;
            }
        }
        for _ in 0..self.dice.below(5) {
            let batch = self.batch(&mut content);
            epoch.apply(&batch)?;
            if self.dice.chance(30) {
                self.check_points(replica);
            }
        }
        Ok((epoch, content))
    }

    fn step(&mut self, replica: Replica) -> Replica {
        // What may go wrong in this step.
        let trouble = self.dice.below(10);
        {
            let mut power = self.machine.power();
            match trouble {
                0..=2 => power.cut_after = Some(self.dice.below(30)),
                3 => power.fail_sync_after = Some(self.dice.below(8)),
                4 => power.space = Some(self.dice.below(40_000)),
                _ => {}
            }
        }
        let result = self.act(&replica);
        let replica = match result {
            Ok(()) => replica,
            // Refused for want of space: nothing happened, and the epoch is undone by the next one.
            Err((ReplicaError::NoSpace { .. }, _)) if !self.machine.power().off => {
                self.counts.full += 1;
                self.machine.power().space = None;
                replica
            }
            Err((error, other)) => {
                if trouble > 3 {
                    panic!("nothing went wrong, but: {error:?}");
                }
                self.counts.failed_syncs += u64::from(trouble == 3);
                return self.start_over(replica, other);
            }
        };
        if self.machine.power().off {
            return self.start_over(replica, None);
        }
        let mut power = self.machine.power();
        (power.cut_after, power.fail_sync_after, power.space) = (None, None, None);
        drop(power);
        for (view, content) in std::mem::take(&mut self.views) {
            self.check_view(&view, &content);
            self.views.push((view, content));
        }
        if self.dice.chance(15) {
            return self.start_over(replica, None);
        }
        replica
    }

    /// One thing. On an error also what the model would be if it did happen.
    fn act(&mut self, replica: &Replica) -> Result<(), (ReplicaError, Option<Model>)> {
        let attempt = self.attempt();
        let plain = |error| (error, None);
        let count = self.model.points.len() as u64;
        match self.dice.below(12) {
            // An epoch: sealed, rolled back, or left.
            0..=6 => {
                let first = count == 0 && self.content == Content::Empty;
                let again = if self.dice.chance(10) { 2 } else { 1 };
                for round in 0..again {
                    let (epoch, content) = match self.write(replica, attempt, first) {
                        Ok(begun) => begun,
                        Err(error) => return Err(plain(error)),
                    };
                    if round + 1 < again {
                        // The sender comes back with the same attempt.
                        drop(epoch);
                        continue;
                    }
                    match self.dice.below(10) {
                        0 => {
                            epoch.roll_back().map_err(plain)?;
                            self.counts.rolled_back += 1;
                            self.check_disks();
                        }
                        1 => drop(epoch),
                        _ => {
                            let mut model = self.model.clone();
                            model.points.push((attempt, content));
                            match epoch.seal(0) {
                                Ok(point) => assert_eq!(point.attempt, attempt),
                                Err(error) => return Err((error, Some(model))),
                            }
                            self.counts.sealed += 1;
                            self.model = model;
                            self.check_disks();
                        }
                    }
                }
            }
            7 if count > 0 => {
                let mut model = self.model.clone();
                let content = model.points.last().unwrap().1.clone();
                model.points.push((attempt, content));
                match replica.keep(attempt, 0, 0, PointKind::Unreplicated) {
                    Ok(_) => self.model = model,
                    Err(error) => return Err((error, Some(model))),
                }
            }
            8 if count > 0 => {
                let to = self.dice.below(count) as usize;
                let (to, content) = self.model.points[to].clone();
                let mut model = self.model.clone();
                model.points.push((attempt, content));
                match replica.roll_back_to(to, attempt, 0) {
                    Ok(_) => self.model = model,
                    Err(error) => return Err((error, Some(model))),
                }
                self.check_disks();
            }
            9 if count > 1 => {
                let keep = self.dice.below(count) as usize;
                let mut model = self.model.clone();
                let gone: Vec<_> = model.points.drain(..keep).collect();
                match replica.prune_before(model.points[0].0) {
                    Ok(()) => self.model = model,
                    Err(error) => return Err((error, Some(model))),
                }
                for (attempt, _) in gone {
                    assert!(matches!(replica.view(attempt), Err(ReplicaError::PointGone(_))));
                }
            }
            10 if count > 0 => {
                let (attempt, content) = self.model.points[self.dice.below(count) as usize].clone();
                let view = replica.view(attempt).map_err(plain)?;
                assert_eq!(view.point().attempt, attempt);
                self.views.push((view, content));
            }
            _ if count > 0 => {
                // Refused whatever happened before.
                let sealed = self.model.points[self.dice.below(count) as usize].0;
                let refused = replica.begin(&self.header(sealed)).err();
                if !self.machine.power().off {
                    assert!(
                        matches!(
                            refused,
                            Some(ReplicaError::AttemptUsed { .. } | ReplicaError::Failed(_) | ReplicaError::Io { .. })
                        ),
                        "{refused:?}"
                    );
                }
                if let Some(error @ (ReplicaError::Failed(_) | ReplicaError::Io { .. })) = refused {
                    return Err((error, None));
                }
            }
            _ => {
                let kept = replica.keep(attempt, 0, 0, PointKind::CrashConsistent);
                let content: Disks = self.disks.iter().map(|disk| disk.bytes()).collect();
                match kept {
                    Ok(_) => self.model.points.push((attempt, content)),
                    Err(ReplicaError::Inconsistent) => assert_eq!(self.content, Content::Empty),
                    Err(error) => {
                        let points = vec![(attempt, content)];
                        return Err((error, Some(Model { points })));
                    }
                }
            }
        }
        Ok(())
    }
}

fn differ(found: &[u8], wanted: &[u8]) -> String {
    let first = found.iter().zip(wanted).position(|(a, b)| a != b);
    let count = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
    format!("{count} of {} bytes differ, the first at {first:?}", wanted.len())
}

/// Plays the schedule of a seed, in a world with this lie.
pub fn run(seed: u64, lie: Lie) -> Counts {
    let mut run = Run::new(seed);
    run.machine.power().lie = lie;
    let mut replica = run.create();
    let made = run.machine.power().renames;
    for _ in 0..if seed.is_multiple_of(10) { 150 } else { 40 } {
        replica = run.step(replica);
    }
    run.counts.rewrites = run.machine.power().renames - made;
    let replica = run.start_over(replica, None);
    drop(replica);
    run.counts
}
