//! Reads the segments of an epoch that was open when everything stopped, and tells a torn tail from damage.
//!
//! A power cut leaves of an unsynced frame any subset of its sectors; the others are blank, or beyond the end of the
//! file. Such a frame is cut off: nothing was written to the replica on its account. Anything else that does not fit
//! its checksum was whole once and is refused, because the replica may have been written over what it held:
//!
//! ```text
//!   frame 0 ✓   frame 1 ✗, a blank sector        → torn: cut
//!   frame 0 ✓   frame 1 ✗, no blank sector       → damaged: refused
//!   frame 0 ✗   frame 1 ✓ "all before was durable" → damaged: refused
//! ```
//!
//! What cannot be told apart: damage to the data of the very last frames that happens to leave a sector blank.

use protocol::Extent;
use std::io;

use crate::error::ReplicaError;
use crate::fields::blank;
use crate::index::{PAGE_MAGIC, page_number};
use crate::segment::{Entry, FRAME_MAGIC, PAGE, SECTOR, SegmentId, Table, sectors, table_length};
use crate::volume::Volume;

/// What one segment of the open epoch holds.
pub(crate) struct Scan {
    /// The before-images of all whole frames.
    pub entries: Vec<Entry>,
    /// Where the last whole frame ends.
    pub end: u64,
    /// How many whole frames there are.
    pub frames: u64,
    /// How much of this segment is durable for certain, as the frames of all of them say.
    pub sure: u64,
    /// How long every disk's segment must be, as the frames that were found say.
    pub durable: Vec<u64>,
}

struct Reader<'a> {
    volume: &'a dyn Volume,
    id: &'a SegmentId,
    name: String,
    length: u64,
}

impl Reader<'_> {
    /// The bytes at `at`, fewer where the file ends.
    fn read(&self, at: u64, length: u64) -> Result<Vec<u8>, ReplicaError> {
        let mut bytes = vec![0; length.min(self.length.saturating_sub(at)) as usize];
        if !bytes.is_empty() {
            self.volume.read_at(&self.id.file(), at, &mut bytes).map_err(|e| self.failed(e))?;
        }
        Ok(bytes)
    }
    fn failed(&self, error: io::Error) -> ReplicaError {
        ReplicaError::io(format!("reading {}", self.name), error)
    }
    fn damaged(&self, at: u64, what: &str) -> ReplicaError {
        ReplicaError::damaged(&self.name, format!("{what} at byte {at} does not fit its checksum"))
    }
    /// Whether a power cut can have left `bytes` of something `wanted` bytes long: a part is missing or blank.
    fn torn(bytes: &[u8], wanted: u64) -> bool {
        (bytes.len() as u64) < wanted || bytes.chunks(SECTOR as usize).any(blank)
    }
}

/// Reads the segment `id`, which must exist.
pub(crate) fn scan(volume: &dyn Volume, id: &SegmentId) -> Result<Scan, ReplicaError> {
    let name = volume.describe(&id.file());
    let length = match volume.length(&id.file()) {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ReplicaError::damaged(name, "the file is missing"));
        }
        Err(error) => return Err(ReplicaError::io(format!("reading {name}"), error)),
    };
    let reader = Reader { volume, id, name, length };
    let mut scan = Scan { entries: Vec::new(), end: 0, frames: 0, sure: 0, durable: vec![0; usize::from(id.disks)] };
    let header = reader.read(0, SECTOR)?;
    if !id.is_header(&header) {
        if !Reader::torn(&header, SECTOR) {
            return Err(reader.damaged(0, "the header"));
        }
        reader.look_behind(0, &mut scan)?;
        return Ok(scan);
    }
    scan.end = SECTOR;
    while let Some(table) = reader.frame(scan.end, scan.frames)? {
        scan.end += table.length;
        scan.frames += 1;
        scan.note(&table);
        scan.entries.extend(table.entries);
    }
    reader.look_behind(scan.end, &mut scan)?;
    Ok(scan)
}

