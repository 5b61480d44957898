//! The log of a replica: the append-only file that says which epochs were begun, sealed and undone. It is the truth.
//!
//! ```text
//!   sector 0          1                 2        3                blank …
//!   ┌───────────────┬─────────────────┬─────────────────────────┬──────────────────────
//!   │ start         │ begun 1.7       │ sealed 1.7 (two parts)  │ reserved, all zero
//!   └───────────────┴─────────────────┴─────────────────────────┴──────────────────────
//!   sector = magic · part · parts · sequence · length · JSON … · XXH3 of the sector
//! ```
//!
//! # Always true
//! - A record is synced before the next one is written; so at most the last one can be torn, and a torn sector is blank:
//!   the rest of the file is reserved as zeroes, and a sector of 512 bytes is written whole or not at all.
//! - Hence a sector that is neither valid nor blank was damaged after it was written, and is refused: an acknowledged
//!   point is never mistaken for the trace of a power cut.
//! - Space for the record that ends an epoch is reserved before the epoch begins: a full volume cannot prevent undoing it.
//! - So a file that ends without reserved space was cut off later, would forget points that the disks hold, and is refused.
//!
//! # If power fails
//! - in an append: the record is there or is cut off at the next opening; what it would have acknowledged was not;
//! - in a rewrite (old records are dropped): it happens in a new file that is renamed when it is durable.

use protocol::{Attempt, ItemId, Lineage, Point};
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::Arc;

use crate::error::ReplicaError;
use crate::fields::blank;
use crate::log_sector::{MOST_PARTS, SECTOR, decode, encode};
use crate::volume::Volume;

pub(crate) const LOG: &str = "points.log";
const NEW: &str = "points.log.new";
/// When less than this is left, more is reserved (bytes); two records of the largest item fit.
const LOW: u64 = 64 * 1024;
const RESERVE: u64 = 128 * 1024;
/// A log ends with more blanks than this (bytes): `LOW` before an epoch begins, less its two records.
const LEAST: u64 = 4096;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// The first record of a log: whose it is, and what is left of records that were dropped.
    Start {
        format: u32,
        item: ItemId,
        lineage: Lineage,
        highest: Vec<Highest>,
        has_content: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        half_written: bool,
    },
    /// An epoch may write from now on. All its segment files exist.
    Begun(Begun),
    /// A point exists.
    Sealed(Sealed),
    /// Everything that the open epoch wrote was undone.
    RolledBack { opened: u64 },
    /// The points before this one are not kept any more.
    PrunedBefore { point: u64 },
    /// Files of this number may be written, which hold the before-images of several epochs. Nothing else: it makes the
    /// number unique.
    Merging { opened: u64 },
    /// The points between these two are not kept any more; the segments lead from `to` back to `after`.
    Thinned { after: u64, to: u64, segments: Vec<SealedFile> },
    /// The point is kept whatever the policy says.
    Pinned { point: u64 },
    /// It is not pinned any more.
    Unpinned { point: u64 },
}

/// The attempts that were used in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Highest {
    pub generation: u64,
    pub begun: u64,
    pub sealed: Option<u64>,
}

/// An epoch that may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// The sequence number of the record when it was first written: unique in the replica's life, part of file names.
    pub opened: u64,
    pub attempt: Attempt,
    /// Whether it keeps before-images. If not, no point from before it can be had any more, and until it is sealed the
    /// disks are half written.
    pub journalled: bool,
}

/// A point, and the segments that lead from it back to the point before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    pub point: Point,
    /// That of its `Begun`, or the sequence number of this record when it was first written, for a point that was made
    /// without an epoch. Rising from point to point; other records name the point by it.
    pub opened: u64,
    pub segments: Vec<SealedFile>,
}

/// What the point record says of one segment: a file that differs is not the one that was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedFile {
    pub disk: u16,
    pub length: u64,
    /// The checksum at the end of the segment's last sector.
    pub footer: u64,
    /// What the file says of itself, where that is not the point's own epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// The identity of a segment that came from merging others, or from another epoch than the one it now leads back over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub opened: u64,
    pub attempt: Attempt,
}

