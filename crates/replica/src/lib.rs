//! A disk and its history: apply an epoch, mark a recovery point, read as of a point, roll back, prune, recover after
//! a crash. Knows no network and no hypervisor.
//!
//! ```text
//!   epoch ──batches──► [Epoch] ──before-images──► segments ┐ (retention volume)
//!                         │                        log     ┘      the log says which points exist
//!                         └──new blocks─────────► [Disk]s         always at the newest applied epoch
//!
//!   [View] of a point = the oldest before-image newer than the point, else the disk
//! ```
//!
//! # Always true
//! - A sealed epoch is never lost, and an unsealed one leaves no trace: after any crash the disks are at the newest
//!   point (unless a first copy was never completed: then there is no point).
//! - Nothing reaches a disk before what it replaces is on stable storage.
//! - A view is bit-exact, or refused; damage is never passed on as data.
//! - An attempt is sealed at most once.
//!
//! All calls block: async callers give them to blocking threads. The layout of the files is in
//! `docs/journal-format.md`.

mod ahead;
mod append;
mod chain;
mod compress;
mod diff;
mod disk;
mod epoch;
mod error;
mod fields;
#[cfg(test)]
mod fuzz;
mod history;
mod index;
mod kept;
mod learnt;
mod leaves;
mod ledger;
mod lock;
mod log;
mod log_sector;
mod manifest;
mod merge;
mod opening;
mod pages;
mod pass;
mod replica;
mod resume;
mod run;
mod runs;
mod scan;
mod segment;
mod store;
mod stores;
mod sweep;
mod tend;
mod verify;
mod view;
mod volume;

pub use ahead::{Ahead, Batch};
pub use diff::PIECE;
pub use disk::{Disk, FileDisk, open_inside};
pub use epoch::{Epoch, Payload, Write};
pub use error::ReplicaError;
pub use leaves::{Hashed, Leaves};
pub use manifest::{Content, DiskHome, DiskRecord, FORMAT, Manifest, Opener, Place, Spec};
pub use replica::Replica;
pub use stores::Stores;
pub use tend::{Did, Tended};
pub use verify::{Damage, Progress, Verified, verify};
pub use view::View;
pub use volume::{Folder, Volume};
