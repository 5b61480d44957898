//! The leaves of an item's disks, as a sender that compares asks for them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::epoch::Basis;
use protocol::leaf::{Leaf, LeafKey, SPOILT_LEAF, ZERO_LEAF, leaf};
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
    /// What is hashed with: what kept leaves are made with, or another that the sender asked for.
    key: Mutex<LeafKey>,
}

impl ItemLeaves {
    /// Blocks.
    pub(crate) fn of(item: Arc<Item>) -> Result<ItemLeaves, Fault> {
        let key = item.leaves().map_err(|error| item.fault(&error))?.key();
        Ok(ItemLeaves { item, catching_up: Mutex::default(), key: Mutex::new(key) })
    }

    /// Hashes with `key` in this session, unless leaves are kept that then could not be used. Gives what it hashes with. Blocks.
    pub(crate) fn rekey(&self, key: LeafKey) -> Result<LeafKey, Fault> {
        let failed = |error: replica::ReplicaError| self.item.fault(&error);
        let kept = self.item.leaves().map_err(failed)?;
        // Of disks outside none are used, see `Stretch::newest`.
        let needed = self.item.replica.disks().iter().any(|disk| disk.home == DiskHome::Inside);
        let key = if kept.adopt(key).map_err(failed)? || !needed { key } else { kept.key() };
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(key)
    }
}

impl Hashed for ItemLeaves {
    fn key(&self) -> LeafKey {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self, disk: u16) -> Option<u64> {
        self.item.replica.disks().get(usize::from(disk)).map(|disk| disk.size)
    }

    /// Nothing is read where leaves are kept, else all but holes. While an epoch is resumed: of what it inherited the leaves
    /// of what is there now; of the rest those of the newest point, if that is what the epoch is compared with, and otherwise
    /// such as equal no block's.
    fn leaves(&self, disk: u16, extent: Extent) -> Result<(Vec<Leaf>, u64), Fault> {
        let (ItemLeaves { item, catching_up, .. }, key) = (self, self.key());
        let stretch = Stretch { item, catching_up, disk: usize::from(disk), extent, key };
        let Some(basis) = item.resumed() else { return stretch.newest(&[]) };
        let (mut leaves, mut read) = (Vec::new(), 0);
        let mut buffer = vec![0; BLOCK as usize];
        for block in stretch.blocks() {
            let bytes = &mut buffer[..block.length as usize];
            let written = item.look(stretch.disk, block.offset, bytes)?;
            read += if written { block.length } else { 0 };
            leaves.push(written.then(|| leaf(&key, bytes)));
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
    key: LeafKey,
}

impl Stretch<'_> {
    fn blocks(&self) -> impl Iterator<Item = Extent> + use<> {
        let (offset, end) = (self.extent.offset, self.extent.end());
        (offset..end).step_by(BLOCK as usize).map(move |at| Extent::new(at, BLOCK.min(end - at)))
    }

    /// The leaves of the newest point, not of what the open epoch has made of it: the same question then always has the
    /// same answer, also when a link broke and a stretch is asked for again. Those that are `known` need not be right.
    fn newest(&self, known: &[Option<Leaf>]) -> Result<(Vec<Leaf>, u64), Fault> {
        let Stretch { item, catching_up, disk, extent, key } = self;
        let failed = |error: replica::ReplicaError| item.fault(&error);
        // Without a way back there is no point; but nothing of a stretch is written before its hashes were told.
        let (replica, kept) = (&item.replica, item.leaves().map_err(failed)?);
        let newest = replica.newest();
        if newest.is_none() && item.newest().is_none() {
            return Err(protocol_fault("hashes were asked of a replica without a point"));
        }
        let mut read = 0;
        // Only what is inside nobody else writes. Another disk may have been put back from a backup: that is what a compare
        // is for.
        let inside = replica.disks().get(*disk).is_some_and(|disk| disk.home == DiskHome::Inside);
        if let Some(newest) = newest.as_ref().filter(|_| inside && *key == kept.key()) {
            let alone = catching_up.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.at().is_some_and(|at| at != newest.attempt) {
                // What changed in the last minute or so. Where it is more than that, the sender is not kept waiting for it.
                let begun = Instant::now();
                read = kept.update(&|| begun.elapsed() > CATCHING_UP).map_err(failed)?.read;
            }
            drop(alone);
            if let Some(leaves) = kept.kept(newest.attempt, *disk, extent.offset, extent.length) {
                return Ok((leaves, read));
            }
        }
        let view = newest.map(|newest| replica.view(newest.attempt)).transpose().map_err(failed)?;
        let data = match &view {
            Some(view) => view.data(*disk, extent.offset, extent.length),
            None => replica.data_present(*disk, extent.offset, extent.length),
        };
        let data = data.map_err(failed)?;
        let mut buffer = vec![0; BLOCK as usize];
        let mut leaves = Vec::with_capacity(extent.length.div_ceil(BLOCK) as usize);
        for (n, block) in self.blocks().enumerate() {
            let one: BlockMap = [block].into_iter().collect();
            if data.intersection(&one).is_empty() || known.get(n).is_some_and(Option::is_some) {
                leaves.push(ZERO_LEAF);
                continue;
            }
            let bytes = &mut buffer[..block.length as usize];
            match &view {
                Some(view) => view.read(*disk, block.offset, bytes),
                None => replica.read_present(*disk, block.offset, bytes),
            }
            .map_err(failed)?;
            read += block.length;
            leaves.push(leaf(key, bytes));
        }
        Ok((leaves, read))
    }
}
