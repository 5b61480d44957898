//! The leaves of an item's disks, as a sender that compares asks for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::epoch::Basis;
use protocol::leaf::{Leaf, Recipe, SPOILT_LEAF, ZERO_LEAF};
use protocol::{BLOCK, BlockMap, Extent, Fault};
use replica::DiskHome;
use transfer::Hashed;

use crate::item::{Item, protocol_fault};

/// How long kept leaves are brought up to date before the disks are read instead. A sender waits for two minutes.
const CATCHING_UP: Duration = Duration::from_secs(30);

/// An item's disks, to be compared with.
pub(crate) struct ItemLeaves {
    item: Arc<Item>,
    /// Held while kept leaves are brought up to date: who asks meanwhile waits, and reads nothing.
    catching_up: Mutex<()>,
    /// How is hashed: as kept leaves are made, or otherwise where the sender asked for it.
    recipe: Mutex<Recipe>,
}

impl ItemLeaves {
    /// Blocks.
    pub(crate) fn of(item: Arc<Item>) -> Result<ItemLeaves, Fault> {
        let recipe = item.leaves().map_err(|error| item.fault(&error))?.recipe();
        Ok(ItemLeaves { item, catching_up: Mutex::default(), recipe: Mutex::new(recipe) })
    }

    /// Hashes by `recipe` in this session, unless leaves are kept that then could not be used. Gives how it does. Blocks.
    pub(crate) fn rekey(&self, recipe: Recipe) -> Result<Recipe, Fault> {
        let failed = |error: replica::ReplicaError| self.item.fault(&error);
        let kept = self.item.leaves().map_err(failed)?;
        // Of disks that somebody else may have written none are used.
        let inside = self.item.replica.disks().iter().any(|disk| disk.home == DiskHome::Inside);
        let needed = inside || kept.are_unbroken();
        let recipe = if kept.adopt(recipe).map_err(failed)? || !needed { recipe } else { kept.recipe() };
        *self.recipe.lock().unwrap_or_else(PoisonError::into_inner) = recipe;
        Ok(recipe)
    }
}

impl Hashed for ItemLeaves {
    fn recipe(&self) -> Recipe {
        *self.recipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self, disk: u16) -> Option<u64> {
        self.item.replica.disks().get(usize::from(disk)).map(|disk| disk.size)
    }

    /// Nothing is read where leaves are kept, else all but holes. While an epoch is resumed: of what it inherited the leaves
    /// of what is there now; of the rest those of the newest point, if that is what the epoch is compared with, and otherwise
    /// such as equal no block's.
    fn leaves(&self, disk: u16, extent: Extent) -> Result<(Vec<Leaf>, u64), Fault> {
        let (ItemLeaves { item, catching_up, .. }, recipe) = (self, self.recipe());
        let stretch = Stretch { item, catching_up, disk: usize::from(disk), extent, recipe };
        let Some(basis) = item.resumed() else { return stretch.newest(&[]) };
        let (mut leaves, mut read) = (Vec::new(), 0);
        let mut buffer = vec![0; recipe.bytes.bytes() as usize];
        for piece in stretch.pieces() {
            let bytes = &mut buffer[..piece.length as usize];
            let written = stretch.look(piece, bytes)?;
            read += if written { piece.length } else { 0 };
            leaves.push(written.then(|| recipe.leaf(bytes)));
        }
        if basis == Basis::Compared && leaves.iter().any(Option::is_none) {
            let (newest, more) = stretch.newest(&leaves)?;
            let both = leaves.into_iter().zip(newest);
            return Ok((both.map(|(now, newest)| now.unwrap_or(newest)).collect(), read + more));
        }
        Ok((leaves.into_iter().map(|leaf| leaf.unwrap_or(SPOILT_LEAF)).collect(), read))
    }
}

/// A part of a replica's disk that hashes are asked for.
struct Stretch<'a> {
    item: &'a Item,
    catching_up: &'a Mutex<()>,
    disk: usize,
    extent: Extent,
    recipe: Recipe,
}

