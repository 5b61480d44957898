//! A replica: made, opened after whatever happened, asked, and deleted.
//!
//! # Opening
//! ```text
//!   lock ─► manifest ─► log (a torn record is cut) ─► segments there? ─► disks ─► an epoch without its point record:
//!                                                        before-images back, flush, record; or left to be resumed
//! ```
//! Damage to a sealed segment does not keep a replica from opening: what is newest is on the disks. It refuses the
//! points that need the segment, each time they are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use protocol::{Attempt, BLOCK, BlockMap, DiskKey, EpochHeader, Point, PointKind};

use crate::epoch::{Epoch, Payload, Write, Writer};
use crate::error::ReplicaError;
use crate::fields::blank;
use crate::history::{OpenSegment, SegmentFile};
use crate::leaves;
use crate::ledger::Ledger;
use crate::log::{Begun, LOG, Record, Sealed};
use crate::manifest::{Content, DiskHome, DiskRecord, FORMAT, MANIFEST, Manifest, Opener, Place, Spec};
use crate::opening::{ids, list, remove_orphans, runs, steps, unfinished};
use crate::runs::Runs;
use crate::segment::MOST_DISKS;
use crate::store::{Held, Open, Slot, Store};
use crate::stores::{Stores, make_inside};
use crate::view::View;

/// An item's disks at the newest applied epoch, and their history.
///
/// Shared freely between threads (in an `Arc`). It stays open, and its disks locked, until [`Replica::close`], or until
/// the replica, its epoch and all its views were dropped.
pub struct Replica {
    store: Arc<Store>,
    stores: Stores,
}

impl Replica {
    /// Has the disks look whether somebody else wrote them, and note how they look at rest.
    pub fn watch(&self) {
        for disk in 0..self.store.manifest.disks.len() {
            self.store.unbroken(disk);
        }
    }

    /// Makes a replica. Disks inside the directory are made too when `spec.content` is empty; all others are there.
    ///
    /// # Errors
    /// `Exists` when a replica is at the place, or the trace of one that cannot be thrown away; `Disks` when the spec or
    /// a disk's size is not right; `Busy`; I/O.
    pub fn create(place: &Place, spec: &Spec, open: Opener) -> Result<Replica, ReplicaError> {
        let stores = Stores::real(place, true)?;
        Replica::create_on(stores, spec, &|record, directory| {
            if record.home == DiskHome::Inside && spec.content == Content::Empty {
                make_inside(record, directory)?;
            }
            open(record, directory)
        })
    }

    /// As [`Replica::create`], on any kind of volume.
    ///
    /// # Errors
    /// As for [`Replica::create`].
    pub fn create_on(stores: Stores, spec: &Spec, open: Opener) -> Result<Replica, ReplicaError> {
        check(spec)?;
        let held = stores.lock()?;
        if let Some(found) = Manifest::load(stores.directory.as_ref())? {
            if !found.being_deleted {
                return Err(ReplicaError::Exists(stores.directory.describe(MANIFEST)));
            }
            stores.delete(&found)?;
        }
        // A log without its manifest is what an interrupted creation leaves, unless it has points.
        if stores.retention.length(LOG).is_ok() {
            let foreign = match Ledger::open(stores.retention.clone()) {
                Ok(ledger) => ledger.facts().has_content || !ledger.facts().points.is_empty(),
                Err(ReplicaError::Damaged { .. }) => true,
                Err(error) => return Err(error),
            };
            if foreign {
                return Err(ReplicaError::Exists(stores.retention.describe(LOG)));
            }
        }
        let disks = stores.disks(&spec.disks, open)?;
        leaves::forget(stores.retention.as_ref())?;
        let ledger = Ledger::create(stores.retention.clone(), spec.item.clone(), spec.lineage)?;
        let manifest = Manifest {
            format: FORMAT,
            item: spec.item.clone(),
            lineage: spec.lineage,
            disks: spec.disks.clone(),
            content: spec.content,
            being_deleted: false,
        };
        manifest.store(stores.directory.as_ref())?;
        let store = Store::new(manifest, stores.retention.clone(), disks, held, ledger, Vec::new(), Runs::default());
        Ok(Replica { store: Arc::new(store), stores })
    }

