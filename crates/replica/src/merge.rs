//! Merges the segments of neighbouring epochs into one: for each block the oldest image, which is what every point
//! before them wants.
//!
//! ```text
//!   index of S1 ─┐
//!   index of S2 ─┼─► sweep ─► read the record, check it ─► frames, by offset ─► index pages ─► footer ─► sync
//!   index of S3 ─┘  oldest wins
//! ```
//! A page of each index and one frame are in memory, whatever the segments' sizes: the index of the new segment is made
//! from its own frames, read back one by one.
//!
//! # If power fails
//! The new file belongs to nobody until the log says so, and is removed at the next opening.

use std::sync::Arc;

use protocol::Extent;

use crate::compress::Compressor;
use crate::error::ReplicaError;
use crate::history::{Entries, Images, Segment, SegmentFile};
use crate::index::IndexPages;
use crate::log::{Origin, SealedFile};
use crate::segment::{Entry, Frame, SECTOR, SegmentId, Table, table_length};
use crate::sweep::{Ascending, Sweep};
use crate::volume::Volume;

impl Ascending for Entries<'_> {
    fn extent(&self) -> Option<Extent> {
        self.entry().map(|entry| Extent::new(entry.offset, entry.length))
    }
    fn skip_to(&mut self, offset: u64) -> Result<(), ReplicaError> {
        Entries::skip_to(self, offset)
    }
}

/// Writes the merged segment `id` of `sources`, oldest first. It is durable when this returns, but for its name.
pub(crate) fn merge(journal: &Arc<dyn Volume>, id: SegmentId, sources: &[&Segment]) -> Result<Segment, ReplicaError> {
    let file = SegmentFile::new(journal.clone(), id);
    match write(journal.as_ref(), &file, sources) {
        Ok(sealed) => Ok(Segment::new(file, sealed, None)),
        Err(error) => {
            file.doom();
            Err(error)
        }
    }
}

fn write(journal: &dyn Volume, file: &SegmentFile, sources: &[&Segment]) -> Result<SealedFile, ReplicaError> {
    let mut writing = Writing::begin(journal, file)?;
    #[cfg(feature = "sabotage")]
    let turned: Vec<&Segment> = sources.iter().rev().copied().collect();
    #[cfg(feature = "sabotage")]
    let sources = if protocol::sabotage::is("merged-newest-wins") { &turned[..] } else { sources };
    let lists = sources.iter().map(|segment| segment.entries(0)).collect::<Result<Vec<_>, _>>()?;
    let mut sweep = Sweep::new(lists);
    let (mut record, mut scratch, mut compressor) = (Vec::new(), Vec::new(), Compressor::default());
    // Parts of one record follow each other often: it is read once.
    let mut read: Option<(usize, Entry)> = None;
    while let Some((part, from)) = sweep.next()? {
        let Some(entry) = sweep.lists[from].entry() else { break };
        if entry.is_zero() {
            writing.frame.zeroes(part.offset, part.length);
        } else {
            if read != Some((from, entry)) {
                record.clear();
                record.extend_from_slice(sources[from].file().read(&entry, &mut scratch)?);
                read = Some((from, entry));
            }
            let within = (part.offset - entry.offset) as usize..(part.end() - entry.offset) as usize;
            writing.frame.data(part.offset, &record[within], &mut compressor);
        }
        if writing.frame.is_full() {
            writing.frame()?;
        }
    }
    writing.frame()?;
    writing.seal()
}

/// A segment while it is written at one go.
struct Writing<'a> {
    journal: &'a dyn Volume,
    file: &'a SegmentFile,
    at: u64,
    frames: u64,
    frame: Frame,
    table: Vec<u8>,
    durable: Vec<u64>,
}

impl<'a> Writing<'a> {
    fn begin(journal: &'a dyn Volume, file: &'a SegmentFile) -> Result<Writing<'a>, ReplicaError> {
        let (frame, table, durable) = (Frame::default(), Vec::new(), vec![0; usize::from(file.id.disks)]);
        let mut writing = Writing { journal, file, at: 0, frames: 0, frame, table, durable };
        journal.create(&file.name).map_err(|error| writing.failed("making", error))?;
        let mut header = Vec::new();
        file.id.header(&mut header);
        writing.append(&header)?;
        Ok(writing)
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> ReplicaError {
        ReplicaError::io(format!("{doing} {}", self.journal.describe(&self.file.name)), error)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), ReplicaError> {
        self.journal.write_at(&self.file.name, self.at, bytes).map_err(|error| self.failed("writing", error))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn frame(&mut self) -> Result<(), ReplicaError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let (mut frame, mut table) = (std::mem::take(&mut self.frame), std::mem::take(&mut self.table));
        let (payload, _) = frame.finish(&self.file.id, self.frames, &self.durable, self.at, &mut table);
        self.append(&table)?;
        self.append(payload)?;
        self.frames += 1;
        frame.clear();
        (self.frame, self.table) = (frame, table);
        Ok(())
    }

    /// Writes index and footer, from the tables of the frames, and syncs the file.
    fn seal(mut self) -> Result<SealedFile, ReplicaError> {
        /// Pages are written when they are this long (bytes).
        const ENOUGH: usize = 1 << 20;
        let id = &self.file.id;
        let (end, mut at) = (self.at, SECTOR);
        let mut pages = IndexPages::new(id);
        let mut out = Vec::new();
        while at < end {
            let table = self.table(at)?;
            table.entries.into_iter().for_each(|entry| pages.push(entry, &mut out));
            at += table.length;
            if out.len() >= ENOUGH {
                self.append(&out)?;
                out.clear();
            }
        }
        let footer = pages.finish(end, &mut out);
        self.append(&out)?;
        self.journal.sync(&self.file.name).map_err(|error| self.failed("syncing", error))?;
        let origin = Some(Origin { opened: id.opened, attempt: id.attempt });
        Ok(SealedFile { disk: id.disk, length: self.at, footer, origin })
    }

    /// The table of the frame that was written at `at`.
    fn table(&self, at: u64) -> Result<Table, ReplicaError> {
        let read = |length: u64| {
            let mut bytes = vec![0; length as usize];
            self.journal.read_at(&self.file.name, at, &mut bytes).map_err(|error| self.failed("reading", error))?;
            Ok::<_, ReplicaError>(bytes)
        };
        let bad = || ReplicaError::damaged(self.journal.describe(&self.file.name), "it does not hold what was written");
        let length = table_length(&read(SECTOR)?).ok_or_else(bad)?;
        Table::decode(&self.file.id, at, &read(length)?).ok_or_else(bad)
    }
}
