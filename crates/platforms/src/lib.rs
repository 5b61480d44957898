//! What each hypervisor can do for us, behind one contract: inventory, capture, start and stop, facts for checks.
//!
//! ```text
//!            Platform  ── machines: define · start · shut down · hold · settle · delete
//!               │
//!               └─ capture(machine) ──► Capture ── cut ─► Cut { one NBD export per disk + what changed }
//!                                          ▲                 │ read by the process server
//!                                          └── acknowledged / failed
//! ```
//!
//! One conformance suite (`tests/`) runs against every platform. Nothing above this room may assume that a disk is a
//! local file or that a machine can be paused: what differs between hypervisors ends here.
//!
//! # Always true
//! - Capture never fails or stalls a guest write: an open cut whose scratch runs out becomes unreadable, the guest goes on.
//! - What changed is forgotten only by [`Capture::acknowledged`]. Whatever else happens, it is part of the next cut.
//! - Unknown is said as unknown, never as "nothing changed".

pub mod guest;
mod host;
pub mod libvirt;
pub mod qemu;
pub mod simulated;

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use protocol::fault::code;
use protocol::guest::GuestNetwork;
use protocol::machine::{DiskSource, DiskSpec, Machine, MachineSpec, Settled, SiteFacts};
use protocol::{Attempt, Changes, DiskKey, Fault, Freeze, Lineage, Quiesce};

use self::guest::Ran;

/// How a machine is started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// Its processors stand still until [`Platform::resume`].
    pub paused: bool,
    /// Every write from the very first is tracked, as changes since this mark; a map that the disks still hold from an
    /// earlier run of the same lineage goes on instead.
    pub track: Option<(Lineage, Attempt)>,
}

/// How a machine came to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The guest shut itself down.
    ByGuest,
    /// Its power was taken.
    PoweredOff,
    /// It was not running.
    WasOff,
}

/// A hypervisor endpoint of one site.
///
/// Every call is safe to repeat: what is already so is not an error. Calls for one machine may come from two processes.
#[async_trait]
pub trait Platform: Send + Sync {
    /// The platform's name in commands and records: `qemu`, `libvirt`, `simulated`.
    fn name(&self) -> &'static str;

    /// Every machine of the endpoint, ascending by name.
    ///
    /// # Errors
    /// `PLT-001` when the endpoint cannot be asked; never an empty list instead.
    async fn inventory(&self) -> Result<Vec<Machine>, Fault>;

    /// What the endpoint has beside machines.
    ///
    /// # Errors
    /// `PLT-001` when the endpoint cannot be asked.
    async fn site(&self) -> Result<SiteFacts, Fault>;

    /// One machine, none if there is no such machine.
    ///
    /// # Errors
    /// `PLT-001`.
    async fn machine(&self, name: &str) -> Result<Option<Machine>, Fault>;

    /// Creates the machine or replaces its description. Overlays that are absent are created, those that the replaced
    /// description named and this one does not are removed; no disk of the platform's own
    /// ([`protocol::machine::DiskSource::Own`]) is created, changed or deleted. What the description does not speak of
    /// stays as it was.
    ///
    /// # Errors
    /// `PLT-007` when the machine is not off; `PLT-001`.
    async fn define(&self, spec: &MachineSpec) -> Result<(), Fault>;

    /// Removes the machine: its description and its overlays. Its own disks stay.
    ///
    /// # Errors
    /// `PLT-007` when the machine is not off; `PLT-001`.
    async fn delete(&self, name: &str) -> Result<(), Fault>;

    /// Makes an empty disk of the platform's own, `name` in a folder of the site, in a format that keeps change maps. One that
    /// is there already is made anew.
    ///
    /// # Errors
    /// `PLT-001`.
    async fn make_disk(&self, folder: &str, name: &str, size: u64) -> Result<DiskSource, Fault>;

    /// Starts the machine.
    ///
    /// # Errors
    /// `PLT-002`, `PLT-009` when another program has a disk open, `PLT-001`.
    async fn start(&self, name: &str, how: Start) -> Result<(), Fault>;

    /// Lets a paused machine go on.
    ///
    /// # Errors
    /// `PLT-002`, `PLT-001`.
    async fn resume(&self, name: &str) -> Result<(), Fault>;

