//! Epochs and recovery points as both ends of a mover session see them.
//!
//! An *epoch* is everything that changed between two cuts. It travels as one [`EpochHeader`], any number of data frames
//! and a closing [`EpochTotals`]; when the target has all of it on stable storage it becomes a [`Point`], and only then
//! is it acknowledged (invariant 1).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::freeze::Freeze;
use crate::id::{Attempt, DiskKey, Lineage};

/// What an epoch's blocks are relative to, and how the sender came to choose them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The union of both sides' change maps (`tracked`).
    Tracked,
    /// Both sides' contents were hashed; the epoch holds what differed (`compare`).
    Compared,
    /// Everything: allocated blocks as data, the rest as zeroes (`full`, and the first copy onto an empty target).
    Full,
}

/// Announces an epoch. The target refuses it when `base` is not the newest point that it has sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochHeader {
    /// The history that the epoch continues.
    pub lineage: Lineage,
    /// This try at this epoch.
    pub attempt: Attempt,
    /// The newest sealed attempt of the target, as the target told in this session; none while it has no point yet.
    pub base: Option<Attempt>,
    /// How the blocks were chosen.
    pub basis: Basis,
    /// When the disks were cut, in ms since 1970 by the source's clock.
    pub cut_at_ms: u64,
    /// The sizes of all disks at the cut, in bytes. Every disk of the item is named.
    pub disks: Vec<DiskSize>,
    /// Whether the guest's applications were quiesced for the cut.
    pub kind: PointKind,
    /// What came of it, where that was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// An estimate of the bytes to come, for progress; not a promise.
    pub expected_bytes: u64,
}

/// The size of one disk at a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskSize {
    /// The disk.
    pub disk: DiskKey,
    /// Its size in bytes.
    pub size: u64,
}

/// Closes an epoch: what the sender sent. The target acknowledges only when its own count is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct EpochTotals {
    /// Number of data and zero frames.
    pub frames: u64,
    /// Bytes of data in them.
    pub data_bytes: u64,
    /// Bytes declared zero.
    pub zero_bytes: u64,
    /// The checksums of all frames folded together in order.
    pub digest: u64,
}

impl EpochTotals {
    /// Counts one more frame with payload checksum `checksum`.
    pub fn count(&mut self, data_bytes: u64, zero_bytes: u64, checksum: u64) {
        self.frames += 1;
        self.data_bytes += data_bytes;
        self.zero_bytes += zero_bytes;
        self.digest = (self.digest ^ checksum).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// How a recovery point came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PointKind {
    /// What a power cut at that instant would have left.
    CrashConsistent,
    /// The guest froze its file systems for the cut.
    AppConsistent,
    /// The machine was off: nothing came after it (the final delta of a planned failover).
    Final,
    /// Writes that were never replicated, kept when the copy was taken over for the way back.
    Unreplicated,
    /// The state after a roll back to an older point.
    RolledBack,
}

/// A state that a replica can still produce.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// The attempt that became durable; points of one replica are listed in the order in which they were sealed.
    pub attempt: Attempt,
    /// When it was cut, ms since 1970 by the source's clock.
    pub cut_at_ms: u64,
    /// When it became durable here, ms since 1970 by this host's clock.
    pub sealed_at_ms: u64,
    /// How it came about.
    pub kind: PointKind,
    /// Bytes that the epoch changed.
    pub changed_bytes: u64,
    /// What the guest's agent did for it, where it was wanted application-consistent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
}
