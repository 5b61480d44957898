//! A machine on a bench, beside a model of its disks: what it should read as, what should have changed.

use std::collections::BTreeMap;

use nbd::{Client, Options};
use platforms::{Capture, Cut, CutDisk, Held, Start};
use protocol::extent::{BLOCK, BlockMap, Extent};
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec, Power};
use protocol::{Attempt, Changes, DiskKey, Lineage};

use crate::bench::Bench;

pub const SIZE: u64 = 8 << 20;
pub const NAME: &str = "web01";

pub type Maps = BTreeMap<DiskKey, BlockMap>;

pub fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

pub struct Rig<'a> {
    pub bench: &'a dyn Bench,
    pub lineage: Lineage,
    pub spec: MachineSpec,
    /// What the disks should read as.
    pub model: BTreeMap<DiskKey, Vec<u8>>,
    /// What was written since somebody last took it.
    pub written: Maps,
}

pub fn spec(sources: Vec<DiskSource>) -> MachineSpec {
    let disk = |(place, source)| DiskSpec { key: format!("disk{place}").parse().unwrap(), size: SIZE, source };
    MachineSpec {
        name: NAME.into(),
        memory_mib: 64,
        vcpus: 1,
        boot: Boot::Firmware,
        disks: sources.into_iter().enumerate().map(disk).collect(),
        cards: vec![],
        seed: None,
        native: BTreeMap::new(),
    }
}

impl<'a> Rig<'a> {
    /// A defined machine with disks of these formats.
    pub async fn own(bench: &'a dyn Bench, formats: &[DiskFormat]) -> Rig<'a> {
        let mut sources = Vec::new();
        for (place, format) in formats.iter().enumerate() {
            sources.push(bench.own(&format!("home{place}.img"), bench.tracked(*format), SIZE).await);
        }
        Rig::of(bench, sources, vec![0; SIZE as usize]).await
    }

    /// A defined machine with these disks, each of which reads as `content`.
    pub async fn of(bench: &'a dyn Bench, sources: Vec<DiskSource>, content: Vec<u8>) -> Rig<'a> {
        let spec = spec(sources);
        bench.platform().define(&spec).await.unwrap();
        bench.limit_scratch(NAME);
        let model = spec.disks.iter().map(|disk| (disk.key.clone(), content.clone())).collect();
        Rig { bench, lineage: Lineage::fresh(), spec, model, written: Maps::new() }
    }

    pub async fn start(&self) {
        self.bench.platform().start(NAME, Start::default()).await.unwrap();
    }

    /// Starts the machine tracked from the start of a generation.
    pub async fn start_tracked(&self, generation: u64) {
        let track = Some((self.lineage, Attempt::start_of(generation)));
        self.bench.platform().start(NAME, Start { paused: false, track }).await.unwrap();
    }

    pub async fn power(&self) -> Power {
        self.bench.platform().machine(NAME).await.unwrap().unwrap().power
    }

    pub async fn capture(&self) -> Box<dyn Capture> {
        self.bench.platform().capture(NAME, self.lineage).await.unwrap()
    }

    pub async fn write(&mut self, place: usize, offset: u64, length: u64, value: u8) {
        let key = self.spec.disks[place].key.clone();
        self.bench.write(NAME, place, &key, offset, length, value).await;
        self.wrote(place, offset, length, value);
    }

    /// Notes that the disk now reads so.
    pub fn wrote(&mut self, place: usize, offset: u64, length: u64, value: u8) {
        let key = self.spec.disks[place].key.clone();
        self.model.get_mut(&key).unwrap()[offset as usize..(offset + length) as usize].fill(value);
        self.written.entry(key).or_default().insert(Extent::new(offset, length));
    }

    /// The blocks written since this was last asked.
    pub fn take_written(&mut self) -> Maps {
        std::mem::take(&mut self.written).into_iter().map(|(key, map)| (key, map.aligned(BLOCK, SIZE))).collect()
    }
}

/// The known changes without the disks that did not change.
pub fn known(changes: &Changes) -> Maps {
    let Changes::Known(maps) = changes else { panic!("{changes:?}") };
    maps.iter().filter(|(_, map)| !map.is_empty()).map(|(key, map)| (key.clone(), map.clone())).collect()
}

pub fn covers(maps: &Maps, others: &Maps) -> bool {
    others.iter().all(|(key, other)| maps.get(key).is_some_and(|map| map.covers(other)))
}

/// Reads one disk of a cut as the contract demands.
pub async fn read(disk: &CutDisk) -> Result<Vec<u8>, nbd::Error> {
    let client = Client::connect(&disk.export, &Options::default()).await?;
    let mut bytes = Vec::new();
    for piece in BlockMap::whole(disk.size).pieces(disk.read_limit) {
        bytes.extend_from_slice(&client.read(piece.offset, piece.length as u32).await?);
    }
    Ok(bytes)
}

/// Whether every disk of a cut reads as the model says.
pub async fn assert_reads(cut: &Cut, model: &BTreeMap<DiskKey, Vec<u8>>) {
    assert_eq!(cut.disks.len(), model.len());
    for disk in &cut.disks {
        assert_eq!(disk.size, SIZE);
        let (got, want) = (read(disk).await.unwrap(), &model[&disk.key]);
        let differs =
            |(place, _): &(usize, _)| got.chunks(BLOCK as usize).nth(*place) != want.chunks(BLOCK as usize).nth(*place);
        let wrong: Vec<usize> =
            want.chunks(BLOCK as usize).enumerate().filter(differs).map(|(place, _)| place).collect();
        assert!(wrong.is_empty(), "blocks {wrong:?} of {} do not read as they were", disk.key);
    }
}

pub fn held(maps: &[(Attempt, bool)]) -> Vec<Held> {
    maps.iter().map(|(since, recording)| Held { since: *since, recording: *recording }).collect()
}
