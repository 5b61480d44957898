//! Several ascending lists of extents as one: where they overlap, the oldest wins.
//!
//! ```text
//!   oldest   ────████████──────────███──
//!            ──███▒▒▒▒▒▒▒▒██─────────▒██   ▒ hidden by an older one
//!   newest   █████████████████───────────
//!   gives    ██│█│████████│███────███│██   ascending, each part from one list
//! ```
//! It holds one entry of each list and nothing else, whatever their lengths.

use protocol::Extent;

use crate::error::ReplicaError;

/// An ascending list of extents that do not overlap.
pub(crate) trait Ascending {
    /// The extent that it stands on; none at the end.
    fn extent(&self) -> Option<Extent>;
    /// Goes on to the first extent that ends behind `offset`.
    fn skip_to(&mut self, offset: u64) -> Result<(), ReplicaError>;
}

/// The merged list.
pub(crate) struct Sweep<L> {
    /// Oldest first.
    pub lists: Vec<L>,
    at: u64,
}

impl<L: Ascending> Sweep<L> {
    pub fn new(lists: Vec<L>) -> Sweep<L> {
        Sweep { lists, at: 0 }
    }

    /// The next part, and the list that it is from, which stands on the extent that holds it.
    pub fn next(&mut self) -> Result<Option<(Extent, usize)>, ReplicaError> {
        let mut start: Option<u64> = None;
        for list in &mut self.lists {
            list.skip_to(self.at)?;
            if let Some(extent) = list.extent() {
                let from = extent.offset.max(self.at);
                start = Some(start.map_or(from, |start| start.min(from)));
            }
        }
        let Some(start) = start else { return Ok(None) };
        let mut end = u64::MAX;
        for (number, list) in self.lists.iter().enumerate() {
            match list.extent() {
                Some(extent) if extent.offset <= start => {
                    end = end.min(extent.end());
                    self.at = end;
                    return Ok(Some((Extent::new(start, end - start), number)));
                }
                // An older one begins there.
                Some(extent) => end = end.min(extent.offset),
                None => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Plain(Vec<Extent>);

    impl Ascending for Plain {
        fn extent(&self) -> Option<Extent> {
            self.0.first().copied()
        }
        fn skip_to(&mut self, offset: u64) -> Result<(), ReplicaError> {
            self.0.retain(|extent| extent.end() > offset);
            Ok(())
        }
    }

    fn list() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::vec((0u64..12, 1u64..9), 0..8).prop_map(|steps| {
            let mut at = 0;
            let extent = |(gap, length): (u64, u64)| {
                at += gap + length;
                Extent::new(at - length, length)
            };
            steps.into_iter().map(extent).collect()
        })
    }

    proptest! {
        #[test]
        fn every_byte_comes_from_the_oldest_list_that_has_it(lists in prop::collection::vec(list(), 0..6)) {
            let oldest = |byte: u64| lists.iter().position(|l| l.iter().any(|e| e.offset <= byte && byte < e.end()));
            let mut found = vec![None; 200];
            let mut sweep = Sweep::new(lists.iter().cloned().map(Plain).collect());
            let mut last = 0;
            while let Some((part, from)) = sweep.next().unwrap() {
                prop_assert!(part.offset >= last && part.length > 0);
                let held = sweep.lists[from].extent().unwrap();
                prop_assert!(held.offset <= part.offset && part.end() <= held.end());
                last = part.end();
                found[part.offset as usize..part.end() as usize].fill(Some(from));
            }
            for (byte, found) in found.iter().enumerate() {
                prop_assert_eq!(*found, oldest(byte as u64), "byte {}", byte);
            }
        }
    }
}
