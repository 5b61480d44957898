//! A platform in memory, for the tests of the rooms above: the same contract, and everything can be made to fail.
//!
//! ```text
//!   test ── write, content ──► machine ── cut ──► a copy of every disk ──► NBD exports on a real unix socket
//!     └──── fail_next_cut, break_cut, lose_maps, ignore_shutdown, kill, ..
//! ```
//! Disks behave as the formats they are described with: what a raw disk, a qcow2 or an overlay keeps of its maps over a clean
//! end or a kill is what QEMU 7.2 was measured to keep. The exports refuse reads that the contract forbids, so that a reader
//! which is right here does not meet the trap there.
//!
//! # Always true
//! - One conformance suite holds for this platform and for the real one.
//!
//! # If power fails
//! Everything is gone; `kill` is the power failure of one machine.

mod capture;
mod export;
mod machine;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nbd::{Address, Client, Options, Server, Uri};
use protocol::extent::BLOCK;
use protocol::fault::code;
use protocol::machine::{DiskFormat, DiskSource, DiskSpec, Machine, MachineSpec, Power, Settled, SiteFacts};
use protocol::{Attempt, Changes, DiskKey, Fault, Lineage};

use self::capture::SimulatedCapture;
pub use self::machine::SimulatedAgent;
use self::machine::{Guest, Mark};
use crate::{Capture, Platform, Start, Stopped};

/// A hypervisor that exists only in this process. Clones share it.
#[derive(Debug, Clone)]
pub struct Simulated {
    world: Arc<World>,
}

#[derive(Debug)]
struct World {
    site: Mutex<Site>,
    server: Server,
}

/// Everything there is.
#[derive(Debug, Default)]
struct Site {
    guests: BTreeMap<String, Guest>,
    /// The platform's own disks, by path, and how often each was written.
    disks: BTreeMap<String, (Vec<u8>, u64)>,
    /// The newest mark that a machine was started from, by name and lineage; outlives the machine.
    claimed: BTreeMap<(String, Lineage), Attempt>,
}

impl World {
    fn site(&self) -> MutexGuard<'_, Site> {
        self.site.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn absent(name: &str) -> Fault {
    Fault::new(code::MACHINE_ABSENT, format!("there is no machine {name}"), "it was never defined here")
}

fn refused(name: &str, what: &str, why: impl Into<String>) -> Fault {
    Fault::new(code::HYPERVISOR, format!("machine {name} {what}"), why)
}

impl Site {
    fn guest(&mut self, name: &str) -> Result<&mut Guest, Fault> {
        self.guests.get_mut(name).ok_or_else(|| absent(name))
    }

    /// The bytes of a machine's disk as its guest sees them.
    fn content(&self, name: &str, disk: &DiskKey) -> Result<Vec<u8>, Fault> {
        let guest = self.guests.get(name).ok_or_else(|| absent(name))?;
        let spec = guest.disk(disk)?;
        match &spec.source {
            DiskSource::Own { path, .. } => {
                let found = self.disks.get(path).map(|(bytes, _)| bytes.clone());
                found.ok_or_else(|| refused(name, "lacks a disk", format!("there is no disk {path}")))
            }
            DiskSource::OverlayOnView { .. } | DiskSource::OverlayOnOwn { .. } => Ok(guest.through_overlay(disk)),
        }
    }

    fn write(&mut self, name: &str, disk: &DiskKey, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut content = self.content(name, disk)?;
        let guest = self.guest(name)?;
        let source = guest.disk(disk)?.source.clone();
        let at = usize::try_from(offset).ok();
        let place = at.and_then(|at| content.get_mut(at..at.checked_add(bytes.len())?));
        let place = place.ok_or_else(|| refused(name, "cannot write", "it is behind the end of the disk"))?;
        place.copy_from_slice(bytes);
        guest.written(disk, offset, bytes.len() as u64, &content)?;
        if let DiskSource::Own { path, .. } = source
            && let Some((stored, version)) = self.disks.get_mut(&path)
        {
            *stored = content;
            *version += 1;
        }
        Ok(())
    }