impl Stretch<'_> {
    /// What single leaves stand for.
    fn pieces(&self) -> impl Iterator<Item = Extent> + use<> {
        pieces(self.extent, self.recipe.bytes.bytes())
    }

    /// Reads what a leaf stands for as it is now, if the epoch that is resumed has written any of it.
    fn look(&self, piece: Extent, bytes: &mut [u8]) -> Result<bool, Fault> {
        let mut kept = BlockMap::new();
        for block in pieces(piece, BLOCK) {
            let from = (block.offset - piece.offset) as usize;
            if !self.item.look(self.disk, block.offset, &mut bytes[from..][..block.length as usize])? {
                kept.insert(block);
            }
        }
        if kept.bytes() == piece.length {
            return Ok(false);
        }
        for Extent { offset, length } in kept.extents() {
            let from = (offset - piece.offset) as usize;
            let read = self.item.replica.read_present(self.disk, *offset, &mut bytes[from..][..*length as usize]);
            read.map_err(|error| self.item.fault(&error))?;
        }
        Ok(true)
    }

    /// The leaves of the newest point, not of what the open epoch has made of it: the same question then always has the
    /// same answer, also when a link broke and a stretch is asked for again. Those that are `known` need not be right.
    fn newest(&self, known: &[Option<Leaf>]) -> Result<(Vec<Leaf>, u64), Fault> {
        let Stretch { item, catching_up, disk, extent, recipe } = self;
        let failed = |error: replica::ReplicaError| item.fault(&error);
        // Without a way back there is no point; but nothing of a stretch is written before its hashes were told.
        let (replica, kept) = (&item.replica, item.leaves().map_err(failed)?);
        let newest = replica.newest();
        if newest.is_none() && item.newest().is_none() {
            return Err(protocol_fault("hashes were asked of a replica without a point"));
        }
        let mut read = 0;
        // A disk outside may have been put back from a backup: that is what a compare is for, so its leaves are kept from
        // whoever asks unless the disk proves that it was not (`witness`).
        if let Some(newest) = newest.as_ref().filter(|_| *recipe == kept.recipe()) {
            let alone = catching_up.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.can_follow() && kept.at().is_some_and(|at| at != newest.attempt) {
                // What changed in the last minute or so. Where it is more than that, the sender is not kept waiting for it.
                let begun = Instant::now();
                read = kept.update(&|| begun.elapsed() > CATCHING_UP).map_err(failed)?.read;
            }
            drop(alone);
            if let Some(leaves) = kept.kept(recipe, newest.attempt, *disk, extent.offset, extent.length) {
                return Ok((leaves, read));
            }
        }
        let view = newest.map(|newest| replica.view(newest.attempt)).transpose().map_err(failed)?;
        let data = match &view {
            Some(view) => view.data(*disk, extent.offset, extent.length),
            None => replica.data_present(*disk, extent.offset, extent.length),
        };
        let data = data.map_err(failed)?;
        let mut buffer = vec![0; recipe.bytes.bytes() as usize];
        let mut leaves = Vec::with_capacity(recipe.count(extent.length));
        for (n, piece) in self.pieces().enumerate() {
            let one: BlockMap = [piece].into_iter().collect();
            if data.intersection(&one).is_empty() || known.get(n).is_some_and(Option::is_some) {
                leaves.push(ZERO_LEAF);
                continue;
            }
            let bytes = &mut buffer[..piece.length as usize];
            match &view {
                Some(view) => view.read(*disk, piece.offset, bytes),
                None => replica.read_present(*disk, piece.offset, bytes),
            }
            .map_err(failed)?;
            read += piece.length;
            leaves.push(recipe.leaf(bytes));
        }
        if let Some(view) = view.filter(|_| known.is_empty()) {
            kept.learn(recipe, &view, *disk, extent.offset, &leaves);
        }
        Ok((leaves, read))
    }
}

/// `extent` in pieces of so many bytes; its beginning is a multiple of that.
fn pieces(extent: Extent, bytes: u64) -> impl Iterator<Item = Extent> {
    let (offset, end) = (extent.offset, extent.end());
    (offset..end).step_by(bytes as usize).map(move |at| Extent::new(at, bytes.min(end - at)))
}
