//! A run: one index over the segments of many neighbouring epochs, which says of each block the oldest epoch that has it.
//!
//! ```text
//!   ┌────────┬──────────────────────────────────────────────┐
//!   │ header │ pages of 4 KiB: (disk, offset, length) → epoch │     by disk and offset
//!   └────────┴──────────────────────────────────────────────┘
//! ```
//! A run covers the numbers behind `start` up to `end`. A view of a point at or before `start` that has looked at
//! everything up to some number inside needs the run and none of its segments' indexes: of a block that it still misses,
//! the run's epoch is the oldest one, and the segment that now leads over that epoch has its image. That stays so when
//! points inside are thinned away, so runs outlive thinning.
//!
//! Runs are derived: nothing is synced, everything is checked, and one that does not fit is thrown away and made anew.

use std::sync::{Arc, OnceLock};

use protocol::{Extent, Lineage};
use twox_hash::XxHash3_64;

use crate::error::ReplicaError;
use crate::fields::{Fields, Put};
use crate::manifest::FORMAT;
use crate::pages::PageCache;
use crate::segment::{PAGE, SECTOR};
use crate::sweep::Ascending;
use crate::volume::Volume;

pub(crate) const RUN_SUFFIX: &str = ".run";
const HEADER_MAGIC: &[u8; 8] = b"SKYERUNS";
pub(crate) const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"SKRP");
/// So many windows of one level make one of the next.
const FAN: u64 = 8;
/// Numbers in a window of the lowest level: with two records for each epoch, eight epochs.
const LOWEST: u64 = 2 * FAN;
pub(crate) const LEVELS: u8 = 8;
const PAGE_ENTRIES: usize = 169;
/// An entry holds less than this (bytes); the disk is in the upper 8 bits.
const LENGTH_BITS: u32 = 56;

/// Which numbers a run covers: those behind `start` up to `end()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Window {
    pub level: u8,
    pub start: u64,
}

impl Window {
    /// The window of `level` that the number behind `number` lies in.
    pub fn behind(level: u8, number: u64) -> Window {
        let width = Window { level, start: 0 }.width();
        Window { level, start: number / width * width }
    }
    fn width(self) -> u64 {
        LOWEST * FAN.pow(u32::from(self.level))
    }
    pub fn end(self) -> u64 {
        self.start.saturating_add(self.width())
    }
    pub fn file(self) -> String {
        format!("{:012}-{}{RUN_SUFFIX}", self.start, self.level)
    }
    /// The window whose run has this file name.
    pub fn of_file(name: &str) -> Option<Window> {
        let (start, level) = name.strip_suffix(RUN_SUFFIX)?.split_once('-')?;
        let window = Window { level: level.parse().ok()?, start: start.parse().ok()? };
        (window.level < LEVELS && window.start.is_multiple_of(window.width()) && window.file() == name)
            .then_some(window)
    }
}

/// Of `extent` on `disk`, `epoch` has the oldest image in the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oldest {
    pub disk: u16,
    pub extent: Extent,
    pub epoch: u64,
}

/// Pages of runs that were read lately.
pub(crate) type RunPages = PageCache<(Window, u64), Oldest>;

/// A run on the retention volume. Its file goes when it is doomed and nobody reads it.
pub(crate) struct Run {
    volume: Arc<dyn Volume>,
    lineage: Lineage,
    pub window: Window,
    /// The length of its file (bytes).
    pub length: u64,
    header: OnceLock<()>,
    doomed: std::sync::atomic::AtomicBool,
}

impl Run {
    pub fn new(volume: Arc<dyn Volume>, lineage: Lineage, window: Window, length: u64) -> Run {
        Run { volume, lineage, window, length, header: OnceLock::new(), doomed: false.into() }
    }

    pub fn doom(&self) {
        self.doomed.store(true, std::sync::atomic::Ordering::Release);
    }

    pub fn damaged(&self, why: &str) -> ReplicaError {
        ReplicaError::damaged(self.volume.describe(&self.window.file()), why)
    }

    fn unfit(&self) -> ReplicaError {
        self.damaged("it does not fit its checksums")
    }