impl Scan {
    fn note(&mut self, table: &Table) {
        for (known, told) in self.durable.iter_mut().zip(&table.durable) {
            *known = (*known).max(*told);
        }
    }
}

impl Reader<'_> {
    /// The whole frame at `at`; none where the frames end, cleanly or torn.
    fn frame(&self, at: u64, number: u64) -> Result<Option<Table>, ReplicaError> {
        let first = self.read(at, SECTOR)?;
        if Self::torn(&first, SECTOR) || first.starts_with(&PAGE_MAGIC.to_le_bytes()) {
            return Ok(None);
        }
        let wanted = table_length(&first).ok_or_else(|| self.damaged(at, "a frame"))?;
        let bytes = self.read(at, wanted)?;
        let Some(table) = Table::decode(self.id, at, &bytes) else {
            return if Self::torn(&bytes, wanted) { Ok(None) } else { Err(self.damaged(at, "a frame's table")) };
        };
        if table.number != number {
            return Err(self.damaged(at, "a frame's number"));
        }
        for entry in table.entries.iter().filter(|entry| !entry.is_zero()) {
            let data = self.read(entry.position, entry.stored)?;
            if entry.fits(&data) {
                continue;
            }
            // Sectors are torn whole, so the sectors that the record touches are looked at.
            let start = entry.position / SECTOR * SECTOR;
            let wanted = sectors(entry.position + entry.stored) - start;
            let touched = self.read(start, wanted)?;
            return if Self::torn(&touched, wanted) { Ok(None) } else { Err(self.damaged(entry.position, "a record")) };
        }
        Ok(Some(table))
    }

    /// Looks for later frames behind the end: they tell what was durable.
    fn look_behind(&self, end: u64, scan: &mut Scan) -> Result<(), ReplicaError> {
        let mut at = end.max(SECTOR);
        while at + SECTOR <= self.length {
            let window = self.read(at, 1 << 20)?;
            for (sector, bytes) in window.chunks_exact(SECTOR as usize).enumerate() {
                let here = at + sector as u64 * SECTOR;
                if bytes.starts_with(&FRAME_MAGIC.to_le_bytes()) {
                    let table = self.read(here, table_length(bytes).unwrap_or(0))?;
                    if let Some(table) = Table::decode(self.id, here, &table) {
                        scan.note(&table);
                    }
                } else if bytes.starts_with(&PAGE_MAGIC.to_le_bytes())
                    && let Some(page) = page_number(self.id, &self.read(here, PAGE)?)
                    && let Some(mine) = scan.durable.get_mut(usize::from(self.id.disk))
                {
                    // The index is written when all frames are durable, and they end where it starts.
                    *mine = (*mine).max(here.saturating_sub(page * PAGE));
                }
            }
            at += window.len() as u64 / SECTOR * SECTOR;
        }
        Ok(())
    }
}

/// The segments of an open epoch, by disk: all frames that may have been followed by a write.
pub(crate) fn scan_all(volume: &dyn Volume, ids: &[SegmentId]) -> Result<Vec<Scan>, ReplicaError> {
    let mut scans = ids.iter().map(|id| scan(volume, id)).collect::<Result<Vec<_>, _>>()?;
    let sure: Vec<u64> =
        (0..scans.len()).map(|disk| scans.iter().map(|scan| scan.durable[disk]).max().unwrap_or(0)).collect();
    for (disk, (id, own)) in ids.iter().zip(&mut scans).enumerate() {
        let name = || volume.describe(&id.file());
        own.sure = sure[disk];
        if own.end < own.sure {
            return Err(ReplicaError::damaged(name(), format!("what follows byte {} was durable once", own.end)));
        }
        let mut extents: Vec<Extent> = own.entries.iter().map(|e| Extent::new(e.offset, e.length)).collect();
        extents.sort_unstable();
        if extents.windows(2).any(|pair| pair[0].end() > pair[1].offset) {
            return Err(ReplicaError::damaged(name(), "it holds a block twice"));
        }
    }
    Ok(scans)
}
