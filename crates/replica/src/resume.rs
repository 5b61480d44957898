//! Going on with an epoch that was left unfinished, instead of undoing it.
//!
//! ```text
//!   epoch of attempt 7 ── power cut ──► found at the opening ─► resumed as attempt 8 ─► each block that 7 wrote is looked at
//!                                                                                       again, or overwritten ─► sealed as 8
//! ```
//! What the earlier attempt wrote stays on the disks, and what it replaced stays in its segments: the first before-image of
//! a block is the newest point's, whoever writes the block after it. What attempt 8 is to bring is another cut than 7
//! was, so nothing of 7 is believed: a block counts only when the sender compared it, or sent it again.
//!
//! # Always true
//! - A resumed epoch is not sealed while a block that it inherited was neither looked at nor overwritten whole.
//! - Of an epoch that was found at an opening nothing counts as durable that no later frame says was: such frames are
//!   written again before anything else is, and a block that is looked at is. A sync may have failed before, and reads do
//!   not tell.

use std::sync::PoisonError;

use protocol::{Attempt, BLOCK, EpochHeader, Extent};

use crate::epoch::{Epoch, Writer};
use crate::error::ReplicaError;
use crate::fields::blank;
use crate::replica::Replica;
use crate::store::{Slot, Store};

/// Bytes of a segment that are written again at once.
const PIECE: u64 = 1 << 20;

/// Blocks of 64 KiB, by disk: a bit each, two MiB for a TiB.
pub(crate) struct Blocks {
    disks: Vec<Vec<u64>>,
    left: u64,
}

impl Blocks {
    /// Those that `open` has before-images in.
    fn written(writer: &Writer) -> Blocks {
        let mut blocks = Blocks { disks: Vec::new(), left: 0 };
        for segment in &writer.open.segments {
            let mut bits = Vec::new();
            for entry in segment.entries() {
                for block in entry.offset / BLOCK..=(entry.end() - 1) / BLOCK {
                    let (word, bit) = ((block / 64) as usize, 1u64 << (block % 64));
                    if bits.len() <= word {
                        bits.resize(word + 1, 0);
                    }
                    blocks.left += u64::from(bits[word] & bit == 0);
                    bits[word] |= bit;
                }
            }
            blocks.disks.push(bits);
        }
        blocks
    }

    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Takes out those that lie in `extent` with all that the disk has of them.
    pub fn take(&mut self, disk: usize, size: u64, extent: Extent) {
        if self.is_empty() {
            return;
        }
        let end = if extent.end() == size { size.div_ceil(BLOCK) } else { extent.end() / BLOCK };
        for block in extent.offset.div_ceil(BLOCK)..end {
            if let Some(word) = self.disks.get_mut(disk).and_then(|bits| bits.get_mut((block / 64) as usize)) {
                self.left -= *word >> (block % 64) & 1;
                *word &= !(1 << (block % 64));
            }
        }
    }
}

/// What makes an epoch a resumed one.
pub(crate) struct Inherited {
    /// Not yet looked at or overwritten.
    pub unproven: Blocks,
    /// It was found at an opening: what is read may not be what is durable.
    found: bool,
}

impl Replica {
    /// The attempt of an epoch that was left unfinished, whether it can be resumed or only undone.
    pub fn unfinished(&self) -> Option<Attempt> {
        self.store().left(|writer| writer.attempt)
    }

    /// Undoes an epoch that was left unfinished, if there is one: every disk is then at the newest point.
    ///
    /// # Errors
    /// `Busy` while an epoch is open; I/O; `Damaged`, `Closed`, `Failed`: it is then still there.
    pub fn undo_unfinished(&self) -> Result<(), ReplicaError> {
        self.store().in_slot(|| Ok(()))
    }

    /// As [`Replica::begin`], but an epoch that was left unfinished and builds on the same point is resumed instead of
    /// being undone ([`Epoch::is_resumed`]).
    ///
    /// # Errors
    /// As for [`Replica::begin`].
    pub fn resume(&self, header: &EpochHeader) -> Result<Epoch, ReplicaError> {
        let store = self.store();
        let fits = self.fits(header).and_then(|()| {
            let ledger = store.ledger.lock().unwrap_or_else(PoisonError::into_inner);
            ledger.facts().unused(header.attempt)
        });
        if fits.is_err() {
            return self.begin(header);
        }
        if let Some(newest) = self.unfinished().filter(|newest| *newest > header.attempt) {
            return Err(ReplicaError::AttemptUsed { attempt: header.attempt, newest });
        }
        let Some(mut writer) = store.take_left(Writer::can_be_resumed)? else { return self.begin(header) };
        match writer.resume(store, header) {
            Ok(()) => Ok(Epoch::new(store.clone(), writer)),
            Err(error) => {
                store.set_slot(Slot::Left(writer));
                Err(error)
            }
        }
    }
}

