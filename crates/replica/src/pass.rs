//! One pass over a disk that brings its kept leaves to a point: what changed is hashed, what might not be ours is proven.
//!
//! ```text
//!   changed whole          ─► hashed
//!   changed in part        ─► as it was: proven against its leaf ─► hashed
//!   not changed by us      ─► nothing, or proven where somebody else may have written the disk
//! ```
//! # Always true
//! - What is not what its leaf says is spoilt, not hashed over.
//!
//! # If power fails
//! The leaves stand for none ([`crate::leaves`]).

use std::collections::BTreeSet;
use std::io;

use protocol::leaf::{Leaf, SPOILT_LEAF, ZERO_LEAF};
use protocol::{BlockMap, Extent};

use crate::error::ReplicaError;
use crate::leaves::{Hashed, Leaves, PAGE, PAGE_LEAVES, encode, failed, file};
use crate::view::View;

/// Hashes one disk.
pub(crate) struct Pass<'a> {
    pub of: &'a Leaves,
    pub disk: usize,
    pub now: &'a View,
    /// Of the point that all leaves of the disk stand for, as long as they do.
    pub before: Option<&'a View>,
    /// Nobody else wrote the disk since its leaves were made, or nobody can tell.
    pub is_proven: bool,
    pub hashed: &'a mut Hashed,
}

impl Pass<'_> {
    /// Hashes what changed on the disk (all of it, when that is not known); none when it was stopped.
    pub fn disk(&mut self, changed: Option<BlockMap>, stop: &dyn Fn() -> bool) -> Result<Option<()>, ReplicaError> {
        let (store, name, size) = (&self.of.store, file(self.disk), self.now.size(self.disk));
        let journal = &store.journal;
        let missing = match journal.length(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            length => length.map(|_| false).map_err(|error| failed(store, "reading", &name, error))?,
        };
        let changed = changed.filter(|_| !missing);
        if changed.is_none() {
            let made = journal.create(&name).and_then(|()| journal.sync_directory());
            made.map_err(|error| failed(store, "making", &name, error))?;
        }
        let stretch = PAGE_LEAVES * self.of.recipe().bytes.bytes();
        let pages: BTreeSet<u64> = match &changed {
            _ if !self.is_proven => (0..size.div_ceil(stretch)).collect(),
            None => (0..size.div_ceil(stretch)).collect(),
            Some(map) => map.extents().iter().flat_map(|e| e.offset / stretch..=(e.end() - 1) / stretch).collect(),
        };
        for page in pages {
            if stop() {
                return Ok(None);
            }
            let whole = Extent::new(page * stretch, stretch.min(size - page * stretch));
            let leaves = self.page(page, whole, changed.as_ref())?;
            let bytes = encode(self.of.seed(self.disk, page), &leaves);
            let written = journal.write_at(&name, page * PAGE as u64, &bytes);
            written.map_err(|error| failed(store, "writing", &name, error))?;
        }
        // The standing that is recorded next must not be believed before this.
        journal.sync(&name).map_err(|error| failed(store, "syncing", &name, error))?;
        Ok(Some(()))
    }

    /// The leaves of the page that stands for `whole`.
    fn page(&mut self, page: u64, whole: Extent, changed: Option<&BlockMap>) -> Result<Vec<Leaf>, ReplicaError> {
        // A page that was torn by a power cut, or decayed, is made anew.
        let kept = if changed.is_some() { self.of.page(self.disk, page)? } else { None };
        let all: BlockMap = [whole].into_iter().collect();
        let (mut leaves, known, changed) = match (kept, changed) {
            (Some(leaves), Some(changed)) => (leaves, self.before, changed.intersection(&all)),
            _ => (vec![ZERO_LEAF; PAGE_LEAVES as usize], None, all.clone()),
        };
        if !self.is_proven {
            self.prove(whole, &all.difference(&changed), &mut leaves)?;
        }
        let data = self.now.data(self.disk, whole.offset, whole.length)?;
        let recipe = self.of.recipe();
        let grain = recipe.bytes.bytes();
        for piece in changed.aligned(grain, whole.end()).pieces(grain) {
            let leaf = &mut leaves[recipe.count(piece.offset - whole.offset)];
            let one: BlockMap = [piece].into_iter().collect();
            let in_part = changed.intersection(&one).bytes() < piece.length;
            if in_part && *leaf == SPOILT_LEAF {
                continue;
            }
            if in_part && let Some(before) = known {
                self.hashed.read += piece.length;
                if self.leaf(before, piece)? != *leaf {
                    *leaf = SPOILT_LEAF;
                    self.hashed.spoilt += 1;
                    continue;
                }
            }
            *leaf = if data.intersection(&one).is_empty() {
                ZERO_LEAF
            } else {
                self.hashed.read += piece.length;
                self.leaf(self.now, piece)?
            };
        }
        Ok(leaves)
    }

    /// Reads what nobody should have changed: a leaf that is not what it was is spoilt.
    fn prove(&mut self, whole: Extent, unchanged: &BlockMap, leaves: &mut [Leaf]) -> Result<(), ReplicaError> {
        let recipe = self.of.recipe();
        let data = self.now.data(self.disk, whole.offset, whole.length)?;
        for piece in unchanged.aligned(recipe.bytes.bytes(), whole.end()).pieces(recipe.bytes.bytes()) {
            let one: BlockMap = [piece].into_iter().collect();
            let leaf = &mut leaves[recipe.count(piece.offset - whole.offset)];
            if unchanged.intersection(&one).bytes() < piece.length || *leaf == SPOILT_LEAF {
                // Proven where it is hashed, or known.
                continue;
            }
            let is_hole = data.intersection(&one).is_empty();
            self.hashed.read += if is_hole { 0 } else { piece.length };
            let found = if is_hole { ZERO_LEAF } else { self.leaf(self.now, piece)? };
            if found != *leaf {
                *leaf = SPOILT_LEAF;
                self.hashed.spoilt += 1;
            }
        }
        Ok(())
    }

    fn leaf(&self, view: &View, piece: Extent) -> Result<Leaf, ReplicaError> {
        let mut block = vec![0; piece.length as usize];
        match view.read(self.disk, piece.offset, &mut block) {
            Err(error) if error.is_unreadable() => Ok(SPOILT_LEAF),
            read => read.map(|()| self.of.recipe().leaf(&block)),
        }
    }
}
