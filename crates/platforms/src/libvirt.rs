//! libvirt, through its own client and nothing but its supported calls: the machines that people have already.
//!
//! ```text
//!   Libvirt ── virsh      the conversation                 chain     checkpoints: which maps there are, and whose
//!      ├────── document   XML, changed in place            backup    an open cut
//!      ├────── domain     descriptions ◄─► XML             capture   cut, acknowledge, fail
//!      ├────── life       what a machine does, holding     run       whether a run of it is one that we saw begin
//!      ├────── start      tracked from the first write     settle    let go, and say what the disks hold
//!      ├────── relay      what overlays stand on, and a view that may go away for a while
//!      ├────── remarks    what does not come along         same      whether the disks are still those
//!      ├────── inventory  networks and storage pools
//!      ├────── access     what QEMU must reach, as whom libvirt runs it
//!      ├────── agent      freezes the guest for a cut, and is asked what else it knows
//!      └────── fold       overlays into the disks beneath them
//! ```
//! # Always true
//! - What a machine is and does is libvirt's to say; our notes about it lie in a folder of the site, as for
//!   [`crate::qemu`]. Any number of processes may steer the same site, and each may die at any time.
//! - libvirt keeps its maps in qcow2 images. A machine with a raw disk is captured all the same, and every cut of it says that
//!   anything may differ.
//!
//! # If power fails
//! QEMU and libvirt are gone; what the images keep is inconsistent and not believed, and overlays say what they hold.

mod access;
mod agent;
mod backup;
mod capture;
mod chain;
mod document;
mod domain;
mod fold;
mod inventory;
mod life;
mod relay;
mod remarks;
mod run;
mod same;
mod settle;
mod start;
mod virsh;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use protocol::extent::BlockMap;
use protocol::fault::code;
use protocol::guest::GuestNetwork;
use protocol::machine::{Boot, DiskSource, DiskSpec, Machine, MachineSpec, Power, Settled, SiteFacts};
use protocol::{DiskKey, Fault, Lineage};
use xmltree::Element;

use self::access::{User, make_room};
use self::capture::LibvirtCapture;
use self::chain::Chain;
use self::document::Document;
use self::domain::{Base, Target};
use self::virsh::{Virsh, VirshError};
use crate::guest::{Ran, seed};
use crate::host::folder::Folder;
use crate::host::marks::Carry;
use crate::host::{image, nvram, overlays, rest};
use crate::{Capture, Platform, Start, Stopped};

/// How long another process may be at work on a machine.
const LOCK_PATIENCE: Duration = Duration::from_secs(100);

/// The machines of one libvirt.
#[derive(Debug, Clone)]
pub struct Libvirt {
    site: PathBuf,
    uri: String,
    /// Whom QEMU runs as, if not as who we are.
    user: Option<User>,
}

/// One operation's view of the site.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    virsh: Virsh,
}

impl Libvirt {
    /// The libvirt at `uri` (`qemu:///system`), with our notes and overlays in `site_dir`, which is created when it is absent.
    ///
    /// # Errors
    /// `PLT-001` when the folder cannot be made, libvirt is not reached, or lets us look and change nothing (R2).
    pub async fn open(uri: &str, site_dir: &Path) -> Result<Libvirt, Fault> {
        let make = || {
            for below in ["machines", "started", "boot"] {
                std::fs::create_dir_all(site_dir.join(below))?;
            }
            std::fs::canonicalize(site_dir)
        };
        let cannot = |what: String, why: String| Fault::new(code::HYPERVISOR, what, why);
        let site = make().map_err(|why: std::io::Error| {
            cannot(format!("the site {} cannot be opened", site_dir.display()), why.to_string())
        })?;
        let mut libvirt = Libvirt { site, uri: uri.into(), user: None };
        let asked = libvirt.at_site().virsh.ask(&["version"]).await;
        asked.map_err(|why| cannot(format!("libvirt at {uri} cannot be asked"), why.to_string()))?;
        // What is no description is refused, and for another reason where nothing may be changed.
        if let Err(VirshError::Refused(words)) = libvirt.at_site().virsh.ask(&["define", "/dev/null"]).await
            && words.contains("read only")
        {
            let remedy =
                "give --libvirt-uri one that may change machines: run as root, or as a member of the group libvirt";
            return Err(cannot(format!("libvirt at {uri} may only be looked at"), words).with_remedy(remedy));
        }
        libvirt.user = access::user(&libvirt.at_site().virsh).await?;
        if libvirt.user.is_some() {
            for folder in [libvirt.site.clone(), libvirt.site.join("machines"), libvirt.site.join("boot")] {
                access::pass(&folder)
                    .map_err(|why| cannot(format!("QEMU cannot be let into {}", folder.display()), why.to_string()))?;
            }
        }
        Ok(libvirt)
    }