pub(crate) struct Log {
    volume: Arc<dyn Volume>,
    /// `LOG`, or `NEW` while it is prepared.
    name: &'static str,
    /// Where the next record goes.
    position: u64,
    /// The length of the file; what lies behind `position` is blank.
    length: u64,
    /// The sequence number of the next record.
    pub next: u64,
    /// How many records the file holds.
    pub records: usize,
}

impl Log {
    /// Writes `records` to a new log beside the old one, which stays the log until [`Log::put_in_place`]. The first
    /// record gets the number `first`.
    pub fn prepare(volume: &Arc<dyn Volume>, first: u64, records: &[Record]) -> Result<Log, ReplicaError> {
        let mut bytes = Vec::new();
        let mut next = first;
        for record in records {
            encode(record, next, &mut bytes)?;
            next += 1;
        }
        let position = bytes.len() as u64;
        bytes.resize(bytes.len() + RESERVE as usize, 0);
        volume
            .create(NEW)
            .and_then(|()| volume.write_at(NEW, 0, &bytes))
            .and_then(|()| volume.sync(NEW))
            .map_err(|error| ReplicaError::io(format!("writing {}", volume.describe(NEW)), error))?;
        let length = bytes.len() as u64;
        Ok(Log { volume: volume.clone(), name: NEW, position, length, next, records: records.len() })
    }

    /// Makes a prepared log the log. After an error nobody knows which one it is.
    pub fn put_in_place(mut self) -> Result<Log, ReplicaError> {
        self.volume
            .rename(NEW, LOG)
            .and_then(|()| self.volume.sync_directory())
            .map_err(|error| ReplicaError::io(format!("renaming {}", self.volume.describe(NEW)), error))?;
        self.name = LOG;
        Ok(self)
    }

    /// Reads the log and cuts off what a power cut left of its last record.
    pub fn open(volume: Arc<dyn Volume>) -> Result<(Log, Vec<Record>), ReplicaError> {
        let name = volume.describe(LOG);
        let failed = |error| ReplicaError::io(format!("reading {name}"), error);
        let length = match volume.length(LOG) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ReplicaError::damaged(&name, "the file is missing"));
            }
            length => length.map_err(failed)?,
        };
        let found = read(volume.as_ref(), length).map_err(|bad| match bad {
            Bad::Io(error) => failed(error),
            Bad::Damaged { at, why } => ReplicaError::damaged(&name, format!("{why} at byte {at}")),
        })?;
        if found.records.is_empty() {
            return Err(ReplicaError::damaged(&name, "it has no first record"));
        }
        let Found { records, last, position, next, torn } = found;
        if torn {
            tracing::info!(file = name, position, "cut off the record that a power cut left unfinished");
        }
        // Had the last record's sync failed, reads would show it though it is not durable. So it is written again before
        // anything is built on it, with blanks where a torn one may be. The reserved space stays reserved.
        let mut again = vec![0; (position - last + (length - position).min(u64::from(MOST_PARTS) * 512)) as usize];
        let record = (position - last) as usize;
        volume
            .read_at(LOG, last, &mut again[..record])
            .and_then(|()| volume.write_at(LOG, last, &again))
            .and_then(|()| volume.sync(LOG))
            .and_then(|()| volume.sync_directory())
            .map_err(|error| ReplicaError::io(format!("writing {name}"), error))?;
        let log = Log { volume, name: LOG, position, length, next, records: records.len() };
        Ok((log, records))
    }

    /// Makes sure that the next few records need no more space.
    pub fn reserve(&mut self) -> Result<(), ReplicaError> {
        if self.length - self.position >= LOW {
            return Ok(());
        }
        let end = self.position.next_multiple_of(RESERVE) + RESERVE;
        let zeroes = vec![0; (end - self.length) as usize];
        self.volume
            .write_at(self.name, self.length, &zeroes)
            .and_then(|()| self.volume.sync(self.name))
            .map_err(|error| ReplicaError::io(format!("reserving space in {}", self.describe()), error))?;
        self.length = end;
        Ok(())
    }

    /// Appends a record; it is on stable storage when this returns. After an error nobody knows whether it is.
    pub fn append(&mut self, record: &Record) -> Result<(), ReplicaError> {
        self.append_all(std::slice::from_ref(record))
    }

    /// Appends records with one sync: to a prepared log, of which nothing counts until it is in place.
    pub fn append_all(&mut self, records: &[Record]) -> Result<(), ReplicaError> {
        let mut bytes = Vec::new();
        for (record, sequence) in records.iter().zip(self.next..) {
            encode(record, sequence, &mut bytes)?;
        }
        self.volume
            .write_at(self.name, self.position, &bytes)
            .and_then(|()| {
                #[cfg(feature = "sabotage")]
                if matches!(records, [Record::Sealed(_)]) && protocol::sabotage::is("acknowledged-before-record") {
                    return Ok(());
                }
                self.volume.sync(self.name)
            })
            .map_err(|error| ReplicaError::io(format!("writing {}", self.describe()), error))?;
        self.position += bytes.len() as u64;
        self.length = self.length.max(self.position);
        self.next += records.len() as u64;
        self.records += records.len();
        Ok(())
    }

    /// How long the file is (bytes).
    pub fn length(&self) -> u64 {
        self.length
    }

    fn describe(&self) -> String {
        self.volume.describe(self.name)
    }
}

