//! What the two ends of a mover session say to each other, in order.
//!
//! ```text
//!   process server                                master target
//!     Greeting{link, lane, lanes} ──────────────►                        on each connection, by the end that dials
//!                        ◄──────────────────────── Offer{item}           only where that is the master target
//!     Hello{token,item} ────────────────────────►
//!                        ◄──────────────────────── Welcome{position, newest, disks}
//!     OpenEpoch{header} ────────────────────────►
//!                        ◄──────────────────────── EpochOpened{known, resumed, resume_after}
//!     Data, Data, Zero … ───────────────────────►   (many in flight)
//!                        ◄──────────────────────── Received{through}     now and then
//!     Seal{totals} ─────────────────────────────►
//!                        ◄──────────────────────── Sealed{point}         = acknowledged, durable
//!
//!     HashRequest{level} ───────────────────────►                        while comparing, many in flight
//!                        ◄──────────────────────── Hashes                in the order of the requests
//!     either end: Refused{fault}, then closes
//! ```
//! A process server that compares may know what its own disks hash to without reading them: from the master target at its
//! own site, which keeps the copy that the machine was raised from.
//! ```text
//!   process server                                master target of its own site
//!     Consult{token,item} ───────────────────────►
//!                        ◄──────────────────────── Consulted{disks, leaves}
//!     HashRequest{level 0} ──────────────────────►   Hashes               as above
//!                                                 master target
//!     Rekey{leaves} ─────────────────────────────►
//!                        ◄──────────────────────── Rekeyed{leaves}       now both hash alike
//! ```
//!
//! Either end may have dialled. Control messages are JSON inside a bounded frame, so that a version can add a field;
//! data frames are binary (see [`crate::frame`]).

use serde::{Deserialize, Serialize};

use crate::epoch::{DiskSize, EpochHeader, EpochTotals, Point};
use crate::fault::Fault;
use crate::id::{Attempt, ItemId};
use crate::leaf::{LeafSize, Recipe};
use crate::position::Position;
use crate::replication::{Moved, Sync};

/// The version of the session protocol that this build speaks. A peer with another major version is refused in words.
pub const VERSION: u32 = 7;

/// The most connections of one link.
pub const MOST_LANES: u8 = 32;

