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

use std::ops::Range;
use std::sync::Arc;

use protocol::{BlockMap, Extent, Point};

use crate::error::ReplicaError;
use crate::history::{Images, Node};
use crate::segment::Entry;
use crate::store::Store;

/// Is given each part of what was looked up that has a before-image, the before-image, and where its data is.
type Found<'a> = &'a mut dyn FnMut(Extent, &Entry, &dyn Images) -> Result<(), ReplicaError>;

/// A read-only view of one point: any number of them, from any thread. It pins the history that it needs.
#[derive(Clone)]
pub struct View {
    store: Arc<Store>,
    node: Arc<Node>,
}

impl View {
    pub(crate) fn new(store: Arc<Store>, node: Arc<Node>) -> View {
        View { store, node }
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The point.
    pub fn point(&self) -> &Point {
        &self.node.point
    }

    /// The size of a disk in bytes; 0 for a disk that does not exist.
    pub fn size(&self, disk: usize) -> u64 {
        self.store.size(disk)
    }

    /// Fills `buffer` with what `disk` held at `offset` at the point.
    ///
    /// # Errors
    /// Out of bounds; a damaged segment (never wrong data); I/O; `Closed` and `Failed`, when the replica is.
    pub fn read(&self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<(), ReplicaError> {
        let whole = self.store.within(disk, offset, buffer.len() as u64)?;
        let mut scratch = Vec::new();
        loop {
            self.store.usable()?;
            let rollbacks = self.store.rollbacks();
            let mut missing = vec![whole];
            let reached =
                self.look_up(disk, self.node.clone(), &mut missing, &mut copy_to(buffer, offset, &mut scratch))?;
            for extent in &missing {
                self.store.read_disk(disk, extent.offset, &mut buffer[within(offset, *extent)])?;
            }
            self.look_up(disk, reached, &mut missing, &mut copy_to(buffer, offset, &mut scratch))?;
            if self.store.rollbacks() == rollbacks {
                return self.store.usable();
            }
        }
    }

    /// A superset of the bytes in `offset .. offset + length` that may be other than zero at the point.
    ///
    /// # Errors
    /// As for [`View::read`].
    pub fn data(&self, disk: usize, offset: u64, length: u64) -> Result<BlockMap, ReplicaError> {
        let whole = self.store.within(disk, offset, length)?;
        loop {
            self.store.usable()?;
            let rollbacks = self.store.rollbacks();
            let mut missing = vec![whole];
            let mut data = Vec::new();
            let mut note = |part: Extent, entry: &Entry, _: &dyn Images| {
                if !entry.is_zero() {
                    data.push(part);
                }
                Ok(())
            };
            let reached = self.look_up(disk, self.node.clone(), &mut missing, &mut note)?;
            let mut on_disk = Vec::new();
            for extent in &missing {
                on_disk.extend_from_slice(self.store.data_on_disk(disk, *extent)?.extents());
            }
            // What was overwritten meanwhile may have been data before though the disk says zeroes now.
            self.look_up(disk, reached, &mut missing, &mut note)?;
            if self.store.rollbacks() == rollbacks {
                self.store.usable()?;
                return Ok(data.into_iter().chain(on_disk).collect());
            }
        }
    }

    /// Gives every part of `missing` that has a before-image behind `from` to `found` and takes it out of `missing`.
    /// Gives back the newest point that it came to.
    fn look_up(
        &self,
        disk: usize,
        from: Arc<Node>,
        missing: &mut Vec<Extent>,
        found: Found,
    ) -> Result<Arc<Node>, ReplicaError> {
        // The open epoch first: when it is sealed meanwhile, it is met in the chain, and never missed.
        let open = self.store.open();
        let mut at = &from;
        while let Some(step) = at.next() {
            if missing.is_empty() {
                break;
            }
            if let Some(Some(segment)) = step.segments.get(disk) {
                take(segment, missing, found)?;
            }
            at = &step.to;
        }
        if let Some(segment) = open.as_ref().and_then(|open| open.segments.get(disk))
            && !missing.is_empty()
        {
            take(segment, missing, found)?;
        }
        Ok(at.clone())
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

fn take(images: &dyn Images, missing: &mut Vec<Extent>, found: Found) -> Result<(), ReplicaError> {
    let mut rest = Vec::with_capacity(missing.len());
    let mut hits = Vec::new();
    for wanted in missing.iter() {
        hits.clear();
        images.hits(*wanted, &mut hits)?;
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