    /// Opens a replica. An epoch without its point record is rolled back: every disk is again at the newest point. Only
    /// the first copy onto an empty replica cannot be undone: its disks stay inconsistent, without points.
    ///
    /// # Errors
    /// `Absent`; `Busy` when somebody has it or a disk open; `Damaged` for the manifest, the log or an epoch that would
    /// have to be rolled back; `Disks`; I/O.
    pub fn open(place: &Place, open: Opener) -> Result<Replica, ReplicaError> {
        Replica::open_on(Stores::real(place, false)?, open)
    }

    /// As [`Replica::open`], on any kind of volume.
    ///
    /// # Errors
    /// As for [`Replica::open`].
    pub fn open_on(stores: Stores, open: Opener) -> Result<Replica, ReplicaError> {
        let replica = Replica::open_unfinished_on(stores, open)?;
        replica.undo_unfinished()?;
        Ok(replica)
    }

    /// As [`Replica::open`], but an epoch without its point record is left as it is found: [`Replica::resume`] goes on with
    /// it, and whatever else wants the disks undoes it first. Until then they are not at a point.
    ///
    /// # Errors
    /// As for [`Replica::open`].
    pub fn open_unfinished(place: &Place, open: Opener) -> Result<Replica, ReplicaError> {
        Replica::open_unfinished_on(Stores::real(place, false)?, open)
    }

    /// As [`Replica::open_unfinished`], on any kind of volume.
    ///
    /// # Errors
    /// As for [`Replica::open`].
    pub fn open_unfinished_on(stores: Stores, open: Opener) -> Result<Replica, ReplicaError> {
        let held = stores.lock()?;
        let absent = || ReplicaError::Absent(stores.directory.describe(""));
        let manifest = Manifest::load(stores.directory.as_ref())?.ok_or_else(absent)?;
        if manifest.being_deleted {
            stores.delete(&manifest)?;
            return Err(absent());
        }
        let sync = stores.directory.sync_directory();
        sync.map_err(|error| ReplicaError::io(format!("syncing {}", stores.directory.describe("")), error))?;
        let journal = stores.retention.clone();
        let ledger = Ledger::open(journal.clone())?;
        let facts = ledger.facts();
        if facts.lineage != manifest.lineage || facts.item != manifest.item {
            let whose = format!("it belongs to {} of lineage {}", facts.item, facts.lineage);
            return Err(ReplicaError::damaged(journal.describe(LOG), whose));
        }
        let mut files = list(journal.as_ref())?;
        let steps = steps(&manifest, &journal, facts.points.values(), &mut files);
        let unfinished = facts.open.map(|begun| unfinished(&manifest, &journal, begun, &mut files)).transpose()?;
        let runs = runs(&manifest, &journal, &steps, &mut files);
        remove_orphans(journal.as_ref(), files.keys())?;
        let disks = stores.disks(&manifest.disks, open)?;
        let count = disks.len();
        let store = Store::new(manifest, journal, disks, held, ledger, steps, runs);
        if let Some(found) = unfinished {
            store.set_open(found.open.clone());
            store.set_slot(Slot::Left(Box::new(Writer::found(found, count))));
        }
        Ok(Replica { store: Arc::new(store), stores })
    }

    /// What the replica is.
    pub fn manifest(&self) -> &Manifest {
        &self.store.manifest
    }

    /// Its disks; [`Write`] and [`View`] name them by their place in this list.
    pub fn disks(&self) -> &[DiskRecord] {
        &self.store.manifest.disks
    }

    /// Whether the disks may hold anything but zeroes.
    pub fn has_content(&self) -> bool {
        let ledger = self.store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        self.store.manifest.content == Content::Existing || ledger.facts().has_content
    }

    /// The points that are kept, in the order in which they were sealed.
    pub fn points(&self) -> Vec<Point> {
        self.store.chain.points().into_iter().map(|(_, point)| point).collect()
    }

    /// How many points are kept, and the oldest of them.
    pub fn reach(&self) -> (u64, Option<Point>) {
        self.store.chain.reach()
    }

