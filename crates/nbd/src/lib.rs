//! NBD, client and server: the only way Sockeye touches somebody else's disk.
//!
//! ```text
//!   Client ──┐  many requests in flight                            ┌── Export (one disk of ours)
//!   Client ──┼─► writer ─► ═══ unix socket or TCP ═══ ─► Server ───┼── Export
//!   Client ──┘  reader ◄─                             ◄─           └── Export
//!   (clones share one connection, or several)
//! ```
//!
//! The dialect is *fixed newstyle* with structured replies, meta contexts and block size constraints, as the
//! protocol document of the NetworkBlockDevice project lays down (`doc/proto.md` there). TLS is not spoken here yet;
//! its seam is [`Client::over`] and [`Server::serve`], which take any pair of byte streams.
//!
//! # Always true
//! - Whatever a peer sends, lengths are checked before anything is allocated, and nothing panics.
//! - A request is answered once: with its result, with the peer's error, or with the reason why the connection died.
//! - A write is durable only after [`Client::flush`] came back; nothing here pretends otherwise.
//!
//! # If power fails
//! Nothing is kept here. What was acknowledged before a flush may be gone, as on any disk.
mod client;
mod error;
mod handshake;
pub mod qemu_nbd;
mod server;
pub mod status;
mod transport;
mod uri;
mod wire;

pub use client::{Client, Options, Zeroing};
pub use error::{Error, ErrorCode};
pub use qemu_nbd::QemuNbd;
pub use server::{Export, Server};
pub use status::StatusExtent;
pub use uri::{Address, Uri};
pub use wire::BlockSize;
