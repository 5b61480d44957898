//! QEMU, steered by ourselves: nothing but the QEMU package is needed.
//!
//! ```text
//!   Qemu ── folder      every machine is a folder of files           marks    what overlays know, which mark is honest
//!     ├──── launch      a process that outlives ours                 bitmap   change maps, named after their cut
//!     ├──── power       shut down, power off, hold                   fleece   the nodes of an open cut
//!     ├──── settle      let go, and say what the disks hold          changes  reading maps
//!     │                                                              rest     whether they were touched since
//!     ├──── capture     cut, acknowledge, fail                       qmp      the conversation with QEMU
//!     ├──── agent       freezes the guest for a cut, and is asked what else it knows
//!     └──── fold        overlays into the disks beneath them
//! ```
//! # Always true
//! - What a machine is and does is in its folder and in its QEMU, never in this process: any number of processes may steer
//!   the same site, and each may die at any time.
//! - A guest runs only after its tracking is in place.
//!
//! # If power fails
//! QEMU is gone: `Power::Off`. The next start or settle finds inconsistent maps and says unknown, or, for overlays, what
//! they hold since their mark.

pub(crate) mod accelerator;
mod agent;
mod bitmap;
mod capture;
mod changes;
mod firmware;
mod fleece;
mod fold;
mod launch;
mod network;
mod power;
mod process;
pub(crate) mod qmp;
mod settle;
mod start;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use protocol::fault::code;
use protocol::guest::GuestNetwork;
use protocol::machine::{DiskSource, DiskSpec, Machine, MachineSpec, Power, Settled, SiteFacts};
use protocol::{BlockMap, DiskKey, Fault, Lineage};

use self::bitmap::Bitmaps;
use self::capture::QemuCapture;
use self::fleece::Bounds;
use crate::guest::{Ran, seed};
use crate::host::folder::Folder;
use crate::host::marks::Carry;
use crate::host::{image, overlays, places, rest};
use crate::{Capture, Platform, Start, Stopped};

/// How long another process may be at work on a machine.
const LOCK_PATIENCE: Duration = Duration::from_secs(90);

/// The machines of one site, each under a QEMU of its own.
#[derive(Debug, Clone)]
pub struct Qemu {
    site: PathBuf,
    bounds: Bounds,
}

impl Qemu {
    /// The site in the folder `site_dir`, which is created when it is absent. Machines live in `machines/` below it; kernels
    /// that are not where a description says are looked for in `boot/`; disks with relative paths are below it.
    ///
    /// # Errors
    /// `PLT-001` when the folder cannot be made.
    pub fn open(site_dir: &Path) -> Result<Qemu, Fault> {
        let make = || {
            for below in ["machines", "started", "boot"] {
                std::fs::create_dir_all(site_dir.join(below))?;
            }
            std::fs::canonicalize(site_dir)
        };
        let site = make().map_err(|why: std::io::Error| {
            Fault::new(code::HYPERVISOR, format!("the site {} cannot be opened", site_dir.display()), why.to_string())
        })?;
        Ok(Qemu { site, bounds: Bounds::default() })
    }

    /// With this many bytes of scratch per disk for an open cut, instead of a quarter of the disk and at least 64 MiB. A guest
    /// that overwrites more than that while a cut is open makes the cut fail, never its own writes.
    #[must_use]
    pub fn with_scratch_bytes(mut self, bytes: u64) -> Qemu {
        self.bounds.scratch_bytes = Some(bytes);
        self
    }

    /// With a guest's write waiting at most this many seconds (at least 1) for the scratch of an open cut, instead of 5;
    /// then the cut fails and the guest goes on.
    #[must_use]
    pub fn with_scratch_patience(mut self, seconds: u32) -> Qemu {
        self.bounds.patience_seconds = seconds.max(1);
        self
    }

    /// The folder in which the machine `name` is kept; its serial console is in `console.log` there.
    ///
    /// # Errors
    /// `PLT-002` for a name that no machine can have.
    pub fn machine_dir(&self, name: &str) -> Result<PathBuf, Fault> {
        Ok(self.folder(name)?.path().to_path_buf())
    }