    fn pages(&self) -> u64 {
        self.length.saturating_sub(SECTOR) / PAGE
    }

    fn header(&self) -> Vec<u8> {
        let mut header = HEADER_MAGIC.to_vec();
        header.put_u32(FORMAT);
        header.put_u32(u32::from(self.window.level));
        header.extend_from_slice(self.lineage.0.as_bytes());
        header.put_u64(self.window.start);
        header.put_u64(self.length);
        header.resize(SECTOR as usize - 8, 0);
        let checksum = XxHash3_64::oneshot(&header);
        header.put_u64(checksum);
        header
    }

    fn fill(&self, at: u64, buffer: &mut [u8]) -> Result<(), ReplicaError> {
        let name = self.window.file();
        let read = self.volume.read_at(&name, at, buffer);
        read.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof => self.unfit(),
            _ => ReplicaError::io(format!("reading {}", self.volume.describe(&name)), error),
        })
    }

    /// Checks the header, once. It tells the file's length, so a run that was cut off shows, even to nothing.
    fn is_whole(&self) -> Result<(), ReplicaError> {
        if self.header.get().is_none() {
            let mut found = [0; SECTOR as usize];
            self.fill(0, &mut found)?;
            if found[..] != self.header()[..] {
                return Err(self.unfit());
            }
            let _ = self.header.set(());
        }
        Ok(())
    }

    fn page(&self, number: u64) -> Result<Arc<[Oldest]>, ReplicaError> {
        let mut bytes = [0; PAGE as usize];
        self.fill(SECTOR + number * PAGE, &mut bytes)?;
        decode(self.window, number, &bytes).map(Arc::from).ok_or_else(|| self.unfit())
    }

    /// The first page with an entry of `disk` that ends behind `offset`.
    fn page_of(
        &self,
        disk: u16,
        offset: u64,
        page: impl Fn(u64) -> Result<Arc<[Oldest]>, ReplicaError>,
    ) -> Result<u64, ReplicaError> {
        self.is_whole()?;
        let (mut low, mut high) = (0, self.pages());
        while low < high {
            let middle = low + (high - low) / 2;
            if page(middle)?.last().is_some_and(|last| (last.disk, last.extent.end()) <= (disk, offset)) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    /// Appends what overlaps `wanted` to `hits`, ascending.
    pub fn hits(
        &self,
        pages: &RunPages,
        disk: u16,
        wanted: Extent,
        hits: &mut Vec<Oldest>,
    ) -> Result<(), ReplicaError> {
        let page = |number| pages.get((self.window, number), || self.page(number));
        for number in self.page_of(disk, wanted.offset, page)?..self.pages() {
            let page = page(number)?;
            let first = page.partition_point(|e| (e.disk, e.extent.end()) <= (disk, wanted.offset));
            let overlaps = |e: &&Oldest| e.disk == disk && e.extent.offset < wanted.end();
            hits.extend(page[first..].iter().take_while(overlaps));
            if page.last().is_some_and(|last| (last.disk, last.extent.end()) >= (disk, wanted.end())) {
                break;
            }
        }
        Ok(())
    }

    /// Reads all of it, without keeping any.
    pub fn verify(&self) -> Result<(), ReplicaError> {
        self.is_whole()?;
        (0..self.pages()).try_for_each(|page| self.page(page).map(drop))
    }

    /// Its entries of one disk, ascending.
    pub fn entries(&self, disk: u16) -> Result<RunEntries<'_>, ReplicaError> {
        let next = self.page_of(disk, 0, |page| self.page(page))?;
        let mut entries = RunEntries { run: self, disk, next, page: Arc::default(), at: 0 };
        entries.skip_to(0)?;
        Ok(entries)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.doomed.load(std::sync::atomic::Ordering::Acquire) {
            // What stays is found and removed by the next opening.
            let _ = self.volume.remove(&self.window.file());
        }
    }
}

/// Walks over a run's entries of one disk.
pub(crate) struct RunEntries<'a> {
    run: &'a Run,
    disk: u16,
    next: u64,
    page: Arc<[Oldest]>,
    at: usize,
}

