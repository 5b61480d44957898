//! Appends frames of before-images to the segment of one disk.

use crate::error::ReplicaError;
use crate::segment::{Entry, Frame, sectors};
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
    pub table: &'a mut Vec<u8>,
    pub kept: &'a mut Vec<(usize, Entry)>,
}

impl Append<'_> {
    /// Writes a frame, which is not empty.
    pub fn frame(&mut self, frame: &mut Frame) -> Result<(), ReplicaError> {
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
        let (payload, entries) = frame.finish(&file.id, self.tail.frames, self.durable, at, self.table);
        journal.write_at(&file.name, at, self.table).map_err(failed)?;
        let payload_at = at + self.table.len() as u64;
        if !payload.is_empty() {
            journal.write_at(&file.name, payload_at, payload).map_err(failed)?;
        }
        self.kept.extend(entries.iter().map(|entry| (self.disk, *entry)));
        self.tail.length = payload_at + sectors(payload.len() as u64);
        self.tail.frames += 1;
        Ok(())
    }
}
