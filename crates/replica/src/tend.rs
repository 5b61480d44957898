//! What a replica needs done now and then, a step at a time, while epochs and views go on.
//!
//! ```text
//!   tend ─► points that the policy does not keep: prune the oldest, thin away those between
//!        ─► over the budget: thinner still, then the oldest
//!        ─► a run to be made ─► a log to be written shorter ─► nothing to do
//! ```
//! One call does one step: bounded in memory, and in what it rewrites. Nothing that takes long is done under a lock that
//! an epoch or a reader waits for.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use protocol::retention::{Space, choose, press};
use protocol::{Attempt, Point, Retention};

use crate::error::ReplicaError;
use crate::kept::{groups, merge_between, prune};
use crate::replica::Replica;
use crate::runs::make_one;
use crate::store::Store;

/// A merge takes no more than this at a time (bytes), where two epochs alone are not more already.
const MOST_BYTES: u64 = 256 << 20;

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    /// There is nothing to do at present.
    Nothing,
    /// The oldest points were let go of.
    Pruned {
        /// How many.
        points: usize,
    },
    /// Points between others were let go of.
    Thinned {
        /// How many.
        points: usize,
    },
    /// An index over many epochs was made.
    Indexed,
    /// The log was written without records that say nothing any more.
    Shortened,
}

/// A step, and how the journal stands after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tended {
    /// What was done.
    pub did: Did,
    /// What the journal takes (bytes).
    pub journal_bytes: u64,
    /// How that stands against the policy's budget. `Exceeded` with nothing done: only the newest point, pinned ones and
    /// what views hold are left, and no history is kept beyond them.
    pub space: Space,
}

/// What is remembered from step to step.
#[derive(Default)]
pub(crate) struct Tending {
    /// Points that cannot be thinned away, for damage in what leads back to them: they go when they are the oldest.
    stuck: BTreeSet<u64>,
}

impl Replica {
    /// Does one step of what `policy` and the replica's indexes need at `now_ms` (this host's clock, ms since 1970), and
    /// says what it was; to be called again until nothing is left to do. Pinned points stay, `also_keep` too, and points
    /// that views hold.
    ///
    /// # Errors
    /// `NoSpace`; I/O; `Closed`, `Failed`. A point that was to go is then still there, or gone, and nothing between.
    pub fn tend(&self, policy: &Retention, now_ms: u64, also_keep: &[Attempt]) -> Result<Tended, ReplicaError> {
        let store = self.store();
        let mut tending = store.tending.lock().unwrap_or_else(PoisonError::into_inner);
        store.usable()?;
        let mut pins: BTreeSet<Attempt> = self.pins().into_iter().collect();
        pins.extend(also_keep);
        let numbered = store.chain.points();
        let points: Vec<Point> = numbered.iter().map(|(_, point)| point.clone()).collect();
        let numbers: Vec<u64> = numbered.into_iter().map(|(number, _)| number).collect();
        let of = |gone: Vec<Attempt>| -> BTreeSet<u64> {
            let gone: BTreeSet<Attempt> = gone.into_iter().collect();
            let gone = numbers.iter().zip(&points).filter(|(_, point)| gone.contains(&point.attempt));
            gone.map(|(number, _)| *number).collect()
        };
        let stay = of(pins.iter().copied().collect());
        let mut did = let_go(store, &mut tending, &numbers, &of(choose(&points, &pins, policy, now_ms)), &stay)?;
        if did == Did::Nothing && policy.space(self.journal_bytes()) == Space::Exceeded {
            let mut gone = of(press(&points, &pins, policy, now_ms));
            // What a view holds keeps the files of all that came after it: letting go of those points frees nothing.
            if let Some(held) = store.chain.held().first() {
                gone = gone.split_off(held);
                gone.retain(|number| Some(number) != numbers.first());
            }
            did = let_go(store, &mut tending, &numbers, &gone, &stay)?;
        }
        if did == Did::Nothing && make_one(store)?.is_some() {
            did = Did::Indexed;
        }
        if did == Did::Nothing && shorten(store)? {
            did = Did::Shortened;
        }
        let journal_bytes = self.journal_bytes();
        Ok(Tended { did, journal_bytes, space: policy.space(journal_bytes) })
    }
}

/// One step towards being without the points `gone`; those in `stay` are not let go of for want of space either.
fn let_go(
    store: &Store,
    tending: &mut Tending,
    numbers: &[u64],
    gone: &BTreeSet<u64>,
    stay: &BTreeSet<u64>,
) -> Result<Did, ReplicaError> {
    let first = numbers.iter().take_while(|number| gone.contains(number)).count();
    if first > 0 && first < numbers.len() {
        prune(store, numbers[first])?;
        return Ok(Did::Pruned { points: first });
    }
    let held = store.chain.held();
    let goes = |number: u64| gone.contains(&number) && !held.contains(&number) && !tending.stuck.contains(&number);
    for (after, to) in groups(numbers, goes) {
        let (to, points) = bounded(store, after, to);
        match merge_between(store, after, to) {
            Ok(true) => return Ok(Did::Thinned { points }),
            // Pinned or held since: another time.
            Ok(false) => {}
            Err(error @ ReplicaError::Damaged { .. }) => {
                tracing::warn!(item = %store.manifest.item, %error, "points cannot be thinned away");
                tending.stuck.extend(numbers.iter().filter(|number| (after..=to).contains(*number)));
            }
            // To save space by thinning takes some: where there is none, the oldest point goes.
            Err(error @ ReplicaError::NoSpace { .. }) => match (numbers, held.first()) {
                ([oldest, next, ..], None) if !stay.contains(oldest) => {
                    prune(store, *next)?;
                    return Ok(Did::Pruned { points: 1 });
                }
                _ => return Err(error),
            },
            Err(error) => return Err(error),
        }
    }
    Ok(Did::Nothing)
}

/// As much of a merge as is done at one go: up to which point, and how many points that takes.
fn bounded(store: &Store, after: u64, to: u64) -> (u64, usize) {
    let steps = store.chain.between(after, to);
    let mut bytes = 0;
    let mut count = 0;
    for step in &steps {
        bytes += step.bytes();
        if count >= 2 && bytes > MOST_BYTES {
            break;
        }
        count += 1;
    }
    (steps.get(count.max(1) - 1).map_or(to, |step| step.number), count.saturating_sub(1))
}

/// Writes the log anew when most of its records say nothing any more. Epochs go on meanwhile but for the last moment.
fn shorten(store: &Store) -> Result<bool, ReplicaError> {
    let ledger = || store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(shortening) = ledger().begin_shortening() else { return Ok(false) };
    tracing::debug!(item = %store.manifest.item, "rewriting the log");
    let shorter = shortening.write();
    let whole = shorter.is_ok();
    ledger().finish_shortening(shorter).map_err(|error| store.fail(error))?;
    Ok(whole)
}
