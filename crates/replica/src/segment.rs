//! The layout of a segment: the before-images of one disk in one epoch.
//!
//! ```text
//!   ┌────────┬───────────────────────────────┬────────┬ ─ ─ ─ ┬─────────────────┬────────┐
//!   │ header │ frame: table ┆ payload        │ frame  │       │ index pages     │ footer │
//!   └────────┴───────────────────────────────┴────────┴ ─ ─ ─ ┴─────────────────┴────────┘
//!     512 B    every part starts on a sector                    4 KiB each, by    512 B
//!                                                              offset; at the seal
//! ```
//!
//! A frame's table lists records: offset, length, bytes stored, checksum of what is stored. No data record crosses a
//! multiple of 64 KiB, so a reader that wants 4 KiB checks at most 64; zeroes store nothing, and data that shrinks is
//! stored compressed ([`crate::compress`]). A table also says how
//! long every segment of the epoch was *durably* when the frame was written: whoever finds a frame knows what must
//! stand before it, in its own segment and in those of the other disks ([`crate::scan`]).
//!
//! Everything carries the number of the epoch's `begun` record and is checksummed; positions are mixed into the
//! checksums of data, so a block that was written to the wrong place is not taken for the right one.

use protocol::{Attempt, BLOCK, Lineage};
use twox_hash::XxHash3_64;

use crate::compress::{Compressor, expand};
use crate::fields::{Fields, Put};
use crate::manifest::FORMAT;

pub(crate) const SECTOR: u64 = 512;
/// Before-images are kept in multiples of this (bytes), cut off at the disk's end.
pub(crate) const UNIT: u64 = 4096;
pub(crate) const PAGE: u64 = 4096;
pub(crate) const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"SKFR");
const HEADER_MAGIC: &[u8; 8] = b"SKYESEGM";
/// A frame is written when it has this much (records, bytes of payload).
const FULL_RECORDS: usize = 1024;
const FULL_PAYLOAD: usize = 2 << 20;
/// A frame that claims more was not written by us: checked before anything is allocated.
const MOST_RECORDS: u32 = 4096;
const MOST_PAYLOAD: u64 = 4 << 20;
pub(crate) const MOST_DISKS: u32 = 256;
const RECORD_BYTES: u64 = 32;
const TABLE_HEAD: u64 = 40;

/// Which segment it is; every part of the file proves that it belongs to this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentId {
    pub lineage: Lineage,
    pub attempt: Attempt,
    /// The number of the epoch's `begun` record.
    pub opened: u64,
    pub disk: u16,
    pub disk_size: u64,
    /// How many disks the item has.
    pub disks: u16,
}

/// A kept before-image: `length` bytes that were at `offset` before the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub offset: u64,
    pub length: u64,
    /// How many bytes it takes in the file: none for zeroes, fewer than `length` for compressed data.
    pub stored: u64,
    /// Where these are in the file; 0 for zeroes, which are nowhere.
    pub position: u64,
    /// Of the bytes as stored.
    pub checksum: u64,
}

impl Entry {
    pub fn end(&self) -> u64 {
        self.offset + self.length
    }
    pub fn zeroes(offset: u64, length: u64) -> Entry {
        Entry { offset, length, stored: 0, position: 0, checksum: 0 }
    }
    pub fn is_zero(&self) -> bool {
        self.stored == 0
    }
    /// Whether `bytes` are what the entry stores.
    pub fn fits(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == self.stored && XxHash3_64::oneshot_with_seed(self.offset, bytes) == self.checksum
    }
    /// The data, in `buffer`, whose first bytes are what the entry stores and fit its checksum; none when they are not
    /// data of that length.
    pub fn data<'a>(&self, buffer: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        let (stored, length) = (self.stored as usize, self.length as usize);
        if stored == length {
            return buffer.get(..length);
        }
        buffer.resize(stored + length, 0);
        let (packed, data) = buffer.split_at_mut(stored);
        expand(packed, data)?;
        Some(data)
    }
    /// Whether it can be an entry of `id` at all.
    pub fn sound(&self, id: &SegmentId) -> bool {
        let inside = self.offset.checked_add(self.length).is_some_and(|end| end <= id.disk_size);
        if self.length == 0 || !inside {
            return false;
        }
        let small = self.offset / BLOCK == (self.offset + self.length - 1) / BLOCK;
        if self.is_zero() {
            return self.position == 0 && self.checksum == 0;
        }
        small && self.position != 0 && self.stored <= self.length
    }
}