    /// The newest point.
    pub fn newest(&self) -> Option<Point> {
        self.store.chain.newest().map(|step| step.point.clone())
    }

    /// The point of `attempt`, if it is kept.
    pub fn point(&self, attempt: Attempt) -> Option<Point> {
        self.store.chain.find(attempt).ok().map(|step| step.point.clone())
    }

    /// Begins an epoch, after rolling back one that was left unfinished.
    ///
    /// # Errors
    /// `Busy` while another epoch is open; `Lineage`, `Base`, `AttemptUsed`, `Disks` when it does not continue what the
    /// replica holds; `NoSpace`; I/O.
    pub fn begin(&self, header: &EpochHeader) -> Result<Epoch, ReplicaError> {
        self.begin_as(header, false)
    }

    /// As [`Replica::begin`], but nothing that is replaced is kept: there is no way back, all points go when the epoch
    /// begins, and until it is sealed the disks are half written (H14). That is durable before the first write.
    ///
    /// # Errors
    /// As for [`Replica::begin`]; `Busy` while a view holds a point.
    pub fn begin_without_way_back(&self, header: &EpochHeader) -> Result<Epoch, ReplicaError> {
        let _tending = self.store.tending.lock().unwrap_or_else(PoisonError::into_inner);
        self.begin_as(header, true)
    }

    fn begin_as(&self, header: &EpochHeader, no_way_back: bool) -> Result<Epoch, ReplicaError> {
        self.store.take_slot()?;
        let begun = self
            .fits(header)
            .and_then(|()| self.open_epoch(header.attempt, header.kind, header.cut_at_ms, no_way_back));
        let mut epoch = self.keep_slot_if(begun)?;
        epoch.writer_mut().freeze = header.freeze.clone();
        Ok(epoch)
    }

    /// Whether the disks are half written: an epoch that kept no before-images wrote to them and was not sealed. Nothing
    /// can be started from them; the next epoch, which must bring everything, repairs them (H14).
    pub fn is_half_written(&self) -> bool {
        self.store.ledger.lock().unwrap_or_else(PoisonError::into_inner).facts().half_written
    }

    /// Makes what the disks hold now a point, without any change.
    ///
    /// # Errors
    /// `Inconsistent` while a first copy is unfinished; `AttemptUsed`; `Busy`; `NoSpace`; I/O.
    pub fn keep(
        &self,
        attempt: Attempt,
        cut_at_ms: u64,
        sealed_at_ms: u64,
        kind: PointKind,
    ) -> Result<Point, ReplicaError> {
        let store = &self.store;
        store.in_slot(|| {
            for disk in 0..self.disks().len() {
                store.flush_disk(disk)?;
            }
            let mut ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            let facts = ledger.facts();
            let first = facts.points.is_empty() && facts.has_content && store.manifest.content == Content::Empty;
            if first || facts.half_written {
                return Err(ReplicaError::Inconsistent);
            }
            facts.unused(attempt)?;
            store.reserve(&mut ledger)?;
            let opened = ledger.next();
            let point = Point { attempt, cut_at_ms, sealed_at_ms, kind, changed_bytes: 0, freeze: None };
            let sealed = Sealed { point: point.clone(), opened, segments: Vec::new() };
            store.record(&mut ledger, &Record::Sealed(sealed))?;
            store.append_point(opened, point.clone(), Vec::new());
            Ok(point)
        })
    }

    /// Brings the disks back to the point `to`, as an epoch of its own: the new point `as_attempt` has the cut time of
    /// `to`, and the points after `to` stay.
    ///
    /// # Errors
    /// `PointGone`; `Damaged` when the way back cannot be read (nothing is changed then); as [`Replica::begin`].
    pub fn roll_back_to(&self, to: Attempt, as_attempt: Attempt, at_ms: u64) -> Result<Point, ReplicaError> {
        let view = self.view(to)?;
        self.store.take_slot()?;
        let begun = self.open_epoch(as_attempt, PointKind::RolledBack, view.point().cut_at_ms, false);
        let mut epoch = self.keep_slot_if(begun)?;
        match self.write_back(&view, &mut epoch) {
            Ok(()) => epoch.seal(at_ms),
            Err(error) => {
                if let Err(second) = epoch.roll_back() {
                    tracing::warn!(%second, "a roll back that failed is undone later");
                }
                Err(error)
            }
        }
    }

