//! Byte ranges of a disk, and sets of them.
//!
//! A [`BlockMap`] is what every "changed since" becomes, whatever told us (QEMU's dirty bitmap, a journal's index, an
//! overlay's allocation map). Two properties make the maps safe to pass around: a map may always grow (a superset of
//! the changes costs bytes, never correctness), and it may never shrink by accident (there is no operation that rounds
//! down). It is written down in a compact, bounded form; what comes from outside is checked while it is read.

use base64::Engine;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The granularity of change tracking and of transfer, in bytes: QEMU's copy-before-write cluster.
///
/// Measured on QEMU 7.2: longer reads through `snapshot-access` can return live data.
pub const BLOCK: u64 = 64 * 1024;

/// No disk that we take is larger than this (bytes): 1 EiB keeps every sum of two offsets inside 64 bits.
pub const LARGEST_DISK: u64 = 1 << 60;

/// The most extents that a map may have when it is read from outside; a longer one is refused before it is built.
pub const MOST_EXTENTS: usize = 4_000_000;

/// Bytes `offset .. offset + length` of a disk. Never empty inside a [`BlockMap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Extent {
    /// The bytes from `offset` (inclusive) to `end` (exclusive).
    pub fn new(offset: u64, length: u64) -> Extent {
        Extent { offset, length }
    }

    /// The first byte after the extent.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Why a written-down map was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMap {
    /// Not the encoding of a map.
    #[error("a block map is not in its documented encoding")]
    Encoding,
    /// More extents than [`MOST_EXTENTS`], or bytes beyond [`LARGEST_DISK`].
    #[error("a block map is larger than any disk that is accepted")]
    TooLarge,
}

/// A set of bytes of one disk: sorted extents that neither touch nor overlap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlockMap {
    extents: Vec<Extent>,
}

impl BlockMap {
    /// The empty set.
    pub fn new() -> BlockMap {
        BlockMap::default()
    }

    /// Every byte of a disk of `size` bytes.
    pub fn whole(size: u64) -> BlockMap {
        [Extent::new(0, size)].into_iter().collect()
    }

    /// The extents, ascending.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// How many bytes are in the set.
    pub fn bytes(&self) -> u64 {
        self.extents.iter().map(|e| e.length).sum()
    }

    /// Whether no byte is in the set.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// The first byte after the last extent, 0 when empty.
    pub fn end(&self) -> u64 {
        self.extents.last().map_or(0, Extent::end)
    }

    /// Adds `extent`; cheap when it lies behind everything that is in the set.
    pub fn insert(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        // The extents that touch or overlap the new one are a run [from, to).
        let from = self.extents.partition_point(|e| e.end() < extent.offset);
        let to = from + self.extents[from..].partition_point(|e| e.offset <= extent.end());
        if from == to {
            self.extents.insert(from, extent);
            return;
        }
        let offset = self.extents[from].offset.min(extent.offset);
        let end = self.extents[to - 1].end().max(extent.end());
        self.extents[from] = Extent::new(offset, end - offset);
        self.extents.drain(from + 1..to);
    }

    /// Everything in `self` or in `other`.
    pub fn union(&self, other: &BlockMap) -> BlockMap {
        let mut all: Vec<Extent> = Vec::with_capacity(self.extents.len() + other.extents.len());
        let (mut left, mut right) = (self.extents.iter().peekable(), other.extents.iter().peekable());
        loop {
            let next = match (left.peek(), right.peek()) {
                (Some(a), Some(b)) if a.offset <= b.offset => left.next(),
                (_, Some(_)) => right.next(),
                (Some(_), None) => left.next(),
                (None, None) => break,
            };
            let Some(next) = next else { break };
            match all.last_mut() {
                Some(last) if last.end() >= next.offset => last.length = last.end().max(next.end()) - last.offset,
                _ => all.push(*next),
            }
        }
        BlockMap { extents: all }
    }

    /// Everything in `self` and in `other`.
    pub fn intersection(&self, other: &BlockMap) -> BlockMap {
        let mut both = Vec::new();
        let (mut i, mut j) = (0, 0);
        while let (Some(a), Some(b)) = (self.extents.get(i), other.extents.get(j)) {
            let (offset, end) = (a.offset.max(b.offset), a.end().min(b.end()));
            if offset < end {
                both.push(Extent::new(offset, end - offset));
            }
            if a.end() <= b.end() { i += 1 } else { j += 1 }
        }
        BlockMap { extents: both }
    }

