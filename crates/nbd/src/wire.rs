//! The numbers and frames of NBD, as the protocol document gives them, and the bounds we add.
//!
//! ```text
//!   request           magic flags command cookie offset length            28 bytes, then the data of a write
//!   simple reply      magic error cookie                                  16 bytes, then the data of a read
//!   structured reply  magic flags type cookie length                      20 bytes, then `length` bytes
//! ```
//! # Always true
//! - Decoding takes a fixed number of bytes and cannot fail other than by an error value.
use bytes::{Buf, BufMut};

pub(crate) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(crate) const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The protocol's limit for names, descriptions and messages, in bytes.
pub(crate) const MAX_STRING: usize = 4096;
/// The largest data of one request or reply that we send or take: what the protocol says every server should serve.
pub(crate) const MAX_PAYLOAD: u32 = 32 * 1024 * 1024;
/// The largest option, or reply to an option, in bytes: room for a name and some dozens of queries.
pub(crate) const MAX_OPTION: u32 = 256 * 1024;
/// The most extents one status chunk may have, from the protocol document.
pub(crate) const MAX_CHUNK_EXTENTS: u32 = 1 << 20;

/// Flags of the greeting.
pub(crate) mod greeting {
    pub const FIXED_NEWSTYLE: u16 = 1;
    pub const NO_ZEROES: u16 = 2;
    pub const CLIENT_FIXED_NEWSTYLE: u32 = 1;
    pub const CLIENT_NO_ZEROES: u32 = 2;
}

/// Options of the handshake.
pub(crate) mod option {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;

    pub fn name(number: u32) -> &'static str {
        match number {
            EXPORT_NAME => "NBD_OPT_EXPORT_NAME",
            ABORT => "NBD_OPT_ABORT",
            LIST => "NBD_OPT_LIST",
            STARTTLS => "NBD_OPT_STARTTLS",
            INFO => "NBD_OPT_INFO",
            GO => "NBD_OPT_GO",
            STRUCTURED_REPLY => "NBD_OPT_STRUCTURED_REPLY",
            LIST_META_CONTEXT => "NBD_OPT_LIST_META_CONTEXT",
            SET_META_CONTEXT => "NBD_OPT_SET_META_CONTEXT",
            _ => "an option",
        }
    }
}

/// Replies to options.
pub(crate) mod option_reply {
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR: u32 = 1 << 31;
    pub const UNSUPPORTED: u32 = ERROR + 1;
    pub const POLICY: u32 = ERROR + 2;
    pub const INVALID: u32 = ERROR + 3;
    pub const PLATFORM: u32 = ERROR + 4;
    pub const TLS_REQUIRED: u32 = ERROR + 5;
    pub const UNKNOWN: u32 = ERROR + 6;
    pub const SHUTDOWN: u32 = ERROR + 7;
    pub const BLOCK_SIZE_REQUIRED: u32 = ERROR + 8;
    pub const TOO_BIG: u32 = ERROR + 9;

    pub fn reason(number: u32) -> &'static str {
        match number {
            UNSUPPORTED => "not supported",
            POLICY => "forbidden by the server's policy",
            INVALID => "invalid",
            PLATFORM => "not supported on the server's platform",
            TLS_REQUIRED => "TLS is required",
            UNKNOWN => "no such export",
            SHUTDOWN => "the server is shutting down",
            BLOCK_SIZE_REQUIRED => "block sizes must be negotiated",
            TOO_BIG => "too big",
            _ => "an unknown error",
        }
    }
}

