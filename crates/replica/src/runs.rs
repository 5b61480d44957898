//! The runs of a replica: which there are, which a look-up takes, and which are to be made.
//!
//! ```text
//!   level 1   ├───────────────────────────────┤├──────── …
//!   level 0   ├───┤├───┤├───┤├───┤├───┤├───┤├───┤├───┤├─── …      a window of a level holds eight of the one below
//!   epochs    ││││││││││││││││││││││││││││││││││││││││││││
//!             ▲ a view starts here: some epochs, some small runs, some large ones, then small ones, then epochs again
//! ```
//! So a look-up behind the oldest of n points asks some `7 × levels × 2` indexes, not n. A run is made when its window is
//! over, the low levels first, from the runs below it; it is forgotten when a point inside of which nothing is kept
//! before is pruned, or when one merged segment covers as much.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use protocol::Extent;

use crate::chain::Step;
use crate::error::ReplicaError;
use crate::history::{Entries, Segment};
use crate::run::{LEVELS, Oldest, Run, RunEntries, RunPages, Window, Writing};
use crate::store::Store;
use crate::sweep::{Ascending, Sweep};

#[derive(Default)]
pub(crate) struct Runs {
    runs: RwLock<BTreeMap<Window, Arc<Run>>>,
    /// Up to where each level has been looked through for runs to be made.
    done: Mutex<[u64; LEVELS as usize]>,
    pub pages: RunPages,
}

/// What a look-up asks next.
pub(crate) enum Source {
    Step(Arc<Step>),
    Run(Arc<Run>),
}

impl Source {
    /// The number up to which everything is found when this was asked.
    pub fn end(&self) -> u64 {
        match self {
            Source::Step(step) => step.number,
            Source::Run(run) => run.window.end(),
        }
    }
}

