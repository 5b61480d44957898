//! The history of a replica in memory: points, and between two points the segments that lead back.
//!
//! ```text
//!   point ──step──► point ──step──► point ──► (the open epoch) ──► what the disks hold
//!            │                │
//!        segments         segments        a view of a point reads: the first before-image on its way to the right,
//!                                         else the disk
//! ```
//!
//! A point owns the step to its successor, so whoever holds a point holds all that a view of it needs and nothing
//! older: pruning lets go of the oldest points, and a segment's file goes when the last view that needs it does. Opening
//! a view is one reference; an index is read when it is first asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use protocol::{Extent, Point};

use crate::error::ReplicaError;
use crate::log::SealedFile;
use crate::segment::{Entry, PAGE, SECTOR, SegmentId, decode_footer, decode_page};
use crate::volume::Volume;

/// The file of a segment. Once it is doomed, it is removed when nobody reads it any more.
pub(crate) struct SegmentFile {
    pub volume: Arc<dyn Volume>,
    pub id: SegmentId,
    pub name: String,
    doomed: AtomicBool,
}

impl SegmentFile {
    pub fn new(volume: Arc<dyn Volume>, id: SegmentId) -> Arc<SegmentFile> {
        Arc::new(SegmentFile { volume, name: id.file(), id, doomed: AtomicBool::new(false) })
    }

    /// Lets the file go. The log must say already that it is not needed: a removal may come to nothing.
    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// The data of `entry`, checked, in `scratch`.
    pub fn read<'a>(&self, entry: &Entry, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], ReplicaError> {
        scratch.resize(entry.stored as usize, 0);
        self.fill(entry.position, scratch)?;
        let bad = |what| self.damaged(format!("the record at byte {} {what}", entry.position));
        if !entry.fits(scratch) {
            return Err(bad("does not fit its checksum"));
        }
        entry.data(scratch).ok_or_else(|| bad("cannot be expanded"))
    }

    fn fill(&self, at: u64, buffer: &mut [u8]) -> Result<(), ReplicaError> {
        self.volume.read_at(&self.name, at, buffer).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => self.damaged("the file is missing"),
            std::io::ErrorKind::UnexpectedEof => self.damaged("the file is too short"),
            _ => ReplicaError::io(format!("reading {}", self.volume.describe(&self.name)), error),
        })
    }

    fn damaged(&self, why: impl Into<String>) -> ReplicaError {
        ReplicaError::damaged(self.volume.describe(&self.name), why)
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire)
            && let Err(error) = self.volume.remove(&self.name)
        {
            // The next opening finds it without an owner and removes it then.
            tracing::debug!(file = self.name, %error, "a segment that is not needed could not be removed");
        }
    }
}

/// Before-images of one disk, by offset.
pub(crate) trait Images {
    /// Appends the entries that overlap `wanted` to `hits`, ascending.
    fn hits(&self, wanted: Extent, hits: &mut Vec<Entry>) -> Result<(), ReplicaError>;
    /// Where their data is.
    fn file(&self) -> &SegmentFile;
}

/// A segment of a sealed epoch.
pub(crate) struct Segment {
    file: Arc<SegmentFile>,
    sealed: SealedFile,
    /// What was wrong with the file when the replica was opened.
    flaw: Option<&'static str>,
    index: OnceLock<Vec<Entry>>,
}

impl Segment {
    pub fn new(file: Arc<SegmentFile>, sealed: SealedFile, flaw: Option<&'static str>) -> Segment {
        Segment { file, sealed, flaw, index: OnceLock::new() }
    }

    /// Refuses a segment of which it is known that it cannot be read.
    pub fn usable(&self) -> Result<(), ReplicaError> {
        self.flaw.map_or(Ok(()), |why| Err(self.file.damaged(why)))
    }

    pub fn doom(&self) {
        self.file.doom();
    }

    /// Its entries, read and checked when they are first asked for.
    pub fn index(&self) -> Result<&[Entry], ReplicaError> {
        self.usable()?;
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let index = self.load()?;
        Ok(self.index.get_or_init(|| index))
    }

