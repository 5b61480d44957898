//! What two recovery points of an item differ in, as a person is told it (`sockeye points ITEM --diff A B`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::epoch::Point;
use crate::extent::{BlockMap, Extent};
use crate::id::{Attempt, DiskKey};

/// At most so many extents of one disk are told; how many there are is told always.
pub const LISTED_MOST: usize = 10_000;

/// Two points, by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// One.
    pub from: Attempt,
    /// The other.
    pub to: Attempt,
}

/// What two points differ in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// One point.
    pub from: Point,
    /// The other.
    pub to: Point,
    /// Disks are compared in pieces of so many bytes; extents and bytes are made of such pieces.
    pub piece_bytes: u64,
    /// Every disk of the item.
    pub disks: Vec<DiskDifference>,
}

/// What one disk differs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskDifference {
    /// The disk.
    pub disk: DiskKey,
    /// Bytes of the pieces that differ.
    pub bytes: u64,
    /// Number of extents that they form.
    pub extent_count: u64,
    /// The extents, ascending; the first [`LISTED_MOST`] of them.
    pub extents: Vec<Extent>,
}

impl DiskDifference {
    /// The difference that `map` describes.
    pub fn of(disk: DiskKey, map: &BlockMap) -> DiskDifference {
        let all = map.extents();
        let extents = all.iter().take(LISTED_MOST).copied().collect();
        DiskDifference { disk, bytes: map.bytes(), extent_count: all.len() as u64, extents }
    }
}
