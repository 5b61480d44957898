//! One client's connection: requests come in one after another, are carried out side by side, answered as they finish.
//!
//! ```text
//!   handshake ─► read a request ─► room for it? ─► its data ─► a task: check, ask the export, send the reply
//!                     ▲               (waits)                      │ (16 tasks, 64 MiB)
//!                     └────────────────────────────────────────────┘
//!   goodbye, garbage, end of file, export removed, server stopped ─► no more requests; those begun are finished
//! ```
//! # Always true
//! - Data of at most 64 MiB is held for one connection, however many requests it sends.
//! - What a request did to the export is complete before the connection counts as gone.
use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    Export, Shared,
    reply::{Outcome, Replies},
};
use crate::{
    ErrorCode, StatusExtent,
    handshake::server::{self as handshake, Agreed},
    status,
    wire::{BlockSize, MAX_PAYLOAD, Request, command, command_flag},
};

/// Requests of one connection that are carried out side by side.
const MAX_REQUESTS: usize = 16;
/// Data of one connection held at a time, in units of 4 KiB: 64 MiB.
const MAX_HELD_PAGES: usize = 64 * 1024 * 1024 / PAGE;
const PAGE: usize = 4096;
/// A client that has chosen no export by then is let go.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// How long a stopping server or a removed export waits for requests inside of an export.
const LAST_REQUESTS: Duration = Duration::from_secs(30);
/// Extents in one reply about status (guessed; the protocol allows 2^20, and QEMU sends at most 2^17).
const MAX_EXTENTS: usize = 1 << 16;

/// An export that a client chose. Holding it keeps [`super::Server::withdraw`] waiting.
pub(super) struct Found {
    pub export: Arc<dyn Export>,
    pub gone: watch::Receiver<bool>,
    pub presence: Arc<()>,
}

/// Serves one client from greeting to end.
pub(super) async fn serve<R, W>(incoming: R, outgoing: W, shared: &Shared, mut stop: watch::Receiver<bool>)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let mut incoming = BufReader::with_capacity(64 * 1024, incoming);
    let mut outgoing = outgoing;
    let welcomed = tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return,
        welcomed = timeout(HANDSHAKE, handshake::welcome(&mut incoming, &mut outgoing, shared)) => welcomed,
    };
    match welcomed {
        Ok(Ok(Some(agreed))) => Session::new(outgoing, agreed).run(&mut incoming, stop).await,
        Ok(Ok(None)) => (),
        Ok(Err(error)) => tracing::debug!(%error, "an NBD handshake failed"),
        Err(_) => tracing::debug!("an NBD client chose no export in time"),
    }
}