    /// Everything in `self` that is not in `other`.
    pub fn difference(&self, other: &BlockMap) -> BlockMap {
        let mut rest = Vec::new();
        let mut j = 0;
        for a in &self.extents {
            let mut at = a.offset;
            while other.extents.get(j).is_some_and(|b| b.end() <= at) {
                j += 1;
            }
            let mut k = j;
            while let Some(b) = other.extents.get(k).filter(|b| b.offset < a.end()) {
                if b.offset > at {
                    rest.push(Extent::new(at, b.offset - at));
                }
                at = at.max(b.end());
                k += 1;
            }
            if at < a.end() {
                rest.push(Extent::new(at, a.end() - at));
            }
        }
        BlockMap { extents: rest }
    }

    /// Whether every byte of `other` is in `self`.
    pub fn covers(&self, other: &BlockMap) -> bool {
        other.difference(self).is_empty()
    }

    /// The smallest superset whose extents start and end on multiples of `granularity` bytes, cut off at `size`.
    pub fn aligned(&self, granularity: u64, size: u64) -> BlockMap {
        let granularity = granularity.max(1);
        self.extents
            .iter()
            .filter(|e| e.offset < size)
            .map(|e| {
                let offset = e.offset - e.offset % granularity;
                let end = e.end().div_ceil(granularity).saturating_mul(granularity).min(size);
                Extent::new(offset, end - offset)
            })
            .collect()
    }

    /// A superset with at most `most` extents: the smallest gaps are filled. For maps that must stay small on the wire.
    pub fn coarsened(self, most: usize) -> BlockMap {
        let most = most.max(1);
        if self.extents.len() <= most {
            return self;
        }
        let mut gaps: Vec<(u64, usize)> =
            self.extents.windows(2).enumerate().map(|(i, pair)| (pair[1].offset - pair[0].end(), i)).collect();
        gaps.sort_unstable();
        let mut fill = vec![false; gaps.len()];
        for (_, i) in gaps.iter().take(self.extents.len() - most) {
            fill[*i] = true;
        }
        let mut extents: Vec<Extent> = Vec::with_capacity(most);
        for (i, e) in self.extents.iter().enumerate() {
            match extents.last_mut() {
                Some(last) if fill[i - 1] => last.length = e.end() - last.offset,
                _ => extents.push(*e),
            }
        }
        BlockMap { extents }
    }

    /// The set in pieces that never cross a multiple of `granularity` bytes, ascending.
    pub fn pieces(&self, granularity: u64) -> impl Iterator<Item = Extent> + '_ {
        let granularity = granularity.max(1);
        self.extents.iter().flat_map(move |e| {
            let mut at = e.offset;
            std::iter::from_fn(move || {
                let end = (at - at % granularity).saturating_add(granularity).min(e.end());
                let piece = (at < e.end()).then(|| Extent::new(at, end - at));
                at = end;
                piece
            })
        })
    }

    /// The set as bytes: for each extent the gap before it and its length, as LEB128 numbers.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.extents.len() * 6);
        let mut at = 0;
        for e in &self.extents {
            for mut number in [e.offset - at, e.length] {
                while number >= 0x80 {
                    bytes.push((number & 0x7f) as u8 | 0x80);
                    number >>= 7;
                }
                bytes.push(number as u8);
            }
            at = e.end();
        }
        bytes
    }

    /// Reads what [`BlockMap::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`BadMap`] for anything else, among it extents that touch, are empty, or lie beyond [`LARGEST_DISK`].
    pub fn from_bytes(bytes: &[u8]) -> Result<BlockMap, BadMap> {
        let mut rest = bytes;
        let mut number = || -> Result<u64, BadMap> {
            let mut value = 0u64;
            for shift in (0..63).step_by(7) {
                let (byte, tail) = rest.split_first().ok_or(BadMap::Encoding)?;
                rest = tail;
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    return Ok(value);
                }
            }
            Err(BadMap::Encoding)
        };
        let mut map = BlockMap::new();
        let mut at = 0u64;
        let mut left = bytes.iter().filter(|byte| **byte & 0x80 == 0).count();
        if left / 2 > MOST_EXTENTS {
            return Err(BadMap::TooLarge);
        }
        while left > 0 {
            let (gap, length) = (number()?, number()?);
            left = left.checked_sub(2).ok_or(BadMap::Encoding)?;
            let touches = gap == 0 && !map.extents.is_empty();
            if length == 0 || touches {
                return Err(BadMap::Encoding);
            }
            let offset = at.checked_add(gap).ok_or(BadMap::TooLarge)?;
            at = offset.checked_add(length).filter(|end| *end <= LARGEST_DISK).ok_or(BadMap::TooLarge)?;
            map.extents.push(Extent::new(offset, length));
        }
        if rest.is_empty() { Ok(map) } else { Err(BadMap::Encoding) }
    }
}

