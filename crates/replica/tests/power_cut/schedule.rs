//! One random schedule: what is done to the replica, when the power goes, and the model that everything is compared with.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::simulated::{Dice, Lie, Machine, SimulatedDisk, SimulatedVolume};
use protocol::{Attempt, Lineage};
use replica::{Content, Disk, DiskHome, DiskRecord, Replica, ReplicaError, Spec, Stores, View};

pub type Disks = Vec<Vec<u8>>;

/// What must be true: the points, oldest first, with all their bytes, and which of them are pinned.
#[derive(Clone, Default)]
pub struct Model {
    pub points: Vec<(Attempt, Arc<Disks>)>,
    pub pins: BTreeSet<Attempt>,
    /// The way back was given up, and the epoch that did so was not sealed.
    pub half_written: bool,
}

/// What may be found besides the model as it is, after something failed half-way.
pub enum Else {
    Nothing,
    /// This instead.
    Or(Model),
    /// Fewer points: any but the newest, pinned ones and those that views hold may be gone.
    Fewer,
}

pub struct Run {
    pub machine: Arc<Machine>,
    pub dice: Dice,
    pub directory: Arc<SimulatedVolume>,
    pub retention: Arc<SimulatedVolume>,
    pub disks: Vec<Arc<SimulatedDisk>>,
    pub lineage: Lineage,
    pub content: Content,
    pub model: Model,
    /// What the disks held before the first epoch.
    pub original: Arc<Disks>,
    pub views: Vec<(View, Arc<Disks>)>,
    /// The number of the last attempt that was used; also the clock, in seconds.
    pub used: u64,
    pub counts: Counts,
}

/// What happened in schedules, and what was checked.
#[derive(Default, Debug, PartialEq)]
pub struct Counts {
    /// Things done.
    pub steps: u64,
    pub sealed: u64,
    pub cuts: u64,
    pub failed_syncs: u64,
    pub full: u64,
    pub rolled_back: u64,
    /// Unfinished epochs that were gone on with, and blocks of them that had to be overwritten.
    pub resumed: u64,
    pub corrected: u64,
    /// Epochs without before-images onto disks with points.
    pub given_up: u64,
    /// Views compared with their points.
    pub views: u64,
    /// Openings after which the points were compared.
    pub openings: u64,
    /// Disks compared with the newest point.
    pub presents: u64,
    pub pins: u64,
    pub thinned: u64,
    pub pruned: u64,
    /// Runs made.
    pub indexed: u64,
    /// Runs that a bit was flipped in.
    pub spoilt: u64,
    /// Logs written anew without their old records.
    pub rewrites: u64,
}

impl Counts {
    pub fn named(&self) -> [(&'static str, u64); 18] {
        [
            ("steps", self.steps),
            ("sealed", self.sealed),
            ("power cuts", self.cuts),
            ("failed syncs", self.failed_syncs),
            ("full volumes", self.full),
            ("rolled back", self.rolled_back),
            ("resumed", self.resumed),
            ("blocks corrected", self.corrected),
            ("ways back given up", self.given_up),
            ("views checked", self.views),
            ("openings checked", self.openings),
            ("disks checked", self.presents),
            ("pinned", self.pins),
            ("thinned", self.thinned),
            ("pruned", self.pruned),
            ("runs made", self.indexed),
            ("runs spoilt", self.spoilt),
            ("logs rewritten", self.rewrites),
        ]
    }

    pub fn add(&mut self, other: &Counts) {
        self.steps += other.steps;
        self.sealed += other.sealed;
        self.cuts += other.cuts;
        self.failed_syncs += other.failed_syncs;
        self.full += other.full;
        self.rolled_back += other.rolled_back;
        self.resumed += other.resumed;
        self.corrected += other.corrected;
        self.given_up += other.given_up;
        self.views += other.views;
        self.openings += other.openings;
        self.presents += other.presents;
        self.pins += other.pins;
        self.thinned += other.thinned;
        self.pruned += other.pruned;
        self.indexed += other.indexed;
        self.spoilt += other.spoilt;
        self.rewrites += other.rewrites;
    }
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
            original: Arc::new(disks.iter().map(|disk| disk.bytes()).collect()),
            disks,
            directory: SimulatedVolume::new(&machine),
            retention: SimulatedVolume::new(&machine),
            machine,
            lineage: serde_json::from_value(format!("{seed:032x}").into()).unwrap(),
            dice,
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

    pub fn records(&self) -> Vec<DiskRecord> {
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
            let opened = match self.dice.chance(50) {
                true => Replica::open_unfinished_on(self.stores(), &self.opener()),
                false => Replica::open_on(self.stores(), &self.opener()),
            };
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
    /// model becomes what `other` allows if that is what is found.
    fn start_over(&mut self, replica: Replica, other: Else) -> Replica {
        self.views.clear();
        drop(replica);
        if self.machine.power().off || self.dice.chance(50) {
            self.power_back();
        }
        self.no_trouble();
        let replica = self.open();
        self.counts.openings += 1;
        match other {
            Else::Or(other) if !self.is_found(&self.model, &replica) => {
                assert!(self.is_found(&other, &replica), "neither the points before nor those after");
                self.model = other;
            }
            Else::Fewer => self.adopt_fewer(&replica),
            _ => assert!(self.is_found(&self.model, &replica), "a sealed epoch was lost, or an unsealed one is there"),
        }
        if replica.unfinished().is_none() {
            self.check_disks();
        }
        self.check_points(&replica);
        replica
    }

    pub fn no_trouble(&self) {
        let mut power = self.machine.power();
        (power.cut_after, power.fail_sync_after, power.space) = (None, None, None);
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
        self.counts.steps += 1;
        let replica = match result {
            Ok(()) => replica,
            // Refused for want of space: nothing happened, and the epoch is undone by the next one.
            Err((ReplicaError::NoSpace { .. }, other)) if !self.machine.power().off => {
                self.counts.full += 1;
                self.machine.power().space = None;
                if matches!(other, Else::Fewer) {
                    self.adopt_fewer(&replica);
                }
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
            return self.start_over(replica, Else::Nothing);
        }
        self.no_trouble();
        for (view, content) in std::mem::take(&mut self.views) {
            self.check_view(&view, &content);
            self.views.push((view, content));
        }
        if self.dice.chance(15) {
            return self.start_over(replica, Else::Nothing);
        }
        replica
    }
}

/// Plays the schedule of a seed, in a world with this lie.
pub fn run(seed: u64, lie: Lie) -> Counts {
    let mut run = Run::new(seed);
    run.machine.power().lie = lie;
    let mut replica = run.create();
    for _ in 0..if seed.is_multiple_of(10) { 150 } else { 40 } {
        replica = run.step(replica);
    }
    let replica = run.start_over(replica, Else::Nothing);
    drop(replica);
    run.counts
}
