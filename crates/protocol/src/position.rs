//! When a delta may be sent: the trust rules (design section 5, invariant 7).
//!
//! ```text
//!        base (a sealed attempt that both histories contain)
//!   ──────●───────── source = base + source.changes
//!          ╲
//!           ╰─────── target = base + target.changes
//!
//!   what must travel = source.changes ∪ target.changes, read from the source
//! ```
//!
//! Every copy of an item's disks can say where it stands: on which sealed attempt it is based and which blocks may
//! differ from it. Two copies that stand on the same base need only the union of both maps. The rule is the same for
//! the first reverse copy after an unplanned failover, for an everyday epoch and for a failback; nothing else in the
//! system may decide that a delta is safe.
//!
//! # Always true
//! - Unknown is not empty: a map that is absent, inconsistent or does not match its disk makes a compare.
//! - A map may be larger than the truth, never smaller.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::extent::BlockMap;
use crate::id::{Attempt, DiskKey, Lineage};

/// Where one copy of an item's disks stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The history that the copy belongs to.
    pub lineage: Lineage,
    /// A sealed attempt: the copy is that state plus `changes`.
    pub base: Attempt,
    /// The generation whose epochs were cut from *this* copy, if any.
    ///
    /// Its author's `changes` hold all of its writes since `base`, so they also hold whatever later epochs of that
    /// generation carried away. A copy that only received epochs knows nothing of those it missed.
    pub authored: Option<u64>,
    /// What may differ from `base`.
    pub changes: Changes,
}

/// What may differ from a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changes {
    /// At most these blocks of these disks; a disk that is not named did not change.
    Known(BTreeMap<DiskKey, BlockMap>),
    /// Nobody can say.
    Unknown(Distrust),
}

/// Why changes are not known, or a base is not proven. Each one leads to a compare, and is shown to the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Distrust {
    /// No map was found: it was never made, or QEMU died before it was first saved, or the format cannot keep one.
    MapAbsent,
    /// A map was found that was in use when QEMU died (`in-use`, inconsistent).
    MapInconsistent,
    /// A map was found, but it belongs to another lineage, generation or cut than both sides recorded.
    MapMismatch,
    /// The disk's identity (inode, size, time of change) is not the recorded one: somebody else wrote it or replaced it.
    DiskTouched,
    /// The two copies descend from different machines.
    OtherLineage,
    /// The two copies share no sealed attempt that both can build on.
    NoCommonBase,
    /// The journal no longer reaches back to the base: points were pruned, or epochs were applied without history.
    HistoryPruned,
    /// Someone asked for it.
    Asked,
}

impl std::fmt::Display for Distrust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Distrust::MapAbsent => {
                "no change map survived (the hypervisor died before it was saved, or the format keeps none)"
            }
            Distrust::MapInconsistent => "the change map was in use when the hypervisor died",
            Distrust::MapMismatch => "the change map belongs to another cut than the one both sides recorded",
            Distrust::DiskTouched => {
                "the disk was written or replaced by something else since the map was saved, or nobody saw that it was not"
            }
            Distrust::OtherLineage => "the two copies descend from different machines",
            Distrust::NoCommonBase => "the two copies share no recovery point that both can build on",
            Distrust::HistoryPruned => "the journal no longer reaches back to the common point",
            Distrust::Asked => "a compare was asked for",
        })
    }
}

/// What must be read at the source to make the target equal to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// These blocks and no others.
    Tracked(BTreeMap<DiskKey, BlockMap>),
    /// Any block: both sides must be compared (or everything sent), because of this.
    Compare(Distrust),
}

/// Decides what must travel from `source` to `target`.
pub fn delta(source: &Position, target: &Position) -> Delta {
    if source.lineage != target.lineage {
        return Delta::Compare(Distrust::OtherLineage);
    }
    if !share_base(source, target) {
        return Delta::Compare(Distrust::NoCommonBase);
    }
    match (&source.changes, &target.changes) {
        #[cfg(feature = "sabotage")]
        (Changes::Unknown(_), _) | (_, Changes::Unknown(_)) if crate::sabotage::is("unknown-taken-for-nothing") => {
            Delta::Tracked(BTreeMap::new())
        }
        (Changes::Unknown(why), _) | (_, Changes::Unknown(why)) => Delta::Compare(*why),
        (Changes::Known(here), Changes::Known(there)) => Delta::Tracked(union(here, there)),
    }
}

/// The union of two sets of maps, disk by disk.
pub fn union(a: &BTreeMap<DiskKey, BlockMap>, b: &BTreeMap<DiskKey, BlockMap>) -> BTreeMap<DiskKey, BlockMap> {
    let mut all = a.clone();
    for (disk, map) in b {
        let merged = all.get(disk).map_or_else(|| map.clone(), |have| have.union(map));
        all.insert(disk.clone(), merged);
    }
    all
}

impl Changes {
    /// No change at all.
    pub fn none() -> Changes {
        Changes::Known(BTreeMap::new())
    }

    /// Both sets of changes, unknown if either is.
    pub fn union(&self, other: &Changes) -> Changes {
        match (self, other) {
            (Changes::Unknown(why), _) | (_, Changes::Unknown(why)) => Changes::Unknown(*why),
            (Changes::Known(a), Changes::Known(b)) => Changes::Known(union(a, b)),
        }
    }

    /// The bytes that may differ, if that is known.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Changes::Known(maps) => Some(maps.values().map(BlockMap::bytes).sum()),
            Changes::Unknown(_) => None,
        }
    }
}

