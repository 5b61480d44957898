//! A simulated machine: its disks' overlays, its change maps, and what survives of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use protocol::extent::{BLOCK, BlockMap, Extent};
use protocol::fault::code;
use protocol::machine::{DiskFormat, DiskSource, DiskSpec, Machine, MachineSpec, Power};
use protocol::position::{Distrust, union};
use protocol::{Attempt, DiskKey, Fault, Freeze, Lineage, Quiesce};

use super::refused;
use crate::{Held, Stopped};

pub(super) type Maps = BTreeMap<DiskKey, BlockMap>;

/// A cut of a lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub lineage: Lineage,
    pub attempt: Attempt,
}

/// The changes since a cut.
#[derive(Debug, Clone, Default)]
pub(super) struct Map {
    pub recording: bool,
    pub inconsistent: bool,
    pub changes: Maps,
}

/// A cut that can be read.
#[derive(Debug)]
pub(super) struct OpenCut {
    pub exports: Vec<String>,
    pub broken: Arc<AtomicBool>,
    overwritten: BTreeSet<(DiskKey, u64)>,
}

impl OpenCut {
    pub fn new(exports: Vec<String>, broken: Arc<AtomicBool>) -> OpenCut {
        OpenCut { exports, broken, overwritten: BTreeSet::new() }
    }
}

/// How a simulated guest's agent behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimulatedAgent {
    /// The guest has none.
    Absent,
    /// It does what it is told.
    Ready,
    /// It does not answer.
    Hung,
    /// A hook of the guest's owner fails.
    HookFails,
}

#[derive(Debug, Default)]
struct Overlay {
    blocks: BTreeMap<u64, Vec<u8>>,
    since: Option<Mark>,
    ran: bool,
    // What lies under it; read at every start.
    view: Vec<u8>,
}

/// One machine.
#[derive(Debug)]
pub(super) struct Guest {
    pub spec: MachineSpec,
    pub power: Power,
    pub power_taken: bool,
    pub ignores_shutdown: bool,
    pub fail_next_cut: bool,
    pub agent: SimulatedAgent,
    /// Its file systems stand still.
    pub frozen: bool,
    /// How often they did.
    pub freezes: u64,
    pub scratch_bytes: Option<u64>,
    pub maps: BTreeMap<(Lineage, Attempt), Map>,
    pub carry: Option<(Mark, Maps)>,
    pub cut: Option<OpenCut>,
    // Held by whoever captures it.
    pub capturing: Arc<tokio::sync::Mutex<()>>,
    overlays: BTreeMap<DiskKey, Overlay>,
}

fn is_overlay(disk: &DiskSpec) -> bool {
    disk.source.overlay().is_some()
}

impl Guest {
    pub fn new(spec: &MachineSpec) -> Guest {
        let mut guest = Guest {
            spec: spec.clone(),
            power: Power::Off,
            power_taken: false,
            ignores_shutdown: false,
            fail_next_cut: false,
            agent: SimulatedAgent::Absent,
            frozen: false,
            freezes: 0,
            scratch_bytes: None,
            maps: BTreeMap::new(),
            carry: None,
            cut: None,
            capturing: Arc::default(),
            overlays: BTreeMap::new(),
        };
        guest.create_overlays();
        guest
    }

    /// Freezes its file systems, as far as its agent does that.
    pub fn freeze(&mut self, wish: Quiesce) -> Freeze {
        let (entry, cause) = match self.agent {
            SimulatedAgent::Ready if self.power == Power::Running => {
                self.frozen = true;
                self.freezes += 1;
                return Freeze::Done { file_systems: 1, freeze_ms: 0, frozen_ms: 0 };
            }
            SimulatedAgent::Ready => (code::GUEST_NOT_FROZEN, "it does not run".to_string()),
            SimulatedAgent::Absent => (code::NO_GUEST_AGENT, "it was given none".to_string()),
            SimulatedAgent::Hung => {
                (code::GUEST_NOT_FROZEN, format!("its agent did not answer within {} s", wish.within.as_secs_f32()))
            }
            SimulatedAgent::HookFails => (code::GUEST_NOT_FROZEN, "its agent says: the hook failed".to_string()),
        };
        Freeze::failed(&Fault::new(entry, format!("the guest of {} is not frozen", self.spec.name), cause))
    }

    fn create_overlays(&mut self) {
        for disk in self.spec.disks.iter().filter(|disk| is_overlay(disk)) {
            self.overlays.entry(disk.key.clone()).or_default();
        }
    }

