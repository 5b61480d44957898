//! The points of an open replica in memory, and between two points the segments that lead back.
//!
//! ```text
//!   point 4 ◄──step── point 9 ◄──step── point 12 ◄── (the open epoch) ◄── what the disks hold
//!              segments          segments          a view of 4 reads: the first before-image on its way to the right,
//!                                                  else the disk
//! ```
//!
//! Points go by the numbers of their epochs, which rise. A reader asks for the step that leads on from the number it has
//! reached, one step at a time, so it may meet the chain before or after a thinning and finds the same: a merged step
//! holds the older image of each block, and of the blocks that it has already found a reader asks no more.
//!
//! # Always true
//! - No step passes over a point that a view holds: such a point is neither thinned away, nor is what it needs let go of.
//! - A file is doomed only when the log says already that no point needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use protocol::{Attempt, Point};

use crate::error::ReplicaError;
use crate::history::Segment;

/// A point, and what leads from it back to the point before.
pub(crate) struct Step {
    /// The number of the point before; meaningless for the oldest.
    pub from: u64,
    /// Its own.
    pub number: u64,
    pub point: Point,
    /// By disk; none at all for the oldest point.
    pub segments: Vec<Option<Segment>>,
}

impl Step {
    /// Lets its files go.
    pub fn doom(&self) {
        self.segments.iter().flatten().for_each(Segment::doom);
    }

    /// What its files take (bytes).
    pub fn bytes(&self) -> u64 {
        self.segments.iter().flatten().map(|segment| segment.sealed.length).sum()
    }
}

#[derive(Default)]
pub(crate) struct Chain {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    steps: BTreeMap<u64, Arc<Step>>,
    /// The oldest point that is kept; those before it are there for views only.
    oldest: u64,
    /// Points that are being thinned away.
    leaving: BTreeSet<u64>,
    /// How many views hold a point.
    held: BTreeMap<u64, usize>,
}

impl Inner {
    fn kept(&self) -> impl DoubleEndedIterator<Item = &Arc<Step>> {
        self.steps.range(self.oldest..).map(|(_, step)| step).filter(|step| !self.leaving.contains(&step.number))
    }

    /// Lets go of what neither a kept point nor a view needs. Gives it to the caller, to be dropped without the lock.
    #[must_use]
    fn trim(&mut self) -> Vec<Arc<Step>> {
        let first = self.held.keys().next().map_or(self.oldest, |held| self.oldest.min(*held));
        let rest = self.steps.split_off(&first);
        let mut gone: Vec<Arc<Step>> = std::mem::replace(&mut self.steps, rest).into_values().collect();
        if let Some(first) = self.steps.get_mut(&first)
            && !first.segments.is_empty()
        {
            let bare = Step { from: first.number, number: first.number, point: first.point.clone(), segments: vec![] };
            gone.push(std::mem::replace(first, Arc::new(bare)));
        }
        gone.iter().for_each(|step| step.doom());
        gone
    }
}

impl Chain {
    /// A chain of these steps, oldest first.
    pub fn new(steps: Vec<Step>) -> Chain {
        let steps: BTreeMap<_, _> = steps.into_iter().map(|step| (step.number, Arc::new(step))).collect();
        let oldest = steps.keys().next().copied().unwrap_or(0);
        Chain { inner: RwLock::new(Inner { steps, oldest, ..Inner::default() }) }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().expect("nobody panics here")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().expect("nobody panics here")
    }

    /// The points that are kept, oldest first, with their numbers.
    pub fn points(&self) -> Vec<(u64, Point)> {
        self.read().kept().map(|step| (step.number, step.point.clone())).collect()
    }

    /// How many points are kept, and the oldest of them.
    pub fn reach(&self) -> (u64, Option<Point>) {
        let inner = self.read();
        let oldest = inner.kept().next().map(|step| step.point.clone());
        (inner.kept().count() as u64, oldest)
    }

    /// The number of the oldest point that is kept.
    pub fn first(&self) -> u64 {
        self.read().oldest
    }

    pub fn newest(&self) -> Option<Arc<Step>> {
        self.read().kept().next_back().cloned()
    }

