//! What a scrub of a replica found, as a person is told it (`sockeye verify ITEM`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::extent::{BlockMap, Extent};
use crate::id::{Attempt, DiskKey};

/// At most so many damages, and extents of each, are told; how many there are is told always.
pub const DAMAGES_MOST: usize = 100;

/// What a scrub read, and what of that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Verified {
    /// The point with whose hashes the disks were compared; none when the replica has none.
    pub at: Option<Attempt>,
    /// Bytes of before-images that were read and checked.
    pub journal_bytes: u64,
    /// Bytes of the disks that were compared with their hashes, zeroes included.
    pub disk_bytes: u64,
    /// How much is damaged.
    pub damage_count: u64,
    /// The damages; the first [`DAMAGES_MOST`] of them.
    pub damage: Vec<Damage>,
}

/// One thing that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// The disk whose content, or whose history, is concerned.
    pub disk: DiskKey,
    /// What is wrong, and in which file.
    pub why: String,
    /// Whether the newest state is concerned, not only older points.
    pub newest: bool,
    /// Bytes of the disk that are concerned; 0 when that is not known.
    pub bytes: u64,
    /// Number of extents that they form.
    pub extent_count: u64,
    /// The extents, ascending; the first [`DAMAGES_MOST`] of them.
    pub extents: Vec<Extent>,
}

impl Damage {
    /// The damage of what `map` describes.
    pub fn of(disk: DiskKey, map: &BlockMap, why: String, newest: bool) -> Damage {
        let all = map.extents();
        let extents = all.iter().take(DAMAGES_MOST).copied().collect();
        Damage { disk, why, newest, bytes: map.bytes(), extent_count: all.len() as u64, extents }
    }
}