    pub fn redefine(&mut self, spec: &MachineSpec) -> Result<(), Fault> {
        self.must_be(Power::Off, "be defined")?;
        self.spec = spec.clone();
        self.create_overlays();
        Ok(())
    }

    pub fn must_be(&self, power: Power, what: &str) -> Result<(), Fault> {
        if self.power == power {
            return Ok(());
        }
        Err(Fault::new(
            code::MACHINE_RUNNING,
            format!("machine {} cannot {what}", self.spec.name),
            format!("it is {:?}", self.power),
        ))
    }

    pub fn machine(&self) -> Machine {
        Machine { spec: self.spec.clone(), power: self.power, remarks: vec![] }
    }

    pub fn disk(&self, key: &DiskKey) -> Result<&DiskSpec, Fault> {
        let found = self.spec.disks.iter().find(|disk| disk.key == *key);
        found.ok_or_else(|| refused(&self.spec.name, "lacks a disk", format!("it has no disk {key}")))
    }

    /// Refuses while somebody captures it.
    pub fn not_captured(&self) -> Result<(), Fault> {
        let what = format!("machine {} cannot be folded", self.spec.name);
        self.capturing.try_lock().map(|_| ()).map_err(|_| Fault::new(code::CAPTURED, what, "somebody captures it"))
    }

    /// It runs on disks of the platform's own now; its maps go on.
    pub fn folded(&mut self, spec: MachineSpec) {
        self.spec = spec;
        self.overlays.clear();
    }

    /// How it came to stand still, if it does.
    pub fn stood_still(&self) -> Option<Stopped> {
        match self.power {
            Power::Off => Some(Stopped::WasOff),
            Power::Held if self.power_taken => Some(Stopped::PoweredOff),
            Power::Held => Some(Stopped::ByGuest),
            Power::Running | Power::Paused => None,
        }
    }

    pub fn through_overlay(&self, key: &DiskKey) -> Vec<u8> {
        let Some(overlay) = self.overlays.get(key) else { return Vec::new() };
        let mut bytes = overlay.view.clone();
        for (at, block) in &overlay.blocks {
            let at = *at as usize;
            if let Some(place) = bytes.get_mut(at..at + block.len()) {
                place.copy_from_slice(block);
            }
        }
        bytes
    }

    /// A write has happened: `content` is the disk after it.
    pub fn written(&mut self, key: &DiskKey, offset: u64, length: u64, content: &[u8]) -> Result<(), Fault> {
        let size = self.disk(key)?.size;
        let blocks = [Extent::new(offset, length)].into_iter().collect::<BlockMap>().aligned(BLOCK, size);
        for map in self.maps.values_mut().filter(|map| map.recording) {
            let changes = map.changes.entry(key.clone()).or_default();
            *changes = changes.union(&blocks);
        }
        for block in blocks.pieces(BLOCK) {
            if let (Some(overlay), Some(bytes)) =
                (self.overlays.get_mut(key), content.get(block.offset as usize..block.end() as usize))
            {
                overlay.blocks.insert(block.offset, bytes.to_vec());
            }
            if let Some(cut) = &mut self.cut {
                cut.overwritten.insert((key.clone(), block.offset));
                let used = cut.overwritten.iter().filter(|(disk, _)| disk == key).count() as u64 * BLOCK;
                if self.scratch_bytes.is_some_and(|bound| used > bound) {
                    cut.broken.store(true, Ordering::SeqCst);
                }
            }
        }
        Ok(())
    }

    pub fn break_cut(&mut self) {
        if let Some(cut) = &self.cut {
            cut.broken.store(true, Ordering::SeqCst);
        }
    }

    /// The maps that can be believed, ascending; empty unless the newest grows.
    pub fn held(&self, lineage: Lineage) -> Vec<Held> {
        let ours = self.maps.iter().filter(|((of, _), map)| *of == lineage && !map.inconsistent);
        let held: Vec<Held> = ours.map(|((_, since), map)| Held { since: *since, recording: map.recording }).collect();
        if held.last().is_some_and(|newest| newest.recording) { held } else { Vec::new() }
    }

    /// What the maps that are held call changed, at most.
    pub fn changed(&self, lineage: Lineage) -> Option<u64> {
        let held = self.held(lineage);
        let carried = self.carried(Mark { lineage, attempt: held.first()?.since });
        let maps = held.iter().filter_map(|held| self.maps.get(&(lineage, held.since))).map(|map| &map.changes);
        Some(maps.chain([&carried]).flat_map(BTreeMap::values).map(BlockMap::bytes).sum())
    }