    pub fn find(&self, attempt: Attempt) -> Result<Arc<Step>, ReplicaError> {
        let found = self.read().kept().rev().find(|step| step.point.attempt == attempt).cloned();
        found.ok_or(ReplicaError::PointGone(attempt))
    }

    /// The step that leads on from `number`: the first one to a point behind it.
    pub fn after(&self, number: u64) -> Option<Arc<Step>> {
        self.read().steps.range(number + 1..).next().map(|(_, step)| step.clone())
    }

    /// All steps that lead from `after` to `to`.
    pub fn between(&self, after: u64, to: u64) -> Vec<Arc<Step>> {
        self.read().steps.range(after + 1..=to).map(|(_, step)| step.clone()).collect()
    }

    /// What all files take (bytes).
    pub fn bytes(&self) -> u64 {
        self.read().steps.values().map(|step| step.bytes()).sum()
    }

    /// Adds the newest point. The segments of the very first lead back to a state that is no point, and go.
    pub fn append(&self, number: u64, point: Point, segments: Vec<Option<Segment>>) {
        let mut inner = self.write();
        let step = match inner.steps.keys().next_back() {
            Some(from) => Step { from: *from, number, point, segments },
            None => {
                inner.oldest = number;
                segments.iter().flatten().for_each(Segment::doom);
                Step { from: number, number, point, segments: vec![] }
            }
        };
        inner.steps.insert(number, Arc::new(step));
    }

    /// Holds the point of `attempt` for a view, and tells its number. A damage that is known keeps it from being held.
    pub fn hold(&self, attempt: Attempt) -> Result<(u64, Point), ReplicaError> {
        let mut inner = self.write();
        let found = inner.kept().rev().find(|step| step.point.attempt == attempt).cloned();
        let step = found.ok_or(ReplicaError::PointGone(attempt))?;
        *inner.held.entry(step.number).or_default() += 1;
        Ok((step.number, step.point.clone()))
    }

    /// Lets go of a point that was held.
    pub fn release(&self, number: u64) {
        let mut inner = self.write();
        let left = inner.held.get_mut(&number).map_or(0, |count| {
            *count -= 1;
            *count
        });
        let mut gone = Vec::new();
        if left == 0 {
            inner.held.remove(&number);
            gone = inner.trim();
        }
        drop(inner);
        drop(gone);
    }

    /// Points that views hold.
    pub fn held(&self) -> BTreeSet<u64> {
        self.read().held.keys().copied().collect()
    }

    /// Forgets the points before `oldest`, of which the log says so already.
    pub fn prune(&self, oldest: u64) {
        let mut inner = self.write();
        inner.oldest = oldest;
        let gone = inner.trim();
        drop(inner);
        drop(gone);
    }

    /// Takes all steps away, before the log says that their points are gone; none when a view holds one.
    pub fn take_all(&self) -> Option<Vec<Arc<Step>>> {
        let mut inner = self.write();
        if !inner.held.is_empty() {
            return None;
        }
        inner.leaving.clear();
        Some(std::mem::take(&mut inner.steps).into_values().collect())
    }

    /// Closes the points between the two to new views, before the log says that they are gone. False when one is held.
    pub fn leave(&self, after: u64, to: u64) -> bool {
        let mut inner = self.write();
        if inner.held.range(after + 1..to).next().is_some() {
            return false;
        }
        let leaving: Vec<u64> = inner.steps.range(after + 1..to).map(|(number, _)| *number).collect();
        inner.leaving.extend(leaving);
        true
    }

    /// Puts `merged` in the place of all steps from `merged.from` to its own, of which the log says so already.
    pub fn replace(&self, merged: Step) {
        let mut inner = self.write();
        let numbers: Vec<u64> = inner.steps.range(merged.from + 1..=merged.number).map(|(number, _)| *number).collect();
        let gone: Vec<Arc<Step>> = numbers.iter().filter_map(|number| inner.steps.remove(number)).collect();
        inner.leaving.retain(|number| !numbers.contains(number));
        for segment in gone.iter().flat_map(|step| step.segments.iter().flatten()) {
            if !merged.segments.iter().flatten().any(|kept| kept.is_file(segment)) {
                segment.doom();
            }
        }
        inner.steps.insert(merged.number, Arc::new(merged));
        drop(inner);
        drop(gone);
    }
}
