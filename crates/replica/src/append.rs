//! Reads before-images from a disk and appends them to its segment.

use protocol::{BLOCK, BlockMap, Extent};

use crate::compress::Compressor;
use crate::disk::Disk;
use crate::error::ReplicaError;
use crate::fields::blank;
use crate::segment::{Entry, Frame, UNIT, sectors};
use crate::store::{Open, Store};

/// How far a segment has got.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tail {
    pub length: u64,
    pub frames: u64,
}

/// Appends before-images of one disk to its segment.
pub(crate) struct Append<'a> {
    pub store: &'a Store,
    pub open: &'a Open,
    pub disk: usize,
    pub durable: &'a [u64],
    pub tail: &'a mut Tail,
    pub frame: &'a mut Frame,
    pub table: &'a mut Vec<u8>,
    pub compressor: &'a mut Compressor,
    pub kept: &'a mut Vec<(usize, Entry)>,
}

impl Append<'_> {
    /// What the disk holds in `gap`; zeroes and holes cost no space.
    pub fn gap(&mut self, disk: &dyn Disk, gap: Extent, piece: &mut Vec<u8>) -> Result<(), ReplicaError> {
        let whole = [gap].into_iter().collect::<BlockMap>();
        let data = if gap.length > BLOCK { self.store.data_on_disk(self.disk, gap)? } else { whole };
        let mut at = gap.offset;
        for extent in data.aligned(UNIT, self.store.size(self.disk)).pieces(BLOCK) {
            if at < extent.offset {
                self.frame.zeroes(at, extent.offset - at);
            }
            piece.resize(extent.length as usize, 0);
            disk.read_at(extent.offset, piece).map_err(|e| self.store.disk_error(self.disk, "reading", e))?;
            self.runs(extent.offset, piece);
            if self.frame.is_full() {
                self.frame()?;
            }
            at = extent.end();
        }
        if at < gap.end() {
            self.frame.zeroes(at, gap.end() - at);
        }
        if self.frame.is_full() { self.frame() } else { Ok(()) }
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

    /// Writes the frame, if anything is in it.
    pub fn frame(&mut self) -> Result<(), ReplicaError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let file = &self.open.segments[self.disk].file;
        let journal = &self.store.journal;
        let failed = |error| ReplicaError::io(format!("writing {}", journal.describe(&file.name)), error);
        if self.tail.length == 0 {
            let mut header = Vec::new();
            file.id.header(&mut header);
            journal.write_at(&file.name, 0, &header).map_err(failed)?;
            self.tail.length = header.len() as u64;
        }
        let at = self.tail.length;
        let (payload, entries) = self.frame.finish(&file.id, self.tail.frames, self.durable, at, self.table);
        journal.write_at(&file.name, at, self.table).map_err(failed)?;
        let payload_at = at + self.table.len() as u64;
        if !payload.is_empty() {
            journal.write_at(&file.name, payload_at, payload).map_err(failed)?;
        }
        self.kept.extend(entries.iter().map(|entry| (self.disk, *entry)));
        self.tail.length = payload_at + sectors(payload.len() as u64);
        self.tail.frames += 1;
        self.frame.clear();
        Ok(())
    }
}
