//! Which points a replica keeps: pins, pruning before a point, and thinning between two.
//!
//! ```text
//!   thin away b    a ◄─S1─ b ◄─S2─ c     becomes     a ◄─(S1 over S2)─ c     the older image of a block wins
//!   prune before b a ◄─S1─ b ◄─S2─ c     becomes     b ◄─S2─ c               S1 leads back to nothing that is kept
//! ```
//! Thinning writes the new segments beside the old ones while epochs are applied and views read; nothing is locked
//! meanwhile. One record in the log makes the change.
//!
//! # If power fails
//! Before that record the points are all there, after it those between are gone; the files of the other state are
//! removed at the next opening.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use protocol::Attempt;

use crate::chain::Step;
use crate::error::ReplicaError;
use crate::history::Segment;
use crate::log::Record;
use crate::merge::merge;
use crate::opening::ids;
use crate::replica::Replica;
use crate::store::Store;

/// So many neighbouring epochs are merged at one go: each keeps a file open and a page of its index in memory.
pub(crate) const MOST_MERGED: usize = 64;

impl Replica {
    /// Keeps a point, durably, until it is unpinned: neither retention nor pruning nor thinning takes it.
    ///
    /// # Errors
    /// `PointGone`; `NoSpace`; I/O.
    pub fn pin(&self, attempt: Attempt) -> Result<(), ReplicaError> {
        self.set_pin(attempt, true)
    }

    /// Takes the pin of a point away; no error when it has none.
    ///
    /// # Errors
    /// As for [`Replica::pin`].
    pub fn unpin(&self, attempt: Attempt) -> Result<(), ReplicaError> {
        self.set_pin(attempt, false)
    }

    fn set_pin(&self, attempt: Attempt, pinned: bool) -> Result<(), ReplicaError> {
        self.store().usable()?;
        let mut ledger = self.store().ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let point = ledger.facts().number(attempt)?;
        if ledger.facts().pins.contains(&point) == pinned {
            return Ok(());
        }
        self.store().reserve(&mut ledger)?;
        let record = if pinned { Record::Pinned { point } } else { Record::Unpinned { point } };
        self.store().record(&mut ledger, &record)
    }

    /// The pinned points, oldest first.
    pub fn pins(&self) -> Vec<Attempt> {
        let ledger = self.store().ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let facts = ledger.facts();
        facts.pins.iter().filter_map(|pin| facts.points.get(pin)).map(|sealed| sealed.point.attempt).collect()
    }

    /// What the journal takes on the retention volume, in bytes: log, segments, the open epoch's among them, and runs.
    pub fn journal_bytes(&self) -> u64 {
        let store = self.store();
        let open = store.open().map_or(0, |open| {
            open.segments.iter().map(|segment| store.journal.length(&segment.file.name).unwrap_or(0)).sum()
        });
        let log = store.ledger.lock().unwrap_or_else(PoisonError::into_inner).length();
        log + open + store.chain.bytes() + store.runs.bytes()
    }

    /// Lets go of a point that is neither the newest nor the oldest: the epochs to its left and right become one. Epochs
    /// and views go on meanwhile; large epochs take their time. False when a view holds the point, or it is pinned.
    ///
    /// # Errors
    /// `PointGone` when it is not kept, or at an end of the line; `Damaged`; `NoSpace`; I/O: the point is still there.
    pub fn thin(&self, attempt: Attempt) -> Result<bool, ReplicaError> {
        let _tending = self.store().tending.lock().unwrap_or_else(PoisonError::into_inner);
        let points = self.store().chain.points();
        let found = points.windows(3).find(|three| three[1].1.attempt == attempt);
        let three = found.ok_or(ReplicaError::PointGone(attempt))?;
        merge_between(self.store(), three[0].0, three[2].0)
    }

    /// Lets go of the points before `attempt`, which stays, and so do pinned ones: what lies between is thinned away,
    /// which takes time where epochs are large. The files go when no view needs them any more; a point that a view holds
    /// between pinned ones stays.
    ///
    /// # Errors
    /// `PointGone` when there is no such point; `Damaged`; `NoSpace`; I/O.
    pub fn prune_before(&self, attempt: Attempt) -> Result<(), ReplicaError> {
        let _tending = self.store().tending.lock().unwrap_or_else(PoisonError::into_inner);
        self.store().usable()?;
        let store = self.store();
        let (target, mut stay) = {
            let ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            (ledger.facts().number(attempt)?, ledger.facts().pins.clone())
        };
        prune(store, target)?;
        stay.extend(store.chain.held());
        stay.insert(target);
        let points: Vec<u64> = store.chain.points().into_iter().map(|(n, _)| n).filter(|n| *n <= target).collect();
        for (after, to) in groups(&points, |number| !stay.contains(&number)) {
            merge_between(store, after, to)?;
        }
        Ok(())
    }
}

