//! Kept hashes of a replica's disks: what they held at one point, so that a compare reads nothing here and damage is seen.
//!
//! ```text
//!   newest point ─► view ─► leaves that changed since the last hashed point ─► leaves-N.hashes ─ sync ─► leaves.json
//! ```
//! A leaf is the keyed hash of 64 KiB or more (`protocol::leaf`), or all zeroes for a piece of zeroes; the key is a secret of
//! this replica, so a leaf tells nothing to who does not have it. Leaves of another size than is wanted are made anew by the
//! next pass; until it begins they are as good as ever. Hashing runs beside the epochs and keeps none waiting: it reads a view.
//! The point that the leaves stand for is held as a view holds it, so what changed since can be told.
//!
//! # Always true
//! - `leaves.json` says which point the leaves stand for; while they are being changed it says that they stand for none.
//! - A page of leaves fits its checksum, which its place and the key are part of, or is not used.
//! - Damage is not hashed over: of a block that is only written in part the rest is proven first. Where it is not what
//!   it was, the block is marked spoilt until it is written whole.
//!
//! # If power fails
//! - while leaves are written: they stand for none; the next [`Leaves::update`] hashes again what changed since the point
//!   they stood for before (or everything, if that point is not kept any more).

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use protocol::leaf::{LEAF_FUNCTION, Leaf, LeafSize, Recipe, SPOILT_LEAF, ZERO_LEAF};
use protocol::{Attempt, BlockMap, Extent, Lineage};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::error::ReplicaError;
use crate::replica::Replica;
use crate::store::Store;
use crate::view::View;
use crate::volume::Volume;

/// Files of leaves begin like this; they go with the replica.
pub(crate) const PREFIX: &str = "leaves";
const RECORD: &str = "leaves.json";
const NEW: &str = "leaves.json.new";
/// Bytes of a page of leaves: the leaves, 24 bytes of nothing, and the checksum of all before it, seeded by its number.
const PAGE: usize = 4096;
pub(crate) const PAGE_LEAVES: u64 = 127;
/// No record is longer (bytes).
const LONGEST: u64 = 4096;

/// The leaves of one page.
type Page = Vec<Leaf>;

/// What the leaves stand for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Standing {
    lineage: Lineage,
    /// What they were made with; leaves of another function are made anew.
    #[serde(default)]
    function: String,
    /// How, as both ends of a compare have to know.
    #[serde(flatten)]
    recipe: Recipe,
    /// The point up to which every change is in the leaves.
    at: Option<Attempt>,
    /// Some leaves may be newer than `at`.
    changing: bool,
}

#[derive(Serialize, Deserialize)]
struct Written {
    standing: Standing,
    /// XXH3 of the standing as compact JSON.
    checksum: u64,
}

/// The kept leaves of one replica. They hold a point of it.
pub struct Leaves {
    store: Arc<Store>,
    /// That of `standing`.
    recipe: RwLock<Recipe>,
    wanted: Mutex<LeafSize>,
    /// Read by who asks for leaves, several at once; written while they are brought up to date.
    state: RwLock<State>,
}

struct State {
    standing: Standing,
    /// Of `standing.at`, if that is kept.
    held: Option<View>,
}

impl State {
    /// The view of the point that the leaves stand for.
    fn settled(&self) -> Option<&View> {
        self.held.as_ref().filter(|_| !self.standing.changing)
    }
}

/// What [`Leaves::update`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashed {
    /// The point that the leaves stand for now; none for a replica without points, and when it was stopped.
    pub at: Option<Attempt>,
    /// Bytes that were read for it.
    pub read: u64,
    /// Blocks that were found spoilt.
    pub spoilt: u64,
}

impl Leaves {
    /// The leaves of `replica`, which are to be of size `wanted`; of leaves that cannot be read only the fact is kept that
    /// there are none.
    ///
    /// # Errors
    /// I/O: a new key could not be made durable; `Closed`, `Failed`.
    pub fn open(replica: &Replica, wanted: LeafSize) -> Result<Leaves, ReplicaError> {
        let store = replica.store().clone();
        let standing = match load(&store) {
            Some(standing) if standing.lineage == store.manifest.lineage && standing.function == LEAF_FUNCTION => {
                standing
            }
            _ => {
                // Two random identities have far more than 128 random bits.
                let seed = [Lineage::fresh(), Lineage::fresh()].map(|lineage| lineage.0.into_bytes()).concat();
                let key = *blake3::hash(&seed).as_bytes();
                let (lineage, function) = (store.manifest.lineage, LEAF_FUNCTION.to_string());
                let recipe = Recipe { key, bytes: wanted };
                let standing = Standing { lineage, function, recipe, at: None, changing: true };
                save(&store, &standing)?;
                standing
            }
        };
        let held = match standing.at.map(|at| View::open(&store, at)) {
            // What leads on from it is damaged, or it is not kept: everything is hashed.
            Some(Err(ReplicaError::PointGone(_) | ReplicaError::Damaged { .. })) | None => None,
            Some(view) => Some(view?),
        };
        let (recipe, wanted) = (RwLock::new(standing.recipe), Mutex::new(wanted));
        Ok(Leaves { store, recipe, wanted, state: RwLock::new(State { standing, held }) })
    }

