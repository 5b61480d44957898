//! A sector of the log: a part of a record, with all that tells whether it is whole and where it belongs.
//!
//! ```text
//!   magic · part · parts · length · sequence │ JSON … │ XXH3 of the sector
//!   0                                        24       504              512
//! ```
//! A record of several sectors may be torn between them; a sector is written whole or not at all.

use twox_hash::XxHash3_64;

use crate::error::ReplicaError;
use crate::fields::{Fields, Put};
use crate::log::Record;

const MAGIC: u32 = u32::from_le_bytes(*b"SKPL");
/// Bytes in a sector, and the part of them that holds JSON.
pub(crate) const SECTOR: usize = 512;
const HEAD: usize = 24;
const ROOM: usize = SECTOR - HEAD - 8;
/// No record has more sectors: the point record of 256 disks has about 60.
pub(crate) const MOST_PARTS: u32 = 256;

/// Appends the sectors of a record.
pub(crate) fn encode(record: &Record, sequence: u64, out: &mut Vec<u8>) -> Result<(), ReplicaError> {
    let text = serde_json::to_vec(record).map_err(|error| ReplicaError::io("encoding a point record", error.into()))?;
    let parts = text.len().div_ceil(ROOM) as u32;
    if parts > MOST_PARTS {
        return Err(ReplicaError::Disks("the item has too many disks for one point record".into()));
    }
    for (part, piece) in text.chunks(ROOM).enumerate() {
        let start = out.len();
        out.put_u32(MAGIC);
        out.put_u32(part as u32);
        out.put_u32(parts);
        out.put_u32(piece.len() as u32);
        out.put_u64(sequence);
        out.extend_from_slice(piece);
        out.resize(start + SECTOR - 8, 0);
        let checksum = XxHash3_64::oneshot(&out[start..]);
        out.put_u64(checksum);
    }
    Ok(())
}

/// A whole sector.
pub(crate) struct Part<'a> {
    pub part: u32,
    pub parts: u32,
    pub sequence: u64,
    pub text: &'a [u8],
}

/// What a sector holds; none when it is not whole.
pub(crate) fn decode(sector: &[u8; SECTOR]) -> Option<Part<'_>> {
    let (body, checksum) = sector.split_last_chunk::<8>()?;
    if XxHash3_64::oneshot(body) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut fields = Fields(body);
    let magic = fields.u32()?;
    let (part, parts, length, sequence) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u64()?);
    let text = fields.0.get(..length as usize)?;
    let good = magic == MAGIC && part < parts && parts <= MOST_PARTS;
    good.then_some(Part { part, parts, sequence, text })
}
