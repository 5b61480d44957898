//! Frames: how messages and blocks are laid out on a connection between movers.
//!
//! ```text
//!   0        4      6      8        12       16                24
//!   ┌────────┬──────┬──────┬────────┬────────┬─────────────────┬───────────
//!   │ "SKY1" │ kind │  0   │ length │   0    │ xxh3 of payload │ payload …     all numbers little-endian
//!   └────────┴──────┴──────┴────────┴────────┴─────────────────┴───────────
//! ```
//!
//! # Always true
//! - The length is compared with the bound of its kind before anything is allocated.
//! - The payload's checksum is verified before anything in it is believed, so no block is applied that changed on the way.
//! - A decoder fed with arbitrary bytes answers with [`BadFrame`] and does not panic.
//! - A block counts the same in an epoch's totals however it travelled: what is folded is the checksum of its data frame.

use std::hash::Hasher;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::extent::LARGEST_DISK;
use crate::leaf::Leaf;
use crate::packed;
use crate::session::Message;

/// Bytes of a frame's header.
pub const HEADER: usize = 24;
/// The most bytes of a control message. A position's maps are the largest thing in one; they are coarsened to fit.
pub const LARGEST_MESSAGE: u32 = 16 << 20;
/// The most bytes of data in one data frame.
pub const LARGEST_DATA: u32 = 1 << 20;
/// The most leaves in one `Hashes` frame.
pub const MOST_LEAVES: u32 = 1024;

pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"SKY1");
pub(crate) const DATA_PREFIX: usize = 24;
const HASHES_PREFIX: usize = 24;

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// A control message.
    Message(Message),
    /// Bytes of a disk at the cut. They may travel compressed ([`packed`]): what arrives is the same.
    Data {
        /// Counts the data and zero frames of an epoch from 1.
        sequence: u64,
        /// Index into the disks of the epoch's header.
        disk: u16,
        /// First byte on the disk.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// A range of a disk that reads as zeroes at the cut.
    Zero {
        /// Counts the data and zero frames of an epoch from 1.
        sequence: u64,
        /// Index into the disks of the epoch's header.
        disk: u16,
        /// First byte on the disk.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Hashes of the receiver's disk, ascending from `offset`.
    Hashes {
        /// Index into the disks of `Welcome`.
        disk: u16,
        /// That of the request.
        level: u8,
        /// First byte that the first one stands for.
        offset: u64,
        /// Bytes that the receiver read for them: none where it keeps leaves.
        read: u64,
        /// One for each [`crate::leaf::Recipe::span`] of the level (the last may cover less).
        leaves: Vec<Leaf>,
    },
}

/// Why bytes from the peer are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// The first four bytes are not ours: another protocol, or a stream out of step.
    #[error("the peer does not speak the mover protocol (magic {0:#010x})")]
    Magic(u32),
    /// A kind that this version does not know.
    #[error("frame kind {0} is unknown to this version")]
    Kind(u16),
    /// Longer than its kind may be.
    #[error("a frame of kind {kind} claims {length} bytes; at most {most} are allowed")]
    TooLong {
        /// The kind.
        kind: u16,
        /// The claimed length in bytes.
        length: u32,
        /// The bound in bytes.
        most: u32,
    },
    /// The payload was changed on the way.
    #[error("the checksum of a frame does not match its payload")]
    Checksum,
    /// The payload is not what its kind says.
    #[error("a frame of kind {kind} is malformed: {what}")]
    Malformed {
        /// The kind.
        kind: u16,
        /// What is wrong.
        what: String,
    },
}

/// A checked header: how many bytes of payload follow, and what to make of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    kind: u16,
    /// Bytes of payload that follow.
    pub length: u32,
    checksum: u64,
}

const MESSAGE: u16 = 1;
pub(crate) const DATA: u16 = 2;
const ZERO: u16 = 3;
const HASHES: u16 = 4;
pub(crate) const PACKED: u16 = 5;

