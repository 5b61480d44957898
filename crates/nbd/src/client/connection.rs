//! The connection under all clones of a client: a task that writes requests, a task that reads replies, a table between.
//!
//! ```text
//!   submit ─► table[cookie] = who waits
//!      └────► queue ─► writer ═════► server
//!   answer ◄─ table[cookie] ◄─ reader ◄═════
//! ```
//! # Always true
//! - A request enters the table before it is sent, and leaves it by its answer or by the death of the connection.
//! - After the death nothing enters: it fails at once with the reason.
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    Answered,
    reply::{self, Answer, Pending},
};
use crate::{
    Error,
    wire::{Request, command},
};

/// Requests in flight on one connection. Servers serve about 16 at a time (QEMU, nbdkit); the rest waits on the wire.
const MAX_IN_FLIGHT: usize = 64;
/// How long the server may take to finish what is in flight after we said goodbye.
const GOODBYE: Duration = Duration::from_secs(10);

pub(super) struct Connection {
    table: Arc<Table>,
    queue: mpsc::Sender<Frame>,
    slots: Arc<Semaphore>,
    ended: watch::Receiver<bool>,
}

/// A request on its way.
pub(super) struct InFlight {
    table: Arc<Table>,
    answered: Answered,
}

enum Frame {
    Request { header: [u8; Request::BYTES], data: Bytes },
    Goodbye,
}

impl Connection {
    /// Takes over streams on which the handshake is done.
    pub fn start<R, W>(incoming: R, outgoing: W, structured: bool) -> Connection
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let table = Arc::new(Table::default());
        let (queue, frames) = mpsc::channel(MAX_IN_FLIGHT);
        let (end, ended) = watch::channel(false);
        let slots = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let connection = Connection { table: table.clone(), queue, slots, ended };
        tokio::spawn(async move {
            live(incoming, outgoing, frames, &table, structured).await;
            let _ = end.send(true);
        });
        connection
    }

    /// Sends a request as soon as there is room. `context` is the meta context whose status is wanted.
    pub async fn submit(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        context: Option<u32>,
        data: Bytes,
    ) -> Result<InFlight, Error> {
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| self.lost())?;
        // room in the queue first: between entering the table and being queued nothing may be awaited, else a dropped
        // future would leave an entry that nobody ever answers
        let room = self.queue.reserve().await.map_err(|_| self.lost())?;
        let (answer, answered) = oneshot::channel();
        let pending = Pending::new(command, offset, length, context);
        let cookie = self.table.enter(Waiting { pending, answer, _slot: slot })?;
        let header = Request { flags, command, cookie, offset, length }.encode();
        room.send(Frame::Request { header, data });
        Ok(InFlight { table: self.table.clone(), answered })
    }

    pub fn is_alive(&self) -> bool {
        self.table.lock().dead.is_none()
    }

    /// Why the connection is dead.
    pub fn lost(&self) -> Error {
        self.table.lost()
    }

    pub async fn disconnect(&self) {
        let mut ended = self.ended.clone();
        let goodbye = async {
            let _ = self.queue.send(Frame::Goodbye).await;
            let _ = ended.wait_for(|ended| *ended).await;
        };
        let _ = timeout(GOODBYE + Duration::from_secs(1), goodbye).await;
    }
}

impl InFlight {
    pub async fn answer(self) -> Result<Answer, Error> {
        // the sender vanishes unused only when the connection's task ended, which left a reason
        self.answered.await.unwrap_or_else(|_| Err(self.table.lost()))
    }
}

/// Who waits for an answer.
pub(super) struct Waiting {
    pub pending: Pending,
    answer: oneshot::Sender<Result<Answer, Error>>,
    _slot: OwnedSemaphorePermit,
}

impl Waiting {
    /// Nobody listening any more is fine.
    pub fn finish(self, result: Result<Answer, Error>) {
        let _ = self.answer.send(result);
    }
}

#[derive(Default)]
pub(super) struct Table {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    waiting: HashMap<u64, Waiting>,
    last_cookie: u64,
    dead: Option<Arc<str>>,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, waiting: Waiting) -> Result<u64, Error> {
        let mut inner = self.lock();
        if let Some(reason) = &inner.dead {
            return Err(Error::Lost { reason: reason.clone() });
        }
        inner.last_cookie += 1;
        let cookie = inner.last_cookie;
        inner.waiting.insert(cookie, waiting);
        Ok(cookie)
    }

    /// Takes out who waits for this cookie, if anyone does.
    pub fn take(&self, cookie: u64) -> Option<Waiting> {
        self.lock().waiting.remove(&cookie)
    }

    /// Puts back what was taken, as more of its reply is to come.
    pub fn put_back(&self, cookie: u64, waiting: Waiting) {
        self.lock().waiting.insert(cookie, waiting);
    }

    fn lost(&self) -> Error {
        let reason = self.lock().dead.clone();
        Error::Lost { reason: reason.unwrap_or_else(|| "its task was ended".into()) }
    }

    /// Fails all that wait and all that come. The first reason stays.
    fn die(&self, reason: &str) {
        let waiting: Vec<Waiting> = {
            let mut inner = self.lock();
            inner.dead.get_or_insert_with(|| reason.into());
            inner.waiting.drain().map(|(_, waiting)| waiting).collect()
        };
        for waiting in waiting {
            waiting.finish(Err(self.lost()));
        }
    }
}

/// If the runtime drops the task, whoever waits elsewhere still hears of it.
struct Epitaph<'a>(&'a Table);

impl Drop for Epitaph<'_> {
    fn drop(&mut self) {
        self.0.die("its task was ended");
    }
}

/// Reads and writes until one of both ends, then buries the connection.
async fn live<R, W>(mut incoming: R, outgoing: W, frames: mpsc::Receiver<Frame>, table: &Arc<Table>, structured: bool)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let _epitaph = Epitaph(table);
    let mut writer = tokio::spawn(write_requests(outgoing, frames));
    // kept outside of the reader: who is being answered must not be dropped before the reason is known
    let mut current = None;
    let mut reader = std::pin::pin!(reply::read_replies(&mut incoming, table, structured, &mut current));
    let reason = tokio::select! {
        reason = &mut reader => reason,
        written = &mut writer => match written {
            Ok(Ok(())) => {
                let _ = timeout(GOODBYE, &mut reader).await;
                "it was closed by us".to_string()
            }
            Ok(Err(error)) => format!("sending failed: {error}"),
            Err(error) => format!("its writer died: {error}"),
        },
    };
    writer.abort();
    tracing::debug!(reason, "NBD connection ended");
    table.die(&reason);
}

async fn write_requests<W>(mut outgoing: W, mut frames: mpsc::Receiver<Frame>) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
{
    while let Some(Frame::Request { header, data }) = frames.recv().await {
        outgoing.write_all_buf(&mut header.chain(data)).await?;
        if frames.is_empty() {
            outgoing.flush().await?;
        }
    }
    // a goodbye, or the last client was dropped; what is queued behind a goodbye is failed, not sent
    frames.close();
    let goodbye = Request { flags: 0, command: command::DISCONNECT, cookie: 0, offset: 0, length: 0 };
    outgoing.write_all(&goodbye.encode()).await?;
    outgoing.flush().await?;
    outgoing.shutdown().await
}
