//! What a replica, its open epoch and its views share, and who may do what at one moment.
//!
//! - One writer: the *slot* is free, taken by an epoch (or by an operation that works like one), or holds an epoch that
//!   was left unfinished and is resumed, or rolled back by whoever else wants the slot.
//! - Any number of readers: they see the points, the open epoch's published entries and the disks, never the slot.
//! - A failed sync is never retried: the store *failed*, and every operation says so until the replica is opened anew.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use protocol::{Attempt, BlockMap, Extent, Point};

use crate::chain::{Chain, Step};
use crate::disk::Disk;
use crate::epoch::Writer;
use crate::error::ReplicaError;
use crate::history::{OpenSegment, Pages, Segment};
use crate::ledger::Ledger;
use crate::log::Record;
use crate::manifest::Manifest;
use crate::runs::Runs;
use crate::tend::Tending;
use crate::volume::Volume;

/// The open epoch as readers see it.
pub(crate) struct Open {
    pub attempt: Attempt,
    /// The number of its `begun` record.
    pub opened: u64,
    /// One for each disk; none at all for the first copy onto an empty replica, which keeps no before-images.
    pub segments: Vec<OpenSegment>,
}

pub(crate) enum Slot {
    Free,
    Taken,
    Left(Box<Writer>),
}

/// Things that keep others out for as long as they exist.
pub(crate) type Held = Vec<Box<dyn Send + Sync>>;

pub(crate) struct Store {
    pub manifest: Manifest,
    pub journal: Arc<dyn Volume>,
    disks: RwLock<Vec<Arc<dyn Disk>>>,
    held: Mutex<Held>,
    pub ledger: Mutex<Ledger>,
    pub chain: Chain,
    pub pages: Pages,
    pub runs: Runs,
    /// Points with damage in what leads back to them, known since the opening: those before are refused.
    pub flawed: BTreeSet<u64>,
    /// One at a time rewrites history.
    pub tending: Mutex<Tending>,
    open: RwLock<Option<Arc<Open>>>,
    rollbacks: AtomicU64,
    slot: Mutex<Slot>,
    failed: OnceLock<String>,
    closed: AtomicBool,
}