    fn write_back(&self, view: &View, epoch: &mut Epoch) -> Result<(), ReplicaError> {
        /// Bytes in one batch: a few syncs per second on a slow volume.
        const BATCH: usize = 8 << 20;
        for disk in 0..self.disks().len() {
            let map = view.changed(disk)?;
            let mut batch = Vec::new();
            let mut bytes = 0;
            for piece in map.pieces(BLOCK) {
                let mut content = vec![0; piece.length as usize];
                view.read(disk, piece.offset, &mut content)?;
                let zero = blank(&content);
                let payload = if zero { Payload::Zero(piece.length) } else { Payload::Data(Bytes::from(content)) };
                batch.push(Write { disk: disk as u16, offset: piece.offset, payload });
                bytes += piece.length as usize;
                if bytes >= BATCH {
                    epoch.apply(&batch)?;
                    batch.clear();
                    bytes = 0;
                }
            }
            epoch.apply(&batch)?;
        }
        Ok(())
    }

    /// A view of a point: ready at once, any number at a time, while epochs are applied.
    ///
    /// # Errors
    /// `PointGone`; `Damaged` when a file of the way back is known to be missing; `Closed`, `Failed`.
    pub fn view(&self, attempt: Attempt) -> Result<View, ReplicaError> {
        View::open(&self.store, attempt)
    }

    /// What may differ, on each disk, between the point and what the disks hold now, the open epoch included. Every
    /// disk is named.
    ///
    /// # Errors
    /// `PointGone` when the point, and so the history since, is not kept; `Damaged`; I/O.
    pub fn changed_since(&self, attempt: Attempt) -> Result<BTreeMap<DiskKey, BlockMap>, ReplicaError> {
        let view = self.view(attempt)?;
        let of = |(disk, record): (usize, &DiskRecord)| Ok((record.key.clone(), view.changed(disk)?));
        self.disks().iter().enumerate().map(of).collect()
    }