impl Header {
    /// Reads a header and checks the length against the bound of its kind.
    ///
    /// # Errors
    /// [`BadFrame::Magic`], [`BadFrame::Kind`], [`BadFrame::TooLong`].
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Header, BadFrame> {
        let mut b = &bytes[..];
        let magic = b.get_u32_le();
        if magic != MAGIC {
            return Err(BadFrame::Magic(magic));
        }
        let kind = b.get_u16_le();
        b.advance(2);
        let length = b.get_u32_le();
        b.advance(4);
        let checksum = b.get_u64_le();
        let most = match kind {
            MESSAGE => LARGEST_MESSAGE,
            DATA | PACKED => DATA_PREFIX as u32 + LARGEST_DATA,
            ZERO => DATA_PREFIX as u32,
            HASHES => HASHES_PREFIX as u32 + MOST_LEAVES * 32,
            other => return Err(BadFrame::Kind(other)),
        };
        if length > most {
            return Err(BadFrame::TooLong { kind, length, most });
        }
        Ok(Header { kind, length, checksum })
    }

    /// Makes a frame of a payload of exactly [`Header::length`] bytes, and gives the checksum that epochs fold into their
    /// totals: that of the payload, before it was compressed.
    ///
    /// # Errors
    /// [`BadFrame::Checksum`], [`BadFrame::Malformed`].
    pub fn frame(&self, mut payload: Bytes) -> Result<(Frame, u64), BadFrame> {
        let malformed = |what: &str| BadFrame::Malformed { kind: self.kind, what: what.to_string() };
        let sum = checksum(&payload);
        #[cfg(feature = "sabotage")]
        let sum = if crate::sabotage::is("checksum-unverified") { self.checksum } else { sum };
        if payload.len() != self.length as usize || sum != self.checksum {
            return Err(BadFrame::Checksum);
        }
        let frame = match self.kind {
            MESSAGE => Frame::Message(serde_json::from_slice(&payload).map_err(|e| malformed(&e.to_string()))?),
            DATA | ZERO | PACKED => {
                if payload.len() < DATA_PREFIX {
                    return Err(malformed("shorter than its prefix"));
                }
                let prefix = payload.slice(..DATA_PREFIX);
                let sequence = payload.get_u64_le();
                let (offset, disk_and_length) = (payload.get_u64_le(), payload.get_u64_le());
                // 16 bits of disk index above 48 bits of length: a zero range may be as long as 256 TiB.
                let (disk, length) = ((disk_and_length >> 48) as u16, disk_and_length & ((1 << 48) - 1));
                if length == 0 || offset.checked_add(length).is_none_or(|end| end > LARGEST_DISK) {
                    return Err(malformed("the range is empty or beyond any disk"));
                }
                match self.kind {
                    ZERO => Frame::Zero { sequence, disk, offset, length },
                    DATA if payload.len() as u64 == length => Frame::Data { sequence, disk, offset, bytes: payload },
                    DATA => return Err(malformed("the length does not match the bytes")),
                    _ => {
                        let bytes = packed::expand(&payload, length).map_err(malformed)?;
                        let checksum = checksum_of(&prefix, &bytes);
                        return Ok((Frame::Data { sequence, disk, offset, bytes }, checksum));
                    }
                }
            }
            _ => {
                if payload.len() < HASHES_PREFIX || !(payload.len() - HASHES_PREFIX).is_multiple_of(32) {
                    return Err(malformed("not a whole number of leaves"));
                }
                let (offset, disk, read) = (payload.get_u64_le(), payload.get_u64_le(), payload.get_u64_le());
                let disk =
                    u32::try_from(disk).ok().and_then(|both| Some((both as u16, u8::try_from(both >> 16).ok()?)));
                let (disk, level) = disk.ok_or_else(|| malformed("the disk index or the level is out of range"))?;
                let leaves = payload.chunks_exact(32).filter_map(|leaf| leaf.try_into().ok()).collect();
                Frame::Hashes { disk, level, offset, read, leaves }
            }
        };
        Ok((frame, self.checksum))
    }
}

