//! Applies an epoch to the replica, batch by batch.
//!
//! ```text
//!   batch ─► read before-images ─► append to segments ─► sync ─► publish ─► write the disks
//!            ([`Ahead`]: early)                            ▲
//!                                       nothing reaches a disk before this
//! ```
//!
//! # Always true
//! - Every block that differs from the newest point has its before-image on stable storage: the first one of the epoch,
//!   kept once, in multiples of 4 KiB whatever the write's own bounds are.
//! - A point is acknowledged when every written disk and every segment is synced, and its one record after them.
//!
//! # If power fails
//! - before the sync: the batch never happened;
//! - after it, until the point's record is durable: the epoch is rolled back when the replica is opened, or resumed
//!   ([`crate::resume`]).

use std::sync::Arc;

use bytes::Bytes;
use protocol::{Attempt, Extent, Freeze, Point, PointKind};

use crate::ahead::{Ahead, Batch, DiskImages};
use crate::append::{Append, Tail};
use crate::error::ReplicaError;
use crate::history::Segment;
use crate::index::encode_index;
use crate::log::{Origin, Record, Sealed, SealedFile};
use crate::opening::Found;
use crate::resume::Inherited;
use crate::segment::Entry;
use crate::store::{Open, Slot, Store};

/// A long epoch is flushed whenever so many bytes were written (guessed): what was is not lost when the power goes, nor is
/// an image's map of itself, so that whoever resumes the epoch finds it.
const FLUSH_EVERY: u64 = 256 << 20;

/// New content for a part of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The disk, by its place in the replica's list.
    pub disk: u16,
    /// The first byte.
    pub offset: u64,
    /// What comes there.
    pub payload: Payload,
}

/// What is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// These bytes.
    Data(Bytes),
    /// So many zeroes.
    Zero(u64),
}

impl Payload {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Payload::Data(bytes) => bytes.len() as u64,
            Payload::Zero(length) => *length,
        }
    }
}

/// An open epoch. Dropped without a seal, it stays for readers and is rolled back by the next epoch or opening.
pub struct Epoch {
    store: Arc<Store>,
    ahead: Ahead,
    /// None once the epoch has ended.
    writer: Option<Box<Writer>>,
}

impl Epoch {
    pub(crate) fn new(store: Arc<Store>, writer: Box<Writer>) -> Epoch {
        let ahead = Ahead::new(store.clone(), writer.open.clone());
        Epoch { store, ahead, writer: Some(writer) }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn writer(&self) -> &Writer {
        self.writer.as_deref().expect("an epoch that ended is not held any more")
    }

    pub(crate) fn writer_mut(&mut self) -> &mut Writer {
        self.writer.as_deref_mut().expect("an epoch that ended is not held any more")
    }

    /// Its attempt.
    pub fn attempt(&self) -> Attempt {
        self.writer().attempt
    }

    /// Bytes written so far, zeroes included.
    pub fn applied_bytes(&self) -> u64 {
        self.writer().applied
    }

    /// Applies writes in their order. On return they are in the replica, not yet durable; what they replaced is.
    ///
    /// # Errors
    /// `OutOfBounds` and `NoSpace` for before-images leave the epoch as it was before the batch. When a write to a disk
    /// failed the epoch is broken and can only be rolled back; when a sync failed the replica stops.
    pub fn apply(&mut self, batch: &[Write]) -> Result<(), ReplicaError> {
        let batch = self.ahead.prepare(batch.to_vec())?;
        self.apply_prepared(batch)
    }

    /// What prepares batches for [`Epoch::apply_prepared`], on another thread if the caller likes.
    pub fn ahead(&self) -> Ahead {
        self.ahead.clone()
    }

    /// As [`Epoch::apply`], for a batch whose before-images were read already.
    ///
    /// # Errors
    /// As for [`Epoch::apply`].
    pub fn apply_prepared(&mut self, batch: Batch) -> Result<(), ReplicaError> {
        let (store, ahead) = (self.store.clone(), self.ahead.clone());
        self.writer_mut().apply(&store, &ahead, batch)
    }

    /// Makes the epoch a recovery point: durable when this returns. `sealed_at_ms` is this host's clock, ms since 1970.
    ///
    /// # Errors
    /// `EpochBroken`, `Unproven`, `NoSpace`: the epoch is left to be rolled back by the next one. A failed sync stops the replica:
    /// whether the point exists is known when it was opened anew.
    pub fn seal(mut self, sealed_at_ms: u64) -> Result<Point, ReplicaError> {
        let store = self.store.clone();
        let point = self.writer_mut().seal(&store, sealed_at_ms)?;
        self.writer = None;
        self.store.set_slot(Slot::Free);
        Ok(point)
    }

    /// Undoes everything the epoch wrote.
    ///
    /// # Errors
    /// I/O and `Damaged`: the epoch is left, and the next one or the next opening tries again.
    pub fn roll_back(mut self) -> Result<(), ReplicaError> {
        let writer = self.writer.take().expect("an epoch that ended is not held any more");
        match writer.roll_back(&self.store) {
            Ok(()) => {
                self.store.set_slot(Slot::Free);
                Ok(())
            }
            Err((writer, error)) => {
                self.writer = Some(writer);
                Err(error)
            }
        }
    }
}

impl Drop for Epoch {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            self.store.set_slot(Slot::Left(writer));
        }
    }
}

