//! Proves a replica: every record of the journal against its checksum, the disks against the kept leaves.
//!
//! ```text
//!   journal   segments of all points ─► header · index · every record
//!   disks     view of the hashed point ─► leaf by leaf ─► kept leaves
//! ```
//! It reads what a view would read, so a block that was changed since the hashed point is proven where it stands in the
//! journal. It changes nothing and keeps nobody waiting; what is damaged is named, and the rest is still read.

use protocol::{Attempt, BlockMap, DiskKey, Extent};

use crate::error::ReplicaError;
use crate::history::{Images, Segment};
use crate::leaves::{Leaves, PAGE_LEAVES};
use crate::replica::Replica;

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// The point whose leaves the disks were compared with; none when none are kept yet, and only the journal was read.
    pub at: Option<Attempt>,
    /// Bytes of before-images that were read.
    pub journal_bytes: u64,
    /// Bytes of the disks that were compared with their leaves, zeroes included.
    pub disk_bytes: u64,
    /// Everything that is not what it was.
    pub damage: Vec<Damage>,
}

/// One thing that is damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The disk whose content, or whose history, is concerned.
    pub disk: DiskKey,
    /// Where on the disk; empty when a whole segment cannot be read.
    pub extents: BlockMap,
    /// What is wrong, and where.
    pub why: String,
    /// Whether the newest state is concerned, not only older points.
    pub newest: bool,
}

/// How far a scrub is: bytes read, and bytes that will be. It answers whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Reads all of `replica`; none when `progress` said to stop.
///
/// # Errors
/// I/O that says nothing about damage; `Closed`, `Failed`.
pub fn verify(replica: &Replica, leaves: &Leaves, progress: Progress) -> Result<Option<Verified>, ReplicaError> {
    let mut scrub = Scrub { found: Verified::default(), done: 0, all: 0, progress };
    scrub.all = replica.disks().iter().map(|disk| disk.size).sum::<u64>();
    let Some(()) = scrub.journal(replica)? else { return Ok(None) };
    for disk in 0..replica.disks().len() {
        let Some(()) = scrub.disk(replica, leaves, disk)? else { return Ok(None) };
    }
    Ok(Some(scrub.found))
}

struct Scrub<'a> {
    found: Verified,
    done: u64,
    all: u64,
    progress: Progress<'a>,
}

impl Scrub<'_> {
    fn step(&mut self, bytes: u64) -> Option<()> {
        self.done += bytes;
        (self.progress)(self.done, self.all.max(self.done)).then_some(())
    }

    /// Says that something of a disk, or of its history, is damaged.
    fn bad(&mut self, replica: &Replica, disk: usize, extents: Vec<Extent>, why: String, newest: bool) {
        if let Some(record) = replica.disks().get(disk) {
            let extents = extents.into_iter().collect();
            self.found.damage.push(Damage { disk: record.key.clone(), extents, why, newest });
        }
    }

    fn journal(&mut self, replica: &Replica) -> Result<Option<()>, ReplicaError> {
        let store = replica.store();
        let mut number = 0;
        // Step by step: history may be thinned meanwhile, and a step that is read stays as long as it is.
        while let Some(step) = store.chain.after(number) {
            store.usable()?;
            number = step.number;
            for (disk, segment) in step.segments.iter().enumerate() {
                let Some(segment) = segment else { continue };
                let before = self.found.journal_bytes;
                let mut broken = Vec::new();
                if let Some(why) = self.segment(segment, &mut broken)? {
                    self.bad(replica, disk, broken, why, false);
                }
                let bytes = self.found.journal_bytes - before;
                self.all += bytes;
                if self.step(bytes).is_none() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    }

    /// Reads a segment. Tells what is wrong first, and puts what is damaged into `broken`.
    fn segment(&mut self, segment: &Segment, broken: &mut Vec<Extent>) -> Result<Option<String>, ReplicaError> {
        let (mut scratch, mut why) = (Vec::new(), None);
        let mut walk = match segment.entries(0) {
            Err(error) if error.is_unreadable() => return Ok(Some(error.cause())),
            walk => walk?,
        };
        while let Some(entry) = walk.entry() {
            if !entry.is_zero() {
                match segment.file().read(&entry, &mut scratch) {
                    Err(error) if error.is_unreadable() => {
                        broken.push(Extent::new(entry.offset, entry.length));
                        why.get_or_insert_with(|| error.cause());
                    }
                    read => drop(read?),
                }
                self.found.journal_bytes += entry.stored;
            }
            match walk.skip_to(entry.end()) {
                Err(error) if error.is_unreadable() => return Ok(Some(error.cause())),
                on => on?,
            }
        }
        Ok(why)
    }

    fn disk(&mut self, replica: &Replica, leaves: &Leaves, disk: usize) -> Result<Option<()>, ReplicaError> {
        let size = replica.disks()[disk].size;
        let (mut broken, mut unknown) = (Vec::new(), Vec::new());
        let recipe = leaves.recipe();
        let grain = recipe.bytes.bytes();
        let mut block = vec![0; grain as usize];
        for page in 0..size.div_ceil(grain * PAGE_LEAVES) {
            replica.store().usable()?;
            let from = page * PAGE_LEAVES * grain;
            let whole = Extent::new(from, (PAGE_LEAVES * grain).min(size - from));
            // The leaves may move on to another point between two pages, never within one.
            let Some((view, kept)) = leaves.stand(&recipe, disk, page)? else { break };
            self.found.at = Some(view.point().attempt);
            let Some(kept) = kept else {
                unknown.push(whole);
                continue;
            };
            let data = match view.data(disk, whole.offset, whole.length) {
                Err(error) if error.is_unreadable() => [whole].into_iter().collect(),
                data => data?,
            };
            for (at, wanted) in (from..whole.end()).step_by(grain as usize).zip(&kept) {
                let piece = Extent::new(at, grain.min(whole.end() - at));
                let block = &mut block[..piece.length as usize];
                if data.intersection(&[piece].into_iter().collect()).is_empty() {
                    block.fill(0);
                } else {
                    match view.read(disk, at, block) {
                        // The journal's part of this was said already.
                        Err(ReplicaError::Damaged { .. }) => continue,
                        Err(error) if error.is_unreadable() => {
                            broken.push(piece);
                            continue;
                        }
                        read => read?,
                    }
                }
                if recipe.leaf(block) != *wanted {
                    broken.push(piece);
                }
            }
            self.found.disk_bytes += whole.length;
            if self.step(whole.length).is_none() {
                return Ok(None);
            }
        }
        if !broken.is_empty() {
            self.bad(replica, disk, broken, "the disk does not hold what was written to it".into(), true);
        }
        if !unknown.is_empty() {
            let why = "the kept hashes are damaged, so nothing can be said of the disk there";
            self.bad(replica, disk, unknown, why.into(), false);
        }
        Ok(Some(()))
    }
}