    fn folder(&self, name: &str) -> Result<Folder, Fault> {
        Folder::new(&self.site, name)
    }

    /// The folder of a machine that exists.
    fn known(&self, name: &str) -> Result<Folder, Fault> {
        let folder = self.folder(name)?;
        folder.known_spec()?;
        Ok(folder)
    }

    /// Refuses what only a machine that is off allows.
    async fn must_be_off(&self, folder: &Folder, what: &str) -> Result<(), Fault> {
        match power::power(folder).await? {
            Power::Off => Ok(()),
            now => Err(Fault::new(
                code::MACHINE_RUNNING,
                format!("machine {} cannot be {what}", folder.name()),
                format!("it is {now:?}").to_lowercase(),
            )),
        }
    }
}

/// What no machine of ours can be.
fn check(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    let refuse = |why: String| Err(folder.fault("cannot be defined", why));
    for (place, disk) in spec.disks.iter().enumerate() {
        if disk.key.as_str().len() > launch::LONGEST_SERIAL {
            return refuse(format!(
                "disk key {} is longer than a serial number of {} bytes",
                disk.key,
                launch::LONGEST_SERIAL
            ));
        }
        if spec.disks[..place].iter().any(|other| other.key == disk.key) {
            return refuse(format!("there are two disks {}", disk.key));
        }
        if let DiskSource::OverlayOnView { view, .. } = &disk.source {
            view.parse::<nbd::Uri>().map_err(|why| folder.fault("cannot be defined", why))?;
        }
    }
    network::check(spec).map_err(|why| folder.fault("cannot be defined", why))?;
    if spec.memory_mib == 0 || spec.vcpus == 0 {
        return refuse("it has no memory or no processor".into());
    }
    Ok(())
}