    /// What a disk holds at this moment, be it a point's content or not. For comparing with a source.
    ///
    /// # Errors
    /// Out of bounds; I/O; `Closed`, `Failed`.
    pub fn read_present(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ReplicaError> {
        self.store.usable()?;
        self.store.within(disk, offset, buffer.len() as u64)?;
        self.store.read_disk(disk, offset, buffer)
    }

    /// A superset of what a disk holds in a range at this moment that may be other than zero.
    ///
    /// # Errors
    /// As for [`Replica::read_present`].
    pub fn data_present(&self, disk: usize, offset: u64, length: u64) -> Result<BlockMap, ReplicaError> {
        self.store.usable()?;
        let extent = self.store.within(disk, offset, length)?;
        self.store.data_on_disk(disk, extent)
    }

    /// Removes the replica: manifest, journal and the disks inside its directory, never one outside.
    ///
    /// # Errors
    /// `Busy` while an epoch is open; I/O: the rest is removed when it is next opened, or made anew.
    pub fn delete(self) -> Result<(), ReplicaError> {
        let mut held = Held::new();
        self.store.claim_for_deletion(&mut held)?;
        self.stores.delete(&self.store.manifest)?;
        drop(held);
        Ok(())
    }

    /// Removes the replica at `place` without opening it, also one that is too damaged to be opened; as
    /// [`Replica::delete`] otherwise. `Absent` when there is none (any more).
    ///
    /// # Errors
    /// `Absent`; `Busy` while it is open; `Damaged` when not even its manifest can be read; I/O.
    pub fn delete_at(place: &Place) -> Result<(), ReplicaError> {
        let stores = Stores::real(place, false)?;
        let _held = stores.lock()?;
        match Manifest::load(stores.directory.as_ref())? {
            Some(manifest) => stores.delete(&manifest),
            None => Err(ReplicaError::Absent(place.directory.display().to_string())),
        }
    }

    /// Lets go of disks and locks now; views and an epoch that are still held get `Closed`. An unfinished epoch is
    /// rolled back when the replica is next opened.
    pub fn close(&self) {
        self.store.close();
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    pub(crate) fn fits(&self, header: &EpochHeader) -> Result<(), ReplicaError> {
        let ours = self.store.manifest.lineage;
        if header.lineage != ours {
            return Err(ReplicaError::Lineage { theirs: header.lineage, ours });
        }
        let wanted: BTreeMap<_, _> = self.disks().iter().map(|record| (&record.key, record.size)).collect();
        let found: BTreeMap<_, _> = header.disks.iter().map(|disk| (&disk.disk, disk.size)).collect();
        if wanted != found || header.disks.len() != wanted.len() {
            let say = |disks: BTreeMap<&DiskKey, u64>| {
                disks.iter().map(|(key, size)| format!("{key} of {size} bytes")).collect::<Vec<_>>().join(", ")
            };
            return Err(ReplicaError::Disks(format!("the source has {}; the replica has {}", say(found), say(wanted))));
        }
        let newest = self.newest().map(|point| point.attempt);
        #[cfg(feature = "sabotage")]
        let newest = if protocol::sabotage::is("base-unchecked") { header.base } else { newest };
        if header.base != newest {
            return Err(ReplicaError::Base { base: header.base, newest });
        }
        Ok(())
    }

    /// Begins an epoch in the slot, which is taken.
    fn open_epoch(
        &self,
        attempt: Attempt,
        kind: PointKind,
        cut_at_ms: u64,
        no_way_back: bool,
    ) -> Result<Epoch, ReplicaError> {
        let store = &self.store;
        let mut ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.facts().unused(attempt)?;
        store.reserve(&mut ledger)?;
        let first = store.manifest.content == Content::Empty && ledger.facts().points.is_empty();
        let journalled = !first && !no_way_back && !ledger.facts().half_written;
        let begun = Begun { opened: ledger.next(), attempt, journalled };
        let mut segments = Vec::new();
        if journalled {
            // The files exist before the record that says so: a missing one is then known to be missing.
            for id in ids(&store.manifest, begun.opened, attempt) {
                let file = SegmentFile::new(store.journal.clone(), id);
                let made = store.journal.create(&file.name);
                let segment = OpenSegment::new(file, Vec::new());
                segments.push(segment);
                if let Err(error) = made {
                    segments.iter().for_each(|segment| segment.file.doom());
                    return Err(ReplicaError::io("making a segment", error));
                }
            }
            store.journal.sync_directory().map_err(|e| store.fail(ReplicaError::io("syncing the journal", e)))?;
        }
        let gone = if journalled { Some(Vec::new()) } else { store.chain.take_all() };
        let gone = gone.ok_or_else(|| ReplicaError::Busy("a view holds a point that could not be kept".into()))?;
        store.record(&mut ledger, &Record::Begun(begun))?;
        if !journalled {
            gone.iter().for_each(|step| step.doom());
            store.runs.prune(u64::MAX);
        }
        let open = Arc::new(Open { attempt, opened: begun.opened, segments });
        store.set_open(open.clone());
        Ok(Epoch::new(store.clone(), Box::new(Writer::new(open, self.disks().len(), kind, cut_at_ms))))
    }

    fn keep_slot_if(&self, begun: Result<Epoch, ReplicaError>) -> Result<Epoch, ReplicaError> {
        if begun.is_err() {
            self.store.set_slot(Slot::Free);
        }
        begun
    }
}

fn check(spec: &Spec) -> Result<(), ReplicaError> {
    let keys: BTreeSet<_> = spec.disks.iter().map(|record| &record.key).collect();
    let largest = protocol::extent::LARGEST_DISK;
    if spec.disks.is_empty() || spec.disks.len() > MOST_DISKS as usize {
        return Err(ReplicaError::Disks(format!("an item has 1 to {MOST_DISKS} disks, not {}", spec.disks.len())));
    }
    if keys.len() != spec.disks.len() {
        return Err(ReplicaError::Disks("two disks have one name".into()));
    }
    match spec.disks.iter().find(|record| record.size == 0 || record.size > largest) {
        Some(record) => Err(ReplicaError::Disks(format!("{} cannot have {} bytes", record.key, record.size))),
        None => Ok(()),
    }
}