    /// Asks the guest to shut down and waits at most `timeout`; the hypervisor then still holds the disks ([`protocol::machine::Power::Held`]).
    ///
    /// # Errors
    /// `PLT-004` when the guest runs on after `timeout`; `PLT-002`, `PLT-001`.
    async fn shut_down(&self, name: &str, timeout: Duration) -> Result<Stopped, Fault>;

    /// Takes the power from the guest; the hypervisor still holds the disks, so that the last changes can be read exactly.
    ///
    /// # Errors
    /// `PLT-002`, `PLT-001`.
    async fn power_off(&self, name: &str) -> Result<Stopped, Fault>;

    /// For a machine that stands still: reads every change map of `lineage` that is still held, then lets go of the disks ([`protocol::machine::Power::Off`]).
    /// A second call finds what the disks themselves keep (a map inside a qcow2), or says unknown.
    ///
    /// # Errors
    /// `PLT-007` when the guest runs; `PLT-002`, `PLT-001`.
    async fn settle(&self, name: &str, lineage: Lineage) -> Result<Settled, Fault>;

    /// Lets every overlay of the machine that stands on a view stand on the disk of the platform's own that is given for
    /// it in `onto` (by key, all [`protocol::machine::DiskSource::Own`]), which holds what the view holds and is not
    /// written by anybody. A machine that runs goes on meanwhile. Afterwards the view is not needed any more.
    ///
    /// # Errors
    /// `PLT-010` while the machine is captured; `PLT-002`, `PLT-001`.
    async fn stand_on(&self, name: &str, onto: &[DiskSpec]) -> Result<(), Fault>;

    /// Writes the overlays of a machine that runs into the disks that they stand on since [`Platform::stand_on`], and lets
    /// the machine run on those: its change maps go on as they are, and the overlays are gone. Nobody else may have the
    /// disks open. Whatever dies meanwhile, the machine's description says what to start it from, and a repetition
    /// finishes it.
    ///
    /// # Errors
    /// `PLT-010` while the machine is captured; `PLT-009` when another program has a disk open; `PLT-002`; `PLT-001`,
    /// among others when it does not run.
    async fn fold(&self, name: &str, lineage: Lineage) -> Result<(), Fault>;

    /// How many bytes the change maps of `lineage` hold that grow now, of a machine whose hypervisor holds its disks; none
    /// where there are none, or none that can be believed.
    ///
    /// # Errors
    /// `PLT-002`, `PLT-001`.
    async fn changed(&self, name: &str, lineage: Lineage) -> Result<Option<u64>, Fault>;

    /// What identifies the present state of each of the machine's own disks, as in [`Settled::stamps`].
    ///
    /// # Errors
    /// `PLT-002`, `PLT-001`.
    async fn stamps(&self, name: &str) -> Result<BTreeMap<DiskKey, String>, Fault>;

    /// Which addresses the cards of a machine that runs have, as an agent in its guest tells.
    ///
    /// # Errors
    /// `PLT-015` when none answers; `PLT-002`; `PLT-001`.
    async fn guest_network(&self, name: &str) -> Result<GuestNetwork, Fault> {
        Err(unheard(self.name(), name))
    }

    /// Runs a program in the guest, by its agent, and waits for its end.
    ///
    /// # Errors
    /// `PLT-018` when the agent runs none; `PLT-019` when it cannot run this one, or that does not end in time; `PLT-015`;
    /// `PLT-002`; `PLT-001`.
    async fn run_in_guest(
        &self,
        name: &str,
        _program: &str,
        _arguments: &[String],
        _patience: Duration,
    ) -> Result<Ran, Fault> {
        Err(unheard(self.name(), name))
    }

    /// Takes [`MachineSpec::seed`] out of the description of a machine, which may run: it is there until that ends.
    ///
    /// # Errors
    /// `PLT-002`; `PLT-001`.
    async fn forget_seed(&self, name: &str) -> Result<(), Fault>;

    /// Opens the machine for capture and cleans up what a dead predecessor left open (its exports, filters and scratch;
    /// a guest that it had paused goes on, one that it had frozen is thawed). Change maps stay as they are.
    ///
    /// # Errors
    /// `PLT-002`; `PLT-001`, among others when the machine is [`protocol::machine::Power::Off`].
    async fn capture(&self, name: &str, lineage: Lineage) -> Result<Box<dyn Capture>, Fault>;
}

