//! The index of a sealed segment: pages of entries by offset, and the footer that says where they are.
//!
//! ```text
//!   … frames │ page │ page │ page │ footer        a search reads the footer once, then as many pages as it halves
//! ```
//! Every page carries the segment's number, its disk and its own place, and is checksummed: a page of another segment, or
//! from elsewhere in this one, is not taken for it.

use twox_hash::XxHash3_64;

use crate::fields::{Fields, Put};
use crate::segment::{Entry, PAGE, SegmentId, checked, seal_sector};

pub(crate) const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"SKIX");
const FOOTER_MAGIC: &[u8; 8] = b"SKYESEAL";
const ENTRY_BYTES: usize = 40;
const PAGE_HEAD: usize = 24;
pub(crate) const PAGE_ENTRIES: usize = (PAGE as usize - PAGE_HEAD - 8) / ENTRY_BYTES;

/// The index and footer of a segment whose frames end at `position`, and the footer's checksum.
pub(crate) fn encode_index(id: &SegmentId, position: u64, entries: impl Iterator<Item = Entry>) -> (Vec<u8>, u64) {
    let mut out = Vec::new();
    let mut pages = IndexPages::new(id);
    entries.for_each(|entry| pages.push(entry, &mut out));
    let footer = pages.finish(position, &mut out);
    (out, footer)
}

/// An index while it is written, page by page.
pub(crate) struct IndexPages<'a> {
    id: &'a SegmentId,
    /// What is not in a page yet.
    pending: Vec<Entry>,
    pages: u64,
    count: u64,
}

impl<'a> IndexPages<'a> {
    pub fn new(id: &'a SegmentId) -> IndexPages<'a> {
        IndexPages { id, pending: Vec::with_capacity(PAGE_ENTRIES), pages: 0, count: 0 }
    }

    /// Takes the next entry, by offset; a page that is full goes to `out`.
    pub fn push(&mut self, entry: Entry, out: &mut Vec<u8>) {
        match self.pending.last_mut() {
            Some(last) if last.is_zero() && entry.is_zero() && last.end() == entry.offset => {
                last.length += entry.length;
                return;
            }
            _ => {}
        }
        if self.pending.len() == PAGE_ENTRIES {
            self.page(out);
        }
        self.pending.push(entry);
    }

    fn page(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u32(PAGE_MAGIC);
        out.put_u32(self.pending.len() as u32);
        out.put_u64(self.id.opened);
        out.put_u64(page_tag(self.id, self.pages));
        for entry in &self.pending {
            out.put_u64(entry.offset);
            out.put_u64(entry.length);
            out.put_u64(entry.stored);
            out.put_u64(entry.position);
            out.put_u64(entry.checksum);
        }
        out.resize(start + PAGE as usize - 8, 0);
        let checksum = XxHash3_64::oneshot(&out[start..]);
        out.put_u64(checksum);
        self.count += self.pending.len() as u64;
        self.pages += 1;
        self.pending.clear();
    }

    /// Ends the index of a segment whose frames end at `position`. Gives the footer's checksum.
    pub fn finish(mut self, position: u64, out: &mut Vec<u8>) -> u64 {
        if !self.pending.is_empty() {
            self.page(out);
        }
        let start = out.len();
        out.extend_from_slice(FOOTER_MAGIC);
        self.id.put(out);
        out.put_u64(position);
        out.put_u64(self.count);
        seal_sector(out, start)
    }
}

/// The disk in the upper 16 bits, the page's number below.
fn page_tag(id: &SegmentId, page: u64) -> u64 {
    u64::from(id.disk) << 48 | page
}

/// The number of an index page of `id`; none when `bytes` are not one.
pub(crate) fn page_number(id: &SegmentId, bytes: &[u8]) -> Option<u64> {
    let mut fields = Fields(checked(bytes.get(..PAGE as usize)?)?);
    let (magic, _count, opened, tag) = (fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?);
    let page = tag & ((1 << 48) - 1);
    (magic == PAGE_MAGIC && opened == id.opened && tag == page_tag(id, page)).then_some(page)
}

/// The entries of index page `page`; none when `bytes` are not that page.
pub(crate) fn decode_page(id: &SegmentId, page: u64, bytes: &[u8]) -> Option<Vec<Entry>> {
    if page_number(id, bytes)? != page {
        return None;
    }
    let mut fields = Fields(bytes);
    let (_magic, count) = (fields.u32()?, fields.u32()?);
    let (_opened, _tag) = (fields.u64()?, fields.u64()?);
    if count as usize > PAGE_ENTRIES {
        return None;
    }
    let entry = |fields: &mut Fields| {
        let (offset, length, stored) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let entry = Entry { offset, length, stored, position: fields.u64()?, checksum: fields.u64()? };
        entry.sound(id).then_some(entry)
    };
    (0..count).map(|_| entry(&mut fields)).collect()
}

/// Where the index starts and how many entries it has, by the footer whose checksum must be `checksum`.
pub(crate) fn decode_footer(id: &SegmentId, checksum: u64, sector: &[u8]) -> Option<(u64, u64)> {
    let body = checked(sector)?;
    if sector.last_chunk::<8>() != Some(&checksum.to_le_bytes()) {
        return None;
    }
    let mut wanted = FOOTER_MAGIC.to_vec();
    id.put(&mut wanted);
    let mut fields = Fields(body.strip_prefix(&wanted[..])?);
    Some((fields.u64()?, fields.u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{FRAME_MAGIC, SECTOR, Table};
    use protocol::{Attempt, Lineage};

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
    fn an_index_of_many_pages_is_read_back_and_every_flipped_bit_noticed() {
        let id = id();
        let entries: Vec<Entry> = (0..300)
            .map(|n| Entry { offset: n * 8192, length: 4096, stored: 9, position: 512 + n, checksum: n })
            .collect();
        let (bytes, footer) = encode_index(&id, 512, entries.iter().copied());
        let (pages, sector) = bytes.split_at(3 * PAGE as usize);
        assert_eq!(decode_footer(&id, footer, sector), Some((512, 300)));
        assert_eq!(decode_footer(&id, footer + 1, sector), None);
        let mut read = Vec::new();
        for (page, bytes) in pages.chunks(PAGE as usize).enumerate() {
            read.extend(decode_page(&id, page as u64, bytes).unwrap());
            assert!(decode_page(&id, page as u64 + 1, bytes).is_none());
            let mut bad = bytes.to_vec();
            bad[page * 100 + 5] ^= 1;
            assert!(decode_page(&id, page as u64, &bad).is_none());
        }
        assert_eq!(read, entries);
        let zeroes = (0..300).map(|n| Entry::zeroes(n * 4096, 4096));
        assert_eq!(encode_index(&id, 512, zeroes).0.len() as u64, PAGE + SECTOR);
    }

    #[test]
    fn arbitrary_bytes_are_never_a_table_a_page_or_a_footer() {
        let id = id();
        let mut seed = 1u64;
        for _ in 0..2000 {
            let mut bytes: Vec<u8> = (0..PAGE)
                .map(|_| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 56) as u8
                })
                .collect();
            assert!(decode_page(&id, 0, &bytes).is_none() && decode_footer(&id, 0, &bytes[..512]).is_none());
            bytes[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
            assert!(Table::decode(&id, 512, &bytes).is_none());
        }
    }
}