    fn load(&self) -> Result<Vec<Entry>, ReplicaError> {
        let (file, length) = (&self.file, self.sealed.length);
        let bad = |what: &str| file.damaged(format!("its {what} is not the one that was sealed"));
        let mut sector = [0; SECTOR as usize];
        file.fill(0, &mut sector)?;
        if !file.id.is_header(&sector) {
            return Err(bad("header"));
        }
        let footer_at = length.checked_sub(SECTOR).ok_or_else(|| bad("length"))?;
        file.fill(footer_at, &mut sector)?;
        let (start, count) = decode_footer(&file.id, self.sealed.footer, &sector).ok_or_else(|| bad("footer"))?;
        let pages =
            footer_at.checked_sub(start).filter(|bytes| bytes.is_multiple_of(PAGE)).ok_or_else(|| bad("footer"))?
                / PAGE;
        let mut entries: Vec<Entry> = Vec::new();
        let mut page = [0; PAGE as usize];
        for number in 0..pages {
            file.fill(start + number * PAGE, &mut page)?;
            entries.extend(decode_page(&file.id, number, &page).ok_or_else(|| bad("index"))?);
        }
        let ordered = entries.windows(2).all(|pair| pair[0].end() <= pair[1].offset);
        let inside = entries.iter().all(|e| e.is_zero() || e.position.saturating_add(e.stored) <= start);
        if entries.len() as u64 != count || !ordered || !inside {
            return Err(bad("index"));
        }
        Ok(entries)
    }
}

impl Images for Segment {
    fn hits(&self, wanted: Extent, hits: &mut Vec<Entry>) -> Result<(), ReplicaError> {
        let index = self.index()?;
        let first = index.partition_point(|entry| entry.end() <= wanted.offset);
        hits.extend(index[first..].iter().take_while(|entry| entry.offset < wanted.end()));
        Ok(())
    }
    fn file(&self) -> &SegmentFile {
        &self.file
    }
}

/// The segment of one disk in the open epoch: its entries are published here before the replica is written.
pub(crate) struct OpenSegment {
    pub file: Arc<SegmentFile>,
    pub index: RwLock<BTreeMap<u64, Entry>>,
}

impl OpenSegment {
    pub fn new(file: Arc<SegmentFile>, entries: Vec<Entry>) -> OpenSegment {
        OpenSegment { file, index: RwLock::new(entries.into_iter().map(|entry| (entry.offset, entry)).collect()) }
    }

    /// The parts of `wanted` that have no before-image yet.
    pub fn uncovered(&self, wanted: Extent, gaps: &mut Vec<Extent>) {
        let mut hits = Vec::new();
        self.overlapping(wanted, &mut hits);
        let mut at = wanted.offset;
        for hit in hits {
            if at < hit.offset {
                gaps.push(Extent::new(at, hit.offset - at));
            }
            at = hit.end();
        }
        if at < wanted.end() {
            gaps.push(Extent::new(at, wanted.end() - at));
        }
    }

    /// All entries, ascending.
    pub fn entries(&self) -> Vec<Entry> {
        self.index.read().expect("nobody panics here").values().copied().collect()
    }

    fn overlapping(&self, wanted: Extent, hits: &mut Vec<Entry>) {
        let index = self.index.read().expect("nobody panics here");
        let before = index.range(..=wanted.offset).next_back().map(|(_, entry)| *entry);
        hits.extend(before.filter(|entry| entry.end() > wanted.offset));
        if wanted.length > 1 {
            hits.extend(index.range(wanted.offset + 1..wanted.end()).map(|(_, entry)| *entry));
        }
    }
}

impl Images for OpenSegment {
    fn hits(&self, wanted: Extent, hits: &mut Vec<Entry>) -> Result<(), ReplicaError> {
        self.overlapping(wanted, hits);
        Ok(())
    }
    fn file(&self) -> &SegmentFile {
        &self.file
    }
}

/// A point, and the way to the next one once there is a next one.
pub(crate) struct Node {
    pub point: Point,
    next: OnceLock<Step>,
}

/// What leads from a point to the next: by disk, the before-images of the epoch between them.
pub(crate) struct Step {
    pub segments: Vec<Option<Segment>>,
    pub to: Arc<Node>,
}

impl Node {
    pub fn new(point: Point) -> Arc<Node> {
        Arc::new(Node { point, next: OnceLock::new() })
    }
    pub fn next(&self) -> Option<&Step> {
        self.next.get()
    }
    /// Makes `step` the way onwards. A point gets one successor, once.
    pub fn link(&self, step: Step) {
        assert!(self.next.set(step).is_ok(), "a point has one successor");
    }
}

impl Drop for Node {
    /// Lets go of a long chain without a recursion as deep as the chain is long.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(step) = next {
            next = Arc::into_inner(step.to).and_then(|mut node| node.next.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Attempt, PointKind};

    #[test]
    fn a_chain_of_a_day_of_seconds_is_let_go_without_overflowing_the_stack() {
        let point = |number| Point {
            attempt: Attempt { generation: 1, number },
            cut_at_ms: 0,
            sealed_at_ms: 0,
            kind: PointKind::CrashConsistent,
            changed_bytes: 0,
        };
        let first = Node::new(point(0));
        let mut last = first.clone();
        for number in 1..86_400 {
            let node = Node::new(point(number));
            last.link(Step { segments: vec![], to: node.clone() });
            last = node;
        }
        drop(last);
        drop(first);
    }
}
