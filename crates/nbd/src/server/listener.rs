//! The socket a server listens on, and the care of a unix socket's file.
//!
//! # Always true
//! - Only a socket on which nobody listens is replaced; any other file at the path is left alone, and bind fails.
//! - At the end the file is removed if it is still the one we made.
use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::{
    Address,
    transport::{self, Incoming, Outgoing},
};

pub(super) struct Listener {
    address: Address,
    socket: Socket,
}

enum Socket {
    /// The file is held only to be removed with the listener.
    Unix(UnixListener, #[expect(dead_code, reason = "its drop is what it is for")] SocketFile),
    Tcp(TcpListener),
}

impl Listener {
    pub async fn bind(address: &Address) -> io::Result<Listener> {
        Ok(match address {
            Address::Tcp(wanted) => {
                let listener = TcpListener::bind(wanted).await?;
                Listener { address: Address::Tcp(listener.local_addr()?), socket: Socket::Tcp(listener) }
            }
            Address::Unix(path) => {
                let listener = match UnixListener::bind(path) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path).await => {
                        tracing::info!(socket = %path.display(), "replacing the socket of a dead server");
                        std::fs::remove_file(path)?;
                        UnixListener::bind(path)?
                    }
                    other => other?,
                };
                let file = SocketFile::of(path)?;
                Listener { address: address.clone(), socket: Socket::Unix(listener, file) }
            }
        })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    pub async fn accept(&self) -> io::Result<(Incoming, Outgoing)> {
        Ok(match &self.socket {
            Socket::Unix(listener, _) => transport::halves_of_unix(listener.accept().await?.0),
            Socket::Tcp(listener) => transport::halves_of_tcp(listener.accept().await?.0),
        })
    }
}

/// Whether the path is a socket on which nobody listens.
pub(crate) async fn is_abandoned(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).await.err().is_some_and(refused)
}

struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_path_buf(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode: what tells our file from another at the same path.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