pub(crate) fn sectors(bytes: u64) -> u64 {
    bytes.next_multiple_of(SECTOR)
}

fn pad(out: &mut Vec<u8>) {
    out.resize(sectors(out.len() as u64) as usize, 0);
}

pub(crate) fn seal_sector(out: &mut Vec<u8>, start: usize) -> u64 {
    out.resize(start + SECTOR as usize - 8, 0);
    let checksum = XxHash3_64::oneshot(&out[start..]);
    out.put_u64(checksum);
    checksum
}

/// The body of a sector that ends with its checksum, if it fits.
pub(crate) fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    (XxHash3_64::oneshot(body) == u64::from_le_bytes(*checksum)).then_some(body)
}

impl SegmentId {
    pub fn file(&self) -> String {
        format!("{:012}-{}-{}{SUFFIX}", self.opened, self.attempt, self.disk)
    }

    pub fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(FORMAT);
        out.put_u32(u32::from(self.disk));
        out.extend_from_slice(self.lineage.0.as_bytes());
        out.put_u64(self.attempt.generation);
        out.put_u64(self.attempt.number);
        out.put_u64(self.opened);
        out.put_u64(self.disk_size);
        out.put_u32(u32::from(self.disks));
        out.put_u32(0);
    }

    pub fn header(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(HEADER_MAGIC);
        self.put(out);
        seal_sector(out, start);
    }

    /// Whether `sector` is this segment's header.
    pub fn is_header(&self, sector: &[u8]) -> bool {
        let mut wanted = Vec::with_capacity(SECTOR as usize);
        self.header(&mut wanted);
        sector == wanted
    }
}

pub(crate) const SUFFIX: &str = ".segment";

/// A frame while it is filled. Its buffers are used again for the next one.
#[derive(Default)]
pub(crate) struct Frame {
    entries: Vec<Entry>,
    payload: Vec<u8>,
}

impl Frame {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    pub fn is_full(&self) -> bool {
        self.entries.len() >= FULL_RECORDS || self.payload.len() >= FULL_PAYLOAD
    }
    pub fn clear(&mut self) {
        self.entries.clear();
        self.payload.clear();
    }
    pub fn zeroes(&mut self, offset: u64, length: u64) {
        match self.entries.last_mut() {
            Some(last) if last.is_zero() && last.end() == offset => last.length += length,
            _ => self.entries.push(Entry::zeroes(offset, length)),
        }
    }
    /// `bytes` must not cross a multiple of [`BLOCK`].
    pub fn data(&mut self, offset: u64, bytes: &[u8], compressor: &mut Compressor) {
        let stored = compressor.shrink(bytes).unwrap_or(bytes);
        let checksum = XxHash3_64::oneshot_with_seed(offset, stored);
        // The place in the payload, counted from 1, until the table's length is known.
        let position = self.payload.len() as u64 + 1;
        let (length, taken) = (bytes.len() as u64, stored.len() as u64);
        self.entries.push(Entry { offset, length, stored: taken, position, checksum });
        self.payload.extend_from_slice(stored);
    }

    /// Writes the table of frame `number` at file position `at` into `table` and gives the padded payload and the
    /// entries with their final positions.
    pub fn finish(
        &mut self,
        id: &SegmentId,
        number: u64,
        durable: &[u64],
        at: u64,
        table: &mut Vec<u8>,
    ) -> (&[u8], &[Entry]) {
        table.clear();
        table.put_u32(FRAME_MAGIC);
        table.put_u32(self.entries.len() as u32);
        table.put_u64(id.opened);
        table.put_u64(number);
        table.put_u64(self.payload.len() as u64);
        table.put_u32(durable.len() as u32);
        table.put_u32(u32::from(id.disk));
        for length in durable {
            table.put_u64(*length);
        }
        let payload_at = at + table_bytes(durable.len() as u32, self.entries.len() as u32);
        for entry in &mut self.entries {
            table.put_u64(entry.offset);
            table.put_u64(entry.length);
            table.put_u64(entry.stored);
            table.put_u64(entry.checksum);
            if !entry.is_zero() {
                entry.position += payload_at - 1;
            }
        }
        let checksum = XxHash3_64::oneshot(table);
        table.put_u64(checksum);
        pad(table);
        pad(&mut self.payload);
        (&self.payload, &self.entries)
    }
}

fn table_bytes(disks: u32, records: u32) -> u64 {
    sectors(TABLE_HEAD + u64::from(disks) * 8 + u64::from(records) * RECORD_BYTES + 8)
}