    /// How they are made.
    pub fn recipe(&self) -> Recipe {
        *self.recipe.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves are to be of that size from the next [`Leaves::update`] on; one that goes on is stopped.
    pub fn want(&self, size: LeafSize) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = size;
    }

    fn wanted(&self) -> LeafSize {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the leaves are of the size that is wanted.
    pub fn is_as_wanted(&self) -> bool {
        self.recipe().bytes == self.wanted()
    }

    /// Makes leaves by `recipe`, unless there are some already that would have to be made anew, or another size is wanted.
    /// Says whether they are made by it now.
    ///
    /// # Errors
    /// I/O: the key could not be made durable; it is the old one then.
    pub fn adopt(&self, recipe: Recipe) -> Result<bool, ReplicaError> {
        if self.recipe() == recipe {
            return Ok(true);
        }
        if recipe.bytes != self.wanted() {
            return Ok(false);
        }
        let mut state = match self.state.try_write() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        if state.standing.at.is_some() {
            return Ok(false);
        }
        self.remake(&mut state, recipe)?;
        Ok(true)
    }

    /// Whatever there is is none of these: they are made by `recipe`.
    fn remake(&self, state: &mut State, recipe: Recipe) -> Result<(), ReplicaError> {
        let standing = Standing { recipe, at: None, changing: true, ..state.standing.clone() };
        save(&self.store, &standing)?;
        *state = State { standing, held: None };
        *self.recipe.write().unwrap_or_else(PoisonError::into_inner) = recipe;
        Ok(())
    }

    /// The point that the leaves stand for; none while they stand for none, or are being changed.
    pub fn at(&self) -> Option<Attempt> {
        self.try_read().and_then(|state| state.settled().map(|view| view.point().attempt))
    }

    /// Brings the leaves to the newest point: reads what changed since the last time, through a view. Where it is stopped
    /// (`stop` is asked now and then) the next call begins again.
    ///
    /// # Errors
    /// I/O; `Damaged` when what changed cannot be read; `NoSpace`; `Closed`, `Failed`. The leaves then stand for none.
    pub fn update(&self, stop: &dyn Fn() -> bool) -> Result<Hashed, ReplicaError> {
        let mut state = self.write();
        self.store.usable()?;
        let mut hashed = Hashed { at: None, read: 0, spoilt: 0 };
        let Some(newest) = self.store.chain.newest() else { return Ok(hashed) };
        let to = newest.point.attempt;
        let wanted = Recipe { bytes: self.wanted(), ..self.recipe() };
        if wanted != self.recipe() {
            self.remake(&mut state, wanted)?;
        }
        let stop = || stop() || !self.is_as_wanted();
        if state.settled().is_some_and(|view| view.point().attempt == to) {
            return Ok(Hashed { at: Some(to), ..hashed });
        }
        let now = View::open(&self.store, to)?;
        let before = state.settled().cloned();
        if !state.standing.changing {
            let changing = Standing { changing: true, ..state.standing.clone() };
            save(&self.store, &changing)?;
            state.standing = changing;
        }
        for disk in 0..self.store.manifest.disks.len() {
            let changed = match state.held.as_ref().map(|held| held.changed_until(&now, disk)) {
                None | Some(Err(ReplicaError::Damaged { .. })) => None,
                Some(changed) => changed?,
            };
            let mut pass = Pass { of: self, disk, now: &now, before: before.as_ref(), hashed: &mut hashed };
            if pass.disk(changed, &stop)?.is_none() {
                return Ok(hashed);
            }
        }
        let done = Standing { at: Some(to), changing: false, ..state.standing.clone() };
        save(&self.store, &done)?;
        *state = State { standing: done, held: Some(now) };
        Ok(Hashed { at: Some(to), ..hashed })
    }

    /// The leaves of `offset .. offset + length` of a disk at the point `at`, without reading the disk; none when they are
    /// not kept for that point, are made otherwise than by `recipe`, or are damaged. `offset` is a multiple of what one stands
    /// for.
    pub fn kept(&self, recipe: &Recipe, at: Attempt, disk: usize, offset: u64, length: u64) -> Option<Vec<Leaf>> {
        let state = self.try_read()?;
        state.settled().filter(|view| view.point().attempt == at && state.standing.recipe == *recipe)?;
        self.store.within(disk, offset, length).ok()?;
        let grain = recipe.bytes.bytes();
        let (first, last) = (offset / grain, (offset + length).div_ceil(grain));
        let mut leaves = Vec::with_capacity((last - first) as usize);
        for page in first / PAGE_LEAVES..last.div_ceil(PAGE_LEAVES) {
            let from = page * PAGE_LEAVES;
            let kept = self.page(disk, page).ok().flatten()?;
            leaves.extend_from_slice(
                &kept[(first.max(from) - from) as usize..(last.min(from + PAGE_LEAVES) - from) as usize],
            );
        }
        Some(leaves)
    }

    /// Lets go of the point, so that an epoch can begin that keeps no way back. Until the next update the leaves stand for
    /// none.
    pub fn let_go(&self) {
        self.write().held = None;
    }

    /// A page of leaves (none when it is damaged) that are made by `recipe`, and a view of the point that it stands for;
    /// nothing while they stand for none.
    pub(crate) fn stand(
        &self,
        recipe: &Recipe,
        disk: usize,
        page: u64,
    ) -> Result<Option<(View, Option<Page>)>, ReplicaError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(view) = state.settled().filter(|_| state.standing.recipe == *recipe) else { return Ok(None) };
        Ok(Some((view.clone(), self.page(disk, page)?)))
    }

