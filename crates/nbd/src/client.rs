//! A client of one export: many requests in flight over one connection or several, shared by cheap clones.
//!
//! ```text
//!   read(offset, length) ─► widen to the minimum block ─► split at the maximum ─► some pieces in flight ─► joined
//!   write, zero, trim    ─► must fit the minimum block ─► split                ─► some pieces in flight
//!   block_status         ─► asked again where the answer stopped, until the range is covered
//! ```
//! Every future here may be dropped: a request already sent is carried out by the server, its answer is thrown away.
//! There is no time limit for a request, since a disk may legitimately stall; who wants one wraps the call.
//!
//! # Always true
//! - `write_zeroes` never becomes a trim, and a failed or unsupported one is written out as zeroes.
//! - When the connection dies, every request in flight and every later one fails with the reason.
mod connection;
mod reply;
mod several;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader},
    sync::oneshot,
    time::timeout,
};

use self::{connection::Connection, several::Connections};
use crate::{
    Address, BlockSize, Error, ErrorCode, StatusExtent, Uri,
    handshake::client::{self as handshake, Agreed},
    status, transport,
    wire::{self, command, command_flag, transmission},
};

/// Pieces of one call in flight at a time: 64 MiB of them, but at least 2 and at most 16 (guessed: enough to keep a disk
/// busy, few enough to be fair to other calls and to memory).
const WINDOW_BYTES: u64 = 64 * 1024 * 1024;
const WINDOW: std::ops::RangeInclusive<u64> = 2..=16;
/// Trim and write-zeroes carry no data, so they may exceed the maximum payload; this bounds how long one takes.
const ZERO_STEP: u64 = 512 * 1024 * 1024;
/// The longest block status question: the most 32 bits hold, aligned to the largest minimum block.
const STATUS_STEP: u64 = u32::MAX as u64 & !0xffff;
/// The most extents one call returns: 16 Mi of them take 400 MB.
const MAX_EXTENTS: usize = 1 << 24;
/// Heads of replies are read through a buffer of this size; payload that is larger passes it by.
const BUFFER: usize = 16 * 1024;

/// What to negotiate with the server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The meta contexts wanted, by their full names; see [`crate::status`]. Those the server lacks are left out, which
    /// [`Client::has_context`] tells.
    pub contexts: Vec<String>,
    /// How long connecting and the handshake may take together.
    pub timeout: Duration,
    /// Cuts reads and writes so that none crosses a multiple of this many bytes, a power of two not below the server's
    /// minimum block. For servers that answer long reads wrongly: QEMU 7.2's `snapshot-access` over `copy-before-write`
    /// wants 64 KiB.
    pub cut_at: Option<u32>,
    /// How many connections [`Client::connect`] opens at most: more than one only where the server says that they are as good
    /// as one ([`Client::can_multi_conn`]), and fewer where it takes fewer.
    pub connections: u8,
}

impl Default for Options {
    /// No contexts, 30 seconds, requests as long as the server takes them, one connection.
    fn default() -> Options {
        Options { contexts: Vec::new(), timeout: Duration::from_secs(30), cut_at: None, connections: 1 }
    }
}

impl Options {
    /// Options that ask for these meta contexts.
    pub fn with_contexts<S: Into<String>>(contexts: impl IntoIterator<Item = S>) -> Options {
        Options { contexts: contexts.into_iter().map(Into::into).collect(), ..Options::default() }
    }
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroing {
    /// The range keeps (or gets) its storage, so that later writes to it cannot run out of space.
    pub no_hole: bool,
    /// Only if it is faster than writing: else the server fails with [`ErrorCode::NotSupported`] and nothing changes.
    pub fast: bool,
}

/// A connection to one export, or several. Clones share them; they end politely when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    connections: Arc<Connections>,
    agreed: Arc<Agreed>,
    /// Whether no request may cross a multiple of the maximum.
    cut: bool,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("agreed", &self.agreed).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the server and opens the export.
    pub async fn connect(uri: &Uri, options: &Options) -> Result<Client, Error> {
        let (connection, agreed) = Client::open(uri, options).await?;
        let mut client = Client::of(connection, agreed, options);
        if client.can_multi_conn()
            && let Some(connections) = Arc::get_mut(&mut client.connections)
        {
            connections.widen(uri, options, &client.agreed).await;
        }
        Ok(client)
    }

