//! The segments of a replica in memory: where before-images are found.
//!
//! An index stays on disk, ordered by offset: a search reads a few of its pages, each with its own checksum, and keeps
//! those it met lately ([`crate::pages`]). So what is in memory goes by what is read, never by how much history there is.
//!
//! A segment's file goes when it is doomed and the last that reads it lets go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use protocol::Extent;

use crate::error::ReplicaError;
use crate::index::{PAGE_ENTRIES, decode_footer, decode_page};
use crate::log::{Origin, SealedFile};
use crate::pages::PageCache;
use crate::segment::{Entry, PAGE, SECTOR, SegmentId};
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
    fn hits(&self, pages: &Pages, wanted: Extent, hits: &mut Vec<Entry>) -> Result<(), ReplicaError>;
    /// Where their data is.
    fn file(&self) -> &SegmentFile;
}

/// A segment of a sealed epoch, or of several that were merged.
pub(crate) struct Segment {
    file: Arc<SegmentFile>,
    pub sealed: SealedFile,
    /// What was wrong with the file when the replica was opened.
    flaw: Option<&'static str>,
    index: OnceLock<Index>,
}

/// Where the index of a segment lies in its file.
#[derive(Clone, Copy)]
struct Index {
    start: u64,
    count: u64,
    pages: u64,
}

/// Pages of segments' indexes that were read lately, by the segment's number and disk.
pub(crate) type Pages = PageCache<(u64, u16, u64), Entry>;

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

    /// The same file, for a step that leads over more.
    pub fn carried(&self) -> Segment {
        let origin = Some(Origin { opened: self.file.id.opened, attempt: self.file.id.attempt });
        Segment::new(self.file.clone(), SealedFile { origin, ..self.sealed }, self.flaw)
    }

    pub fn is_file(&self, other: &Segment) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }

    /// Its entries from `offset` on, ascending, one page in memory at a time.
    pub fn entries(&self, offset: u64) -> Result<Entries<'_>, ReplicaError> {
        let mut entries = Entries { segment: self, index: self.index()?, next: 0, page: Arc::default(), at: 0 };
        entries.next = self.page_of(offset, |page| self.page(page))?;
        entries.skip_to(offset)?;
        Ok(entries)
    }

    fn index(&self) -> Result<Index, ReplicaError> {
        self.usable()?;
        if let Some(index) = self.index.get() {
            return Ok(*index);
        }
        let index = self.find_index()?;
        Ok(*self.index.get_or_init(|| index))
    }

    fn bad(&self, what: &str) -> ReplicaError {
        self.file.damaged(format!("its {what} is not the one that was sealed"))
    }

    fn find_index(&self) -> Result<Index, ReplicaError> {
        let (file, length) = (&self.file, self.sealed.length);
        let mut sector = [0; SECTOR as usize];
        file.fill(0, &mut sector)?;
        if !file.id.is_header(&sector) {
            return Err(self.bad("header"));
        }
        let footer_at = length.checked_sub(SECTOR).ok_or_else(|| self.bad("length"))?;
        file.fill(footer_at, &mut sector)?;
        let found = decode_footer(&file.id, self.sealed.footer, &sector);
        let (start, count) = found.ok_or_else(|| self.bad("footer"))?;
        let pages = footer_at.checked_sub(start).filter(|bytes| bytes.is_multiple_of(PAGE));
        let pages = pages.ok_or_else(|| self.bad("footer"))? / PAGE;
        if count.div_ceil(PAGE_ENTRIES as u64) != pages {
            return Err(self.bad("footer"));
        }
        Ok(Index { start, count, pages })
    }

    /// A page of the index, read and checked.
    fn page(&self, number: u64) -> Result<Arc<[Entry]>, ReplicaError> {
        let index = self.index()?;
        let mut bytes = [0; PAGE as usize];
        self.file.fill(index.start + number * PAGE, &mut bytes)?;
        let entries = decode_page(&self.file.id, number, &bytes).ok_or_else(|| self.bad("index"))?;
        let wanted = (index.count - number * PAGE_ENTRIES as u64).min(PAGE_ENTRIES as u64);
        let ordered = entries.windows(2).all(|pair| pair[0].end() <= pair[1].offset);
        let inside = entries.iter().all(|e| e.is_zero() || e.position.saturating_add(e.stored) <= index.start);
        if entries.len() as u64 != wanted || !ordered || !inside {
            return Err(self.bad("index"));
        }
        Ok(entries.into())
    }

    /// The first page with an entry that ends behind `offset`; the number of pages when there is none.
    fn page_of(
        &self,
        offset: u64,
        page: impl Fn(u64) -> Result<Arc<[Entry]>, ReplicaError>,
    ) -> Result<u64, ReplicaError> {
        let (mut low, mut high) = (0, self.index()?.pages);
        while low < high {
            let middle = low + (high - low) / 2;
            if page(middle)?.last().is_some_and(|last| last.end() <= offset) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

impl Images for Segment {
    fn hits(&self, pages: &Pages, wanted: Extent, hits: &mut Vec<Entry>) -> Result<(), ReplicaError> {
        let id = &self.file.id;
        let page = |number| pages.get((id.opened, id.disk, number), || self.page(number));
        for number in self.page_of(wanted.offset, page)?..self.index()?.pages {
            let page = page(number)?;
            let first = page.partition_point(|entry| entry.end() <= wanted.offset);
            hits.extend(page[first..].iter().take_while(|entry| entry.offset < wanted.end()));
            if page.last().is_some_and(|last| last.end() >= wanted.end()) {
                break;
            }
        }
        Ok(())
    }
    fn file(&self) -> &SegmentFile {
        &self.file
    }
}

/// Walks over the entries of a segment.
pub(crate) struct Entries<'a> {
    pub segment: &'a Segment,
    index: Index,
    next: u64,
    page: Arc<[Entry]>,
    at: usize,
}

impl Entries<'_> {
    /// Goes on to the first entry that ends behind `offset`.
    pub fn skip_to(&mut self, offset: u64) -> Result<(), ReplicaError> {
        loop {
            match self.page.get(self.at) {
                Some(entry) if entry.end() <= offset => self.at += 1,
                Some(_) => return Ok(()),
                None if self.next >= self.index.pages => return Ok(()),
                None => {
                    self.page = self.segment.page(self.next)?;
                    (self.next, self.at) = (self.next + 1, 0);
                }
            }
        }
    }

    /// The entry that it stands on; none at the end.
    pub fn entry(&self) -> Option<Entry> {
        self.page.get(self.at).copied()
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
    fn hits(&self, _: &Pages, wanted: Extent, hits: &mut Vec<Entry>) -> Result<(), ReplicaError> {
        self.overlapping(wanted, hits);
        Ok(())
    }
    fn file(&self) -> &SegmentFile {
        &self.file
    }
}