impl Epoch {
    /// Whether it inherited what an earlier attempt had written.
    pub fn is_resumed(&self) -> bool {
        self.writer().inherited.is_some()
    }

    /// Reads what a disk holds at this moment in one block of 64 KiB (less at the disk's end), if the epoch, or the one
    /// that it inherited from, has written there: the block then counts as looked at, and whoever looks makes sure that it
    /// is what it should be. False where nothing was written: there the disk holds what the newest point does.
    ///
    /// # Errors
    /// `OutOfBounds` for anything but a block; I/O; `Closed`, `Failed`, `EpochBroken`.
    pub fn look(&mut self, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<bool, ReplicaError> {
        let store = self.store().clone();
        self.writer_mut().look(&store, disk, offset, buffer)
    }
}

impl Writer {
    pub fn can_be_resumed(&self) -> bool {
        !self.broken && !self.open.segments.is_empty()
    }

    fn resume(&mut self, store: &Store, header: &EpochHeader) -> Result<(), ReplicaError> {
        let found = self.durable.take();
        for disk in 0..self.tails.len() {
            // Behind the tail are a torn frame, or the index of a seal that did not come about.
            self.cut_segment(store, disk, self.tails[disk].length)?;
            let Some(durable) = &found else { continue };
            #[cfg(feature = "sabotage")]
            if protocol::sabotage::is("resumed-frames-unsynced") {
                continue;
            }
            if self.write_again(store, disk, durable[disk])? {
                self.sync_segment(store, disk)?;
            }
        }
        // An epoch that is resumed once more is still one that was found.
        let found = found.is_some() || self.inherited.as_ref().is_some_and(|inherited| inherited.found);
        self.inherited = Some(Inherited { unproven: Blocks::written(self), found });
        (self.attempt, self.kind, self.cut_at_ms) = (header.attempt, header.kind, header.cut_at_ms);
        self.freeze = header.freeze.clone();
        Ok(())
    }

    /// Writes what follows byte `from` of a segment again, as it is.
    fn write_again(&self, store: &Store, disk: usize, from: u64) -> Result<bool, ReplicaError> {
        let (name, end) = (&self.open.segments[disk].file.name, self.tails[disk].length);
        let mut piece = Vec::new();
        for at in (from..end).step_by(PIECE as usize) {
            piece.resize(PIECE.min(end - at) as usize, 0);
            let journal = &store.journal;
            let again = journal.read_at(name, at, &mut piece).and_then(|()| journal.write_at(name, at, &piece));
            again.map_err(|error| {
                store.fail(ReplicaError::io(format!("writing {} again", journal.describe(name)), error))
            })?;
        }
        Ok(from < end)
    }

    fn look(&mut self, store: &Store, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<bool, ReplicaError> {
        store.usable()?;
        if self.broken {
            return Err(ReplicaError::EpochBroken);
        }
        let extent = store.within(disk, offset, buffer.len() as u64)?;
        let size = store.size(disk);
        if !offset.is_multiple_of(BLOCK) || extent.length != BLOCK.min(size - offset) {
            return Err(ReplicaError::OutOfBounds(format!("{} bytes at {offset} are not a block", extent.length)));
        }
        let mut gaps = Vec::new();
        self.open.segments.get(disk).into_iter().for_each(|segment| segment.uncovered(extent, &mut gaps));
        if gaps == [extent] || self.open.segments.is_empty() {
            return Ok(false);
        }
        store.read_disk(disk, offset, buffer)?;
        let Some(inherited) = &mut self.inherited else { return Ok(true) };
        #[cfg(feature = "sabotage")]
        let found = inherited.found && !protocol::sabotage::is("resumed-blocks-unwritten");
        #[cfg(not(feature = "sabotage"))]
        let found = inherited.found;
        if found {
            let target = store.disk(disk)?;
            let written = match blank(buffer) {
                true => target.write_zeroes(offset, extent.length),
                false => target.write_at(offset, buffer),
            };
            self.touched[disk] = true;
            if let Err(error) = written {
                self.broken = true;
                return Err(store.disk_error(disk, "writing", error));
            }
        }
        inherited.unproven.take(disk, size, extent);
        Ok(true)
    }
}