/// Whether the state that each side describes itself from lets the union of both maps be enough.
///
/// Equal bases do. So does an older base whose holder wrote every epoch between the two: its map has been growing all
/// that time (an acknowledgement that was lost on the way leaves the author exactly so).
fn share_base(a: &Position, b: &Position) -> bool {
    let (older, newer) = if a.base <= b.base { (a, b) } else { (b, a) };
    older.base == newer.base
        || (older.base.generation == newer.base.generation && older.authored == Some(newer.base.generation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Extent;
    use proptest::prelude::*;

    fn maps(offset: u64, length: u64) -> BTreeMap<DiskKey, BlockMap> {
        [("disk0".parse().unwrap(), [Extent::new(offset, length)].into_iter().collect())].into()
    }

    fn at(generation: u64, number: u64, changes: Changes) -> Position {
        let lineage = Lineage(uuid::Uuid::nil());
        Position { lineage, base: Attempt { generation, number }, authored: None, changes }
    }

    #[test]
    fn one_base_needs_the_union_of_both_maps() {
        let got = delta(&at(1, 5, Changes::Known(maps(0, 10))), &at(1, 5, Changes::Known(maps(5, 10))));
        assert_eq!(got, Delta::Tracked(maps(0, 15)));
    }

    #[test]
    fn an_author_whose_acknowledgement_was_lost_still_proves_its_base() {
        let cloud = at(1, 6, Changes::Known(maps(100, 1)));
        let mut home = at(1, 5, Changes::Known(maps(0, 10)));
        assert_eq!(delta(&cloud, &home), Delta::Compare(Distrust::NoCommonBase), "a mere receiver missed epoch 1.6");
        home.authored = Some(1);
        assert_eq!(delta(&cloud, &home), Delta::Tracked(union(&maps(100, 1), &maps(0, 10))));
        assert_eq!(delta(&home, &cloud), Delta::Tracked(union(&maps(100, 1), &maps(0, 10))));
    }

    #[test]
    fn another_generation_or_lineage_is_never_a_base() {
        let mut home = at(1, 5, Changes::none());
        home.authored = Some(1);
        assert_eq!(delta(&at(2, 5, Changes::none()), &home), Delta::Compare(Distrust::NoCommonBase));
        let mut stranger = at(1, 5, Changes::none());
        stranger.lineage = Lineage::fresh();
        assert_eq!(delta(&stranger, &home), Delta::Compare(Distrust::OtherLineage));
    }

    #[test]
    fn unknown_is_never_empty() {
        for why in [Distrust::MapAbsent, Distrust::MapInconsistent, Distrust::MapMismatch, Distrust::DiskTouched] {
            let known = at(1, 5, Changes::none());
            let unknown = at(1, 5, Changes::Unknown(why));
            assert_eq!(delta(&known, &unknown), Delta::Compare(why));
            assert_eq!(delta(&unknown, &known), Delta::Compare(why));
        }
    }

    // Ten-line model: a disk is a row of numbers. The author writes and cuts epochs, some acknowledgements are lost, the
    // receiver then writes on its own; whenever `delta` answers Tracked, copying just those blocks makes the copies equal.
    proptest! {
        #[test]
        fn whatever_is_called_tracked_makes_the_copies_equal(
            cuts in prop::collection::vec((prop::collection::vec(0usize..24, 0..6), any::<bool>(), any::<bool>()), 1..8),
            tail in prop::collection::vec(0usize..24, 0..6),
            away in prop::collection::vec(0usize..24, 0..6),
            backwards in any::<bool>(),
        ) {
            let (mut home, mut cloud) = (vec![0u32; 24], vec![0u32; 24]);
            let (mut acked, mut sealed) = (Attempt::start_of(1), Attempt::start_of(1));
            let mut since_ack = BlockMap::new();
            let mut stamp = 1;
            for (number, (writes, arrives, ack_arrives)) in cuts.into_iter().enumerate() {
                for block in writes {
                    home[block] = stamp;
                    stamp += 1;
                    since_ack.insert(Extent::new(block as u64, 1));
                }
                if arrives {
                    cloud.clone_from(&home);
                    sealed = Attempt { generation: 1, number: number as u64 + 1 };
                    if ack_arrives {
                        acked = sealed;
                        since_ack = BlockMap::new();
                    }
                }
            }
            for block in tail {
                home[block] = stamp;
                stamp += 1;
                since_ack.insert(Extent::new(block as u64, 1));
            }
            let mut away_map = BlockMap::new();
            for block in away {
                cloud[block] = stamp;
                stamp += 1;
                away_map.insert(Extent::new(block as u64, 1));
            }
            let disk: DiskKey = "disk0".parse().unwrap();
            let mut at_home = at(1, 0, Changes::Known([(disk.clone(), since_ack)].into()));
            (at_home.base, at_home.authored) = (acked, Some(1));
            let mut at_cloud = at(1, 0, Changes::Known([(disk.clone(), away_map)].into()));
            at_cloud.base = sealed;
            let (from, to, plan) = if backwards { (&home, &mut cloud, delta(&at_home, &at_cloud)) } else { (&cloud, &mut home, delta(&at_cloud, &at_home)) };
            let Delta::Tracked(maps) = plan else { panic!("{plan:?}: both maps are known and the author's base is older") };
            for piece in maps[&disk].pieces(1) {
                to[piece.offset as usize] = from[piece.offset as usize];
            }
            prop_assert_eq!(from, to);
        }
    }
}