/// Of a platform that speaks with no agent.
fn unheard(platform: &str, machine: &str) -> Fault {
    let why = format!("agents of guests are not spoken with under {platform}");
    Fault::new(code::NO_GUEST_AGENT, format!("the guest of {machine} cannot be asked"), why)
}

/// A change map that the hypervisor holds: the changes since a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The cut that the map counts from.
    pub since: Attempt,
    /// Whether it still grows. At most one map of a lineage grows at a time.
    pub recording: bool,
}

/// A machine opened for capture. Dropping it leaves the maps as they are and the cut (if one is open) to the next one's clean-up.
#[async_trait]
pub trait Capture: Send {
    /// The change maps of the lineage, ascending by cut: none before the first cut; one while no cut is open; two while
    /// one is open or its fate was not settled (the older one then holds what the open cut carries).
    ///
    /// # Errors
    /// `PLT-001`.
    async fn held(&mut self) -> Result<Vec<Held>, Fault>;

    /// [`Capture::cut_as`] without asking the guest.
    ///
    /// # Errors
    /// As for that.
    async fn cut(&mut self, attempt: Attempt) -> Result<Cut, Fault> {
        self.cut_as(attempt, None).await
    }

    /// Cuts all disks at one instant. From then on a new map counts from `attempt`; the one before it stands still until
    /// [`Capture::acknowledged`] or [`Capture::failed`].
    ///
    /// With `quiesce` the guest's agent is asked to freeze its file systems for it; [`Cut::freeze`] says what came of that. One
    /// that is not there, refuses or takes too long does not keep the cut from being made. A guest that was frozen is thawed when
    /// this returns, with an error too, and by somebody else when this process dies meanwhile.
    ///
    /// # Errors
    /// `PLT-001`, and everything is as it was before; also when a cut is open.
    async fn cut_as(&mut self, attempt: Attempt, quiesce: Option<Quiesce>) -> Result<Cut, Fault>;

    /// Ends the reading of the open cut, if one is open: exports, filters and scratch go. The maps stay.
    ///
    /// # Errors
    /// `PLT-001`.
    async fn release(&mut self) -> Result<(), Fault>;

    /// `attempt` is durable at the target: releases it and forgets every map that counts from an earlier cut.
    ///
    /// # Errors
    /// `PLT-001`; the call can be repeated.
    async fn acknowledged(&mut self, attempt: Attempt) -> Result<(), Fault>;

    /// The open or last cut did not become an epoch: releases it, and the older map grows again and takes in what the
    /// newer one held (a first cut's map, which counts from nothing durable, is dropped).
    ///
    /// # Errors
    /// `PLT-001`; the call can be repeated.
    async fn failed(&mut self) -> Result<(), Fault>;
}

/// An open cut.
#[derive(Debug, Clone)]
pub struct Cut {
    /// When it was made, ms since 1970 by this host's clock.
    pub at_ms: u64,
    /// How long the guest stood still for it.
    pub paused: Duration,
    /// What the map that it closed counts from, and what is in it; none for a first cut: anything may differ.
    pub since: Option<Attempt>,
    /// The changes from `since` to this cut.
    pub changes: Changes,
    /// Every disk of the machine as it was at the cut.
    pub disks: Vec<CutDisk>,
    /// What the guest's agent did for it; none where it was not asked.
    pub freeze: Option<Freeze>,
}

/// One disk as it was at a cut.
#[derive(Debug, Clone)]
pub struct CutDisk {
    /// The disk.
    pub key: DiskKey,
    /// Its size at the cut, in bytes.
    pub size: u64,
    /// An export that reads as the disk was at the cut, and fails (rather than lies) once that can no longer be told.
    pub export: nbd::Uri,
    /// What lies beneath the disk, if it is an overlay: wherever `export` calls a range a hole but not zero, its bytes are
    /// those of this export, which does not change. It knows of zeroes that `export` cannot tell.
    pub beneath: Option<nbd::Uri>,
    /// No read may be longer than this many bytes, nor cross a multiple of it.
    pub read_limit: u64,
}