/// The writing side of an open epoch.
pub(crate) struct Writer {
    pub open: Arc<Open>,
    /// Whose point it becomes: a later attempt than the one that began it, if it was resumed.
    pub attempt: Attempt,
    pub kind: PointKind,
    pub cut_at_ms: u64,
    /// What the guest's agent did for it.
    pub freeze: Option<Freeze>,
    applied: u64,
    /// How much of that was flushed.
    flushed: u64,
    pub broken: bool,
    /// Disks that were written.
    pub touched: Vec<bool>,
    /// What is durable of each segment.
    pub tails: Vec<Tail>,
    /// Of an epoch that was found at an opening: how much of each segment is durable for certain.
    pub durable: Option<Vec<u64>>,
    pub inherited: Option<Inherited>,
    table: Vec<u8>,
}

impl Writer {
    pub fn new(open: Arc<Open>, disks: usize, kind: PointKind, cut_at_ms: u64) -> Writer {
        Writer {
            attempt: open.attempt,
            open,
            kind,
            cut_at_ms,
            freeze: None,
            applied: 0,
            flushed: 0,
            broken: false,
            touched: vec![false; disks],
            tails: vec![Tail::default(); disks],
            durable: None,
            inherited: None,
            table: Vec::new(),
        }
    }

    /// A writer for an epoch that was found after a crash: it can be rolled back or resumed, and any disk may have been
    /// written.
    pub fn found(found: Found, disks: usize) -> Writer {
        let mut writer = Writer::new(found.open, disks, PointKind::CrashConsistent, 0);
        writer.touched.fill(true);
        writer.applied = writer.open.segments.iter().flat_map(|segment| segment.entries()).map(|e| e.length).sum();
        if !found.tails.is_empty() {
            writer.tails = found.tails;
        }
        writer.durable = Some(found.durable);
        writer
    }

    fn apply(&mut self, store: &Store, ahead: &Ahead, mut batch: Batch) -> Result<(), ReplicaError> {
        store.usable()?;
        if self.broken {
            return Err(ReplicaError::EpochBroken);
        }
        if batch.is_stale(&self.open) {
            batch = ahead.prepare(batch.into_writes())?;
        }
        if !self.open.segments.is_empty() {
            self.keep_before_images(store, &mut batch.images)?;
        }
        for write in batch.writes() {
            let disk = usize::from(write.disk);
            self.touched[disk] = true;
            let target = store.disk(disk)?;
            let written = match &write.payload {
                Payload::Data(bytes) => target.write_at(write.offset, bytes),
                Payload::Zero(0) => Ok(()),
                Payload::Zero(length) => target.write_zeroes(write.offset, *length),
            };
            if let Err(error) = written {
                self.broken = true;
                return Err(store.disk_error(disk, "writing", error));
            }
            self.applied += write.payload.length();
            if let Some(inherited) = &mut self.inherited {
                let extent = Extent::new(write.offset, write.payload.length());
                inherited.unproven.take(disk, store.size(disk), extent);
            }
        }
        if self.applied - self.flushed >= FLUSH_EVERY {
            self.flush(store)?;
            self.flushed = self.applied;
        }
        for images in batch.images {
            let target = store.disk(images.disk)?;
            images.written.extents().iter().for_each(|extent| target.write_out(*extent));
            images.frames.into_iter().for_each(|frame| ahead.give_back(frame));
        }
        Ok(())
    }

    /// Makes before-images durable and publishes them.
    fn keep_before_images(&mut self, store: &Store, images: &mut [DiskImages]) -> Result<(), ReplicaError> {
        let durable: Vec<u64> = self.tails.iter().map(|tail| tail.length).collect();
        let mut grown = self.tails.clone();
        let mut kept: Vec<(usize, Entry)> = Vec::new();
        let append = || -> Result<(), ReplicaError> {
            for images in images {
                let disk = images.disk;
                let (open, tail) = (&*self.open, &mut grown[disk]);
                let (table, kept) = (&mut self.table, &mut kept);
                let mut append = Append { store, open, disk, durable: &durable, tail, table, kept };
                images.frames.iter_mut().try_for_each(|frame| append.frame(frame))?;
            }
            Ok(())
        };
        let appended = append();
        let changed: Vec<usize> = (0..grown.len()).filter(|disk| grown[*disk].length != durable[*disk]).collect();
        if let Err(error) = appended {
            // What was appended so far must not be taken for a torn or damaged frame later.
            for (disk, length) in durable.iter().enumerate() {
                self.cut_segment(store, disk, *length)?;
            }
            return Err(error);
        }
        for disk in changed {
            #[cfg(feature = "sabotage")]
            if protocol::sabotage::is("before-images-unsynced") {
                continue;
            }
            self.sync_segment(store, disk)?;
        }
        self.tails = grown;
        // Published entry by entry: a reader that finds one finds it durable; nothing was written on its account yet.
        for (disk, entry) in kept {
            let index = &self.open.segments[disk].index;
            index.write().expect("nobody panics here").insert(entry.offset, entry);
        }
        Ok(())
    }