/// Kinds of information about an export.
pub(crate) mod info {
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(crate) mod transmission {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands.
pub(crate) mod command {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;

    pub fn name(number: u16) -> &'static str {
        match number {
            READ => "read",
            WRITE => "write",
            DISCONNECT => "disconnect",
            FLUSH => "flush",
            TRIM => "trim",
            WRITE_ZEROES => "write-zeroes",
            BLOCK_STATUS => "block-status",
            _ => "command",
        }
    }
}

/// Flags of a command.
pub(crate) mod command_flag {
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Chunks of a structured reply.
pub(crate) mod chunk {
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT + 1;
}

/// What sizes of requests a server takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Offsets and lengths are multiples of this power of two, at most 64 KiB.
    pub minimum: u32,
    /// Aligned requests of this size are served without read-modify-write.
    pub preferred: u32,
    /// The most data one request carries. The client splits what is larger.
    pub maximum: u32,
}

impl Default for BlockSize {
    /// What the protocol has both sides assume where nothing was said: any byte, 4 KiB, 32 MiB.
    fn default() -> BlockSize {
        BlockSize { minimum: 1, preferred: 4096, maximum: MAX_PAYLOAD }
    }
}

impl BlockSize {
    /// The sizes as they may be worked with: inside our own limits, the maximum a multiple of the minimum.
    /// `None` where they contradict the protocol so that no request could be formed.
    pub(crate) fn usable(self) -> Option<BlockSize> {
        let BlockSize { minimum, preferred, maximum } = self;
        if !minimum.is_power_of_two() || minimum > 64 * 1024 || maximum < minimum {
            return None;
        }
        let maximum = maximum.min(MAX_PAYLOAD) & !(minimum - 1);
        let preferred = if preferred.is_power_of_two() { preferred.max(minimum) } else { minimum.max(4096) };
        Some(BlockSize { minimum, preferred, maximum })
    }
}

/// Ran out of bytes while decoding.
pub(crate) type Short = bytes::TryGetError;

/// A request of the transmission phase, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub length: u32,
}

impl Request {
    pub const BYTES: usize = 28;

    pub fn encode(&self) -> [u8; Request::BYTES] {
        let mut bytes = [0; Request::BYTES];
        let mut out = &mut bytes[..];
        out.put_u32(REQUEST_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.command);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        out.put_u32(self.length);
        bytes
    }

    /// `None` if the magic is wrong: the stream is out of step and cannot be trusted any further.
    pub fn decode(bytes: &[u8; Request::BYTES]) -> Option<Request> {
        let mut bytes = &bytes[..];
        if bytes.try_get_u32().ok()? != REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: bytes.try_get_u16().ok()?,
            command: bytes.try_get_u16().ok()?,
            cookie: bytes.try_get_u64().ok()?,
            offset: bytes.try_get_u64().ok()?,
            length: bytes.try_get_u32().ok()?,
        })
    }
}

/// The head of a structured reply chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub length: u32,
}

impl Chunk {
    pub const BYTES: usize = 20;

    pub fn encode(&self) -> [u8; Chunk::BYTES] {
        let mut bytes = [0; Chunk::BYTES];
        let mut out = &mut bytes[..];
        out.put_u32(STRUCTURED_REPLY_MAGIC);
        out.put_u16(self.flags);
        out.put_u16(self.kind);
        out.put_u64(self.cookie);
        out.put_u32(self.length);
        bytes
    }

    /// What follows the magic.
    pub fn decode_rest(mut bytes: &[u8]) -> Result<Chunk, Short> {
        Ok(Chunk {
            flags: bytes.try_get_u16()?,
            kind: bytes.try_get_u16()?,
            cookie: bytes.try_get_u64()?,
            length: bytes.try_get_u32()?,
        })
    }
}

/// A simple reply without its data.
pub(crate) fn simple_reply(error: u32, cookie: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    let mut out = &mut bytes[..];
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
    bytes
}

/// Text from a peer, fit to be shown: at most 4096 bytes, no control characters.
pub(crate) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.get(..MAX_STRING).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_request_survives_the_wire(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let request = Request { flags, command, cookie, offset, length };
            prop_assert_eq!(Request::decode(&request.encode()), Some(request));
        }

        #[test]
        fn usable_block_sizes_always_allow_a_request(minimum: u32, preferred: u32, maximum: u32, shift in 0u32..18) {
            for minimum in [minimum, 1 << shift] {
                if let Some(usable) = (BlockSize { minimum, preferred, maximum }).usable() {
                    prop_assert!(usable.minimum.is_power_of_two());
                    prop_assert!(usable.maximum >= usable.minimum && usable.maximum <= MAX_PAYLOAD);
                    prop_assert_eq!(usable.maximum % usable.minimum, 0);
                    prop_assert!(usable.preferred.is_power_of_two());
                }
            }
        }
    }

    #[test]
    fn a_wrong_magic_is_no_request() {
        let request = Request { flags: 0, command: 0, cookie: 1, offset: 0, length: 1 };
        let mut bytes = request.encode();
        bytes[0] ^= 1;
        assert_eq!(Request::decode(&bytes), None);
    }

    #[test]
    fn a_peer_s_text_cannot_carry_terminal_codes() {
        assert_eq!(text(b"no\x1b[31m\ndisk"), "no [31m disk");
        assert_eq!(text(&[b'x'; 9000]).len(), MAX_STRING);
    }
}