impl RunEntries<'_> {
    pub fn entry(&self) -> Option<Oldest> {
        self.page.get(self.at).copied().filter(|entry| entry.disk == self.disk)
    }
}

impl Ascending for RunEntries<'_> {
    fn extent(&self) -> Option<Extent> {
        self.entry().map(|entry| entry.extent)
    }
    fn skip_to(&mut self, offset: u64) -> Result<(), ReplicaError> {
        loop {
            match self.page.get(self.at) {
                Some(entry) if (entry.disk, entry.extent.end()) <= (self.disk, offset) => self.at += 1,
                None if self.next < self.run.pages() => {
                    self.page = self.run.page(self.next)?;
                    (self.next, self.at) = (self.next + 1, 0);
                }
                _ => return Ok(()),
            }
        }
    }
}

pub(crate) fn decode(window: Window, number: u64, bytes: &[u8]) -> Option<Vec<Oldest>> {
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(body) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut fields = Fields(body);
    let (magic, count) = (fields.u32()?, fields.u32()? as usize);
    let own = [fields.u64()?, fields.u64()?, fields.u64()?] == [window.start, u64::from(window.level), number];
    if magic != PAGE_MAGIC || count == 0 || count > PAGE_ENTRIES || !own {
        return None;
    }
    let mut entries: Vec<Oldest> = Vec::with_capacity(count);
    for _ in 0..count {
        let (word, offset, epoch) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (disk, length) = ((word >> LENGTH_BITS) as u16, word & ((1 << LENGTH_BITS) - 1));
        let entry = Oldest { disk, extent: Extent::new(offset, length), epoch };
        let behind = |last: &Oldest| (last.disk, last.extent.end()) <= (disk, offset);
        if length == 0 || offset.checked_add(length).is_none() || !entries.last().is_none_or(behind) {
            return None;
        }
        entries.push(entry);
    }
    Some(entries)
}

/// A run while it is written.
pub(crate) struct Writing {
    run: Run,
    pending: Vec<Oldest>,
    page: Vec<u8>,
    pages: u64,
}

impl Writing {
    pub fn begin(volume: Arc<dyn Volume>, lineage: Lineage, window: Window) -> Result<Writing, ReplicaError> {
        let writing =
            Writing { run: Run::new(volume, lineage, window, 0), pending: Vec::new(), page: Vec::new(), pages: 0 };
        // Until the run is whole, a failure takes its file away.
        writing.run.doom();
        let made = writing.run.volume.create(&window.file());
        made.map_err(|error| ReplicaError::io(format!("making {}", window.file()), error))?;
        Ok(writing)
    }

    /// Takes the next entry, by disk and offset.
    pub fn push(&mut self, mut entry: Oldest) -> Result<(), ReplicaError> {
        let most = (1 << LENGTH_BITS) - 4096;
        while entry.extent.length > most {
            self.push(Oldest { extent: Extent::new(entry.extent.offset, most), ..entry })?;
            entry.extent = Extent::new(entry.extent.offset + most, entry.extent.length - most);
        }
        if let Some(last) = self.pending.last_mut()
            && (last.disk, last.epoch, last.extent.end()) == (entry.disk, entry.epoch, entry.extent.offset)
            && last.extent.length + entry.extent.length <= most
        {
            last.extent.length += entry.extent.length;
            return Ok(());
        }
        if self.pending.len() == PAGE_ENTRIES {
            self.page()?;
        }
        self.pending.push(entry);
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), ReplicaError> {
        let name = self.run.window.file();
        let written = self.run.volume.write_at(&name, at, bytes);
        written.map_err(|error| ReplicaError::io(format!("writing {}", self.run.volume.describe(&name)), error))
    }

    fn page(&mut self) -> Result<(), ReplicaError> {
        let window = self.run.window;
        let mut page = std::mem::take(&mut self.page);
        page.clear();
        page.put_u32(PAGE_MAGIC);
        page.put_u32(self.pending.len() as u32);
        page.put_u64(window.start);
        page.put_u64(u64::from(window.level));
        page.put_u64(self.pages);
        for entry in &self.pending {
            page.put_u64(u64::from(entry.disk) << LENGTH_BITS | entry.extent.length);
            page.put_u64(entry.extent.offset);
            page.put_u64(entry.epoch);
        }
        page.resize(PAGE as usize - 8, 0);
        let checksum = XxHash3_64::oneshot(&page);
        page.put_u64(checksum);
        self.write(SECTOR + self.pages * PAGE, &page)?;
        self.pages += 1;
        self.pending.clear();
        self.page = page;
        Ok(())
    }