    pub fn sync_segment(&self, store: &Store, disk: usize) -> Result<(), ReplicaError> {
        let name = &self.open.segments[disk].file.name;
        store
            .journal
            .sync(name)
            .map_err(|error| store.fail(ReplicaError::io(format!("syncing {}", store.journal.describe(name)), error)))
    }

    pub fn cut_segment(&self, store: &Store, disk: usize, length: u64) -> Result<(), ReplicaError> {
        let name = &self.open.segments[disk].file.name;
        let cut = store.journal.length(name).and_then(|now| {
            if now == length {
                return Ok(());
            }
            store.journal.truncate(name, length)?;
            store.journal.sync(name)
        });
        cut.map_err(|error| store.fail(ReplicaError::io(format!("cutting {}", store.journal.describe(name)), error)))
    }

    fn seal(&mut self, store: &Store, sealed_at_ms: u64) -> Result<Point, ReplicaError> {
        store.usable()?;
        if self.broken {
            return Err(ReplicaError::EpochBroken);
        }
        if self.inherited.as_ref().is_some_and(|inherited| !inherited.unproven.is_empty()) {
            return Err(ReplicaError::Unproven);
        }
        self.flush(store)?;
        let mut sealed = Vec::new();
        for disk in (0..self.tails.len()).filter(|disk| self.tails[*disk].length > 0) {
            sealed.push(self.seal_segment(store, disk)?);
        }
        let point = Point {
            attempt: self.attempt,
            cut_at_ms: self.cut_at_ms,
            sealed_at_ms,
            kind: self.kind,
            changed_bytes: self.applied,
            freeze: self.freeze.clone(),
        };
        let record = Sealed { point: point.clone(), opened: self.open.opened, segments: sealed.clone() };
        let mut ledger = store.ledger.lock().expect("nobody panics here");
        store.record(&mut ledger, &Record::Sealed(record))?;
        let mut segments: Vec<Option<Segment>> = self.open.segments.iter().map(|_| None).collect();
        for (disk, open) in self.open.segments.iter().enumerate() {
            match sealed.iter().find(|sealed| usize::from(sealed.disk) == disk) {
                Some(sealed) => segments[disk] = Some(Segment::new(open.file.clone(), *sealed, None)),
                None => open.file.doom(),
            }
        }
        store.append_point(self.open.opened, point.clone(), segments);
        Ok(point)
    }

    /// Flushes what was written.
    fn flush(&self, store: &Store) -> Result<(), ReplicaError> {
        for disk in (0..self.touched.len()).filter(|disk| self.touched[*disk]) {
            #[cfg(feature = "sabotage")]
            if protocol::sabotage::is("acknowledged-before-sync") {
                continue;
            }
            store.flush_disk(disk)?;
        }
        Ok(())
    }

    fn seal_segment(&self, store: &Store, disk: usize) -> Result<SealedFile, ReplicaError> {
        let (segment, at) = (&self.open.segments[disk], self.tails[disk].length);
        let (bytes, footer) = encode_index(&segment.file.id, at, segment.entries().into_iter());
        if let Err(error) = store.journal.write_at(&segment.file.name, at, &bytes) {
            self.cut_segment(store, disk, at)?;
            return Err(ReplicaError::io(format!("writing {}", store.journal.describe(&segment.file.name)), error));
        }
        self.sync_segment(store, disk)?;
        // The segments of a resumed epoch have the name of the attempt that began it.
        let id = &segment.file.id;
        let origin = (id.attempt != self.attempt).then_some(Origin { opened: id.opened, attempt: id.attempt });
        Ok(SealedFile { disk: disk as u16, length: at + bytes.len() as u64, footer, origin })
    }

    /// Puts the before-images back. The slot is the caller's; on an error it gets the writer back, to try again.
    pub fn roll_back(self: Box<Self>, store: &Store) -> Result<(), (Box<Writer>, ReplicaError)> {
        match self.undo(store) {
            Ok(()) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }

    fn undo(&self, store: &Store) -> Result<(), ReplicaError> {
        store.usable()?;
        let mut scratch = Vec::new();
        for (disk, segment) in self.open.segments.iter().enumerate() {
            let target = store.disk(disk)?;
            for entry in segment.entries() {
                let restored = if entry.is_zero() {
                    target.write_zeroes(entry.offset, entry.length)
                } else {
                    target.write_at(entry.offset, segment.file.read(&entry, &mut scratch)?)
                };
                restored.map_err(|error| store.disk_error(disk, "restoring", error))?;
            }
            if self.touched[disk] {
                store.flush_disk(disk)?;
            }
        }
        let mut ledger = store.ledger.lock().expect("nobody panics here");
        store.record(&mut ledger, &Record::RolledBack { opened: self.open.opened })?;
        store.forget_open();
        self.open.segments.iter().for_each(|segment| segment.file.doom());
        tracing::info!(item = %store.manifest.item, attempt = %self.attempt, "rolled an unfinished epoch back");
        Ok(())
    }
}