    fn stamps(&self, name: &str) -> Result<BTreeMap<DiskKey, String>, Fault> {
        let guest = self.guests.get(name).ok_or_else(|| absent(name))?;
        let mut stamps = BTreeMap::new();
        for disk in &guest.spec.disks {
            if let DiskSource::Own { path, .. } = &disk.source {
                let found = self
                    .disks
                    .get(path)
                    .ok_or_else(|| refused(name, "lacks a disk", format!("there is no disk {path}")))?;
                stamps.insert(disk.key.clone(), format!("{}:{}", found.0.len(), found.1));
            }
        }
        Ok(stamps)
    }
}

/// What tests do to the world.
impl Simulated {
    /// A site without machines; its exports are served on a unix socket in `dir`. Needs a Tokio runtime.
    ///
    /// # Errors
    /// `PLT-001` when the socket cannot be made.
    pub async fn open(dir: &Path) -> Result<Simulated, Fault> {
        let server = Server::bind(&Address::Unix(dir.join("simulated.sock"))).await;
        let server =
            server.map_err(|why| Fault::new(code::HYPERVISOR, "the simulated site cannot serve", why.to_string()))?;
        Ok(Simulated { world: Arc::new(World { site: Mutex::default(), server }) })
    }

    /// How the machine's agent behaves from now on; it has none before.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn set_agent(&self, machine: &str, agent: SimulatedAgent) -> Result<(), Fault> {
        self.world.site().guest(machine)?.agent = agent;
        Ok(())
    }

    /// Leaves the guest's file systems frozen, as somebody does who dies before he thaws it.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn leave_frozen(&self, machine: &str) -> Result<(), Fault> {
        self.world.site().guest(machine)?.frozen = true;
        Ok(())
    }

    /// How often the guest was frozen.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn freezes(&self, machine: &str) -> Result<u64, Fault> {
        Ok(self.world.site().guest(machine)?.freezes)
    }

    /// Whether the guest's file systems stand still.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn is_frozen(&self, machine: &str) -> Result<bool, Fault> {
        Ok(self.world.site().guest(machine)?.frozen)
    }

    /// Puts a disk of the platform's own at `path`, instead of one that is there.
    pub fn put_disk(&self, path: &str, bytes: Vec<u8>) {
        let mut site = self.world.site();
        let version = site.disks.get(path).map_or(0, |(_, version)| version + 1);
        site.disks.insert(path.to_string(), (bytes, version));
    }

    /// The bytes of the platform's own disk at `path`, none if there is none.
    pub fn disk(&self, path: &str) -> Option<Vec<u8>> {
        self.world.site().disks.get(path).map(|(bytes, _)| bytes.clone())
    }

    /// Writes as the guest of a running machine does.
    ///
    /// # Errors
    /// `PLT-002`; `PLT-001` when it does not run, or behind the end of the disk.
    pub fn write(&self, machine: &str, disk: &DiskKey, offset: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut site = self.world.site();
        if site.guest(machine)?.power != Power::Running {
            return Err(refused(machine, "cannot write", "its guest does not run"));
        }
        site.write(machine, disk, offset, bytes)
    }

    /// A machine's disk as its guest sees it now.
    ///
    /// # Errors
    /// `PLT-002`; `PLT-001` when it lacks the disk.
    pub fn content(&self, machine: &str, disk: &DiskKey) -> Result<Vec<u8>, Fault> {
        self.world.site().content(machine, disk)
    }

    /// The next cut of the machine is refused.
    ///
    /// # Errors
    /// `PLT-002`, as of every method that names a machine.
    pub fn fail_next_cut(&self, machine: &str) -> Result<(), Fault> {
        self.world.site().guest(machine)?.fail_next_cut = true;
        Ok(())
    }

    /// From now on every read of the machine's open cut fails.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn break_cut(&self, machine: &str) -> Result<(), Fault> {
        self.world.site().guest(machine)?.break_cut();
        Ok(())
    }

    /// An open cut breaks when the guest overwrites more than this many bytes (in whole blocks) of one disk.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn limit_scratch(&self, machine: &str, bytes: u64) -> Result<(), Fault> {
        self.world.site().guest(machine)?.scratch_bytes = Some(bytes);
        Ok(())
    }

    /// All change maps of the machine are lost without a trace.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn lose_maps(&self, machine: &str) -> Result<(), Fault> {
        self.world.site().guest(machine)?.maps.clear();
        Ok(())
    }

    /// Whether the guest ignores being asked to shut down.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn ignore_shutdown(&self, machine: &str, ignores: bool) -> Result<(), Fault> {
        self.world.site().guest(machine)?.ignores_shutdown = ignores;
        Ok(())
    }

    /// The guest shuts itself down, unasked.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn guest_ends(&self, machine: &str) -> Result<(), Fault> {
        let mut site = self.world.site();
        let guest = site.guest(machine)?;
        if guest.power == Power::Running {
            guest.power = Power::Held;
        }
        Ok(())
    }

    /// The hypervisor of the machine is killed: the guest is off, and maps that it had open are useless.
    ///
    /// # Errors
    /// `PLT-002`.
    pub fn kill(&self, machine: &str) -> Result<(), Fault> {
        let mut site = self.world.site();
        let exports = site.guest(machine)?.kill();
        exports.iter().for_each(|name| self.world.server.remove(name));
        Ok(())
    }
}

