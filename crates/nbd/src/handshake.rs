//! The haggling before the first request: who speaks which dialect, which export, what it can do.
//!
//! ```text
//!   server: NBDMAGIC IHAVEOPT flags
//!   client: flags
//!   client: option ───► server: reply, reply ..., ACK or error      (any number of times)
//!   client: GO export ► server: size, flags, block sizes, ACK       (now requests may flow)
//! ```
//! # Always true
//! - An option or a reply is at most 256 KiB, a handshake has a bounded number of them, and both sides bound its time.
pub(crate) mod client;
pub(crate) mod server;

use bytes::Buf;

use crate::wire;

/// Takes a string with a 32-bit length in front. `None` if it is cut short, too long, or not UTF-8.
fn take_string(data: &mut &[u8]) -> Option<String> {
    let length = data.try_get_u32().ok()? as usize;
    if length > wire::MAX_STRING {
        return None;
    }
    let (string, rest) = data.split_at_checked(length)?;
    *data = rest;
    String::from_utf8(string.to_vec()).ok()
}

fn put_string(data: &mut Vec<u8>, string: &str) {
    // our own strings are bounded by MAX_STRING where they enter, so the length fits
    data.extend_from_slice(&(string.len() as u32).to_be_bytes());
    data.extend_from_slice(string.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_longer_than_its_message_is_refused() {
        assert_eq!(take_string(&mut &b"\0\0\0\x05ab"[..]), None);
        assert_eq!(take_string(&mut &b"\xff\xff\xff\xffab"[..]), None);
        assert_eq!(take_string(&mut &b"\0\0"[..]), None);
        assert_eq!(take_string(&mut &b"\0\0\0\x02ab"[..]).as_deref(), Some("ab"));
        assert_eq!(take_string(&mut &b"\0\0\0\x01\xff"[..]), None);
    }
}
