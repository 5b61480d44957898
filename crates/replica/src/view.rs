//! A recovery point, readable while epochs go on being applied.
//!
//! ```text
//!   reader                                   the open epoch
//!     1 look up: segments, oldest first        a journal the before-image, sync
//!     2 what has none: read the disk           b publish its index entry
//!     3 look those up again                    c write the disk
//! ```
//!
//! # Why this is exact
//! If step 3 finds nothing for a block, then nothing was published before step 3, so nothing was written before step 2
//! ended: the disk gave what the point holds. If it finds something, that is what the point holds. The one thing
//! that takes entries away is the roll back of an epoch: it is counted, and a reader that crossed one starts over.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use protocol::{Attempt, BlockMap, Extent, Point};

use crate::error::ReplicaError;
use crate::history::Images;
use crate::run::Run;
use crate::runs::{Source, next_source};
use crate::segment::Entry;
use crate::store::Store;

/// Is given each part of what was looked up that has a before-image, the before-image, and where its data is.
type Found<'a> = &'a mut dyn FnMut(Extent, &Entry, &dyn Images) -> Result<(), ReplicaError>;

/// A read-only view of one point: any number of them, from any thread. It pins the history that it needs.
#[derive(Clone)]
pub struct View {
    hold: Arc<Hold>,
}

/// Keeps a point, and what a view of it reads, from being let go of.
struct Hold {
    store: Arc<Store>,
    number: u64,
    point: Point,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.store.chain.release(self.number);
    }
}

impl View {
    pub(crate) fn open(store: &Arc<Store>, attempt: Attempt) -> Result<View, ReplicaError> {
        store.usable()?;
        let (number, point) = store.chain.hold(attempt)?;
        let hold = Hold { store: store.clone(), number, point };
        store.undamaged(number)?;
        Ok(View { hold: Arc::new(hold) })
    }

    /// The point.
    pub fn point(&self) -> &Point {
        &self.hold.point
    }

    fn store(&self) -> &Store {
        &self.hold.store
    }

    /// The size of a disk in bytes; 0 for a disk that does not exist.
    pub fn size(&self, disk: usize) -> u64 {
        self.store().size(disk)
    }