struct Session<W> {
    export: Arc<dyn Export>,
    gone: watch::Receiver<bool>,
    _presence: Arc<()>,
    replies: Arc<Replies<W>>,
    contexts: Arc<Vec<(u32, String)>>,
    block: BlockSize,
    requests: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

/// A request with its data, and the room it takes.
struct Taken {
    request: Request,
    data: Result<Bytes, ErrorCode>,
    _room: [Option<OwnedSemaphorePermit>; 2],
}

impl<W> Session<W>
where
    W: AsyncWrite + Send + Unpin + 'static,
{
    fn new(outgoing: W, agreed: Agreed<Found>) -> Session<W> {
        let Found { export, gone, presence } = agreed.found;
        let block = export.block_size().usable().unwrap_or_default();
        let replies = Replies::new(outgoing, agreed.structured);
        Session {
            export,
            gone,
            _presence: presence,
            replies: Arc::new(replies),
            contexts: Arc::new(agreed.contexts),
            block,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            pages: Arc::new(Semaphore::new(MAX_HELD_PAGES)),
        }
    }

    async fn run<R>(mut self, incoming: &mut R, mut stop: watch::Receiver<bool>)
    where
        R: AsyncRead + Unpin,
    {
        let mut begun = JoinSet::new();
        let mut gone = self.gone.clone();
        let mut ending = self.replies.ending.subscribe();
        let ordered_to_end = tokio::select! {
            biased;
            _ = gone.wait_for(|gone| *gone) => true,
            _ = stop.wait_for(|stop| *stop) => true,
            _ = ending.wait_for(|ending| *ending) => false,
            why = self.take_requests(incoming, &mut begun) => {
                if let Err(error) = why {
                    tracing::debug!(%error, "an NBD client went without a goodbye");
                }
                false
            }
        };
        self.replies.ending.send_replace(true);
        self.finish(begun, ordered_to_end, gone, stop).await;
        // a stream with an end of its own, as TLS has, gets to say it
        self.replies.shut_down().await;
    }

    /// Waits for the requests that were begun: without limit while nobody else needs the export, since a flush may take
    /// minutes, and bounded once the server stops or the export is removed.
    async fn finish(
        &self,
        mut begun: JoinSet<()>,
        ordered_to_end: bool,
        mut gone: watch::Receiver<bool>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut finish = std::pin::pin!(async { while begun.join_next().await.is_some() {} });
        if !ordered_to_end {
            tokio::select! {
                _ = &mut finish => return,
                _ = gone.wait_for(|gone| *gone) => (),
                _ = stop.wait_for(|stop| *stop) => (),
            }
        }
        if timeout(LAST_REQUESTS, finish).await.is_err() {
            tracing::warn!("an NBD export did not finish its requests; they are abandoned");
        }
    }

    /// Takes requests until the client says goodbye (`Ok`) or can no longer be understood.
    async fn take_requests<R>(&mut self, incoming: &mut R, begun: &mut JoinSet<()>) -> io::Result<()>
    where
        R: AsyncRead + Unpin,
    {
        while let Some(taken) = self.take_request(incoming).await? {
            while begun.try_join_next().is_some() {}
            let (export, replies, contexts) = (self.export.clone(), self.replies.clone(), self.contexts.clone());
            let (block, gone) = (self.block, self.gone.clone());
            begun.spawn(async move {
                let _gone = gone;
                let mut fuse = Fuse { ending: &replies.ending, blown: true };
                let reply = carry_out(&*export, &taken, block, &contexts).await;
                replies.send(&taken.request, reply).await;
                fuse.blown = false;
            });
        }
        Ok(())
    }

    /// `None` at a goodbye.
    async fn take_request<R>(&mut self, incoming: &mut R) -> io::Result<Option<Taken>>
    where
        R: AsyncRead + Unpin,
    {
        let mut header = [0; Request::BYTES];
        incoming.read_exact(&mut header).await?;
        let request = Request::decode(&header).ok_or_else(|| breach("a wrong magic before a request"))?;
        if request.command == command::DISCONNECT {
            return Ok(None);
        }
        let slot = room(&self.requests, 1).await?;
        let holds_data = matches!(request.command, command::READ | command::WRITE);
        if !holds_data || request.length > MAX_PAYLOAD {
            let data = if holds_data { Err(too_long(&request)) } else { Ok(Bytes::new()) };
            if request.command == command::WRITE {
                discard(incoming, u64::from(request.length)).await?;
            }
            return Ok(Some(Taken { request, data, _room: [slot, None] }));
        }
        let pages = room(&self.pages, (request.length as usize).div_ceil(PAGE)).await?;
        let data = if request.command == command::WRITE {
            let mut data = BytesMut::zeroed(request.length as usize);
            incoming.read_exact(&mut data).await?;
            data.freeze()
        } else {
            Bytes::new()
        };
        Ok(Some(Taken { request, data: Ok(data), _room: [slot, pages] }))
    }
}

async fn room(of: &Arc<Semaphore>, amount: usize) -> io::Result<Option<OwnedSemaphorePermit>> {
    let amount = u32::try_from(amount).map_err(io::Error::other)?;
    Ok(Some(of.clone().acquire_many_owned(amount).await.map_err(io::Error::other)?))
}

fn too_long(request: &Request) -> ErrorCode {
    if request.command == command::READ { ErrorCode::Overflow } else { ErrorCode::Invalid }
}

async fn discard<R>(incoming: &mut R, length: u64) -> io::Result<()>
where
    R: AsyncRead + Unpin,
{
    let discarded = tokio::io::copy(&mut incoming.take(length), &mut tokio::io::sink()).await?;
    if discarded == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn breach(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// An export that panics leaves a request without a reply, so its connection ends (and no other).
struct Fuse<'a> {
    ending: &'a watch::Sender<bool>,
    blown: bool,
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if self.blown {
            self.ending.send_replace(true);
        }
    }
}

async fn carry_out(export: &dyn Export, taken: &Taken, block: BlockSize, contexts: &[(u32, String)]) -> Outcome {
    let result = async {
        let data = taken.data.as_ref().map_err(|code| *code)?;
        check(export, &taken.request, block)?;
        act(export, &taken.request, data, contexts).await
    };
    result.await.unwrap_or_else(Outcome::Failed)
}

/// Refuses what the protocol says must be refused before an export sees it.
fn check(export: &dyn Export, request: &Request, block: BlockSize) -> Result<(), ErrorCode> {
    let fast = if export.fast_zeroes() { command_flag::FAST_ZERO } else { 0 };
    let (flags, writes) = match request.command {
        command::READ => (command_flag::DF, false),
        command::BLOCK_STATUS => (command_flag::REQ_ONE, false),
        command::FLUSH => (0, false),
        command::WRITE | command::TRIM => (0, true),
        command::WRITE_ZEROES => (command_flag::NO_HOLE | fast, true),
        _ => return Err(ErrorCode::Invalid),
    };
    // FUA is to be accepted everywhere, means something for writes only, and is not advertised by read-only exports
    if request.flags & !(flags | command_flag::FUA) != 0 {
        return Err(ErrorCode::Invalid);
    }
    if writes && export.read_only() {
        return Err(ErrorCode::NotPermitted);
    }
    if request.command == command::FLUSH {
        return Ok(());
    }
    let past_the_end = match request.command {
        command::WRITE | command::WRITE_ZEROES => ErrorCode::NoSpace,
        _ => ErrorCode::Invalid,
    };
    let length = u64::from(request.length);
    if request.offset.checked_add(length).is_none_or(|end| end > export.size()) {
        return Err(past_the_end);
    }
    let carries_data = matches!(request.command, command::READ | command::WRITE);
    if carries_data && request.length > block.maximum {
        return Err(too_long(request));
    }
    // the ragged end of a disk whose size is no multiple of its block may be read, or its status asked, to the very end
    let mask = u64::from(block.minimum) - 1;
    let ragged_end = !writes && request.offset + length == export.size();
    if request.offset & mask != 0 || (length & mask != 0 && !ragged_end) {
        return Err(ErrorCode::Invalid);
    }
    Ok(())
}

async fn act(
    export: &dyn Export,
    request: &Request,
    data: &Bytes,
    contexts: &[(u32, String)],
) -> Result<Outcome, ErrorCode> {
    let (offset, length) = (request.offset, u64::from(request.length));
    let no_hole = request.flags & command_flag::NO_HOLE != 0;
    match request.command {
        command::FLUSH if export.read_only() => (),
        command::FLUSH => export.flush().await?,
        command::BLOCK_STATUS if length == 0 || contexts.is_empty() => return Err(ErrorCode::Invalid),
        _ if length == 0 => (),
        command::READ => {
            let data = export.read(offset, request.length).await?;
            if data.len() != request.length as usize {
                tracing::error!(asked = request.length, given = data.len(), "an export gave a wrong amount of data");
                return Err(ErrorCode::Io);
            }
            return Ok(Outcome::Data(data));
        }
        command::WRITE => export.write(offset, data.clone()).await?,
        command::TRIM => export.trim(offset, length).await?,
        // writing them out is no faster than writing them out
        command::WRITE_ZEROES if no_hole && request.flags & command_flag::FAST_ZERO != 0 => {
            return Err(ErrorCode::NotSupported);
        }
        command::WRITE_ZEROES if no_hole => write_out_zeroes(export, offset, length).await?,
        command::WRITE_ZEROES => export.write_zeroes(offset, length).await?,
        command::BLOCK_STATUS => {
            let one = request.flags & command_flag::REQ_ONE != 0;
            let mut all = Vec::with_capacity(contexts.len());
            for (id, context) in contexts {
                let extents = export.status(context, offset, length).await?;
                all.push((*id, presentable(extents, offset, length, one).ok_or(ErrorCode::Io)?));
            }
            return Ok(Outcome::Status(all));
        }
        _ => return Err(ErrorCode::Invalid),
    }
    if request.flags & command_flag::FUA != 0 && request.command != command::FLUSH && !export.read_only() {
        export.flush().await?;
    }
    Ok(Outcome::Done)
}

/// Writes zeroes by writing zeroes, a mebibyte at a time.
pub(super) async fn write_out_zeroes<E>(export: &E, offset: u64, length: u64) -> Result<(), ErrorCode>
where
    E: Export + ?Sized,
{
    const STEP: u64 = 1024 * 1024;
    let zeroes = Bytes::from(vec![0; STEP.min(length) as usize]);
    let mut done = 0;
    while done < length {
        let step = STEP.min(length - done);
        export.write(offset + done, zeroes.slice(..step as usize)).await?;
        done += step;
    }
    Ok(())
}

/// The extents as they may be sent: joined, inside of the range, not too many. `None` if the export's are nonsense.
fn presentable(extents: Vec<StatusExtent>, offset: u64, length: u64, one: bool) -> Option<Vec<StatusExtent>> {
    let limit = if one { 1 } else { MAX_EXTENTS };
    let (mut joined, mut position) = (Vec::new(), offset);
    for extent in extents {
        if extent.offset != position || extent.length == 0 {
            tracing::error!(?extent, position, "an export gave extents that do not follow each other");
            return None;
        }
        let end = extent.end().min(offset + length);
        status::push(&mut joined, StatusExtent { offset: position, length: end - position, flags: extent.flags });
        position = end;
        // one more than allowed: only now is the last one allowed known to be complete
        if position == offset + length || joined.len() > limit {
            break;
        }
    }
    joined.truncate(limit);
    if joined.is_empty() { None } else { Some(joined) }
}
