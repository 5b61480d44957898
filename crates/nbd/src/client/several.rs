//! The connections under one client: requests take them in turn.
//!
//! Only a server that says so (`NBD_FLAG_CAN_MULTI_CONN`) is spoken to over several: it keeps one cache for all of them, so
//! that what one connection was answered all of them see, and a flush on one covers what was answered on any.
//!
//! # Always true
//! - All connections agreed on the same export: its size, its abilities and its block sizes. One that did not is not used.
//! - A server that takes fewer connections than are wanted is used with these.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::connection::Connection;
use super::{Client, Options};
use crate::handshake::client::Agreed;
use crate::{Error, Uri};

/// How long further connections may take together. A server that has enough does not refuse another, it lets it wait (qemu-nbd
/// beyond `--shared`).
const PATIENCE: Duration = Duration::from_secs(2);

/// One connection or several.
pub(super) struct Connections {
    all: Vec<Connection>,
    turn: AtomicUsize,
}

impl Connections {
    pub fn one(connection: Connection) -> Connections {
        Connections { all: vec![connection], turn: AtomicUsize::new(0) }
    }

    /// The connection whose turn it is.
    pub fn next(&self) -> &Connection {
        // A hint of who is least busy, nothing depends on it.
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.all.get(turn % self.all.len()).unwrap_or_else(|| self.first())
    }

    /// The one whose numbers of meta contexts are known.
    pub fn first(&self) -> &Connection {
        &self.all[0]
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }

    pub fn are_alive(&self) -> bool {
        self.all.iter().all(Connection::is_alive)
    }

    /// Why one of them is dead.
    pub fn lost(&self) -> Error {
        self.all.iter().find(|connection| !connection.is_alive()).unwrap_or_else(|| self.first()).lost()
    }

    pub async fn disconnect(&self) {
        for connection in &self.all {
            connection.disconnect().await;
        }
    }

    /// Opens as many more as `options` want and the server takes.
    pub async fn widen(&mut self, uri: &Uri, options: &Options, agreed: &Agreed) {
        let alone = Options { connections: 1, timeout: PATIENCE.min(options.timeout), ..options.clone() };
        let mut more = JoinSet::new();
        for _ in 1..options.connections {
            let (uri, alone) = (uri.clone(), alone.clone());
            more.spawn(async move { Client::open(&uri, &alone).await });
        }
        let same = |of: &Agreed| (of.size, of.flags, of.block, of.structured);
        while let Some(opened) = more.join_next().await {
            match opened {
                Ok(Ok((connection, theirs))) if same(&theirs) == same(agreed) => self.all.push(connection),
                Ok(Ok(_)) => tracing::debug!(%uri, "a further connection shows another export"),
                Ok(Err(error)) => tracing::debug!(%uri, %error, "a further connection is not taken"),
                Err(error) => tracing::debug!(%uri, %error, "a further connection could not be opened"),
            }
        }
    }
}
