//! Reads the before-images of a batch, ready to be appended: also while an earlier batch is still being applied.
//!
//! ```text
//!   batch 7   prepare ─► apply: journal ─ barrier ─ publish ─ write
//!   batch 8              prepare ─────────────────► apply: …          two threads of the caller's, or one
//! ```
//! # Why reading early is exact
//! What batch 7 writes has its entries published before. If nothing was published in what batch 8 read when its turn
//! comes, nothing was written there since the epoch began. If something was, batch 8 is read again ([`Batch::is_stale`]).
//! Preparing writes nothing, so it is no part of the order that a power cut may break.

use std::sync::{Arc, Mutex, PoisonError};

use protocol::{BLOCK, BlockMap, Extent};

use crate::compress::Compressor;
use crate::disk::Disk;
use crate::epoch::Write;
use crate::error::ReplicaError;
use crate::fields::blank;
use crate::segment::{Frame, UNIT};
use crate::store::{Open, Store};

/// Prepares the batches of one epoch, from any thread. It keeps the replica open, as the epoch does.
#[derive(Clone)]
pub struct Ahead {
    store: Arc<Store>,
    open: Arc<Open>,
    kit: Arc<Kit>,
}

/// Buffers, used again for every batch.
#[derive(Default)]
struct Kit {
    /// Held while a batch is read: they are prepared one after the other.
    reading: Mutex<(Compressor, Vec<u8>)>,
    spare: Mutex<Vec<Frame>>,
}

/// A batch of writes with the before-images of what it will be the first to change.
pub struct Batch {
    writes: Vec<Write>,
    /// The epoch's `begun` record.
    opened: u64,
    /// For each disk that is written.
    pub(crate) images: Vec<DiskImages>,
}

pub(crate) struct DiskImages {
    pub disk: usize,
    /// All that is written, in whole units.
    pub written: BlockMap,
    /// The part of it that had no before-image when it was read.
    gaps: Vec<Extent>,
    pub frames: Vec<Frame>,
}

impl Batch {
    /// The writes, in their order.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Gives the writes back without their before-images.
    pub fn into_writes(self) -> Vec<Write> {
        self.writes
    }

    /// Whether something was written where it was read, or it was read for another epoch.
    pub(crate) fn is_stale(&self, open: &Open) -> bool {
        let mut left = Vec::new();
        let touched = |images: &DiskImages, left: &mut Vec<Extent>| {
            images.gaps.iter().any(|gap| {
                left.clear();
                open.segments[images.disk].uncovered(*gap, left);
                *left != [*gap]
            })
        };
        self.opened != open.opened || self.images.iter().any(|images| touched(images, &mut left))
    }
}

impl Ahead {
    pub(crate) fn new(store: Arc<Store>, open: Arc<Open>) -> Ahead {
        Ahead { store, open, kit: Arc::default() }
    }

    /// Reads what `writes` will replace. Batches are applied in any order, or not at all; only the epoch they were
    /// prepared for saves reading them again.
    ///
    /// # Errors
    /// `OutOfBounds`; I/O; `Closed`, `Failed`. The epoch is as it was.
    pub fn prepare(&self, writes: Vec<Write>) -> Result<Batch, ReplicaError> {
        self.store.usable()?;
        let mut extents = vec![Vec::new(); self.store.manifest.disks.len()];
        for write in &writes {
            let disk = usize::from(write.disk);
            let extent = self.store.within(disk, write.offset, write.payload.length())?;
            extents[disk].push(extent);
        }
        let mut images = Vec::new();
        let mut reading = self.kit.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let (compressor, piece) = &mut *reading;
        for (disk, extents) in extents.into_iter().enumerate().filter(|(_, extents)| !extents.is_empty()) {
            let written = extents.into_iter().collect::<BlockMap>().aligned(UNIT, self.store.size(disk));
            let mut one = DiskImages { disk, written, gaps: Vec::new(), frames: Vec::new() };
            if let Some(segment) = self.open.segments.get(disk) {
                one.written.extents().iter().for_each(|extent| segment.uncovered(*extent, &mut one.gaps));
                let target = self.store.disk(disk)?;
                one.gaps.iter().for_each(|gap| target.will_read(*gap));
                let mut reader = Reader { of: self, disk, frame: self.spare(), frames: &mut one.frames, compressor };
                one.gaps.iter().try_for_each(|gap| reader.gap(target.as_ref(), *gap, piece))?;
                reader.finish();
            }
            images.push(one);
        }
        drop(reading);
        Ok(Batch { writes, opened: self.open.opened, images })
    }

    fn spare(&self) -> Frame {
        self.kit.spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Takes a frame's buffers back.
    pub(crate) fn give_back(&self, mut frame: Frame) {
        frame.clear();
        self.kit.spare.lock().unwrap_or_else(PoisonError::into_inner).push(frame);
    }
}

/// Fills frames with what a disk holds.
struct Reader<'a> {
    of: &'a Ahead,
    disk: usize,
    frame: Frame,
    frames: &'a mut Vec<Frame>,
    compressor: &'a mut Compressor,
}

impl Reader<'_> {
    /// What the disk holds in `gap`; zeroes and holes cost no space.
    fn gap(&mut self, disk: &dyn Disk, gap: Extent, piece: &mut Vec<u8>) -> Result<(), ReplicaError> {
        let store = &self.of.store;
        let whole = [gap].into_iter().collect::<BlockMap>();
        let data = if gap.length > BLOCK { store.data_on_disk(self.disk, gap)? } else { whole };
        let mut at = gap.offset;
        for extent in data.aligned(UNIT, store.size(self.disk)).pieces(BLOCK) {
            if at < extent.offset {
                self.frame.zeroes(at, extent.offset - at);
            }
            piece.resize(extent.length as usize, 0);
            disk.read_at(extent.offset, piece).map_err(|e| store.disk_error(self.disk, "reading", e))?;
            self.runs(extent.offset, piece);
            self.close_if_full();
            at = extent.end();
        }
        if at < gap.end() {
            self.frame.zeroes(at, gap.end() - at);
        }
        self.close_if_full();
        Ok(())
    }

    /// Splits what was read into runs of data and of zeroes.
    fn runs(&mut self, offset: u64, bytes: &[u8]) {
        let mut start = 0;
        for (n, unit) in bytes.chunks(UNIT as usize).enumerate() {
            if blank(unit) {
                let at = n * UNIT as usize;
                if start < at {
                    self.frame.data(offset + start as u64, &bytes[start..at], self.compressor);
                }
                self.frame.zeroes(offset + at as u64, unit.len() as u64);
                start = at + unit.len();
            }
        }
        if start < bytes.len() {
            self.frame.data(offset + start as u64, &bytes[start..], self.compressor);
        }
    }

    fn close_if_full(&mut self) {
        if self.frame.is_full() {
            let full = std::mem::replace(&mut self.frame, self.of.spare());
            self.frames.push(full);
        }
    }

    fn finish(self) {
        if self.frame.is_empty() {
            self.of.give_back(self.frame);
        } else {
            self.frames.push(self.frame);
        }
    }
}