    /// Why nothing is held.
    pub fn distrust(&self, lineage: Lineage) -> Distrust {
        let inconsistent = self.maps.iter().any(|((of, _), map)| *of == lineage && map.inconsistent);
        if inconsistent { Distrust::MapInconsistent } else { Distrust::MapAbsent }
    }

    /// What is carried for maps since this cut.
    pub fn carried(&self, mark: Mark) -> Maps {
        let mine = self.carry.iter().filter(|(since, _)| *since == mark);
        mine.map(|(_, maps)| maps.clone()).next().unwrap_or_default()
    }

    pub fn start(&mut self, mut views: BTreeMap<DiskKey, Vec<u8>>, mark: Option<Mark>, honest: bool) {
        self.power_taken = false;
        for (key, overlay) in &mut self.overlays {
            overlay.view = views.remove(key).unwrap_or_default();
            overlay.since = overlay.since.or(mark.filter(|_| !overlay.ran));
            overlay.ran = true;
        }
        let Some(mark) = mark.filter(|mark| self.held(mark.lineage).is_empty()) else { return };
        self.maps.retain(|(lineage, _), _| *lineage != mark.lineage);
        let begin = Map { recording: true, ..Map::default() };
        if let Some(since) = self.overlays_since(mark.lineage) {
            self.carry = Some((Mark { attempt: since, ..mark }, self.allocation()));
            self.maps.insert((mark.lineage, since), begin);
        } else if honest {
            self.maps.insert((mark.lineage, mark.attempt), begin);
        }
    }

    fn overlays_since(&self, lineage: Lineage) -> Option<Attempt> {
        let mut marks = self.spec.disks.iter().map(|disk| {
            let mark =
                is_overlay(disk).then(|| self.overlays.get(&disk.key)).flatten().and_then(|overlay| overlay.since);
            mark.filter(|mark| mark.lineage == lineage)
        });
        let first = marks.next()??;
        marks.all(|mark| mark == Some(first)).then_some(first.attempt)
    }

    fn allocation(&self) -> Maps {
        let of = |(key, overlay): (&DiskKey, &Overlay)| {
            let blocks = overlay.blocks.iter().map(|(at, block)| Extent::new(*at, block.len() as u64));
            (key.clone(), blocks.collect())
        };
        self.overlays.iter().map(of).collect()
    }

    fn has_raw(&self) -> bool {
        self.spec.disks.iter().any(|disk| matches!(disk.source, DiskSource::Own { format: DiskFormat::Raw, .. }))
    }

    /// The hypervisor ends without warning. The exports that end with it.
    pub fn kill(&mut self) -> Vec<String> {
        (self.power, self.power_taken) = (Power::Off, false);
        if self.has_raw() {
            self.maps.clear();
        }
        self.maps.values_mut().for_each(|map| map.inconsistent = true);
        self.cut.take().map(|cut| cut.exports).unwrap_or_default()
    }

    /// Lets go of the disks. What changed, or why nobody knows, and the exports that end.
    #[allow(clippy::type_complexity, reason = "read once, by the caller, in two lines")]
    pub fn settle(&mut self, lineage: Lineage) -> Result<(Result<(Attempt, Maps), Distrust>, Vec<String>), Fault> {
        if self.power == Power::Running {
            self.must_be(Power::Off, "be settled")?;
        }
        let was_off = self.power == Power::Off;
        (self.power, self.power_taken) = (Power::Off, false);
        let exports = self.cut.take().map(|cut| cut.exports).unwrap_or_default();
        let held = if was_off && self.has_raw() { Vec::new() } else { self.held(lineage) };
        let mut maps = Maps::new();
        for held in &held {
            if let Some(map) = self.maps.get(&(lineage, held.since)) {
                maps = union(&maps, &map.changes);
            }
        }
        let known = match (held.first(), self.overlays_since(lineage)) {
            (Some(held), _) => Ok((held.since, maps)),
            (None, Some(since)) => Ok((since, self.allocation())),
            (None, None) => Err(self.distrust(lineage)),
        };
        if self.has_raw() {
            self.maps.clear();
        }
        let known = known.map(|(since, maps)| (since, union(&maps, &self.carried(Mark { lineage, attempt: since }))));
        Ok((known, exports))
    }
}
