//! Reading replies: every chunk is checked against the request it claims to answer before a byte of it is kept.
//!
//! ```text
//!   read 0..4096 ◄─ OFFSET_DATA 0..512      into the buffer; ranges seen so far: [0..512]
//!                ◄─ OFFSET_HOLE 512..4096   stays zero;                          [0..4096]
//!                ◄─ DONE                    all covered: answered
//! ```
//! # Always true
//! - What is allocated depends on what we asked for, never on a length the server made up.
//! - A range is filled once: overlapping, missing or outlying chunks end the connection.
use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::connection::{Table, Waiting};
use crate::{
    Error, ErrorCode,
    wire::{self, Chunk, chunk, command},
};

/// Separate ranges a reply may have open at a time; a server that answers in order has one.
const MAX_RANGES: usize = 65_536;

/// What a request came back with.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Done, nothing to say.
    Done,
    /// The bytes read.
    Data(Bytes),
    /// Lengths and flags of consecutive extents, from the start of what was asked.
    Status(Vec<(u32, u32)>),
}

impl Answer {
    pub fn into_data(self) -> Bytes {
        if let Answer::Data(data) = self { data } else { Bytes::new() }
    }

    pub fn into_status(self) -> Vec<(u32, u32)> {
        if let Answer::Status(extents) = self { extents } else { Vec::new() }
    }
}

/// A request whose reply is not complete.
pub(crate) struct Pending {
    command: u16,
    offset: u64,
    length: u32,
    /// The meta context whose status is wanted.
    context: Option<u32>,
    buffer: BytesMut,
    filled: Ranges,
    status: Option<Vec<(u32, u32)>>,
    error: Option<(ErrorCode, String)>,
}

impl Pending {
    pub fn new(command: u16, offset: u64, length: u32, context: Option<u32>) -> Pending {
        let (buffer, filled) = (BytesMut::new(), Ranges::default());
        Pending { command, offset, length, context, buffer, filled, status: None, error: None }
    }

    fn refused(&self, code: ErrorCode, message: String) -> Error {
        let (command, length) = (command::name(self.command), u64::from(self.length));
        Error::Remote { command, offset: self.offset, length, code, message }
    }

    /// The buffer for a range of the reply, which must lie within the request and not have been filled.
    fn claim(&mut self, offset: u64, length: u64) -> Result<&mut [u8], String> {
        let start = offset.checked_sub(self.offset).ok_or("data before what was asked for")?;
        let end = start.checked_add(length).filter(|end| *end <= u64::from(self.length));
        let end = end.ok_or("data past what was asked for")?;
        self.filled.add(start, end)?;
        if self.buffer.is_empty() {
            self.buffer = BytesMut::zeroed(self.length as usize);
        }
        self.buffer.get_mut(start as usize..end as usize).ok_or_else(|| "data outside of the buffer".into())
    }

    /// The result, once the server said that the reply is complete.
    fn complete(&mut self) -> Result<Result<Answer, Error>, String> {
        if let Some((code, message)) = self.error.take() {
            return Ok(Err(self.refused(code, message)));
        }
        match self.command {
            command::READ if self.filled.is_whole(u64::from(self.length)) => {
                Ok(Ok(Answer::Data(std::mem::take(&mut self.buffer).freeze())))
            }
            command::READ => Err("a read answered with parts missing".into()),
            command::BLOCK_STATUS => match self.status.take() {
                Some(extents) => Ok(Ok(Answer::Status(extents))),
                None => Err("a block status without the context asked for".into()),
            },
            _ => Ok(Ok(Answer::Done)),
        }
    }
}

/// Disjoint ranges, neighbours joined.
#[derive(Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn add(&mut self, mut start: u64, mut end: u64) -> Result<(), String> {
        if start == end {
            return Err("an empty chunk of data".into());
        }
        if let Some((&before, &before_end)) = self.0.range(..end).next_back() {
            if before_end > start {
                return Err("overlapping data".into());
            }
            if before_end == start {
                self.0.remove(&before);
                start = before;
            }
        }
        if let Some(after_end) = self.0.remove(&end) {
            end = after_end;
        }
        self.0.insert(start, end);
        if self.0.len() > MAX_RANGES { Err("data in too many fragments".into()) } else { Ok(()) }
    }

    fn is_whole(&self, length: u64) -> bool {
        length == 0 || self.0.get(&0) == Some(&length)
    }
}