enum Bad {
    Io(io::Error),
    Damaged { at: u64, why: &'static str },
}

/// What a log holds.
struct Found {
    /// All whole records.
    records: Vec<Record>,
    /// Where the last of them starts.
    last: u64,
    /// Where it ends.
    position: u64,
    /// The number of the next record.
    next: u64,
    /// Whether the trace of an unfinished one follows.
    torn: bool,
}

fn read(volume: &dyn Volume, length: u64) -> Result<Found, Bad> {
    let mut records = Vec::new();
    let mut last = 0;
    // The record being put together: where it starts, its number and parts, its text so far.
    let mut open: Option<(u64, u64, u32)> = None;
    let mut text = Vec::new();
    let (mut position, mut next) = (0, None);
    // Once a sector is missing, only blanks and later sectors of the same last record may follow.
    let mut ended = false;
    let mut last_is_blank = false;
    let mut torn = !length.is_multiple_of(SECTOR as u64);
    let mut buffer = vec![0; 128 * SECTOR];
    let mut at = 0;
    while at < length {
        let size = (length - at).min(buffer.len() as u64) as usize;
        volume.read_at(LOG, at, &mut buffer[..size]).map_err(Bad::Io)?;
        let (sectors, rest) = buffer[..size].as_chunks::<SECTOR>();
        for sector in sectors {
            last_is_blank = blank(sector);
            if last_is_blank {
                ended = true;
            } else {
                let part = decode(sector).ok_or(Bad::Damaged { at, why: "a record does not fit its checksum" })?;
                let first = part.part == 0;
                if !ended && first && open.is_none() {
                    if next.is_some_and(|next| next != part.sequence) {
                        return Err(Bad::Damaged { at, why: "a record is missing" });
                    }
                    open = Some((at, part.sequence, part.parts));
                    text.clear();
                }
                // Sectors may be written in any order: in a torn record, even the first one may be the missing one.
                let start = open.map_or(position, |(start, _, _)| start);
                let number = open.map_or(next.unwrap_or(part.sequence), |(_, number, _)| number);
                let parts = open.map_or(part.parts, |(_, _, parts)| parts);
                if part.sequence != number || part.parts != parts || at != start + u64::from(part.part) * SECTOR as u64
                {
                    return Err(Bad::Damaged { at, why: "a record is not where it belongs" });
                }
                if ended {
                    torn = true;
                } else {
                    text.extend_from_slice(part.text);
                    if part.part + 1 == part.parts {
                        let record = serde_json::from_slice(&text)
                            .map_err(|_| Bad::Damaged { at, why: "a record cannot be understood" })?;
                        records.push(record);
                        last = start;
                        position = at + SECTOR as u64;
                        next = Some(part.sequence + 1);
                        open = None;
                    }
                }
            }
            at += SECTOR as u64;
        }
        if !rest.is_empty() {
            at = length;
        }
    }
    if !last_is_blank || length - position < LEAST {
        return Err(Bad::Damaged { at: length, why: "it is cut off" });
    }
    torn |= open.is_some();
    Ok(Found { records, last, position, next: next.unwrap_or(1), torn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Folder;

    fn start() -> Record {
        Record::Start {
            format: 1,
            item: "web01".parse().unwrap(),
            lineage: Lineage::fresh(),
            highest: vec![],
            has_content: false,
            half_written: false,
        }
    }

    fn sealed(number: u64, disks: u16) -> Record {
        let point = Point {
            attempt: Attempt { generation: 1, number },
            cut_at_ms: 1,
            sealed_at_ms: 2,
            kind: protocol::PointKind::CrashConsistent,
            changed_bytes: 3,
            freeze: None,
        };
        let segments =
            (0..disks).map(|disk| SealedFile { disk, length: u64::MAX, footer: u64::MAX, origin: None }).collect();
        Record::Sealed(Sealed { point, opened: number, segments })
    }

    fn written() -> (tempfile::TempDir, Arc<Folder>, Vec<Record>, Vec<usize>) {
        let directory = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder::open(directory.path()).unwrap());
        let mut records = vec![start()];
        let volume: Arc<dyn Volume> = folder.clone();
        let mut log = Log::prepare(&volume, 5, &records).unwrap().put_in_place().unwrap();
        let mut ends = vec![log.position as usize];
        for (number, disks) in [(1, 1), (2, 40), (3, 2), (4, 25)] {
            records.push(sealed(number, disks));
            log.reserve().unwrap();
            log.append(records.last().unwrap()).unwrap();
            ends.push(log.position as usize);
        }
        assert_eq!(log.next, 10);
        (directory, folder, records, ends)
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let (_directory, folder, records, ends) = written();
        let (mut log, read) = Log::open(folder.clone()).unwrap();
        assert_eq!(read, records);
        log.reserve().unwrap();
        assert_eq!((log.next, log.position as usize), (10, *ends.last().unwrap()));
        log.append(&sealed(5, 1)).unwrap();
        assert_eq!(Log::open(folder).unwrap().1.len(), 6);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_record_is_refused() {
        let (directory, folder, _, ends) = written();
        let path = directory.path().join(LOG);
        let good = std::fs::read(&path).unwrap();
        for at in (0..*ends.last().unwrap()).step_by(37) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(Log::open(folder.clone()), Err(ReplicaError::Damaged { .. })), "byte {at}");
        }
    }

    #[test]
    fn a_torn_last_record_is_cut_whichever_sectors_are_missing() {
        let (directory, folder, records, ends) = written();
        let path = directory.path().join(LOG);
        let good = std::fs::read(&path).unwrap();
        let (start, end) = (ends[3], ends[4]);
        let sectors = (end - start) / SECTOR;
        assert!(sectors >= 3);
        for missing in 1..1usize << sectors {
            let mut torn = good.clone();
            for sector in 0..sectors {
                if missing >> sector & 1 == 1 {
                    torn[start + sector * SECTOR..][..SECTOR].fill(0);
                }
            }
            std::fs::write(&path, &torn).unwrap();
            let (mut log, read) = Log::open(folder.clone()).unwrap();
            assert_eq!(read, records[..4]);
            log.reserve().unwrap();
            log.append(&sealed(9, 1)).unwrap();
            assert_eq!(Log::open(folder.clone()).unwrap().1[4], sealed(9, 1));
        }
    }

    #[test]
    fn a_log_that_was_cut_off_is_refused_or_lost_nothing() {
        let (directory, folder, records, ends) = written();
        let path = directory.path().join(LOG);
        let good = std::fs::read(&path).unwrap();
        let least = ends.last().unwrap() + LEAST as usize;
        for length in (0..=least).step_by(64).chain([least - 1, good.len() - 1]) {
            std::fs::write(&path, &good[..length]).unwrap();
            let read = Log::open(folder.clone()).map(|opened| opened.1);
            let refused = matches!(read, Err(ReplicaError::Damaged { .. }));
            assert!(if length < least { refused } else { read.unwrap() == records }, "cut off at {length}");
        }
    }

    #[test]
    fn a_missing_record_between_others_is_refused() {
        let (directory, folder, _, ends) = written();
        let path = directory.path().join(LOG);
        let good = std::fs::read(&path).unwrap();
        let (mut blanked, mut removed) = (good.clone(), good);
        blanked[ends[1]..ends[2]].fill(0);
        removed.drain(ends[1]..ends[2]);
        for bad in [blanked, removed, vec![0; 4096]] {
            std::fs::write(&path, &bad).unwrap();
            assert!(matches!(Log::open(folder.clone()), Err(ReplicaError::Damaged { .. })));
        }
    }
}
