//! Which blocks an epoch carries: tracked, compare or full.
//!
//! The decision itself is `protocol::position::delta`; this file only works out where the source stands and what the
//! user asked for. Falling back from tracked to compare is always safe and always said ([`Choice::Compare`] names why).

use std::collections::BTreeMap;

use platforms::Cut;
use protocol::epoch::Basis;
use protocol::order::{Replication, Sync};
use protocol::position::{Changes, Delta, Distrust, Position, delta};
use protocol::{Attempt, BlockMap, DiskKey};

/// How the blocks of an epoch are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    /// These blocks.
    Tracked(BTreeMap<DiskKey, BlockMap>),
    /// Those whose hashes differ.
    Compare(Distrust),
    /// All that hold data; the rest as zeroes where the target may hold something else.
    Full {
        /// Whether the target's disks hold nothing but zeroes.
        target_is_empty: bool,
    },
}

impl Choice {
    pub(crate) fn basis(&self) -> Basis {
        match self {
            Choice::Tracked(_) => Basis::Tracked,
            Choice::Compare(_) => Basis::Compared,
            Choice::Full { .. } => Basis::Full,
        }
    }

    pub(crate) fn sync(&self) -> Sync {
        match self {
            Choice::Tracked(_) => Sync::Tracked,
            Choice::Compare(_) => Sync::Compare,
            Choice::Full { .. } => Sync::Full,
        }
    }
}

/// What the target told about itself.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) position: Option<Position>,
    pub(crate) newest: Option<Attempt>,
    pub(crate) has_content: bool,
}

/// Chooses for the epoch that `cut` opened.
pub(crate) fn choose(wish: &Replication, cut: &Cut, target: &Target) -> Choice {
    let Some(target_position) = &target.position else {
        return Choice::Full { target_is_empty: !target.has_content };
    };
    // The wish is for the first epoch of a direction; once one is sealed, epochs are deltas.
    let first = target.newest.is_none_or(|newest| newest.generation != wish.generation);
    match wish.sync {
        Sync::Full if first => return Choice::Full { target_is_empty: !target.has_content },
        Sync::Compare if first => return Choice::Compare(Distrust::Asked),
        _ => {}
    }
    match delta(&source_position(wish, cut, target_position.base), target_position) {
        Delta::Tracked(maps) => Choice::Tracked(maps),
        Delta::Compare(why) => Choice::Compare(why),
    }
}

/// Where the source stands at the cut.
///
/// A machine that was raised from a replica has counted its writes since the start of its generation; what that start
/// itself was is the standpoint that its master target told. Any other map counts from an attempt of this machine's own.
fn source_position(wish: &Replication, cut: &Cut, any_base: Attempt) -> Position {
    let nowhere = Attempt::start_of(wish.generation);
    match (cut.since, &wish.standpoint) {
        #[cfg(feature = "sabotage")]
        (Some(since), Some(standpoint)) if since == nowhere && protocol::sabotage::is("overlay-map-ignored") => {
            standpoint.clone()
        }
        (Some(since), Some(standpoint)) if since == nowhere => Position {
            lineage: standpoint.lineage,
            base: standpoint.base,
            authored: standpoint.authored,
            changes: standpoint.changes.union(&cut.changes),
        },
        (Some(since), _) => Position {
            lineage: wish.lineage,
            base: since,
            authored: Some(since.generation),
            changes: cut.changes.clone(),
        },
        (None, _) => {
            let why = match cut.changes {
                Changes::Unknown(why) => why,
                Changes::Known(_) => Distrust::MapAbsent,
            };
            // Unknown changes make a compare whatever they are counted from; with the target's own base the reason that
            // is told is the map, not the base.
            let (base, authored) = (any_base, None);
            Position { lineage: wish.lineage, base, authored, changes: Changes::Unknown(why) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Extent, Lineage};
    use std::time::Duration;

    fn maps(offset: u64) -> BTreeMap<DiskKey, BlockMap> {
        [("disk0".parse().unwrap(), [Extent::new(offset, 65536)].into_iter().collect())].into()
    }

    fn at(generation: u64, number: u64) -> Attempt {
        Attempt { generation, number }
    }

    fn cut(since: Option<Attempt>, changes: Changes) -> Cut {
        Cut { at_ms: 0, paused: Duration::ZERO, since, changes, disks: vec![], freeze: None }
    }

    fn wish(sync: Sync, generation: u64) -> Replication {
        Replication {
            item: "web01".parse().unwrap(),
            machine: "web01".into(),
            lineage: Lineage(Default::default()),
            generation,
            target: protocol::replication::Target::Await(String::new()),
            token: String::new(),
            standpoint: None,
            beneath: None,
            sync,
            interval_ms: 1000,
            offline: false,
            quiesced: false,
            bandwidth: Default::default(),
            app_interval_ms: 0,
        }
    }

    fn stands(base: Attempt, changes: Changes) -> Position {
        Position { lineage: Lineage(Default::default()), base, authored: None, changes }
    }

    fn target(position: Option<Position>, newest: Option<Attempt>) -> Target {
        Target { position, newest, has_content: true }
    }

    #[test]
    fn a_target_without_a_point_gets_everything() {
        let got =
            choose(&wish(Sync::Tracked, 1), &cut(None, Changes::Unknown(Distrust::MapAbsent)), &target(None, None));
        assert_eq!(got, Choice::Full { target_is_empty: false });
    }

    #[test]
    fn an_everyday_epoch_is_what_the_map_says() {
        let newest = at(1, 6);
        let there = target(Some(stands(newest, Changes::none())), Some(newest));
        for sync in [Sync::Tracked, Sync::Compare, Sync::Full] {
            let got = choose(&wish(sync, 1), &cut(Some(newest), Changes::Known(maps(0))), &there);
            assert_eq!(got, Choice::Tracked(maps(0)), "{sync}: the wish is for the first epoch only");
        }
    }

    #[test]
    fn the_first_way_back_is_the_union_of_three_maps() {
        let mut back = wish(Sync::Tracked, 2);
        back.standpoint = Some(stands(at(1, 6), Changes::Known(maps(65536))));
        let mut home = stands(at(1, 5), Changes::Known(maps(131072)));
        home.authored = Some(1);
        let got = choose(&back, &cut(Some(at(2, 0)), Changes::Known(maps(0))), &target(Some(home), Some(at(1, 5))));
        let whole: BlockMap = [Extent::new(0, 3 * 65536)].into_iter().collect();
        assert_eq!(got, Choice::Tracked([("disk0".parse().unwrap(), whole)].into()));
    }

    #[test]
    fn a_lost_map_makes_a_compare_and_says_so() {
        let newest = at(1, 6);
        let there = target(Some(stands(newest, Changes::none())), Some(newest));
        for why in [Distrust::MapAbsent, Distrust::MapInconsistent] {
            let got = choose(&wish(Sync::Tracked, 1), &cut(None, Changes::Unknown(why)), &there);
            assert_eq!(got, Choice::Compare(why));
        }
    }

    #[test]
    fn what_was_asked_for_the_first_epoch_is_done() {
        let mut home = stands(at(1, 5), Changes::none());
        home.authored = Some(1);
        let there = target(Some(home), Some(at(1, 5)));
        let known = cut(Some(at(2, 0)), Changes::none());
        assert_eq!(choose(&wish(Sync::Compare, 2), &known, &there), Choice::Compare(Distrust::Asked));
        assert_eq!(choose(&wish(Sync::Full, 2), &known, &there), Choice::Full { target_is_empty: false });
    }
}