#[async_trait]
impl Platform for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    async fn inventory(&self) -> Result<Vec<Machine>, Fault> {
        let cannot = |why: std::io::Error| {
            Fault::new(code::HYPERVISOR, "the machines of the site cannot be listed", why.to_string())
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.site.join("machines")).map_err(cannot)? {
            names.extend(entry.map_err(cannot)?.file_name().into_string());
        }
        names.sort();
        let mut machines = Vec::new();
        for name in names {
            machines.extend(self.machine(&name).await?);
        }
        Ok(machines)
    }

    async fn site(&self) -> Result<SiteFacts, Fault> {
        let cannot =
            |why: std::io::Error| Fault::new(code::HYPERVISOR, "the site cannot be looked at", why.to_string());
        let networks = std::iter::once(network::USER.to_string()).chain(places::bridges()).collect();
        Ok(SiteFacts { networks, pools: vec![places::pool("site", &self.site).map_err(cannot)?] })
    }

    async fn machine(&self, name: &str) -> Result<Option<Machine>, Fault> {
        let Ok(folder) = self.folder(name) else { return Ok(None) };
        let Some(mut spec) = folder.spec()? else { return Ok(None) };
        firmware::described(&folder, &mut spec);
        Ok(Some(Machine { spec, power: power::power(&folder).await?, remarks: vec![] }))
    }

    async fn define(&self, spec: &MachineSpec) -> Result<(), Fault> {
        let folder = self.folder(&spec.name)?;
        check(&folder, spec)?;
        std::fs::create_dir_all(folder.file("overlays")).map_err(|why| folder.fault("cannot be defined", why))?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        self.must_be_off(&folder, "defined").await?;
        // The overlays first: a description without them could be started by someone who then found them absent.
        overlays::create(&folder, spec).await?;
        let before = folder.spec()?;
        firmware::define(&folder, spec)?;
        seed::define(&folder, spec)?;
        folder.write("machine.json", spec)?;
        before.map_or(Ok(()), |before| overlays::remove_replaced(&folder, &before, spec))
    }

    async fn delete(&self, name: &str) -> Result<(), Fault> {
        let folder = self.folder(name)?;
        let Some(spec) = folder.spec()? else { return Ok(()) };
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        self.must_be_off(&folder, "deleted").await?;
        // The description last: as long as it is there, deleting can be repeated, and no overlay outlives it.
        overlays::remove(&folder, &spec)?;
        for note in ["marks.json", "carry.json", "rest.json", "doubt.json", "frozen.json", "machine.json"] {
            folder.remove(note)?;
        }
        std::fs::remove_dir_all(folder.path()).map_err(|why| folder.fault("cannot be rid of its folder", why))
    }

    async fn make_disk(&self, folder: &str, name: &str, size: u64) -> Result<DiskSource, Fault> {
        image::make_own(&self.site.join(folder), name, size).await
    }

    async fn start(&self, name: &str, how: Start) -> Result<(), Fault> {
        let folder = self.known(name)?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        start::start(&folder, how).await
    }

    async fn resume(&self, name: &str) -> Result<(), Fault> {
        let folder = self.known(name)?;
        // Not while somebody reads the last changes of a machine that stands still.
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        fold::note_pivot(&folder).await?;
        power::resume(&folder).await
    }

    async fn shut_down(&self, name: &str, timeout: Duration) -> Result<Stopped, Fault> {
        power::shut_down(&self.known(name)?, timeout).await
    }

    async fn power_off(&self, name: &str) -> Result<Stopped, Fault> {
        power::power_off(&self.known(name)?).await
    }

    async fn settle(&self, name: &str, lineage: Lineage) -> Result<Settled, Fault> {
        let folder = self.known(name)?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        settle::settle(&folder, lineage).await
    }

    async fn stand_on(&self, name: &str, onto: &[DiskSpec]) -> Result<(), Fault> {
        let folder = self.known(name)?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        fold::stand_on(&folder, onto).await
    }

    async fn fold(&self, name: &str, lineage: Lineage) -> Result<(), Fault> {
        let folder = self.known(name)?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        fold::fold(&folder, lineage).await
    }

    async fn changed(&self, name: &str, lineage: Lineage) -> Result<Option<u64>, Fault> {
        let folder = self.known(name)?;
        if process::running(&folder).is_none() {
            return Ok(None);
        }
        let nodes: Vec<String> = launch::nodes(&folder.known_spec()?).into_iter().map(|(node, _)| node).collect();
        let found = Bitmaps::ask(&mut power::converse(&folder).await?, lineage, &nodes).await;
        let found = found.map_err(|why| folder.fault("does not tell its change maps", why))?;
        let Some((since, bytes)) = found.changed() else { return Ok(None) };
        let carried = Carry::read(&folder, lineage, since)?;
        Ok(Some(bytes + carried.values().map(BlockMap::bytes).sum::<u64>()))
    }

    async fn stamps(&self, name: &str) -> Result<BTreeMap<DiskKey, String>, Fault> {
        let folder = self.known(name)?;
        rest::own_stamps(&folder, &folder.known_spec()?)
    }

    async fn guest_network(&self, name: &str) -> Result<GuestNetwork, Fault> {
        crate::guest::agent::network(&agent::Asked::new(self.known(name)?)).await
    }

    async fn run_in_guest(
        &self,
        name: &str,
        program: &str,
        arguments: &[String],
        patience: Duration,
    ) -> Result<Ran, Fault> {
        crate::guest::agent::run(&agent::Asked::new(self.known(name)?), program, arguments, patience).await
    }

    async fn forget_seed(&self, name: &str) -> Result<(), Fault> {
        let folder = self.known(name)?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        let spec = folder.known_spec()?;
        folder.write("machine.json", &MachineSpec { seed: None, ..spec })?;
        seed::forget(&folder)
    }

    async fn capture(&self, name: &str, lineage: Lineage) -> Result<Box<dyn Capture>, Fault> {
        Ok(Box::new(QemuCapture::open(self.known(name)?, lineage, self.bounds).await?))
    }
}