/// Reads replies and hands them out until the connection dies; gives the reason. `current` holds who is being answered.
pub(crate) async fn read_replies<R>(
    incoming: &mut R,
    table: &Table,
    structured: bool,
    current: &mut Option<Waiting>,
) -> String
where
    R: AsyncRead + Unpin,
{
    loop {
        let result = read_reply(incoming, table, structured, current).await;
        if let Err(death) = result {
            return match death {
                Death::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    "the server closed it".to_string()
                }
                Death::Io(error) => format!("receiving failed: {error}"),
                Death::Breach(what) => format!("the server broke the protocol: {what}"),
            };
        }
    }
}

enum Death {
    Io(std::io::Error),
    Breach(String),
}

impl From<std::io::Error> for Death {
    fn from(error: std::io::Error) -> Death {
        Death::Io(error)
    }
}

impl From<String> for Death {
    fn from(what: String) -> Death {
        Death::Breach(what)
    }
}

impl From<&str> for Death {
    fn from(what: &str) -> Death {
        Death::Breach(what.into())
    }
}

async fn read_reply<R>(
    incoming: &mut R,
    table: &Table,
    structured: bool,
    current: &mut Option<Waiting>,
) -> Result<(), Death>
where
    R: AsyncRead + Unpin,
{
    match incoming.read_u32().await? {
        wire::SIMPLE_REPLY_MAGIC => {
            let error = incoming.read_u32().await?;
            let cookie = incoming.read_u64().await?;
            let waiting = current.insert(table.take(cookie).ok_or("a reply to nothing asked")?);
            let result = simple(incoming, &mut waiting.pending, error, structured).await?;
            if let Some(waiting) = current.take() {
                waiting.finish(result);
            }
        }
        wire::STRUCTURED_REPLY_MAGIC if structured => {
            let mut head = [0; Chunk::BYTES - 4];
            incoming.read_exact(&mut head).await?;
            let head = Chunk::decode_rest(&head).map_err(|_| "a short chunk")?;
            let waiting = current.insert(table.take(head.cookie).ok_or("a reply to nothing asked")?);
            chunk_of(incoming, &mut waiting.pending, &head).await?;
            let result = if head.flags & chunk::DONE != 0 { Some(waiting.pending.complete()?) } else { None };
            if let Some(waiting) = current.take() {
                match result {
                    Some(result) => waiting.finish(result),
                    None => table.put_back(head.cookie, waiting),
                }
            }
        }
        magic => return Err(format!("a reply with magic {magic:#010x}").into()),
    }
    Ok(())
}

async fn simple<R>(
    incoming: &mut R,
    pending: &mut Pending,
    error: u32,
    structured: bool,
) -> Result<Result<Answer, Error>, Death>
where
    R: AsyncRead + Unpin,
{
    if error != 0 {
        return Ok(Err(pending.refused(ErrorCode::from_number(error), String::new())));
    }
    match pending.command {
        command::READ if structured => return Err("a simple reply to a read".into()),
        command::READ => {
            let (offset, length) = (pending.offset, u64::from(pending.length));
            incoming.read_exact(pending.claim(offset, length)?).await?;
        }
        command::BLOCK_STATUS => return Err("a simple reply to a block status".into()),
        _ => (),
    }
    Ok(pending.complete()?)
}

async fn chunk_of<R>(incoming: &mut R, pending: &mut Pending, head: &Chunk) -> Result<(), Death>
where
    R: AsyncRead + Unpin,
{
    match head.kind {
        chunk::NONE if head.length == 0 && head.flags & chunk::DONE != 0 => Ok(()),
        chunk::OFFSET_DATA if pending.command == command::READ && head.length > 8 => {
            let offset = incoming.read_u64().await?;
            incoming.read_exact(pending.claim(offset, u64::from(head.length - 8))?).await?;
            Ok(())
        }
        chunk::OFFSET_HOLE if pending.command == command::READ && head.length == 12 => {
            let offset = incoming.read_u64().await?;
            let length = incoming.read_u32().await?;
            // the buffer was zero from the start, and no range is filled twice
            pending.claim(offset, u64::from(length))?;
            Ok(())
        }
        chunk::BLOCK_STATUS if pending.command == command::BLOCK_STATUS => status(incoming, pending, head.length).await,
        kind if kind & chunk::ERROR_BIT != 0 => failure(incoming, pending, head.length).await,
        kind => Err(format!("a chunk of type {kind} and {} bytes where it has no place", head.length).into()),
    }
}

