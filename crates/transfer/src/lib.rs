//! What moves blocks from one end of a link to the other: reading, hashing, comparing, choosing what travels.
//!
//! ```text
//!   the end with the source                         the end with the target
//!   Reader ─┬─► Compare ─┐   hashes asked for   ┌─ Trees ─► Hashed (a replica, a disk)
//!           └─► Pieces ──┴─► Session ═════════► └─ frames, applied by whoever has the target
//! ```
//!
//! It knows disks and links, neither items nor epochs: a process server sends epochs with it, a master target answers
//! with it.
//!
//! # Always true
//! - A block that differs travels; one that does not is known to be the same by its hash, made with a key that nobody
//!   else has.
//! - What is in memory does not grow with the disk.

mod compare;
pub mod copy;
mod export;
mod flow;
mod pieces;
mod reader;
mod session;
mod trees;

use std::sync::LazyLock;

use tokio::sync::Semaphore;

pub use compare::{Compare, Known};
pub use export::ExportDisk;
pub use flow::{Flow, Source, Stopped, Waits, begins_anew};
pub use pieces::{Piece, Pieces};
pub use reader::Reader;
pub use session::Session;
pub use trees::{Hashed, Question, Trees};

/// Stretches that are hashed at once in this process: hashing is bounded by the cores.
static HASHERS: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    Semaphore::new(cores)
});