/// How long a table is (bytes, whole sectors), by its first sector; none when that is not the start of a table.
pub(crate) fn table_length(first: &[u8]) -> Option<u64> {
    let mut fields = Fields(first);
    let (magic, records) = (fields.u32()?, fields.u32()?);
    let (_opened, _number, payload, disks) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u32()?);
    let good = magic == FRAME_MAGIC
        && (1..=MOST_RECORDS).contains(&records)
        && (1..=MOST_DISKS).contains(&disks)
        && payload <= MOST_PAYLOAD;
    good.then(|| table_bytes(disks, records))
}

/// A frame's table as read back.
pub(crate) struct Table {
    pub number: u64,
    /// How long every disk's segment was, durably, when the frame was written.
    pub durable: Vec<u64>,
    pub entries: Vec<Entry>,
    /// The frame's length in the file.
    pub length: u64,
}

impl Table {
    /// Reads a table that starts at file position `at`; none when it is not a whole table of `id`.
    pub fn decode(id: &SegmentId, at: u64, bytes: &[u8]) -> Option<Table> {
        let table = table_length(bytes)?;
        let mut fields = Fields(bytes.get(..table as usize)?);
        let _magic = fields.u32()?;
        let records = fields.u32()?;
        let (opened, number, payload) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (disks, disk) = (fields.u32()?, fields.u32()?);
        let used = TABLE_HEAD + u64::from(disks) * 8 + u64::from(records) * RECORD_BYTES;
        checked(&bytes[..used as usize + 8])?;
        if opened != id.opened || disk != u32::from(id.disk) || disks != u32::from(id.disks) {
            return None;
        }
        let durable = (0..disks).map(|_| fields.u64()).collect::<Option<Vec<_>>>()?;
        let mut entries = Vec::with_capacity(records as usize);
        let (mut position, end) = (at + table, at + table + payload);
        for _ in 0..records {
            let (offset, length, stored, checksum) = (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
            let place = if stored == 0 { 0 } else { position };
            let entry = Entry { offset, length, stored, position: place, checksum };
            if !entry.sound(id) {
                return None;
            }
            position = position.checked_add(stored).filter(|position| *position <= end)?;
            entries.push(entry);
        }
        (position == end).then(|| Table { number, durable, entries, length: table + sectors(payload) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SegmentId {
        SegmentId {
            lineage: Lineage::fresh(),
            attempt: Attempt { generation: 1, number: 7 },
            opened: 9,
            disk: 1,
            disk_size: 1 << 30,
            disks: 2,
        }
    }

    #[test]
    fn a_frame_says_what_was_put_into_it() {
        let id = id();
        let mut frame = Frame::default();
        frame.zeroes(0, 4096);
        frame.zeroes(4096, 4096);
        let mut compressor = Compressor::default();
        let mut seed = 1u64;
        let mut roll = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 56) as u8
        };
        let noise: Vec<u8> = (0..4096).map(|_| roll()).collect();
        frame.data(65536, &noise, &mut compressor);
        frame.data(131072, &[2; 4096], &mut Compressor::default());
        let mut table = Vec::new();
        let (payload, entries) = frame.finish(&id, 3, &[77, 512], 512, &mut table);
        let read = Table::decode(&id, 512, &table).unwrap();
        assert_eq!((read.number, &read.durable[..], &read.entries[..]), (3, &[77, 512][..], entries));
        assert_eq!(read.length as usize, table.len() + payload.len());
        assert_eq!(read.entries.len(), 3);
        assert_eq!(read.entries[1].position as usize, 512 + table.len());
        assert!(read.entries[1].fits(&noise) && !read.entries[1].fits(&noise[1..]));
        assert!(read.entries[2].stored < 100, "{:?}", read.entries[2]);
        let mut stored = payload[4096..4096 + read.entries[2].stored as usize].to_vec();
        assert!(read.entries[2].fits(&stored));
        assert_eq!(read.entries[2].data(&mut stored), Some(&[2; 4096][..]));
        for at in 0..table.len() - 8 {
            let mut bad = table.clone();
            bad[at] ^= 4;
            let padding = at >= 40 + 16 + 3 * 32 + 8;
            assert_eq!(Table::decode(&id, 512, &bad).is_some(), padding, "byte {at}");
        }
        assert!(Table::decode(&SegmentId { opened: 10, ..id.clone() }, 512, &table).is_none());
    }
}