impl FromIterator<Extent> for BlockMap {
    fn from_iter<T: IntoIterator<Item = Extent>>(extents: T) -> BlockMap {
        let mut sorted: Vec<Extent> = extents.into_iter().filter(|e| e.length > 0).collect();
        sorted.sort_unstable();
        let mut map: Vec<Extent> = Vec::with_capacity(sorted.len());
        for e in sorted {
            match map.last_mut() {
                Some(last) if last.end() >= e.offset => last.length = last.end().max(e.end()) - last.offset,
                _ => map.push(e),
            }
        }
        BlockMap { extents: map }
    }
}

impl Serialize for BlockMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD_NO_PAD.encode(self.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for BlockMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<BlockMap, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD
            .decode(text.as_bytes())
            .map_err(|_| serde::de::Error::custom(BadMap::Encoding))?;
        BlockMap::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPAN: u64 = 200;

    fn map(bits: &[bool]) -> BlockMap {
        let mut map = BlockMap::new();
        for (i, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
            map.insert(Extent::new(i as u64, 1));
        }
        map
    }

    fn bits(map: &BlockMap) -> Vec<bool> {
        (0..SPAN).map(|i| map.extents().iter().any(|e| e.offset <= i && i < e.end())).collect()
    }

    fn normal(map: &BlockMap) -> bool {
        map.extents().windows(2).all(|pair| pair[0].end() < pair[1].offset)
            && map.extents().iter().all(|e| e.length > 0)
    }

    proptest! {
        #[test]
        fn a_map_behaves_like_a_row_of_bits(a in prop::collection::vec(any::<bool>(), SPAN as usize), b in prop::collection::vec(any::<bool>(), SPAN as usize), most in 1usize..20) {
            let (x, y) = (map(&a), map(&b));
            let model = |f: fn(bool, bool) -> bool| a.iter().zip(&b).map(|(p, q)| f(*p, *q)).collect::<Vec<_>>();
            for (got, want) in [
                (x.union(&y), model(|p, q| p || q)),
                (x.intersection(&y), model(|p, q| p && q)),
                (x.difference(&y), model(|p, q| p && !q)),
            ] {
                prop_assert!(normal(&got));
                prop_assert_eq!(bits(&got), want);
            }
            prop_assert_eq!(x.bytes(), a.iter().filter(|p| **p).count() as u64);
            prop_assert_eq!(x.covers(&y), a.iter().zip(&b).all(|(p, q)| *p || !*q));
            prop_assert_eq!(&BlockMap::from_bytes(&x.to_bytes()).unwrap(), &x);
            let coarse = x.clone().coarsened(most);
            prop_assert!(normal(&coarse) && coarse.covers(&x) && coarse.extents().len() <= most);
            let aligned = x.aligned(16, SPAN);
            prop_assert!(normal(&aligned) && aligned.covers(&x));
            prop_assert!(aligned.extents().iter().all(|e| e.offset % 16 == 0 && (e.end() % 16 == 0 || e.end() == SPAN)));
            let pieces: Vec<Extent> = x.pieces(7).collect();
            prop_assert!(pieces.iter().all(|p| p.offset / 7 == (p.end() - 1) / 7));
            prop_assert_eq!(pieces.into_iter().collect::<BlockMap>(), x);
        }

        #[test]
        fn inserting_in_any_order_gives_the_same_map(extents in prop::collection::vec((0u64..SPAN, 0u64..20), 0..30)) {
            let mut grown = BlockMap::new();
            for (offset, length) in &extents {
                grown.insert(Extent::new(*offset, *length));
            }
            let collected: BlockMap = extents.iter().map(|(offset, length)| Extent::new(*offset, *length)).collect();
            prop_assert!(normal(&grown));
            prop_assert_eq!(grown, collected);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_make_an_unsorted_map(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(map) = BlockMap::from_bytes(&bytes) {
                prop_assert!(normal(&map));
                prop_assert!(map.end() <= LARGEST_DISK);
            }
        }
    }
}