impl Runs {
    pub fn new(found: impl Iterator<Item = Run>) -> Runs {
        let runs = found.map(|run| (run.window, Arc::new(run))).collect();
        Runs { runs: RwLock::new(runs), ..Runs::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Window, Arc<Run>>> {
        self.runs.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Window, Arc<Run>>> {
        self.runs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the runs take (bytes).
    pub fn bytes(&self) -> u64 {
        self.read().values().map(|run| run.length).sum()
    }

    /// The run that leads furthest for a view of `point` that has reached `at`, of the levels below `levels`
    /// and not beyond `limit`.
    fn best(&self, point: u64, at: u64, levels: u8, limit: u64) -> Option<Arc<Run>> {
        let runs = self.read();
        let windows = (0..levels).rev().map(|level| Window::behind(level, at));
        windows
            .filter(|window| window.start >= point && window.end() <= limit)
            .find_map(|window| runs.get(&window).cloned())
    }

    /// Forgets runs that no point at or behind `oldest` can use.
    pub fn prune(&self, oldest: u64) {
        self.forget(|window| window.start < oldest);
    }

    /// Forgets runs that say no more than the one segment that now leads from `after` to `to`.
    pub fn thin(&self, after: u64, to: u64) {
        self.forget(|window| window.start >= after && window.end() <= to);
    }

    fn forget(&self, which: impl Fn(Window) -> bool) {
        let gone: Vec<Arc<Run>> = self.write().extract_if(.., |window, _| which(*window)).map(|(_, run)| run).collect();
        gone.iter().for_each(|run| run.doom());
    }

    /// Throws a run away that does not fit its checksums, and has it made anew.
    pub fn drop_bad(&self, run: &Run, error: &ReplicaError) {
        tracing::warn!(run = run.window.file(), %error, "an index is made anew");
        self.forget(|window| window == run.window);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let level = &mut done[usize::from(run.window.level)];
        *level = run.window.start.min(*level);
    }
}

/// What a view of `point` that has reached `at` asks next to know all up to `limit`; none when there is nothing newer than
/// `at`.
pub(crate) fn next_source(store: &Store, point: u64, at: u64, limit: u64) -> Option<Source> {
    next_below(store, point, at, LEVELS, limit)
}

fn next_below(store: &Store, point: u64, at: u64, levels: u8, limit: u64) -> Option<Source> {
    let step = store.chain.after(at)?;
    match store.runs.best(point, at, levels, limit) {
        Some(run) if run.window.end() > step.number => Some(Source::Run(run)),
        _ => Some(Source::Step(step)),
    }
}

/// Makes one run, if one is to be made. Gives its window.
pub(crate) fn make_one(store: &Store) -> Result<Option<Window>, ReplicaError> {
    let Some(newest) = store.chain.newest().map(|step| step.number) else { return Ok(None) };
    let oldest = store.chain.first();
    for level in 0..LEVELS {
        let from = store.runs.done.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(level)];
        // The first window that starts at a point that is kept, or behind it.
        let mut window = Window::behind(level, from.max(oldest));
        if window.start < from.max(oldest) {
            window = Window::behind(level, window.end());
        }
        while window.end() <= newest {
            let made = if store.runs.read().contains_key(&window) { None } else { make(store, window)? };
            store.runs.done.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(level)] = window.end();
            if let Some(run) = made {
                store.runs.write().insert(window, Arc::new(run));
                // What was let go of meanwhile was not known to this run.
                store.runs.prune(store.chain.first());
                return Ok(Some(window));
            }
            // Over numbers that no point has, straight to the next one.
            let next = store.chain.after(window.end()).map_or(newest, |step| step.number - 1);
            window = Window::behind(level, next.max(window.end()));
        }
    }
    Ok(None)
}

/// The run of a window that is over; none where it would say no more than what it is made of.
fn make(store: &Store, window: Window) -> Result<Option<Run>, ReplicaError> {
    let mut sources = Vec::new();
    let mut at = window.start;
    while at < window.end()
        && let Some(source) = next_below(store, window.start, at, window.level, window.end())
    {
        at = source.end();
        sources.push(source);
    }
    if sources.len() < 2 {
        return Ok(None);
    }
    match index(store, window, &sources) {
        Err(error @ ReplicaError::Damaged { .. }) => {
            let bad = |source: &&Source| matches!(source, Source::Run(run) if run.verify().is_err());
            let bad: Vec<&Source> = sources.iter().filter(bad).collect();
            for source in &bad {
                if let Source::Run(run) = source {
                    store.runs.drop_bad(run, &error);
                }
            }
            // A damaged segment is told to those who read it; without it there is no run.
            if bad.is_empty() { Ok(None) } else { Err(error) }
        }
        made => made.map(Some),
    }
}

fn index(store: &Store, window: Window, sources: &[Source]) -> Result<Run, ReplicaError> {
    let mut writing = Writing::begin(store.journal.clone(), store.manifest.lineage, window)?;
    for disk in 0..store.manifest.disks.len() {
        let lists = sources.iter().map(|source| list(source, disk)).filter_map(Result::transpose);
        let mut sweep = Sweep::new(lists.collect::<Result<Vec<_>, _>>()?);
        while let Some((extent, from)) = sweep.next()? {
            if let Some(epoch) = sweep.lists[from].epoch() {
                writing.push(Oldest { disk: disk as u16, extent, epoch })?;
            }
        }
    }
    writing.finish()
}

/// What a source has of a disk; none when it has nothing.
fn list(source: &Source, disk: usize) -> Result<Option<List<'_>>, ReplicaError> {
    match source {
        Source::Run(run) => Ok(Some(List::Run(run.entries(disk as u16)?))),
        Source::Step(step) => {
            let segment: Option<&Segment> = step.segments.get(disk).and_then(Option::as_ref);
            segment.map(|segment| Ok(List::Step(segment.entries(0)?, step.number))).transpose()
        }
    }
}

/// What one source says of one disk.
enum List<'a> {
    Step(Entries<'a>, u64),
    Run(RunEntries<'a>),
}

impl List<'_> {
    fn epoch(&self) -> Option<u64> {
        match self {
            List::Step(_, number) => Some(*number),
            List::Run(entries) => entries.entry().map(|entry| entry.epoch),
        }
    }
}

impl Ascending for List<'_> {
    fn extent(&self) -> Option<Extent> {
        match self {
            List::Step(entries, _) => Ascending::extent(entries),
            List::Run(entries) => entries.extent(),
        }
    }
    fn skip_to(&mut self, offset: u64) -> Result<(), ReplicaError> {
        match self {
            List::Step(entries, _) => Ascending::skip_to(entries, offset),
            List::Run(entries) => entries.skip_to(offset),
        }
    }
}