    fn page(&self, disk: usize, page: u64) -> Result<Option<Page>, ReplicaError> {
        let name = file(disk);
        let mut bytes = vec![0; PAGE];
        match self.store.journal.read_at(&name, page * PAGE as u64, &mut bytes) {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(failed(&self.store, "reading", &name, error)),
            Ok(()) => Ok(decode(self.seed(disk, page), &bytes)),
        }
    }

    /// What a page's checksum begins with.
    fn seed(&self, disk: usize, page: u64) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.recipe().key;
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ (disk as u64) << 48 ^ page
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_read(&self) -> Option<RwLockReadGuard<'_, State>> {
        match self.state.try_read() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Hashes one disk.
struct Pass<'a> {
    of: &'a Leaves,
    disk: usize,
    now: &'a View,
    /// Of the point that all leaves of the disk stand for, as long as they do.
    before: Option<&'a View>,
    hashed: &'a mut Hashed,
}

impl Pass<'_> {
    /// Hashes what changed on the disk (all of it, when that is not known); none when it was stopped.
    fn disk(&mut self, changed: Option<BlockMap>, stop: &dyn Fn() -> bool) -> Result<Option<()>, ReplicaError> {
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
            _ => (vec![ZERO_LEAF; PAGE_LEAVES as usize], None, all),
        };
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

    fn leaf(&self, view: &View, piece: Extent) -> Result<Leaf, ReplicaError> {
        let mut block = vec![0; piece.length as usize];
        match view.read(self.disk, piece.offset, &mut block) {
            Err(error) if error.is_unreadable() => Ok(SPOILT_LEAF),
            read => read.map(|()| self.of.recipe().leaf(&block)),
        }
    }
}

/// Forgets what an earlier replica at the place may have left.
pub(crate) fn forget(retention: &dyn Volume) -> Result<(), ReplicaError> {
    match retention.remove(RECORD) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ReplicaError::io(format!("removing {}", retention.describe(RECORD)), error))
        }
        _ => Ok(()),
    }
}

fn file(disk: usize) -> String {
    format!("{PREFIX}-{disk}.hashes")
}

fn failed(store: &Store, doing: &str, name: &str, error: io::Error) -> ReplicaError {
    ReplicaError::io(format!("{doing} {}", store.journal.describe(name)), error)
}

fn encode(seed: u64, leaves: &[Leaf]) -> Vec<u8> {
    let mut bytes = leaves.concat();
    bytes.resize(PAGE - 8, 0);
    let checksum = XxHash3_64::oneshot_with_seed(seed, &bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

pub(crate) fn decode(seed: u64, bytes: &[u8]) -> Option<Vec<Leaf>> {
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    let good = XxHash3_64::oneshot_with_seed(seed, body) == u64::from_le_bytes(*checksum);
    good.then(|| body.as_chunks::<32>().0.iter().take(PAGE_LEAVES as usize).copied().collect())
}

fn load(store: &Store) -> Option<Standing> {
    let length = store.journal.length(RECORD).ok().filter(|length| *length <= LONGEST)?;
    let mut bytes = vec![0; length as usize];
    store.journal.read_at(RECORD, 0, &mut bytes).ok()?;
    let written: Written = serde_json::from_slice(&bytes).ok()?;
    (checksum(&written.standing).ok()? == written.checksum).then_some(written.standing)
}

fn checksum(standing: &Standing) -> serde_json::Result<u64> {
    Ok(XxHash3_64::oneshot(&serde_json::to_vec(standing)?))
}

fn save(store: &Store, standing: &Standing) -> Result<(), ReplicaError> {
    let journal = &store.journal;
    let write = || -> io::Result<()> {
        let written = Written { standing: standing.clone(), checksum: checksum(standing)? };
        journal.create(NEW)?;
        journal.write_at(NEW, 0, &serde_json::to_vec(&written)?)?;
        journal.sync(NEW)?;
        journal.rename(NEW, RECORD)?;
        journal.sync_directory()
    };
    write().map_err(|error| failed(store, "writing", RECORD, error))
}