/// Lets go of the points before `oldest`, or before the first pinned one.
pub(crate) fn prune(store: &Store, oldest: u64) -> Result<(), ReplicaError> {
    let mut ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let oldest = ledger.facts().pins.first().map_or(oldest, |pin| oldest.min(*pin));
    if ledger.facts().points.keys().next() != Some(&oldest) {
        store.reserve(&mut ledger)?;
        store.record(&mut ledger, &Record::PrunedBefore { point: oldest })?;
        store.chain.prune(oldest);
    }
    drop(ledger);
    store.runs.prune(oldest);
    Ok(())
}

/// Where points can be thinned away: pairs of neighbours-to-be, at most [`MOST_MERGED`] epochs apart, oldest first. The
/// first and the last of `points` stay.
pub(crate) fn groups(points: &[u64], goes: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
    let mut groups = Vec::new();
    let mut after = 0;
    for at in 1..points.len() {
        let last = at + 1 == points.len();
        if last || !goes(points[at]) || at - after >= MOST_MERGED {
            if at - after > 1 {
                groups.push((points[after], points[at]));
            }
            after = at;
        }
    }
    groups
}

/// Thins away all points between two. False when one of them is held or pinned by now.
pub(crate) fn merge_between(store: &Store, after: u64, to: u64) -> Result<bool, ReplicaError> {
    store.usable()?;
    let steps = store.chain.between(after, to);
    let between: BTreeSet<u64> = steps.iter().map(|step| step.number).filter(|number| *number != to).collect();
    let Some(kept) = steps.last().filter(|last| last.number == to) else { return Ok(false) };
    let opened = {
        let mut ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if !between.is_disjoint(&ledger.facts().pins) || !between.is_disjoint(&store.chain.held()) {
            return Ok(false);
        }
        store.reserve(&mut ledger)?;
        let opened = ledger.next();
        store.record(&mut ledger, &Record::Merging { opened })?;
        opened
    };
    let segments = merged(store, &steps, opened)?;
    if let Err(error) = store.journal.sync_directory() {
        abandon(&segments, opened);
        return Err(store.fail(ReplicaError::io("syncing the journal", error)));
    }
    let mut ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let reserved = store.reserve(&mut ledger);
    let facts = ledger.facts();
    let there = facts.points.contains_key(&after) && facts.points.contains_key(&to);
    let free = there && between.is_disjoint(&facts.pins) && reserved.is_ok() && store.chain.leave(after, to);
    if !free {
        abandon(&segments, opened);
        return reserved.map(|()| false);
    }
    let told = segments.iter().flatten().map(|segment| segment.sealed).collect();
    store.record(&mut ledger, &Record::Thinned { after, to, segments: told })?;
    store.chain.replace(Step { from: after, number: to, point: kept.point.clone(), segments });
    store.runs.thin(after, to);
    Ok(true)
}

/// Removes the new files of a merge that came to nothing.
fn abandon(segments: &[Option<Segment>], opened: u64) {
    let is_new = |segment: &&Segment| segment.sealed.origin.is_some_and(|origin| origin.opened == opened);
    segments.iter().flatten().filter(is_new).for_each(Segment::doom);
}

/// The segments that lead over all of `steps` at once, by disk.
fn merged(store: &Store, steps: &[Arc<Step>], opened: u64) -> Result<Vec<Option<Segment>>, ReplicaError> {
    let Some(last) = steps.last() else { return Ok(Vec::new()) };
    let mut merged: Vec<Option<Segment>> = Vec::new();
    for id in ids(&store.manifest, opened, last.point.attempt) {
        let disk = usize::from(id.disk);
        let sources: Vec<&Segment> = steps.iter().filter_map(|step| step.segments.get(disk)?.as_ref()).collect();
        let segment = match &sources[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.carried())),
            several => merge(&store.journal, id, several).map(Some),
        };
        match segment {
            Ok(segment) => merged.push(segment),
            Err(error) => {
                abandon(&merged, opened);
                return Err(error);
            }
        }
    }
    Ok(merged)
}
