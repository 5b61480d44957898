//! The guest of the tests and the demo: a ledger on two disks, written inside a real machine, read back by anybody.
//!
//! ```text
//!   seed ──► disk A, disk B ──► QEMU boots `ledger run` ──► record n on A, then on B, then "ACK n" on the console
//!                                                                    │ disaster, failover, failback
//!   verify ◄───────── raw files, or any ReadAt ◄─────────────────────┘
//! ```
//! A disk carries a header, a ring of 4 KiB records that is overwritten round and round, an area of *scribbles* (blocks
//! rewritten in scattered order, each named with its generation and checksum by the record that caused it) and seeded
//! data that nobody writes again. `docs/ledger.md` tells every byte; `docs/verify_ledger.py` checks it without this code.
//!
//! # Always true
//! - All writes of all records stand in one order, each durable before the next begins; so any state of the two disks
//!   that was cut at one instant is a prefix of that order, and [`verify`] accepts prefixes and nothing else.
//! - A number reaches the console only after every write of its record was acknowledged.
//!
//! # If power fails
//! At most one record is unfinished. The next boot finishes it from the record itself and goes on with the next number.

mod checksum;
pub mod console;
mod disk;
mod layout;
mod libvirtd;
mod record;
mod report;
mod scan;
mod seed;
mod verify;
mod writer;

pub use console::kernel_command_line;
pub use disk::{AlignedBuffer, DiskFault, ReadAt, WriteAt};
pub use layout::{Layout, Role};
pub use libvirtd::{Libvirtd, processes_with};
pub use report::Report;
pub use seed::{seed_disk, seed_pair};
pub use verify::{Scope, verify, verify_readers};
pub use writer::{Pattern, Writer};

/// Bytes of a record, a scribble, a header and every other block of the format.
pub const BLOCK_BYTES: usize = 4096;
