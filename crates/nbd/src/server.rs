//! A server of named disks behind one listener.
//!
//! ```text
//!   add("web01", export) ─┐                      ┌─ connection ─ up to 16 requests at a time ─┐
//!   add("db01", export)  ─┼─► Server ═ accept ═► ├─ connection                                ├─► dyn Export
//!   remove("web01")      ─┘   (clones share it)  └─ connection                                ┘
//! ```
//! # Always true
//! - A client sees the exports there are; removing one ends its connections and no others.
//! - A client that sends garbage, hangs or dies costs its own connection only.
//! - A unix socket left by a dead server is replaced at bind; one of a living server is not.
//!
//! # If power fails
//! Writes are as durable as the export's `flush` makes them. The socket file stays, and the next bind replaces it.
mod connection;
mod listener;
mod reply;

pub(crate) use listener::is_abandoned;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Semaphore, watch},
    task::JoinHandle,
};

use self::listener::Listener;
use crate::{
    Address, BlockSize, ErrorCode, StatusExtent,
    handshake::server::{Catalogue, Facts},
    status,
    wire::transmission,
};

/// Connections at a time on one server; more are closed as they come (guessed).
const MAX_CONNECTIONS: usize = 256;

/// One disk that is served. Several requests come at the same time, from several connections.
///
/// The server has checked bounds, alignment and read-only before it calls: offsets and lengths are inside the size and
/// multiples of the minimum block size, lengths are never 0.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// Whether writing is refused. Read-only exports are advertised as safe for several connections at once.
    fn read_only(&self) -> bool;

    /// What sizes of requests are taken. By default any byte, 4 KiB preferred, at most 32 MiB, which is also the most the
    /// server takes.
    fn block_size(&self) -> BlockSize {
        BlockSize::default()
    }

    /// A line for people, shown by `nbdinfo`.
    fn description(&self) -> String {
        String::new()
    }

    /// Reads exactly `length` bytes at `offset`.
    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode>;

    /// Writes `data` at `offset`. By default refused.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ErrorCode> {
        let _ = (offset, data);
        Err(ErrorCode::NotPermitted)
    }

    /// Makes the range read as zeroes; whether its storage is kept is the export's choice. By default zeroes are written.
    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ErrorCode> {
        connection::write_out_zeroes(self, offset, length).await
    }

    /// Whether [`Export::write_zeroes`] is always faster than writing; then clients may ask for fast zeroing.
    fn fast_zeroes(&self) -> bool {
        false
    }

    /// The range is no longer needed. A hint, which by default is ignored, as the protocol allows.
    async fn trim(&self, offset: u64, length: u64) -> Result<(), ErrorCode> {
        let _ = (offset, length);
        Ok(())
    }

    /// Comes back when all writes answered before are on stable storage. By default refused, so that nobody who forgot
    /// it promises durability.
    async fn flush(&self) -> Result<(), ErrorCode> {
        Err(ErrorCode::NotPermitted)
    }

    /// Which parts of the range are holes, or zero: consecutive extents from `offset` on, at least one, flags from
    /// [`crate::status`]. They may stop short of the range. By default all of it is data.
    async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ErrorCode> {
        Ok(vec![StatusExtent { offset, length, flags: 0 }])
    }

    /// The names of the meta contexts there are. By default `base:allocation`.
    fn contexts(&self) -> Vec<String> {
        vec![status::ALLOCATION.to_string()]
    }

    /// The status of the range in one of [`Export::contexts`], under the rules of [`Export::allocation`]. By default it
    /// knows `base:allocation` only.
    async fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ErrorCode> {
        if context == status::ALLOCATION { self.allocation(offset, length).await } else { Err(ErrorCode::Invalid) }
    }
}

/// A set of named exports behind one listener. Clones share it. When the last clone is dropped, all connections end.
#[derive(Clone)]
pub struct Server {
    listening: Arc<Listening>,
}

struct Listening {
    shared: Arc<Shared>,
    address: Address,
    /// The accepting task; it takes the listener, and with it the socket file, along when it ends.
    accepting: Mutex<Option<JoinHandle<()>>>,
}

/// What connections share. They do not hold the server itself alive.
struct Shared {
    exports: Mutex<BTreeMap<String, Entry>>,
    /// Turns true once, when the server stops. Connections hold receivers; when all are gone, all have ended.
    stop: watch::Sender<bool>,
    places: Arc<Semaphore>,
}