    fn at_site(&self) -> Site {
        Site { virsh: Virsh::new(&self.uri) }
    }

    fn folder(&self, name: &str) -> Result<Folder, Fault> {
        Folder::new(&self.site, name)
    }

    /// The names of all machines.
    async fn names(&self) -> Result<Vec<String>, Fault> {
        let told = self.at_site().virsh.ask(&["list", "--all", "--name"]).await;
        let told = told.map_err(|why| {
            Fault::new(code::HYPERVISOR, format!("libvirt at {} does not list its machines", self.uri), why.to_string())
        })?;
        let mut names: Vec<String> =
            told.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
        names.sort();
        Ok(names)
    }

    /// The folder of a machine that exists, with room for our notes.
    async fn known(&self, name: &str) -> Result<Folder, Fault> {
        let folder = self.folder(name)?;
        if !self.names().await?.iter().any(|other| other == name) {
            let what = format!("there is no machine {name}");
            return Err(Fault::new(code::MACHINE_ABSENT, what, format!("libvirt at {} has none", self.uri)));
        }
        make_room(&folder, self.user)?;
        Ok(folder)
    }

    /// Refuses what only a machine that is off allows.
    async fn must_be_off(&self, folder: &Folder, what: &str) -> Result<(), Fault> {
        match life::power(&self.at_site(), folder).await? {
            Power::Off => Ok(()),
            now => Err(Fault::new(
                code::MACHINE_RUNNING,
                format!("machine {} cannot be {what}", folder.name()),
                format!("it is {now:?}").to_lowercase(),
            )),
        }
    }

    /// Gives libvirt the machine's XML.
    async fn write(&self, site: &Site, folder: &Folder, lock: &File, document: &Element) -> Result<(), Fault> {
        let file = folder.file("domain.xml");
        let cannot = |why: String| folder.fault("cannot be defined", why);
        std::fs::write(&file, document.written()).map_err(|why| cannot(why.to_string()))?;
        let defined = site.virsh.run(lock, &["define", "--validate", &file.to_string_lossy()]).await;
        defined.map(drop).map_err(|why| cannot(why.to_string()))
    }

    /// What a machine's XML is to be written on.
    async fn base(&self, spec: &MachineSpec) -> Result<Base, Fault> {
        let folder = self.folder(&spec.name)?;
        if self.names().await?.contains(&spec.name) {
            // With its passwords, which would be gone from it otherwise.
            return Ok(Base::Here(self.at_site().document(&folder, &["--security-info"]).await?));
        }
        let Some(text) = spec.native.get(domain::NAME).and_then(|native| native.as_str()) else {
            return Ok(Base::Nothing(crate::qemu::accelerator::best().await));
        };
        let read = Element::read(text);
        let domain = read.map_err(|why| folder.fault("cannot be defined: its libvirt XML cannot be read", why))?;
        Ok(Base::Elsewhere(domain))
    }
}

impl Site {
    /// The machine's persistent XML; with secrets only if `more` asks for them: a description leaves the site.
    async fn document(&self, folder: &Folder, more: &[&str]) -> Result<Element, Fault> {
        let told = self.virsh.ask(&[&["dumpxml", "--inactive", folder.name()], more].concat()).await;
        let told = told.map_err(|why| folder.fault("is not described", why))?;
        Element::read(&told).map_err(|why| folder.fault("is described in words that cannot be read", why))
    }

    /// The XML of what runs now; none when nothing does, or it is not told.
    async fn live(&self, folder: &Folder) -> Option<Element> {
        let told = self.virsh.ask(&["dumpxml", folder.name()]).await.ok()?;
        Element::read(&told).ok()
    }

    /// The machine's description, and what libvirt calls its disks.
    async fn known(&self, folder: &Folder) -> Result<(MachineSpec, Vec<Target>), Fault> {
        let domain = self.document(folder, &[]).await?;
        let cannot = |why: String| folder.fault("is described in words that cannot be read", why);
        let targets = domain::targets(&domain).map_err(cannot)?;
        let mut sizes = BTreeMap::new();
        for target in &targets {
            let told = self.virsh.ask(&["domblkinfo", folder.name(), &target.dev]).await;
            let told = told.map_err(|why| folder.fault(&format!("does not tell of its disk {}", target.key), why))?;
            let size = told.lines().find_map(|line| line.strip_prefix("Capacity:")?.trim().parse::<u64>().ok());
            let size = size.ok_or_else(|| cannot(format!("the size of disk {} in {told:?}", target.key)))?;
            sizes.insert(target.dev.clone(), size);
        }
        let size = |target: &Target| sizes.get(&target.dev).copied().ok_or(format!("disk {} has no size", target.key));
        let mut spec = domain::described(folder, &domain, size).map_err(cannot)?;
        if let Boot::Uefi { variables } = &mut spec.boot {
            let live = if domain::nvram(&domain).is_some() { None } else { self.live(folder).await };
            let path = domain::nvram(live.as_ref().unwrap_or(&domain));
            *variables = path.and_then(|path| nvram::read(folder, Path::new(&path)));
        }
        Ok((spec, targets))
    }
}