impl Store {
    pub fn new(
        manifest: Manifest,
        journal: Arc<dyn Volume>,
        disks: Vec<Arc<dyn Disk>>,
        held: Held,
        ledger: Ledger,
        steps: Vec<Step>,
        runs: Runs,
    ) -> Store {
        let flawed = |step: &&Step| step.segments.iter().flatten().any(|segment| segment.usable().is_err());
        Store {
            manifest,
            journal,
            disks: RwLock::new(disks),
            held: Mutex::new(held),
            ledger: Mutex::new(ledger),
            flawed: steps.iter().filter(flawed).map(|step| step.number).collect(),
            chain: Chain::new(steps),
            pages: Pages::default(),
            runs,
            tending: Mutex::default(),
            open: RwLock::new(None),
            rollbacks: AtomicU64::new(0),
            slot: Mutex::new(Slot::Free),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Refuses everything after a failure or a close.
    pub fn usable(&self) -> Result<(), ReplicaError> {
        if let Some(why) = self.failed.get() {
            return Err(ReplicaError::Failed(why.clone()));
        }
        if self.closed.load(Ordering::Acquire) { Err(ReplicaError::Closed) } else { Ok(()) }
    }

    /// Stops the replica: what is on stable storage is not known any more. Gives the error back.
    pub fn fail(&self, error: ReplicaError) -> ReplicaError {
        let fault = match &error {
            ReplicaError::Io { what, source } | ReplicaError::NoSpace { what, source } => format!("{what}: {source}"),
            other => other.to_string(),
        };
        tracing::error!(item = %self.manifest.item, fault, "the replica stops");
        let _ = self.failed.set(fault);
        error
    }

    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.disks.write().expect("nobody panics here").clear();
        self.held.lock().expect("nobody panics here").clear();
    }

    /// Takes the slot for good, closes the disks and hands over what keeps others out, so that files can be removed.
    pub fn claim_for_deletion(&self, held: &mut Held) -> Result<(), ReplicaError> {
        let mut slot = self.slot.lock().expect("nobody panics here");
        if matches!(*slot, Slot::Taken) {
            return Err(ReplicaError::Busy("an epoch is open".into()));
        }
        *slot = Slot::Taken;
        held.append(&mut self.held.lock().expect("nobody panics here"));
        self.close();
        Ok(())
    }

    // ---- disks

    /// See [`Disk::unbroken`].
    pub fn unbroken(&self, disk: usize) -> Option<String> {
        self.disk(disk).ok()?.unbroken()
    }

    pub fn disk(&self, disk: usize) -> Result<Arc<dyn Disk>, ReplicaError> {
        self.disks.read().expect("nobody panics here").get(disk).cloned().ok_or(ReplicaError::Closed)
    }

    pub fn size(&self, disk: usize) -> u64 {
        self.manifest.disks.get(disk).map_or(0, |record| record.size)
    }

    /// The extent, if it lies inside the disk.
    pub fn within(&self, disk: usize, offset: u64, length: u64) -> Result<Extent, ReplicaError> {
        match (self.manifest.disks.get(disk), offset.checked_add(length)) {
            (Some(record), Some(end)) if end <= record.size => Ok(Extent::new(offset, length)),
            (Some(record), _) => Err(ReplicaError::OutOfBounds(format!(
                "{length} bytes at {offset} do not lie inside {} of {} bytes",
                record.key, record.size
            ))),
            (None, _) => Err(ReplicaError::OutOfBounds(format!("there is no disk number {disk}"))),
        }
    }

    pub fn disk_error(&self, disk: usize, doing: &str, error: io::Error) -> ReplicaError {
        let key = self.manifest.disks.get(disk).map_or("?", |record| record.key.as_str());
        ReplicaError::io(format!("{doing} the replica's {key}"), error)
    }

    pub fn read_disk(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ReplicaError> {
        self.disk(disk)?.read_at(offset, buffer).map_err(|error| self.disk_error(disk, "reading", error))
    }

    pub fn data_on_disk(&self, disk: usize, extent: Extent) -> Result<BlockMap, ReplicaError> {
        let map = self.disk(disk)?.data(extent.offset, extent.length);
        let map = map.map_err(|error| self.disk_error(disk, "mapping", error))?;
        Ok(map.intersection(&[extent].into_iter().collect()))
    }

    /// Flushes a disk; an error stops the replica.
    pub fn flush_disk(&self, disk: usize) -> Result<(), ReplicaError> {
        self.disk(disk)?.flush().map_err(|error| self.fail(self.disk_error(disk, "flushing", error)))
    }

    // ---- points and the open epoch

    pub fn open(&self) -> Option<Arc<Open>> {
        self.open.read().expect("nobody panics here").clone()
    }

    pub fn set_open(&self, open: Arc<Open>) {
        *self.open.write().expect("nobody panics here") = Some(open);
    }

    /// How many epochs were rolled back; a reader that finds another number afterwards starts over.
    pub fn rollbacks(&self) -> u64 {
        self.rollbacks.load(Ordering::Acquire)
    }

    /// Takes the entries of a rolled-back epoch away, when the disks hold again what they say.
    pub fn forget_open(&self) {
        let mut open = self.open.write().expect("nobody panics here");
        self.rollbacks.fetch_add(1, Ordering::AcqRel);
        *open = None;
    }

    /// Appends a point to the chain, then ends the open epoch for readers: they see one or both, never neither.
    pub fn append_point(&self, number: u64, point: Point, segments: Vec<Option<Segment>>) {
        self.chain.append(number, point, segments);
        *self.open.write().expect("nobody panics here") = None;
    }

    /// Refuses a point when damage in what leads on from it is known.
    pub fn undamaged(&self, number: u64) -> Result<(), ReplicaError> {
        if self.flawed.range(number + 1..).next().is_some() {
            for step in self.chain.between(number, u64::MAX) {
                step.segments.iter().flatten().try_for_each(Segment::usable)?;
            }
        }
        Ok(())
    }

    /// Reserves space in the log. A full volume is the caller's to deal with; any other failure stops the replica.
    pub fn reserve(&self, ledger: &mut Ledger) -> Result<(), ReplicaError> {
        ledger.reserve().map_err(|error| match error {
            ReplicaError::NoSpace { .. } => error,
            other => self.fail(other),
        })
    }

    /// Makes `record` true; an error stops the replica.
    pub fn record(&self, ledger: &mut Ledger, record: &Record) -> Result<(), ReplicaError> {
        ledger.record(record).map_err(|error| self.fail(error))
    }

    // ---- the slot

    /// Takes the slot; an epoch that was left in it is rolled back first.
    pub fn take_slot(&self) -> Result<(), ReplicaError> {
        self.usable()?;
        let mut slot = self.slot.lock().expect("nobody panics here");
        match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Free => Ok(()),
            Slot::Taken => Err(ReplicaError::Busy("an epoch is open".into())),
            Slot::Left(writer) => {
                drop(slot);
                writer.roll_back(self).map_err(|(writer, error)| {
                    self.set_slot(Slot::Left(writer));
                    error
                })
            }
        }
    }

    /// Takes the slot with the epoch that was left in it, if that is `wanted`; else leaves the slot as it is.
    pub fn take_left(&self, wanted: impl Fn(&Writer) -> bool) -> Result<Option<Box<Writer>>, ReplicaError> {
        self.usable()?;
        let mut slot = self.slot.lock().expect("nobody panics here");
        match std::mem::replace(&mut *slot, Slot::Taken) {
            Slot::Left(writer) if wanted(&writer) => Ok(Some(writer)),
            other => {
                *slot = other;
                Ok(None)
            }
        }
    }

    /// What `of` says of the epoch that was left in the slot, if one was.
    pub fn left<T>(&self, of: impl Fn(&Writer) -> T) -> Option<T> {
        match &*self.slot.lock().expect("nobody panics here") {
            Slot::Left(writer) => Some(of(writer)),
            Slot::Free | Slot::Taken => None,
        }
    }

    pub fn set_slot(&self, slot: Slot) {
        *self.slot.lock().expect("nobody panics here") = slot;
    }

    /// Does `work` while the slot is taken.
    pub fn in_slot<T>(&self, work: impl FnOnce() -> Result<T, ReplicaError>) -> Result<T, ReplicaError> {
        self.take_slot()?;
        let result = work();
        self.set_slot(Slot::Free);
        result
    }
}