/// A control message of a mover session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum Message {
    /// The first word on each connection: which lane of which link it is. Answered only by `Refused`.
    Greeting {
        /// [`VERSION`] of the end that dials.
        version: u32,
        /// Made up by the end that dials, never twice the same.
        link: uuid::Uuid,
        /// From 0 on; frames take the lanes in turn.
        lane: u8,
        /// How many there are; at most [`MOST_LANES`].
        lanes: u8,
    },
    /// First word of a receiver that dialled: which item it takes epochs of. `Hello` follows when there is something to send.
    Offer {
        /// The item.
        item: ItemId,
    },
    /// Sender's first word on a link.
    Hello {
        /// The item to be replicated.
        item: ItemId,
        /// The secret that control gave to both ends for this direction and generation.
        token: String,
        /// The generation that the sender is authorised to send.
        generation: u64,
    },
    /// Receiver's answer: where its copy stands.
    Welcome {
        /// Where the copy stands; none when it never held a sealed point (an empty or inconsistent target).
        position: Option<Position>,
        /// The newest attempt that the replica sealed, if any.
        newest: Option<Attempt>,
        /// The replica's disks.
        disks: Vec<DiskSize>,
        /// Whether the disks may hold anything but zeroes.
        has_content: bool,
        /// How the receiver makes leaves, and the sender too.
        leaves: Recipe,
    },
    /// Asks the receiver to hash as other hashes were made; before anything is compared.
    Rekey {
        /// How these were made.
        leaves: Recipe,
    },
    /// How the receiver hashes in this session.
    Rekeyed {
        /// As it was asked, or its own way where it keeps hashes that it would have to make anew.
        leaves: Recipe,
    },
    /// First word of a process server to the master target at its own site: it wants the kept hashes of the copy that the
    /// machine was raised from, as its newest point is. `HashRequest`s may follow.
    Consult {
        /// The item.
        item: ItemId,
        /// The secret that control gave to both ends for this direction.
        token: String,
        /// The generation that the machine writes.
        generation: u64,
    },
    /// The hashes can be had.
    Consulted {
        /// The copy's disks.
        disks: Vec<DiskSize>,
        /// How they are made.
        leaves: Recipe,
    },
    /// Begins an epoch. The receiver goes on with an unfinished one of an earlier attempt that builds on the same point,
    /// or rolls it back.
    OpenEpoch {
        /// The epoch.
        header: EpochHeader,
    },
    /// The receiver is ready for the epoch's frames.
    EpochOpened {
        /// The attempt.
        attempt: Attempt,
        /// Whether this very epoch was open already: a connection was cut, and frames of it may have arrived.
        known: bool,
        /// Whether the epoch goes on with what an earlier attempt had written: the sender compares every block that it
        /// would send, and sends those that differ. The receiver's hashes equal no block's where it holds nothing of the
        /// kind, and that attempt was not a compare.
        resumed: bool,
        /// The sender may skip all frames up to this sequence number: they arrived before a connection was cut.
        resume_after: u64,
    },
    /// All frames up to this one were taken over by the receiver (not yet durable).
    Received {
        /// Sequence number of the last frame.
        through: u64,
    },
    /// The sender has sent everything.
    Seal {
        /// The attempt.
        attempt: Attempt,
        /// What was sent.
        totals: EpochTotals,
    },
    /// The epoch is durable and a recovery point.
    Sealed {
        /// The point.
        point: Point,
        /// How long the receiver worked on it, in microseconds.
        #[serde(default)]
        worked_us: u64,
    },
    /// Asks for the receiver's hashes of `offset .. offset + length` of a disk (see [`crate::leaf`]).
    HashRequest {
        /// Index into the `disks` of `Welcome` or `Consulted`.
        disk: u16,
        /// 0 for leaves, up to [`Recipe::root`]. Above 0 the range lies within one stretch.
        level: u8,
        /// First byte; a multiple of the level's [`Recipe::span`].
        offset: u64,
        /// Number of bytes; at most [`MOST_HASHED`]; a multiple of the span, or as far as the disk goes.
        length: u64,
    },
    /// First word of a sender that copies a disk which is no item's (`sockeye copy`): the target's only one, disk 0.
    Copy {
        /// Made up by the sender for this copy: over another link the same copy goes on.
        id: uuid::Uuid,
        /// Bytes of the source.
        size: u64,
        /// Whether only questions will be asked, and nothing is written.
        dry_run: bool,
        /// What a leaf is to stand for.
        leaf_bytes: LeafSize,
    },
    /// The target of a copy is ready for its frames.
    CopyReady {
        /// Whether it may hold anything but zeroes.
        has_content: bool,
        /// Whether an earlier copy onto it had not finished.
        unfinished: bool,
        /// How the receiver hashes, and the sender too.
        leaves: Recipe,
        /// Where this very copy was begun over another link: frames up to this sequence number arrived.
        resume_after: Option<u64>,
    },
    /// The sender of a copy has sent everything.
    CopyEnd {
        /// What was sent.
        totals: EpochTotals,
    },
    /// The copy is durable. The sender may ask for hashes once more, to compare.
    Copied,
    /// First word of a target that dialled the sender of a copy (`sockeye send`): how it wants to have it. `Copy` follows.
    Fetch {
        /// Compare or full.
        sync: Sync,
        /// Whether both disks are compared when it is done.
        verify: bool,
        /// Whether only questions are to be asked.
        dry_run: bool,
        /// What a leaf is to stand for.
        leaf_bytes: LeafSize,
    },
    /// Last word of the sender of a copy that was fetched.
    Fetched {
        /// Bytes of the source.
        size: u64,
        /// How the blocks were found.
        sync: Sync,
        /// Whether it went on with a copy that had not finished.
        resumed: bool,
        /// What was moved, or would be.
        moved: Moved,
    },
    /// The end: the message says why.
    Refused {
        /// Code, cause and remedy.
        fault: Fault,
    },
    /// Keeps the connection alive and measures it; answered by `Pong` with the same number.
    Ping {
        /// Any number.
        number: u64,
    },
    /// The answer to `Ping`.
    Pong {
        /// The number.
        number: u64,
    },
}

/// The most bytes that one `HashRequest` may ask for.
pub const MOST_HASHED: u64 = 64 * 1024 * 1024;
/// The most requests for hashes that may be under way in a session.
pub const MOST_ASKED: usize = 64;
