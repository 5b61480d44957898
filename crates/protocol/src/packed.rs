//! Compressed blocks: a data frame's bytes as one Zstandard frame.
//!
//! ```text
//!   data     24 bytes: sequence, offset, disk and length │ the bytes
//!   packed   the same 24 bytes                           │ the bytes, compressed          (kind 5)
//! ```
//!
//! # Always true
//! - A packed frame is shorter than the data frame that it stands for.
//! - The length that the prefix claims is compared with its bound before anything is allocated; exactly so many bytes are
//!   made, whatever the compressed ones say, or the frame is refused.

use std::cell::RefCell;

use bytes::{Buf, Bytes, BytesMut};
use zstd::bulk::{Compressor, Decompressor};

use crate::frame::{DATA, DATA_PREFIX, HEADER, LARGEST_DATA, MAGIC, PACKED, seal};

/// Measured against others in decision 0018.
const LEVEL: i32 = 1;
/// Fewer bytes are not worth a try.
const SMALLEST: usize = 512;

thread_local! {
    // A context takes longer to make than a block takes to compress.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// How many bytes of a disk a frame that was encoded as data carries; none for any other frame, and for one that is too
/// short to be compressed.
pub fn packable(frame: &[u8]) -> Option<usize> {
    let mut header = frame.get(..HEADER)?;
    let is_data = header.get_u32_le() == MAGIC && header.get_u16_le() == DATA;
    let length = frame.len().checked_sub(HEADER + DATA_PREFIX)?;
    (is_data && length >= SMALLEST).then_some(length)
}

/// The packed frame that stands for an encoded data frame; none when that is less than an eighth shorter. Takes the time of
/// a processor.
pub fn pack(frame: &[u8]) -> Option<Bytes> {
    let length = packable(frame)?;
    let (prefix, data) = frame.split_at(HEADER + DATA_PREFIX);
    let mut out = BytesMut::zeroed(frame.len() - length / 8);
    let (kept, room) = out.split_at_mut(prefix.len());
    kept.copy_from_slice(prefix);
    let packed = COMPRESSOR.with_borrow_mut(|compressor| {
        if compressor.is_none() {
            *compressor = Compressor::new(LEVEL).ok();
        }
        // What does not fit into the room did not shrink by an eighth.
        compressor.as_mut()?.compress_to_buffer(data, room).ok()
    })?;
    out.truncate(prefix.len() + packed);
    seal(&mut out, PACKED);
    Some(out.freeze())
}

/// The `length` bytes that were compressed.
pub(crate) fn expand(packed: &[u8], length: u64) -> Result<Bytes, &'static str> {
    if length > u64::from(LARGEST_DATA) {
        return Err("it claims more bytes than a frame may carry");
    }
    if packed.len() as u64 >= length {
        return Err("it is longer than what it stands for");
    }
    let mut bytes = BytesMut::zeroed(length as usize);
    let made = DECOMPRESSOR.with_borrow_mut(|decompressor| {
        if decompressor.is_none() {
            *decompressor = Decompressor::new().ok();
        }
        decompressor.as_mut()?.decompress_to_buffer(packed, &mut bytes[..]).ok()
    });
    match made {
        Some(made) if made == bytes.len() => Ok(bytes.freeze()),
        Some(_) => Err("fewer bytes came out of it than it claims"),
        None => Err("it cannot be decompressed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{BadFrame, Frame, Header};

    fn block(bytes: Vec<u8>) -> Frame {
        Frame::Data { sequence: 9, disk: 2, offset: 1 << 20, bytes: bytes.into() }
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut seed = 7u64;
        let mut roll = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..length).map(|_| roll()).collect()
    }

    fn decode(bytes: &[u8]) -> Result<(Frame, u64), BadFrame> {
        let header = Header::decode(bytes[..HEADER].try_into().unwrap())?;
        header.frame(Bytes::copy_from_slice(&bytes[HEADER..]))
    }

    /// A packed frame whose prefix claims `length` bytes, under a true checksum.
    fn claiming(length: u64, packed: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADER];
        frame.extend_from_slice(&1u64.to_le_bytes());
        frame.extend_from_slice(&0u64.to_le_bytes());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(packed);
        seal(&mut frame, PACKED);
        frame
    }

    #[test]
    fn what_was_packed_arrives_and_counts_as_if_it_had_not_been() {
        let text: Vec<u8> = (0..65536u32).map(|n| (n / 100) as u8).collect();
        for length in [SMALLEST, 4096, 65536] {
            let frame = block(text[..length].to_vec());
            let (encoded, checksum) = frame.encode();
            let packed = pack(&encoded).unwrap();
            assert!(packed.len() <= encoded.len() - length / 8, "{} of {}", packed.len(), encoded.len());
            assert_eq!(decode(&packed).unwrap(), (frame, checksum));
        }
    }

    #[test]
    fn what_does_not_shrink_by_an_eighth_is_not_packed_nor_is_anything_but_data() {
        assert_eq!(pack(&block(noise(65536)).encode().0), None);
        let mut mixed = noise(65536);
        mixed[..6000].fill(0);
        assert_eq!(pack(&block(mixed.clone()).encode().0), None, "under an eighth of it");
        mixed[..12_000].fill(0);
        assert!(pack(&block(mixed).encode().0).is_some());
        assert_eq!(pack(&block(vec![1; SMALLEST - 1]).encode().0), None);
        assert_eq!(pack(&Frame::Zero { sequence: 1, disk: 0, offset: 0, length: 1 << 20 }.encode().0), None);
        assert_eq!(pack(&[]), None);
    }

    #[test]
    fn a_packed_frame_that_lies_about_its_length_is_refused() {
        let (encoded, _) = block(vec![5; 65536]).encode();
        let packed = pack(&encoded).unwrap()[HEADER + DATA_PREFIX..].to_vec();
        let refused = |length, words: &str| {
            let Err(BadFrame::Malformed { what, .. }) = decode(&claiming(length, &packed)) else { panic!("{length}") };
            assert!(what.contains(words), "{length}: {what}");
        };
        assert!(decode(&claiming(65536, &packed)).is_ok());
        refused(65535, "cannot be decompressed");
        refused(65537, "fewer bytes");
        refused(u64::from(LARGEST_DATA) + 1, "more bytes than a frame may carry");
        refused((1 << 48) - 1, "more bytes than a frame may carry");
        refused(packed.len() as u64, "longer than what it stands for");
        refused(0, "empty");
        assert!(decode(&claiming(65536, &noise(300))).is_err());
    }

    #[test]
    fn a_changed_byte_under_a_true_checksum_never_panics_and_never_makes_more() {
        let text: Vec<u8> = (0..8192u32).map(|n| (n / 50) as u8).collect();
        let (encoded, _) = block(text).encode();
        let packed = pack(&encoded).unwrap()[HEADER + DATA_PREFIX..].to_vec();
        for at in 0..packed.len() * 8 {
            let mut bad = packed.clone();
            bad[at / 8] ^= 1 << (at % 8);
            if let Ok((Frame::Data { bytes, .. }, _)) = decode(&claiming(8192, &bad)) {
                assert_eq!(bytes.len(), 8192);
            }
        }
    }
}
