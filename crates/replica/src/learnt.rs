//! What compares hashed of a replica that keeps no leaves yet: taken over page by page, so that nothing is read twice.
//!
//! ```text
//!   a compare hashes a stretch ─► pages that are whole ─► leaves-N.hashes        the next pass reads what is missing
//!                                 the rest waits here for its other half
//! ```
//! # Always true
//! - All of it is of one point, which is held, and of disks that nobody else wrote meanwhile.
//!
//! # If power fails
//! It is forgotten: `leaves.json` says that there are no leaves.

use std::collections::{BTreeMap, BTreeSet};

use protocol::leaf::{Leaf, Recipe, ZERO_LEAF};
use protocol::{Attempt, BlockMap, Extent};

use crate::error::ReplicaError;
use crate::leaves::{PAGE_LEAVES, encode, file};
use crate::store::Store;
use crate::view::View;

/// Leaves of one point, as far as they are known.
pub(crate) struct Learnt {
    pub(crate) view: View,
    /// The name of each disk's unbroken time when it began.
    pub(crate) unbroken: Vec<Option<String>>,
    /// Bytes that a page stands for.
    stretch: u64,
    /// Pages that are written, by disk.
    done: Vec<BTreeSet<u64>>,
    /// Pages of which leaves are missing; a compare goes over a disk in order, so these are few.
    parts: BTreeMap<(usize, u64), BTreeMap<u64, Leaf>>,
}

impl Learnt {
    /// Nothing yet, of the point of `view`.
    pub(crate) fn begin(store: &Store, view: &View) -> Result<Learnt, ReplicaError> {
        let disks = store.manifest.disks.len();
        for disk in 0..disks {
            let name = file(disk);
            let made = store.journal.create(&name);
            made.map_err(|error| ReplicaError::io(format!("making {}", store.journal.describe(&name)), error))?;
        }
        let unbroken = (0..disks).map(|disk| store.unbroken(disk)).collect();
        let (done, parts) = (vec![BTreeSet::new(); disks], BTreeMap::new());
        Ok(Learnt { view: view.clone(), unbroken, stretch: 0, done, parts })
    }

    /// Whether it is of that point.
    pub(crate) fn is_of(&self, at: Attempt) -> bool {
        self.view.point().attempt == at
    }

    /// Whether that page is written.
    pub(crate) fn has(&self, disk: usize, page: u64) -> bool {
        self.done[disk].contains(&page)
    }

    /// What there are no leaves of, on a disk of `size` bytes whose time has that name now.
    pub(crate) fn missing(&self, disk: usize, name: &Option<String>, size: u64) -> BlockMap {
        let done = if self.unbroken[disk] == *name { &self.done[disk] } else { &BTreeSet::new() };
        let page = |page: &u64| Extent::new(page * self.stretch, self.stretch.min(size - page * self.stretch));
        BlockMap::whole(size).difference(&done.iter().map(page).collect())
    }

    /// The same with these leaves from `offset` on; none when somebody else wrote the disk since it began.
    pub(crate) fn with(
        mut self,
        store: &Store,
        recipe: &Recipe,
        disk: usize,
        offset: u64,
        leaves: &[Leaf],
        seed: &dyn Fn(u64) -> u64,
    ) -> Result<Option<Learnt>, ReplicaError> {
        if self.unbroken[disk].is_none() {
            // They would be told to nobody.
            return Ok(Some(self));
        }
        // Looked at after they were read.
        if self.unbroken[disk] != store.unbroken(disk) {
            return Ok(None);
        }
        self.stretch = PAGE_LEAVES * recipe.bytes.bytes();
        let all = recipe.count(self.view.size(disk)) as u64;
        let first = recipe.count(offset) as u64;
        for (number, leaf) in (first..).zip(leaves) {
            let page = number / PAGE_LEAVES;
            if self.has(disk, page) {
                continue;
            }
            let part = self.parts.entry((disk, page)).or_default();
            part.insert(number % PAGE_LEAVES, *leaf);
            if part.len() as u64 == PAGE_LEAVES.min(all - page * PAGE_LEAVES) {
                let mut whole: Vec<Leaf> = std::mem::take(part).into_values().collect();
                whole.resize(PAGE_LEAVES as usize, ZERO_LEAF);
                let (name, bytes) = (file(disk), encode(seed(page), &whole));
                let written = store.journal.write_at(&name, page * bytes.len() as u64, &bytes);
                let failed = |error| ReplicaError::io(format!("writing {}", store.journal.describe(&name)), error);
                written.map_err(failed)?;
                self.parts.remove(&(disk, page));
                self.done[disk].insert(page);
            }
        }
        Ok(Some(self))
    }
}