/// What lies under the overlays of a machine that stand on views.
async fn read_views(spec: &MachineSpec) -> Result<BTreeMap<DiskKey, Vec<u8>>, Fault> {
    let mut views = BTreeMap::new();
    for disk in &spec.disks {
        let DiskSource::OverlayOnView { view, .. } = &disk.source else { continue };
        let read = async {
            let client = Client::connect(&view.parse::<Uri>()?, &Options::default()).await?;
            let (mut bytes, end) = (Vec::new(), client.size().min(disk.size));
            while (bytes.len() as u64) < end {
                let at = bytes.len() as u64;
                bytes.extend_from_slice(&client.read(at, (end - at).min(BLOCK) as u32).await?);
            }
            Ok::<_, nbd::Error>(bytes)
        };
        let mut bytes =
            read.await.map_err(|why| refused(&spec.name, "has a view that cannot be read", why.to_string()))?;
        bytes.resize(disk.size as usize, 0);
        views.insert(disk.key.clone(), bytes);
    }
    Ok(views)
}

#[async_trait]
impl Platform for Simulated {
    fn name(&self) -> &'static str {
        "simulated"
    }

    async fn inventory(&self) -> Result<Vec<Machine>, Fault> {
        Ok(self.world.site().guests.values().map(Guest::machine).collect())
    }

    async fn site(&self) -> Result<SiteFacts, Fault> {
        Ok(SiteFacts { networks: vec!["user".into()], pools: vec![] })
    }

    async fn forget_seed(&self, name: &str) -> Result<(), Fault> {
        self.world.site().guest(name)?.spec.seed = None;
        Ok(())
    }

    async fn machine(&self, name: &str) -> Result<Option<Machine>, Fault> {
        Ok(self.world.site().guests.get(name).map(Guest::machine))
    }

    async fn define(&self, spec: &MachineSpec) -> Result<(), Fault> {
        let mut site = self.world.site();
        match site.guests.get_mut(&spec.name) {
            Some(guest) => guest.redefine(spec),
            None => {
                site.guests.insert(spec.name.clone(), Guest::new(spec));
                Ok(())
            }
        }
    }

    async fn delete(&self, name: &str) -> Result<(), Fault> {
        let mut site = self.world.site();
        if let Some(guest) = site.guests.get(name) {
            guest.must_be(Power::Off, "be deleted")?;
            site.guests.remove(name);
        }
        Ok(())
    }

    async fn make_disk(&self, folder: &str, name: &str, size: u64) -> Result<DiskSource, Fault> {
        let path = format!("{folder}/{name}");
        self.put_disk(&path, vec![0; size as usize]);
        Ok(DiskSource::Own { path, format: DiskFormat::Raw })
    }

    async fn start(&self, name: &str, how: Start) -> Result<(), Fault> {
        let spec = {
            let mut site = self.world.site();
            let guest = site.guest(name)?;
            match guest.power {
                Power::Running => return Ok(()),
                Power::Paused => {
                    guest.power = if how.paused { Power::Paused } else { Power::Running };
                    return Ok(());
                }
                Power::Held => {
                    return Err(refused(name, "cannot be started", "its disks are still held; settle it first"));
                }
                Power::Off => guest.spec.clone(),
            }
        };
        let mut views = read_views(&spec).await?;
        let mut site = self.world.site();
        for disk in &spec.disks {
            if let DiskSource::OverlayOnOwn { path, .. } = &disk.source {
                let found = site.disks.get(path).map(|(bytes, _)| bytes.clone());
                let lacks = || refused(name, "lacks a disk", format!("there is no disk {path}"));
                views.insert(disk.key.clone(), found.ok_or_else(lacks)?);
            }
        }
        for disk in &spec.disks {
            if matches!(disk.source, DiskSource::Own { .. }) {
                site.content(name, &disk.key)?;
            }
        }
        let mark = how.track.map(|(lineage, attempt)| Mark { lineage, attempt });
        let honest = mark.is_some_and(|mark| {
            let newest = site.claimed.entry((name.to_string(), mark.lineage));
            let newest = newest.and_modify(|_| {}).or_insert(Attempt { generation: 0, number: 0 });
            let honest = *newest < mark.attempt;
            *newest = (*newest).max(mark.attempt);
            honest
        });
        site.guest(name)?.start(views, mark, honest);
        site.guest(name)?.power = if how.paused { Power::Paused } else { Power::Running };
        Ok(())
    }

    async fn resume(&self, name: &str) -> Result<(), Fault> {
        let mut site = self.world.site();
        let guest = site.guest(name)?;
        match guest.power {
            Power::Running => {}
            Power::Paused => guest.power = Power::Running,
            Power::Off | Power::Held => return Err(refused(name, "cannot go on", "its guest is off")),
        }
        Ok(())
    }

    async fn shut_down(&self, name: &str, timeout: Duration) -> Result<Stopped, Fault> {
        let deaf = {
            let mut site = self.world.site();
            let guest = site.guest(name)?;
            match guest.stood_still() {
                Some(already) => return Ok(already),
                None if guest.power == Power::Running && !guest.ignores_shutdown => {
                    guest.power = Power::Held;
                    return Ok(Stopped::ByGuest);
                }
                None => Fault::new(
                    code::GUEST_IGNORES_SHUTDOWN,
                    format!("machine {name} did not shut down"),
                    "it still ran",
                ),
            }
        };
        tokio::time::sleep(timeout).await;
        Err(deaf)
    }

    async fn power_off(&self, name: &str) -> Result<Stopped, Fault> {
        let mut site = self.world.site();
        let guest = site.guest(name)?;
        if let Some(already) = guest.stood_still() {
            return Ok(already);
        }
        (guest.power, guest.power_taken) = (Power::Held, true);
        Ok(Stopped::PoweredOff)
    }

    async fn settle(&self, name: &str, lineage: Lineage) -> Result<Settled, Fault> {
        let mut site = self.world.site();
        let (known, exports) = site.guest(name)?.settle(lineage)?;
        exports.iter().for_each(|name| self.world.server.remove(name));
        let stamps = site.stamps(name)?;
        Ok(match known {
            Ok((since, maps)) => Settled { since: Some(since), changes: Changes::Known(maps), stamps },
            Err(why) => Settled { since: None, changes: Changes::Unknown(why), stamps },
        })
    }

    async fn stand_on(&self, name: &str, onto: &[DiskSpec]) -> Result<(), Fault> {
        let mut site = self.world.site();
        let mut spec = site.guest(name)?.spec.clone();
        for disk in &mut spec.disks {
            let DiskSource::OverlayOnView { overlay, .. } = &disk.source else { continue };
            let found = onto.iter().find(|own| own.key == disk.key).map(|own| own.source.clone());
            let Some(DiskSource::Own { path, format }) = found else {
                let why = format!("none was given for {}", disk.key);
                return Err(refused(name, "cannot stand on its own disks", why));
            };
            disk.source = DiskSource::OverlayOnOwn { overlay: overlay.clone(), path, format };
        }
        site.guest(name)?.not_captured()?;
        site.guest(name)?.spec = spec;
        Ok(())
    }

    async fn fold(&self, name: &str, _: Lineage) -> Result<(), Fault> {
        let mut site = self.world.site();
        let mut spec = site.guest(name)?.spec.clone();
        if spec.disks.iter().all(|disk| disk.source.overlay().is_none()) {
            return Ok(());
        }
        site.guest(name)?.not_captured()?;
        if !matches!(site.guest(name)?.power, Power::Running | Power::Paused) {
            return Err(refused(name, "cannot be folded", "it has to run for that"));
        }
        for disk in &mut spec.disks {
            let (path, format) = match &disk.source {
                DiskSource::Own { .. } => continue,
                DiskSource::OverlayOnOwn { path, format, .. } => (path.clone(), *format),
                DiskSource::OverlayOnView { .. } => {
                    return Err(refused(name, "cannot be folded", format!("{} still stands on a view", disk.key)));
                }
            };
            let content = site.content(name, &disk.key)?;
            let version = site.disks.get(&path).map_or(0, |(_, version)| version + 1);
            site.disks.insert(path.clone(), (content, version));
            disk.source = DiskSource::Own { path, format };
        }
        site.guest(name)?.folded(spec);
        Ok(())
    }

    async fn changed(&self, name: &str, lineage: Lineage) -> Result<Option<u64>, Fault> {
        Ok(self.world.site().guest(name)?.changed(lineage))
    }

    async fn stamps(&self, name: &str) -> Result<BTreeMap<DiskKey, String>, Fault> {
        self.world.site().stamps(name)
    }

    async fn capture(&self, name: &str, lineage: Lineage) -> Result<Box<dyn Capture>, Fault> {
        let place = self.world.site().guest(name)?.capturing.clone();
        Ok(Box::new(SimulatedCapture::open(self.world.clone(), name, lineage, place).await?))
    }
}
