//! What a meta context says about ranges of a disk: extents in order, each with the context's flags.
//!
//! ```text
//!   base:allocation      HOLE, ZERO            what a copy may skip
//!   qemu:dirty-bitmap:x  DIRTY                 what changed since the bitmap was made
//!   qemu:allocation-depth  0, 1, 2 ...         which layer of a backing chain holds the data
//! ```
//! # Always true
//! - The extents of one answer follow each other without gap or overlap, start where the question started, end where
//!   it ended, and neighbours differ in their flags.

/// `base:allocation`: no storage is allocated for the extent.
pub const HOLE: u32 = 1;
/// `base:allocation`: the extent reads as zeroes.
pub const ZERO: u32 = 2;
/// `qemu:dirty-bitmap:*`: the extent changed since the bitmap was made.
pub const DIRTY: u32 = 1;

/// The name of the context every server should have.
pub const ALLOCATION: &str = "base:allocation";
/// QEMU's context with the depth of a backing chain at which data is found.
pub const ALLOCATION_DEPTH: &str = "qemu:allocation-depth";

/// The name of the context in which QEMU publishes the dirty bitmap `bitmap`.
pub fn dirty_bitmap(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

/// A range of a disk in one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes; never 0.
    pub length: u64,
    /// The flags of the context: see the constants of this module.
    pub flags: u32,
}

impl StatusExtent {
    /// One byte past the last.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

/// Appends an extent that follows the last one, joining it where the flags are equal.
pub(crate) fn push(extents: &mut Vec<StatusExtent>, next: StatusExtent) {
    match extents.last_mut() {
        Some(last) if last.flags == next.flags && last.end() == next.offset => last.length += next.length,
        _ => extents.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_become_one_and_different_ones_stay_apart() {
        let mut extents = Vec::new();
        for (offset, length, flags) in [(0, 10, 0), (10, 5, 0), (15, 5, DIRTY), (20, 1, 0)] {
            push(&mut extents, StatusExtent { offset, length, flags });
        }
        let lengths: Vec<_> = extents.iter().map(|e| (e.offset, e.length, e.flags)).collect();
        assert_eq!(lengths, [(0, 15, 0), (15, 5, DIRTY), (20, 1, 0)]);
    }
}