    /// The whole run. It is not synced: what a power cut leaves of it shows by its checksums.
    pub fn finish(mut self) -> Result<Run, ReplicaError> {
        if !self.pending.is_empty() {
            self.page()?;
        }
        self.run.length = SECTOR + self.pages * PAGE;
        let header = self.run.header();
        self.write(0, &header)?;
        self.run.doomed.store(false, std::sync::atomic::Ordering::Release);
        Ok(self.run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Folder;

    #[test]
    fn windows_of_a_level_touch_and_each_lies_in_one_of_the_next() {
        for level in 0..LEVELS - 1 {
            for number in [0, 1, 15, 16, 127, 128, 1_000_000, 86_400 * 2] {
                let (low, high) = (Window::behind(level, number), Window::behind(level + 1, number));
                assert!(low.start <= number && number < low.end());
                assert!(high.start <= low.start && low.end() <= high.end());
                assert_eq!(Window::behind(level, low.end()).start, low.end());
                assert_eq!(Window::of_file(&low.file()), Some(low));
            }
        }
        for bad in ["000000000016-0.segment", "16-0.run", "000000000017-0.run", "000000000016-9.run", "x-0.run", ".run"]
        {
            assert_eq!(Window::of_file(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_run_gives_back_what_was_put_in_and_no_flipped_bit_goes_unnoticed() {
        let directory = tempfile::tempdir().unwrap();
        let folder: Arc<dyn Volume> = Arc::new(Folder::open(directory.path()).unwrap());
        let (lineage, window) = (Lineage::fresh(), Window::behind(1, 200));
        let mut writing = Writing::begin(folder.clone(), lineage, window).unwrap();
        let entry =
            |n: u64| Oldest { disk: (n / 300) as u16, extent: Extent::new(n % 300 * 8192, 4096), epoch: 129 + n % 5 };
        let all: Vec<Oldest> = (0..900).map(entry).collect();
        all.iter().for_each(|entry| writing.push(*entry).unwrap());
        let run = writing.finish().unwrap();
        let pages = RunPages::default();
        for disk in 0..4u16 {
            let mut hits = Vec::new();
            run.hits(&pages, disk, Extent::new(0, 1 << 40), &mut hits).unwrap();
            let wanted: Vec<Oldest> = all.iter().copied().filter(|entry| entry.disk == disk).collect();
            assert_eq!(hits, wanted);
            let mut walk = run.entries(disk).unwrap();
            let mut walked = Vec::new();
            while let Some(entry) = walk.entry() {
                walked.push(entry);
                walk.skip_to(entry.extent.end()).unwrap();
            }
            assert_eq!(walked, wanted);
        }
        let mut hits = Vec::new();
        run.hits(&pages, 1, Extent::new(8192 * 7 + 4095, 2), &mut hits).unwrap();
        assert_eq!(hits, [all[307]]);
        let path = directory.path().join(window.file());
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len() as u64, run.length);
        for at in (0..good.len()).step_by(97) {
            let mut bad = good.clone();
            bad[at] ^= 16;
            std::fs::write(&path, &bad).unwrap();
            let run = Run::new(folder.clone(), lineage, window, good.len() as u64);
            assert!(run.verify().is_err(), "byte {at}");
            std::fs::write(&path, &good[..at]).unwrap();
            let run = Run::new(folder.clone(), lineage, window, at as u64);
            assert!(run.hits(&RunPages::default(), 0, Extent::new(0, 1), &mut vec![]).is_err(), "cut off at {at}");
        }
        std::fs::write(&path, &good).unwrap();
        let other = Run::new(folder, Lineage::fresh(), window, good.len() as u64);
        assert!(other.verify().is_err(), "a run of another replica");
    }
}