#[async_trait]
impl Platform for Libvirt {
    fn name(&self) -> &'static str {
        domain::NAME
    }

    async fn inventory(&self) -> Result<Vec<Machine>, Fault> {
        let mut machines = Vec::new();
        for name in self.names().await? {
            match self.machine(&name).await {
                Ok(Some(machine)) => machines.push(machine),
                Ok(None) => {
                    tracing::warn!(machine = name, "left out of the list: it is gone, or no item can have its name")
                }
                // One machine, with a disk that is missing say, does not hide the others; a libvirt that is away does.
                Err(fault) => {
                    self.names().await?;
                    tracing::warn!(machine = name, %fault, cause = fault.cause, "a machine is left out of the list");
                }
            }
        }
        Ok(machines)
    }

    async fn site(&self) -> Result<SiteFacts, Fault> {
        inventory::ask(&self.at_site().virsh).await
    }

    async fn machine(&self, name: &str) -> Result<Option<Machine>, Fault> {
        let Ok(folder) = self.folder(name) else { return Ok(None) };
        if !self.names().await?.iter().any(|other| other == name) {
            return Ok(None);
        }
        let site = self.at_site();
        let (spec, _) = site.known(&folder).await?;
        let power = life::power(&site, &folder).await?;
        let xml = spec.native.get(domain::NAME).and_then(|native| Element::read(native.as_str()?).ok());
        let snapshots = site.virsh.ask(&["snapshot-list", "--name", folder.name()]).await.unwrap_or_default();
        let snapshots = snapshots.lines().filter(|line| !line.trim().is_empty()).count();
        let remarks = xml.map(|domain| remarks::of(&domain, &spec, snapshots)).unwrap_or_default();
        Ok(Some(Machine { spec, power, remarks }))
    }

    async fn define(&self, spec: &MachineSpec) -> Result<(), Fault> {
        let folder = self.folder(&spec.name)?;
        let cannot = |why: String| folder.fault("cannot be defined", why);
        if spec.memory_mib == 0 || spec.vcpus == 0 {
            return Err(cannot("it has no memory or no processor".into()));
        }
        make_room(&folder, self.user)?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        let site = self.at_site();
        let mut before = None;
        if self.names().await?.contains(&spec.name) {
            self.must_be_off(&folder, "defined").await?;
            before = Some(site.document(&folder, &[]).await?);
        }
        let before = before.and_then(|domain| domain::described(&folder, &domain, |_| Ok(0)).ok());
        // The overlays first: a description without them could be started by someone who then found them absent.
        overlays::create(&folder, spec).await?;
        relay::note(&folder, before.iter().chain([spec]))?;
        seed::define(&folder, spec)?;
        let document = domain::written(&folder, spec, self.base(spec).await?).map_err(cannot)?;
        if let Some(path) = domain::nvram(&document) {
            nvram::write(&folder, spec, Path::new(&path))?;
        }
        self.write(&site, &folder, &lock, &document).await?;
        relay::note(&folder, [spec])?;
        before.map_or(Ok(()), |before| overlays::remove_replaced(&folder, &before, spec))
    }

    async fn delete(&self, name: &str) -> Result<(), Fault> {
        if !self.names().await?.iter().any(|other| other == name) {
            return Ok(());
        }
        let folder = self.known(name).await?;
        let cannot = |why: String| folder.fault("is described in words that cannot be read", why);
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        self.must_be_off(&folder, "deleted").await?;
        relay::end(&folder)?;
        // Of overlays that are gone already, because an earlier call ended here, nobody needs the size.
        let domain = self.at_site().document(&folder, &[]).await?;
        let spec = domain::described(&folder, &domain, |_| Ok(0)).map_err(cannot)?;
        overlays::remove(&folder, &spec)?;
        let words = ["undefine", "--managed-save", "--checkpoints-metadata", "--snapshots-metadata", "--nvram", name];
        let gone = self.at_site().virsh.run(&lock, &words).await;
        gone.map_err(|why| folder.fault("cannot be deleted", why))?;
        std::fs::remove_dir_all(folder.path()).map_err(|why| folder.fault("cannot be rid of its folder", why))
    }

    async fn make_disk(&self, folder: &str, name: &str, size: u64) -> Result<DiskSource, Fault> {
        image::make_own(&self.site.join(folder), name, size).await
    }

    async fn start(&self, name: &str, how: Start) -> Result<(), Fault> {
        let folder = self.known(name).await?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        if self.user.is_some() {
            access::to_overlays(&folder, &self.at_site().known(&folder).await?.0)?;
        }
        start::start(&self.at_site(), &folder, &lock, how).await
    }

    async fn resume(&self, name: &str) -> Result<(), Fault> {
        let folder = self.known(name).await?;
        // Not while somebody reads the last changes of a machine that stands still.
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        let site = self.at_site();
        match life::power(&site, &folder).await? {
            Power::Running => Ok(()),
            Power::Off => Err(folder.fault("cannot go on", "it is off")),
            Power::Held => Err(folder.fault("cannot go on", "its guest is off; it has to be settled and started")),
            Power::Paused => life::go(&site, &folder, &lock).await,
        }
    }

    async fn shut_down(&self, name: &str, timeout: Duration) -> Result<Stopped, Fault> {
        let folder = self.known(name).await?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        life::shut_down(&self.at_site(), &folder, &lock, timeout).await
    }

    async fn power_off(&self, name: &str) -> Result<Stopped, Fault> {
        let folder = self.known(name).await?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        life::power_off(&self.at_site(), &folder, &lock).await
    }

    async fn settle(&self, name: &str, lineage: Lineage) -> Result<Settled, Fault> {
        let folder = self.known(name).await?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        settle::settle(&self.at_site(), &folder, &lock, lineage).await
    }

    async fn stand_on(&self, name: &str, onto: &[DiskSpec]) -> Result<(), Fault> {
        let folder = self.known(name).await?;
        let _lock = folder.lock("lock", LOCK_PATIENCE).await?;
        fold::stand_on(&self.at_site(), &folder, onto).await
    }

    async fn fold(&self, name: &str, _: Lineage) -> Result<(), Fault> {
        let folder = self.known(name).await?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        fold::fold(&self.at_site(), &folder, &lock).await
    }

    async fn changed(&self, name: &str, lineage: Lineage) -> Result<Option<u64>, Fault> {
        let folder = self.known(name).await?;
        let site = self.at_site();
        if life::power(&site, &folder).await? == Power::Off {
            return Ok(None);
        }
        let (held, _) = chain::held(&site, &folder, lineage).await?;
        let Some(newest) = held.last() else { return Ok(None) };
        let name = crate::host::maps::name(lineage, newest.since);
        let chain = Chain::ask(&site, &folder, lineage).await?;
        let carried = Carry::read(&folder, lineage, newest.since)?;
        let bytes = chain::bytes(&site, &folder, &chain, &name).await?;
        Ok(bytes.map(|bytes| bytes + carried.values().map(BlockMap::bytes).sum::<u64>()))
    }

    async fn stamps(&self, name: &str) -> Result<BTreeMap<DiskKey, String>, Fault> {
        let folder = self.known(name).await?;
        rest::own_stamps(&folder, &self.at_site().known(&folder).await?.0)
    }

    async fn guest_network(&self, name: &str) -> Result<GuestNetwork, Fault> {
        crate::guest::agent::network(&agent::Asked::new(self.at_site(), self.known(name).await?)).await
    }

    async fn run_in_guest(
        &self,
        name: &str,
        program: &str,
        arguments: &[String],
        patience: Duration,
    ) -> Result<Ran, Fault> {
        let asked = agent::Asked::new(self.at_site(), self.known(name).await?);
        crate::guest::agent::run(&asked, program, arguments, patience).await
    }

    async fn forget_seed(&self, name: &str) -> Result<(), Fault> {
        let folder = self.known(name).await?;
        let lock = folder.lock("lock", LOCK_PATIENCE).await?;
        let site = self.at_site();
        let mut document = site.document(&folder, &["--security-info"]).await?;
        if domain::without_seed(document.child("devices")) {
            self.write(&site, &folder, &lock, &document).await?;
        }
        seed::forget(&folder)
    }

    async fn capture(&self, name: &str, lineage: Lineage) -> Result<Box<dyn Capture>, Fault> {
        let (folder, site) = (self.known(name).await?, self.at_site());
        if life::power(&site, &folder).await? == Power::Off {
            return Err(folder.fault("cannot be captured", "it is off"));
        }
        Ok(Box::new(LibvirtCapture::open(site, folder, lineage).await?))
    }
}