    /// Opens the export over streams that somebody else connected: TLS, a tunnel, a test.
    pub async fn over<R, W>(incoming: R, outgoing: W, export: &str, options: &Options) -> Result<Client, Error>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (connection, agreed) = within(options.timeout, Client::begin(incoming, outgoing, export, options)).await?;
        Ok(Client::of(connection, agreed, options))
    }

    fn of(connection: Connection, agreed: Agreed, options: &Options) -> Client {
        let connections = Arc::new(Connections::one(connection));
        Client { connections, agreed: Arc::new(agreed), cut: options.cut_at.is_some() }
    }

    async fn open(uri: &Uri, options: &Options) -> Result<(Connection, Agreed), Error> {
        within(options.timeout, async {
            let (incoming, outgoing) = dial(&uri.address).await?;
            Client::begin(incoming, outgoing, &uri.export, options).await
        })
        .await
    }

    async fn begin<R, W>(
        incoming: R,
        mut outgoing: W,
        export: &str,
        options: &Options,
    ) -> Result<(Connection, Agreed), Error>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        if export.len() > wire::MAX_STRING || options.contexts.iter().any(|name| name.len() > wire::MAX_STRING) {
            return Err(Error::Unsupported("names longer than 4096 bytes"));
        }
        let mut incoming = BufReader::with_capacity(BUFFER, incoming);
        let mut agreed = handshake::open(&mut incoming, &mut outgoing, export, &options.contexts).await?;
        match options.cut_at {
            Some(cut) if !cut.is_power_of_two() || cut < agreed.block.minimum => {
                return Err(Error::Unsupported("requests cut at that size"));
            }
            // the largest power of two that the server takes divides every larger one
            Some(cut) => agreed.block.maximum = cut.min(1 << agreed.block.maximum.ilog2()),
            None => (),
        }
        Ok((Connection::start(incoming, outgoing, agreed.structured), agreed))
    }

    /// The names of the exports of a server.
    pub async fn list(address: &Address) -> Result<Vec<String>, Error> {
        within(Options::default().timeout, async {
            let (incoming, mut outgoing) = dial(address).await?;
            handshake::list(&mut BufReader::new(incoming), &mut outgoing).await
        })
        .await
    }

    /// The size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.agreed.size
    }

    /// Whether the export refuses to be written.
    pub fn read_only(&self) -> bool {
        self.agreed.has(transmission::READ_ONLY)
    }

    /// The sizes of requests the server takes. The maximum is at most 32 MiB, our own limit.
    pub fn block_size(&self) -> BlockSize {
        self.agreed.block
    }

    /// Whether the server writes zeroes without being sent them.
    pub fn can_zero(&self) -> bool {
        self.agreed.has(transmission::SEND_WRITE_ZEROES)
    }

    /// Whether the server can refuse a write of zeroes that would be slow: see [`Zeroing::fast`].
    pub fn can_fast_zero(&self) -> bool {
        self.agreed.has(transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO)
    }

    /// Whether the server takes trims.
    pub fn can_trim(&self) -> bool {
        self.agreed.has(transmission::SEND_TRIM)
    }

    /// Whether the server can flush.
    pub fn can_flush(&self) -> bool {
        self.agreed.has(transmission::SEND_FLUSH)
    }

    /// Whether the server can make a single write durable.
    pub fn can_fua(&self) -> bool {
        self.agreed.has(transmission::SEND_FUA)
    }

    /// Whether several connections see each other's writes, so that a flush on one covers all.
    pub fn can_multi_conn(&self) -> bool {
        self.agreed.has(transmission::CAN_MULTI_CONN)
    }

    /// Whether the meta context was negotiated.
    pub fn has_context(&self, name: &str) -> bool {
        self.context_id(name).is_some()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }

    /// Whether every connection still works, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.connections.are_alive()
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, Error> {
        let length = u64::from(length);
        self.check_bounds(offset, length)?;
        if length == 0 {
            return Ok(Bytes::new());
        }
        let (start, end) = self.widened(offset, length);
        let (skip, take) = ((offset - start) as usize, length as usize);
        let step = u64::from(self.agreed.block.maximum);
        let mut pieces = Pieces::new(self, command::READ, 0, start, end - start, step);
        let mut read = match pieces.next(|_| Bytes::new()).await? {
            Some(answer) => answer.into_data(),
            None => Bytes::new(),
        };
        if !pieces.is_empty() {
            let mut all = BytesMut::with_capacity((end - start) as usize);
            all.extend_from_slice(&read);
            while let Some(answer) = pieces.next(|_| Bytes::new()).await? {
                all.extend_from_slice(&answer.into_data());
            }
            read = all.freeze();
        }
        Ok(read.slice(skip..skip + take))
    }

    /// Writes `data` at `offset`. Durable after the next [`Client::flush`].
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        self.write_flagged(offset, data, 0).await
    }

    /// Writes `data` at `offset` and comes back when it is on stable storage.
    pub async fn write_durable(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        if self.can_fua() {
            return self.write_flagged(offset, data, command_flag::FUA).await;
        }
        self.write_flagged(offset, data, 0).await?;
        self.flush().await
    }

    async fn write_flagged(&self, offset: u64, data: Bytes, flags: u16) -> Result<(), Error> {
        let length = data.len() as u64;
        self.check_write(offset, length)?;
        let step = u64::from(self.agreed.block.maximum);
        let mut pieces = Pieces::new(self, command::WRITE, flags, offset, length, step);
        while pieces.next(|range| data.slice(range)).await?.is_some() {}
        Ok(())
    }

    /// Makes the range read as zeroes, never by a trim. Where the server cannot do that itself, zeroes are sent.
    pub async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.zero(offset, length, Zeroing::default()).await
    }

    /// Makes the range read as zeroes in a given manner. With [`Zeroing::fast`] no zeroes are ever sent instead.
    pub async fn zero(&self, offset: u64, length: u64, how: Zeroing) -> Result<(), Error> {
        self.check_write(offset, length)?;
        let mut flags = if how.no_hole { command_flag::NO_HOLE } else { 0 };
        if how.fast {
            if !self.can_fast_zero() {
                return Err(Error::Unsupported("fast zeroing"));
            }
            flags |= command_flag::FAST_ZERO;
        }
        if self.can_zero() {
            match self.effect(command::WRITE_ZEROES, flags, offset, length).await {
                Err(error) if error.code() == Some(ErrorCode::NotSupported) && !how.fast => (),
                result => return result,
            }
        }
        let step = u64::from(self.agreed.block.maximum).min(1024 * 1024).max(u64::from(self.agreed.block.minimum));
        let zeroes = Bytes::from(vec![0; step.min(length) as usize]);
        let mut pieces = Pieces::new(self, command::WRITE, 0, offset, length, step);
        while pieces.next(|range| zeroes.slice(..range.len())).await?.is_some() {}
        Ok(())
    }

    /// Tells the server that the range is no longer needed; what it reads as afterwards is undefined. A range that does
    /// not fit the minimum block is shrunk until it does.
    pub async fn trim(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check_bounds(offset, length)?;
        if self.read_only() {
            return Err(Error::ReadOnly);
        }
        if !self.can_trim() {
            return Err(Error::Unsupported("trim"));
        }
        let minimum = u64::from(self.agreed.block.minimum);
        let start = offset.next_multiple_of(minimum);
        let end = (offset + length) / minimum * minimum;
        self.effect(command::TRIM, 0, start, end.saturating_sub(start)).await
    }

    /// Comes back when all writes that were answered before are on stable storage. A server without flush has, by the
    /// protocol, no volatile cache: then there is nothing to do.
    pub async fn flush(&self) -> Result<(), Error> {
        if !self.can_flush() {
            return if self.is_connected() { Ok(()) } else { Err(self.connections.lost()) };
        }
        self.connections.next().submit(command::FLUSH, 0, 0, 0, None, Bytes::new()).await?.answer().await?;
        Ok(())
    }

    /// The status of a range in one meta context: extents that cover it exactly, neighbours always different.
    pub async fn block_status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<StatusExtent>, Error> {
        let id = self.context_id(context).ok_or_else(|| Error::NoContext(context.to_string()))?;
        self.check_bounds(offset, length)?;
        let mut extents = Vec::new();
        if length == 0 {
            return Ok(extents);
        }
        let wanted_end = offset + length;
        let (mut position, end) = self.widened(offset, length);
        while position < end {
            let asked = (end - position).min(STATUS_STEP);
            let request = self.connections.first().submit(
                command::BLOCK_STATUS,
                0,
                position,
                asked as u32,
                Some(id),
                Bytes::new(),
            );
            for (extent_length, flags) in request.await?.answer().await?.into_status() {
                let (start, stop) = (position.max(offset), (position + u64::from(extent_length)).min(wanted_end));
                if start < stop {
                    status::push(&mut extents, StatusExtent { offset: start, length: stop - start, flags });
                }
                position += u64::from(extent_length);
            }
            if extents.len() > MAX_EXTENTS {
                return Err(Error::TooManyExtents { limit: MAX_EXTENTS });
            }
        }
        Ok(extents)
    }

    /// Says goodbye and waits until the server has finished what is in flight, at most ten seconds. Other clones of
    /// this client fail from now on.
    pub async fn disconnect(self) {
        self.connections.disconnect().await;
    }

    /// Trim or write-zeroes, in large steps; a server that finds them too large is asked again in small ones.
    async fn effect(&self, command: u16, flags: u16, offset: u64, length: u64) -> Result<(), Error> {
        let small = u64::from(self.agreed.block.maximum);
        for step in [ZERO_STEP.max(small), small] {
            let mut pieces = Pieces::new(self, command, flags, offset, length, step);
            let result = loop {
                match pieces.next(|_| Bytes::new()).await {
                    Ok(Some(_)) => (),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match result {
                Err(error)
                    if step > small
                        && length > small
                        && matches!(error.code(), Some(ErrorCode::Overflow | ErrorCode::Invalid)) => {}
                result => return result,
            }
        }
        Ok(())
    }

    fn context_id(&self, name: &str) -> Option<u32> {
        self.agreed.contexts.iter().find(|(_, context)| context == name).map(|(id, _)| *id)
    }

    fn check_bounds(&self, offset: u64, length: u64) -> Result<(), Error> {
        let size = self.agreed.size;
        match offset.checked_add(length) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::OutOfBounds { offset, length, size }),
        }
    }

    fn check_write(&self, offset: u64, length: u64) -> Result<(), Error> {
        self.check_bounds(offset, length)?;
        if self.read_only() {
            return Err(Error::ReadOnly);
        }
        let minimum = self.agreed.block.minimum;
        if (offset | length) & (u64::from(minimum) - 1) != 0 {
            return Err(Error::Unaligned { offset, length, minimum });
        }
        Ok(())
    }

    /// The range, grown to whole minimum blocks; at a ragged end of the disk only as far as the disk goes.
    fn widened(&self, offset: u64, length: u64) -> (u64, u64) {
        let mask = u64::from(self.agreed.block.minimum) - 1;
        // the size is below 2^63, so this cannot overflow
        (offset & !mask, ((offset + length + mask) & !mask).min(self.agreed.size))
    }
}

