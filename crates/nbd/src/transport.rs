//! The two ways to a server, unix socket and TCP, as a pair of byte streams.
//!
//! # Always true
//! - A TCP peer that vanished without a word (power, cable) is noticed within about a minute, even while idle: there
//!   are no heartbeats in NBD, so the kernel's keep-alive does it.
use std::{io, os::fd::AsFd, time::Duration};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::Address;

/// The receiving half of a connection.
pub(crate) type Incoming = Box<dyn AsyncRead + Send + Unpin>;
/// The sending half of a connection.
pub(crate) type Outgoing = Box<dyn AsyncWrite + Send + Unpin>;

/// Connects to a server.
pub(crate) async fn dial(address: &Address) -> io::Result<(Incoming, Outgoing)> {
    match address {
        Address::Unix(path) => Ok(halves_of_unix(UnixStream::connect(path).await?)),
        Address::Tcp(address) => Ok(halves_of_tcp(TcpStream::connect(address).await?)),
    }
}

pub(crate) fn halves_of_unix(stream: UnixStream) -> (Incoming, Outgoing) {
    let (incoming, outgoing) = stream.into_split();
    (Box::new(incoming), Box::new(outgoing))
}

pub(crate) fn halves_of_tcp(stream: TcpStream) -> (Incoming, Outgoing) {
    if let Err(error) = watch_for_silence(&stream) {
        tracing::debug!(%error, "cannot set TCP options; a vanished peer will be noticed late");
    }
    let (incoming, outgoing) = stream.into_split();
    (Box::new(incoming), Box::new(outgoing))
}

/// Guessed figures: 30 s idle, then 3 probes 10 s apart; unacknowledged data is given up after 60 s.
fn watch_for_silence(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(socket, 3)?;
    sockopt::set_tcp_user_timeout(socket, 60_000)?;
    Ok(())
}