struct Entry {
    export: Arc<dyn Export>,
    /// Turns true once, when the export is removed. Connections hold receivers, as above.
    gone: Arc<watch::Sender<bool>>,
    /// Held by each connection, to be counted.
    presence: Arc<()>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.listening.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Starts to listen. Port 0 picks a free one; see [`Server::local_address`]. Needs a Tokio runtime.
    pub async fn bind(address: &Address) -> io::Result<Server> {
        let listener = Listener::bind(address).await?;
        let address = listener.address().clone();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let shared = Arc::new(Shared { exports: Mutex::default(), stop: watch::Sender::new(false), places });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        let listening = Listening { shared, address, accepting: Mutex::new(Some(accepting)) };
        Ok(Server { listening: Arc::new(listening) })
    }

    /// Where clients connect.
    pub fn local_address(&self) -> Address {
        self.listening.address.clone()
    }

    /// The names of the exports, in order.
    pub fn names(&self) -> Vec<String> {
        self.listening.shared.names()
    }

    /// Serves an export under a name of at most 4096 bytes. One that had the name before is removed.
    pub fn add(&self, name: &str, export: Arc<dyn Export>) {
        let entry = Entry { export, gone: Arc::new(watch::Sender::new(false)), presence: Arc::default() };
        if let Some(former) = self.listening.shared.exports().insert(name.to_string(), entry) {
            former.gone.send_replace(true);
        }
    }

    /// Ends the export's connections, and accepts no new ones. Requests in flight are finished in the background;
    /// [`Server::withdraw`] waits for them.
    pub fn remove(&self, name: &str) {
        if let Some(entry) = self.listening.shared.exports().remove(name) {
            entry.gone.send_replace(true);
        }
    }

    /// Removes the export, and comes back when no request is inside of it any more.
    pub async fn withdraw(&self, name: &str) {
        let entry = self.listening.shared.exports().remove(name);
        if let Some(entry) = entry {
            entry.gone.send_replace(true);
            entry.gone.closed().await;
        }
    }

    /// How many connections the export has at the moment.
    pub fn connections(&self, name: &str) -> usize {
        self.listening.shared.exports().get(name).map_or(0, |entry| Arc::strong_count(&entry.presence) - 1)
    }

    /// Serves a client that came by another way than the listener: TLS, a tunnel, a test. Comes back when it is gone.
    pub async fn serve<R, W>(&self, incoming: R, outgoing: W)
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let shared = self.listening.shared.clone();
        connection::serve(incoming, outgoing, &shared, shared.stop.subscribe()).await;
    }

    /// Ends all connections after the requests in flight, stops to listen, removes the unix socket.
    pub async fn stop(self) {
        let shared = &self.listening.shared;
        shared.stop.send_replace(true);
        let accepting = self.listening.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(accepting) = accepting {
            let _ = accepting.await;
        }
        shared.stop.closed().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.shared.stop.send_replace(true);
    }
}

impl Shared {
    fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalogue for Shared {
    type Found = connection::Found;

    fn names(&self) -> Vec<String> {
        self.exports().keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<connection::Found> {
        // subscribed under the lock: whoever removes the export afterwards waits for this connection
        let exports = self.exports();
        let Entry { export, gone, presence } = exports.get(name)?;
        let (export, presence) = (export.clone(), presence.clone());
        Some(connection::Found { export, gone: gone.subscribe(), presence })
    }

    fn facts(&self, found: &connection::Found) -> Facts {
        let export = &found.export;
        let mut flags = transmission::HAS_FLAGS | transmission::SEND_DF;
        if export.read_only() {
            flags |= transmission::READ_ONLY | transmission::CAN_MULTI_CONN;
        } else {
            flags |= transmission::SEND_FLUSH
                | transmission::SEND_FUA
                | transmission::SEND_TRIM
                | transmission::SEND_WRITE_ZEROES;
            if export.fast_zeroes() {
                flags |= transmission::SEND_FAST_ZERO;
            }
        }
        Facts {
            size: export.size(),
            flags,
            block: export.block_size().usable().unwrap_or_default(),
            description: export.description(),
            contexts: export.contexts(),
        }
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>) {
    let mut stop = shared.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (incoming, outgoing) = match accepted {
            Ok(halves) => halves,
            Err(error) => {
                // out of file descriptors, most likely: existing connections go on, new ones wait a little
                tracing::warn!(%error, "cannot accept an NBD connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = shared.places.clone().try_acquire_owned() else {
            tracing::warn!(limit = MAX_CONNECTIONS, "an NBD connection too many was closed");
            continue;
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            connection::serve(incoming, outgoing, &shared, stop).await;
            drop(place);
        });
    }
}