async fn status<R>(incoming: &mut R, pending: &mut Pending, length: u32) -> Result<(), Death>
where
    R: AsyncRead + Unpin,
{
    let extents = length.checked_sub(4).filter(|rest| rest % 8 == 0).map(|rest| rest / 8);
    let count = extents.filter(|count| (1..=wire::MAX_CHUNK_EXTENTS).contains(count)).ok_or("a malformed status")?;
    let wanted = pending.context == Some(incoming.read_u32().await?);
    if wanted && pending.status.is_some() {
        return Err("two statuses of one context".into());
    }
    let mut extents = Vec::new();
    let (mut covered, asked) = (0u64, u64::from(pending.length));
    for _ in 0..count {
        let (length, flags) = (incoming.read_u32().await?, incoming.read_u32().await?);
        if length == 0 {
            return Err("an empty extent".into());
        }
        if wanted && covered >= asked {
            return Err("extents past what was asked for".into());
        }
        covered += u64::from(length);
        if wanted {
            extents.push((length, flags));
        }
    }
    if wanted {
        pending.status = Some(extents);
    }
    Ok(())
}

async fn failure<R>(incoming: &mut R, pending: &mut Pending, length: u32) -> Result<(), Death>
where
    R: AsyncRead + Unpin,
{
    // 6 fixed bytes, a message, and whatever a kind of error adds
    if !(6..=6 + wire::MAX_STRING as u32 + 64).contains(&length) {
        return Err(format!("an error of {length} bytes").into());
    }
    let mut data = vec![0; length as usize];
    incoming.read_exact(&mut data).await?;
    let mut data = &data[..];
    let (number, message_length) = (data.try_get_u32(), data.try_get_u16());
    let (Ok(number), Ok(message_length)) = (number, message_length) else {
        return Err("a short error".into());
    };
    let message = data.get(..message_length as usize).ok_or("an error whose message is cut off")?;
    pending.error.get_or_insert_with(|| (ErrorCode::from_number(number), wire::text(message)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_in_any_order_make_a_whole() {
        let mut ranges = Ranges::default();
        for (start, end) in [(10, 20), (0, 5), (20, 30), (5, 10)] {
            assert!(!ranges.is_whole(30));
            ranges.add(start, end).unwrap();
        }
        assert!(ranges.is_whole(30));
        assert_eq!(ranges.0.len(), 1);
    }

    #[test]
    fn data_before_or_after_the_request_is_refused() {
        let mut pending = Pending::new(command::READ, 100, 50, None);
        assert!(pending.claim(99, 2).is_err());
        assert!(pending.claim(149, 2).is_err());
        assert!(pending.claim(u64::MAX, u64::MAX).is_err());
        assert!(pending.claim(100, 0).is_err());
        assert_eq!(pending.claim(100, 50).unwrap().len(), 50);
        assert!(pending.claim(120, 1).is_err());
    }

    proptest! {
        #[test]
        fn ranges_accept_exactly_what_a_bitmap_accepts(parts in proptest::collection::vec((0u64..64, 1u64..16), 1..40)) {
            let (mut ranges, mut bits) = (Ranges::default(), vec![false; 80]);
            for (start, length) in parts {
                let slots = &mut bits[start as usize..(start + length) as usize];
                let free = slots.iter().all(|bit| !bit);
                prop_assert_eq!(ranges.add(start, start + length).is_ok(), free);
                if free {
                    slots.fill(true);
                }
                let whole = bits.iter().take_while(|bit| **bit).count() as u64;
                prop_assert!(whole == 0 || ranges.0.get(&0) == Some(&whole));
            }
        }
    }
}