    /// Fills `buffer` with what `disk` held at `offset` at the point.
    ///
    /// # Errors
    /// Out of bounds; a damaged segment (never wrong data); I/O; `Closed` and `Failed`, when the replica is.
    pub fn read(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ReplicaError> {
        let whole = self.store().within(disk, offset, buffer.len() as u64)?;
        let mut scratch = Vec::new();
        loop {
            self.store().usable()?;
            let rollbacks = self.store().rollbacks();
            let mut missing = vec![whole];
            let reached =
                self.look_up(disk, self.hold.number, &mut missing, &mut copy_to(buffer, offset, &mut scratch))?;
            for extent in &missing {
                self.store().read_disk(disk, extent.offset, &mut buffer[within(offset, *extent)])?;
            }
            self.look_up(disk, reached, &mut missing, &mut copy_to(buffer, offset, &mut scratch))?;
            if self.store().rollbacks() == rollbacks {
                return self.store().usable();
            }
        }
    }

    /// A superset of the bytes in `offset .. offset + length` that may be other than zero at the point.
    ///
    /// # Errors
    /// As for [`View::read`].
    pub fn data(&self, disk: usize, offset: u64, length: u64) -> Result<BlockMap, ReplicaError> {
        let whole = self.store().within(disk, offset, length)?;
        loop {
            self.store().usable()?;
            let rollbacks = self.store().rollbacks();
            let mut missing = vec![whole];
            let mut data = Vec::new();
            let mut note = |part: Extent, entry: &Entry, _: &dyn Images| {
                if !entry.is_zero() {
                    data.push(part);
                }
                Ok(())
            };
            let reached = self.look_up(disk, self.hold.number, &mut missing, &mut note)?;
            let mut on_disk = Vec::new();
            for extent in &missing {
                on_disk.extend_from_slice(self.store().data_on_disk(disk, *extent)?.extents());
            }
            // What was overwritten meanwhile may have been data before though the disk says zeroes now.
            self.look_up(disk, reached, &mut missing, &mut note)?;
            if self.store().rollbacks() == rollbacks {
                self.store().usable()?;
                return Ok(data.into_iter().chain(on_disk).collect());
            }
        }
    }

    /// What may differ between the point and what a disk holds now, the open epoch included.
    pub(crate) fn changed(&self, disk: usize) -> Result<BlockMap, ReplicaError> {
        // The open epoch first: when it is sealed meanwhile, it is met behind the steps.
        let open = self.store().open();
        let open = open.as_ref().and_then(|open| open.segments.get(disk)).map_or(vec![], |segment| segment.entries());
        let mut extents = open.iter().map(|entry| Extent::new(entry.offset, entry.length)).collect();
        self.overwritten(disk, u64::MAX, &mut extents)?;
        Ok(extents.into_iter().collect())
    }

    /// What may differ between the point and `newer`; none when that is the older of the two.
    pub(crate) fn changed_until(&self, newer: &View, disk: usize) -> Result<Option<BlockMap>, ReplicaError> {
        if newer.hold.number < self.hold.number {
            return Ok(None);
        }
        let mut extents = Vec::new();
        self.overwritten(disk, newer.hold.number, &mut extents)?;
        Ok(Some(extents.into_iter().collect()))
    }

    /// Appends what was overwritten on a disk after the point and up to `limit`, over which no step may lead.
    fn overwritten(&self, disk: usize, limit: u64, extents: &mut Vec<Extent>) -> Result<(), ReplicaError> {
        let whole = Extent::new(0, self.size(disk));
        let mut at = self.hold.number;
        let (mut entries, mut oldest) = (Vec::new(), Vec::new());
        while at < limit
            && let Some(source) = next_source(self.store(), self.hold.number, at, limit)
        {
            match &source {
                Source::Step(step) => {
                    if let Some(Some(segment)) = step.segments.get(disk) {
                        segment.hits(&self.store().pages, whole, &mut entries)?;
                        extents.extend(entries.drain(..).map(|entry: Entry| Extent::new(entry.offset, entry.length)));
                    }
                }
                Source::Run(run) => {
                    if let Err(error) = run.hits(&self.store().runs.pages, disk as u16, whole, &mut oldest) {
                        self.store().runs.drop_bad(run, &error);
                        oldest.clear();
                        continue;
                    }
                    extents.extend(oldest.drain(..).map(|entry| entry.extent));
                }
            }
            at = source.end();
        }
        Ok(())
    }

    /// Gives every part of `missing` that has a before-image behind `from` to `found` and takes it out of `missing`.
    /// Gives back the number that it came to.
    fn look_up(&self, disk: usize, from: u64, missing: &mut Vec<Extent>, found: Found) -> Result<u64, ReplicaError> {
        // The open epoch first: when it is sealed meanwhile, it is met behind the steps, and never missed.
        let open = self.store().open();
        let mut at = from;
        while !missing.is_empty()
            && let Some(source) = next_source(self.store(), self.hold.number, at, u64::MAX)
        {
            match &source {
                Source::Step(step) => {
                    if let Some(Some(segment)) = step.segments.get(disk) {
                        self.take(segment, missing, found)?;
                    }
                }
                Source::Run(run) => {
                    if let Err(error) = self.take_run(run, disk, missing, found)? {
                        // It is gone now: the same is found without it.
                        self.store().runs.drop_bad(run, &error);
                        continue;
                    }
                }
            }
            at = source.end();
        }
        if let Some(segment) = open.as_ref().and_then(|open| open.segments.get(disk))
            && !missing.is_empty()
        {
            self.take(segment, missing, found)?;
        }
        Ok(at)
    }

    fn take(&self, images: &dyn Images, missing: &mut Vec<Extent>, found: Found) -> Result<(), ReplicaError> {
        let mut rest = Vec::with_capacity(missing.len());
        let mut hits = Vec::new();
        for wanted in missing.iter() {
            hits.clear();
            images.hits(&self.store().pages, *wanted, &mut hits)?;
            let mut at = wanted.offset;
            for entry in &hits {
                let (start, end) = (entry.offset.max(wanted.offset), entry.end().min(wanted.end()));
                if at < start {
                    rest.push(Extent::new(at, start - at));
                }
                found(Extent::new(start, end - start), entry, images)?;
                at = end;
            }
            if at < wanted.end() {
                rest.push(Extent::new(at, wanted.end() - at));
            }
        }
        *missing = rest;
        Ok(())
    }

    /// As [`View::take`], for all the segments that a run stands for. The inner error is the run's own.
    fn take_run(
        &self,
        run: &Run,
        disk: usize,
        missing: &mut Vec<Extent>,
        found: Found,
    ) -> Result<Result<(), ReplicaError>, ReplicaError> {
        let mut by_epoch: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
        let mut rest = Vec::new();
        let mut hits = Vec::new();
        for wanted in missing.iter() {
            hits.clear();
            if let Err(error) = run.hits(&self.store().runs.pages, disk as u16, *wanted, &mut hits) {
                return Ok(Err(error));
            }
            let mut at = wanted.offset;
            for hit in &hits {
                let (start, end) = (hit.extent.offset.max(wanted.offset), hit.extent.end().min(wanted.end()));
                if at < start {
                    rest.push(Extent::new(at, start - at));
                }
                by_epoch.entry(hit.epoch).or_default().push(Extent::new(start, end - start));
                at = end;
            }
            if at < wanted.end() {
                rest.push(Extent::new(at, wanted.end() - at));
            }
        }
        for (epoch, mut parts) in by_epoch {
            // The step that leads over the epoch now, be it its own or a merged one.
            let step = self.store().chain.after(epoch.saturating_sub(1));
            if let Some(Some(segment)) = step.as_ref().and_then(|step| step.segments.get(disk)) {
                self.take(segment, &mut parts, found)?;
            }
            if !parts.is_empty() {
                return Ok(Err(run.damaged("it names an epoch that does not have the block")));
            }
        }
        *missing = rest;
        Ok(Ok(()))
    }
}

/// Where `extent` lies in a buffer that starts at `offset` of the disk.
fn within(offset: u64, extent: Extent) -> Range<usize> {
    (extent.offset - offset) as usize..(extent.end() - offset) as usize
}

/// Copies before-images to their places in `buffer`, which starts at `offset` of the disk.
fn copy_to<'a>(
    buffer: &'a mut [u8],
    offset: u64,
    scratch: &'a mut Vec<u8>,
) -> impl FnMut(Extent, &Entry, &dyn Images) -> Result<(), ReplicaError> + 'a {
    move |part, entry, images| {
        let target = &mut buffer[within(offset, part)];
        if entry.is_zero() {
            target.fill(0);
        } else {
            let data = images.file().read(entry, scratch)?;
            target.copy_from_slice(&data[within(entry.offset, part)]);
        }
        Ok(())
    }
}
