//! Replies on their way to a client: one at a time, whole, in the dialect the handshake settled.
//!
//! # Always true
//! - A reply is one chunk, so a client that asks not to get fragments never does.
//! - A read that is all zero travels as a hole of 12 bytes.
use std::{io, time::Duration};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use crate::{
    ErrorCode, StatusExtent,
    wire::{self, Chunk, Request, chunk, command},
};

/// How long a reply may stick in the socket of a client whose connection is ending.
const LAST_REPLIES: Duration = Duration::from_secs(5);

/// What a request came to.
pub(super) enum Outcome {
    /// Done, nothing to say.
    Done,
    /// The bytes read.
    Data(Bytes),
    /// Per context its id and extents.
    Status(Vec<(u32, Vec<StatusExtent>)>),
    /// Refused.
    Failed(ErrorCode),
}

/// The way back to a client, shared by its requests.
pub(super) struct Replies<W> {
    outgoing: Mutex<W>,
    structured: bool,
    /// Turns true when no more requests are taken.
    pub ending: watch::Sender<bool>,
}

impl<W> Replies<W>
where
    W: AsyncWrite + Unpin,
{
    pub fn new(outgoing: W, structured: bool) -> Replies<W> {
        Replies { outgoing: Mutex::new(outgoing), structured, ending: watch::Sender::new(false) }
    }

    /// Says that nothing follows.
    pub async fn shut_down(&self) {
        let _ = timeout(LAST_REPLIES, async { self.outgoing.lock().await.shutdown().await }).await;
    }

    /// Sends a reply; a client that does not take it is waited for as long as its connection lives.
    pub async fn send(&self, request: &Request, outcome: Outcome) {
        let mut ending = self.ending.subscribe();
        let sent = tokio::select! {
            sent = self.write(request, outcome) => sent,
            _ = async { let _ = ending.wait_for(|ending| *ending).await; sleep(LAST_REPLIES).await } => Ok(()),
        };
        if sent.is_err() {
            self.ending.send_replace(true);
        }
    }

    async fn write(&self, request: &Request, outcome: Outcome) -> io::Result<()> {
        let cookie = request.cookie;
        let mut outgoing = self.outgoing.lock().await;
        match outcome {
            Outcome::Data(data) if self.structured => {
                let (kind, offset) = (chunk::OFFSET_DATA, request.offset);
                if is_zero(&data) {
                    let head = Chunk { flags: chunk::DONE, kind: chunk::OFFSET_HOLE, cookie, length: 12 };
                    let body = [&offset.to_be_bytes()[..], &request.length.to_be_bytes()].concat();
                    outgoing.write_all_buf(&mut Buf::chain(&head.encode()[..], &body[..])).await?;
                } else {
                    let head = Chunk { flags: chunk::DONE, kind, cookie, length: data.len() as u32 + 8 };
                    let head = [&head.encode()[..], &offset.to_be_bytes()].concat();
                    outgoing.write_all_buf(&mut Buf::chain(&head[..], data)).await?;
                }
            }
            Outcome::Data(data) => {
                outgoing.write_all_buf(&mut Buf::chain(&wire::simple_reply(0, cookie)[..], data)).await?;
            }
            Outcome::Status(contexts) => {
                let mut message = Vec::new();
                let last = contexts.len().saturating_sub(1);
                for (index, (id, extents)) in contexts.iter().enumerate() {
                    let flags = if index == last { chunk::DONE } else { 0 };
                    let length = 4 + 8 * extents.len() as u32;
                    message.extend_from_slice(&Chunk { flags, kind: chunk::BLOCK_STATUS, cookie, length }.encode());
                    message.extend_from_slice(&id.to_be_bytes());
                    for extent in extents {
                        // no longer than the request, whose length has 32 bits
                        message.extend_from_slice(&(extent.length as u32).to_be_bytes());
                        message.extend_from_slice(&extent.flags.to_be_bytes());
                    }
                }
                outgoing.write_all(&message).await?;
            }
            Outcome::Failed(code) if self.structured => {
                let text = code.to_string();
                let length = 6 + text.len() as u32;
                let mut message = Chunk { flags: chunk::DONE, kind: chunk::ERROR, cookie, length }.encode().to_vec();
                message.extend_from_slice(&code.number().to_be_bytes());
                message.extend_from_slice(&(text.len() as u16).to_be_bytes());
                message.extend_from_slice(text.as_bytes());
                outgoing.write_all(&message).await?;
            }
            Outcome::Failed(code) => outgoing.write_all(&wire::simple_reply(code.number(), cookie)).await?,
            // a read of nothing is the one success without data that must not be a simple reply
            Outcome::Done if self.structured && request.command == command::READ => {
                let head = Chunk { flags: chunk::DONE, kind: chunk::NONE, cookie, length: 0 };
                outgoing.write_all(&head.encode()).await?;
            }
            Outcome::Done => outgoing.write_all(&wire::simple_reply(0, cookie)).await?,
        }
        outgoing.flush().await
    }
}

fn is_zero(data: &[u8]) -> bool {
    // in blocks, so that data which is not zero is noticed early and zero is compared fast
    let mut blocks = data.chunks(4096);
    blocks.all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
}