impl Frame {
    /// The frame as bytes to send, and the checksum of its payload.
    ///
    /// A data frame's bytes are copied once; callers keep them at or below [`LARGEST_DATA`].
    pub fn encode(&self) -> (Bytes, u64) {
        let mut out = BytesMut::with_capacity(HEADER + DATA_PREFIX + self.payload_hint());
        out.put_bytes(0, HEADER);
        let kind = match self {
            Frame::Message(message) => {
                // A Message is made of strings and numbers only: its serialisation cannot fail.
                out.put_slice(&serde_json::to_vec(message).unwrap_or_default());
                MESSAGE
            }
            Frame::Data { sequence, disk, offset, bytes } => {
                out.put_u64_le(*sequence);
                out.put_u64_le(*offset);
                out.put_u64_le(u64::from(*disk) << 48 | bytes.len() as u64);
                out.put_slice(bytes);
                DATA
            }
            Frame::Zero { sequence, disk, offset, length } => {
                out.put_u64_le(*sequence);
                out.put_u64_le(*offset);
                out.put_u64_le(u64::from(*disk) << 48 | (length & ((1 << 48) - 1)));
                ZERO
            }
            Frame::Hashes { disk, level, offset, read, leaves } => {
                out.put_u64_le(*offset);
                out.put_u64_le(u64::from(*level) << 16 | u64::from(*disk));
                out.put_u64_le(*read);
                leaves.iter().for_each(|leaf| out.put_slice(leaf));
                HASHES
            }
        };
        let checksum = seal(&mut out, kind);
        (out.freeze(), checksum)
    }

    fn payload_hint(&self) -> usize {
        match self {
            Frame::Data { bytes, .. } => bytes.len(),
            Frame::Hashes { leaves, .. } => leaves.len() * 32,
            Frame::Message(_) | Frame::Zero { .. } => 256,
        }
    }
}

impl From<Message> for Frame {
    fn from(message: Message) -> Frame {
        Frame::Message(message)
    }
}

/// Writes the header of a payload into the room left for it, and gives the payload's checksum.
pub(crate) fn seal(frame: &mut [u8], kind: u16) -> u64 {
    let (mut header, payload) = frame.split_at_mut(HEADER);
    let (length, checksum) = (payload.len() as u32, checksum(payload));
    header.put_u32_le(MAGIC);
    header.put_u16_le(kind);
    header.put_u16_le(0);
    header.put_u32_le(length);
    header.put_u32_le(0);
    header.put_u64_le(checksum);
    checksum
}

fn checksum(payload: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(payload)
}

/// The checksum of a payload that lies in two parts.
fn checksum_of(prefix: &[u8], bytes: &[u8]) -> u64 {
    let mut whole = twox_hash::XxHash3_64::new();
    whole.write(prefix);
    whole.write(bytes);
    whole.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<(Frame, u64), BadFrame> {
        let header = Header::decode(bytes[..HEADER].try_into().unwrap())?;
        header.frame(Bytes::copy_from_slice(&bytes[HEADER..]))
    }

    #[test]
    fn every_kind_comes_back_as_it_was_sent() {
        let frames = [
            Frame::Message(Message::Ping { number: 7 }),
            Frame::Data { sequence: 1, disk: 3, offset: 65536, bytes: Bytes::from_static(b"hello") },
            Frame::Zero { sequence: 2, disk: 65535, offset: 0, length: 1 << 40 },
            Frame::Hashes { disk: 65535, level: 2, offset: 1 << 30, read: 1 << 16, leaves: vec![[7; 32], [0; 32]] },
        ];
        for frame in frames {
            let (bytes, checksum) = frame.encode();
            assert_eq!(decode(&bytes).unwrap(), (frame, checksum));
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let frame = Frame::Data { sequence: 1, disk: 0, offset: 4096, bytes: Bytes::from(vec![5; 64]) };
        let (good, _) = frame.encode();
        for bit in 0..good.len() * 8 {
            let reserved = [6, 7, 12, 13, 14, 15].contains(&(bit / 8));
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(reserved || decode(&bad).is_err(), "bit {bit} was not noticed");
        }
    }

    #[test]
    fn a_length_beyond_its_bound_is_refused_before_anything_is_allocated() {
        let (good, _) = Frame::Message(Message::Ping { number: 7 }).encode();
        let mut bad = good.to_vec();
        bad[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        let refused = Header::decode(bad[..HEADER].try_into().unwrap());
        assert!(matches!(refused, Err(BadFrame::TooLong { length: u32::MAX, .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_under_a_true_checksum_never_panic(kind in 0u16..7, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let header = Header { kind, length: payload.len() as u32, checksum: checksum(&payload) };
            let _ = header.frame(Bytes::from(payload));
        }

        #[test]
        fn arbitrary_headers_never_panic(bytes in prop::array::uniform24(any::<u8>()), ours in any::<bool>()) {
            let mut bytes = bytes;
            if ours { bytes[..4].copy_from_slice(b"SKY1"); }
            let _ = Header::decode(&bytes);
        }
    }
}