async fn dial(address: &Address) -> Result<(transport::Incoming, transport::Outgoing), Error> {
    transport::dial(address).await.map_err(|source| Error::Connect { address: address.clone(), source })
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout(limit, work).await.unwrap_or(Err(Error::TimedOut { seconds: limit.as_secs() }))
}

/// One call cut into requests, a few of which are in flight at a time; answers come out in order.
struct Pieces<'a> {
    client: &'a Client,
    command: u16,
    flags: u16,
    /// Where the call begins.
    start: u64,
    /// Where the next request begins, and where the last one ends.
    next: u64,
    end: u64,
    step: u64,
    /// Whether pieces end at multiples of the step, wherever they start.
    aligned: bool,
    window: usize,
    in_flight: VecDeque<connection::InFlight>,
}

impl<'a> Pieces<'a> {
    fn new(client: &'a Client, command: u16, flags: u16, offset: u64, length: u64, step: u64) -> Pieces<'a> {
        let window = (WINDOW_BYTES / step.max(1)).clamp(*WINDOW.start(), *WINDOW.end()) as usize;
        let (end, aligned, in_flight) = (offset + length, client.cut, VecDeque::new());
        Pieces { client, command, flags, start: offset, next: offset, end, step, aligned, window, in_flight }
    }

    /// Whether there is neither an answer to come nor a piece to send.
    fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.next == self.end
    }

    /// The answer to the next piece, in order; `data` gives what to send for a range counted from the call's start.
    async fn next(&mut self, data: impl Fn(std::ops::Range<usize>) -> Bytes) -> Result<Option<reply::Answer>, Error> {
        while self.next < self.end && self.in_flight.len() < self.window {
            let to_the_cut = if self.aligned { self.step - self.next % self.step } else { self.step };
            let length = (self.end - self.next).min(to_the_cut);
            let from = (self.next - self.start) as usize;
            let data = data(from..from + length as usize);
            let connection = self.client.connections.next();
            let request = connection.submit(self.command, self.flags, self.next, length as u32, None, data);
            self.in_flight.push_back(request.await?);
            self.next += length;
        }
        match self.in_flight.pop_front() {
            Some(request) => Ok(Some(request.answer().await?)),
            None => Ok(None),
        }
    }
}

/// The far end of a request in flight.
type Answered = oneshot::Receiver<Result<reply::Answer, Error>>;
