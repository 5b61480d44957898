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
//! A disk outside may be written by somebody else; the disk tells whether it was ([`Disk::unbroken`](crate::Disk::unbroken)). Leaves
//! of a disk that was, or might have been, are told to nobody until a pass has proven every one of them: what is not what it was
//! is spoilt then, as below. What a compare hashes before there are leaves is taken over ([`Leaves::learn`]), not read again.
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

use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use protocol::leaf::{LEAF_FUNCTION, Leaf, LeafSize, Recipe};
use protocol::{Attempt, Lineage};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::error::ReplicaError;
use crate::learnt::Learnt;
use crate::pass::Pass;
use crate::replica::Replica;
use crate::store::Store;
use crate::view::View;
use crate::volume::Volume;

/// Files of leaves begin like this; they go with the replica.
pub(crate) const PREFIX: &str = "leaves";
const RECORD: &str = "leaves.json";
const NEW: &str = "leaves.json.new";
/// Bytes of a page of leaves: the leaves, 24 bytes of nothing, and the checksum of all before it, seeded by its number.
pub(crate) const PAGE: usize = 4096;
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
    /// The name of each disk's unbroken time in which its leaves are true.
    #[serde(default)]
    unbroken: Vec<Option<String>>,
}

#[derive(Serialize, Deserialize)]
struct Written {
    standing: Standing,
    /// XXH3 of the standing as compact JSON.
    checksum: u64,
}

/// The kept leaves of one replica. They hold a point of it.
pub struct Leaves {
    pub(crate) store: Arc<Store>,
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
    /// While there are none yet: what compares hashed.
    learnt: Option<Learnt>,
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
                let (at, changing, unbroken) = (None, true, Vec::new());
                let standing = Standing { lineage, function, recipe, at, changing, unbroken };
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
        Ok(Leaves { store, recipe, wanted, state: RwLock::new(State { standing, held, learnt: None }) })
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
        *state = State { standing, held: None, learnt: None };
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
        let learnt = state.learnt.take();
        let from = learnt.as_ref().map(|learnt| &learnt.view);
        let mut unbroken = Vec::new();
        for disk in 0..self.store.manifest.disks.len() {
            // Before anything is read: what somebody writes after that has another name.
            let name = self.store.unbroken(disk);
            let changed = match state.held.as_ref().or(from).map(|held| held.changed_until(&now, disk)) {
                None | Some(Err(ReplicaError::Damaged { .. })) => None,
                Some(changed) => changed?,
            };
            let missing = learnt.as_ref().map(|learnt| learnt.missing(disk, &name, now.size(disk)));
            let changed = changed.map(|changed| missing.map_or_else(|| changed.clone(), |these| changed.union(&these)));
            let is_proven = learnt.is_some() || name.is_none() || state.standing.unbroken.get(disk) == Some(&name);
            let before = before.as_ref().or(from);
            let mut pass = Pass { of: self, disk, now: &now, before, is_proven, hashed: &mut hashed };
            if pass.disk(changed, &stop)?.is_none() {
                return Ok(hashed);
            }
            unbroken.push(name);
        }
        let done = Standing { at: Some(to), changing: false, unbroken, ..state.standing.clone() };
        save(&self.store, &done)?;
        *state = State { standing: done, held: Some(now), learnt: None };
        Ok(Hashed { at: Some(to), ..hashed })
    }

    /// Takes over what was hashed for a compare: the leaves of `disk` from `offset` on at the point of `view`. Only while there
    /// are none; whoever would have to wait for it does not.
    pub fn learn(&self, recipe: &Recipe, view: &View, disk: usize, offset: u64, leaves: &[Leaf]) {
        // Who asks for leaves meanwhile must not be kept from them by that.
        let wanted = |state: &State| state.standing.at.is_none() && state.standing.recipe == *recipe;
        if !self.try_read().is_some_and(|state| wanted(&state)) {
            return;
        }
        let mut state = match self.state.try_write() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !wanted(&state) {
            return;
        }
        let learnt = match state.learnt.take() {
            Some(learnt) if learnt.is_of(view.point().attempt) => Ok(learnt),
            _ => Learnt::begin(&self.store, view),
        };
        let seed = |page| self.seed(disk, page);
        // It is lost, and will be read again.
        state.learnt =
            learnt.and_then(|learnt| learnt.with(&self.store, recipe, disk, offset, leaves, &seed)).ok().flatten();
    }

    /// Whether there are leaves of some point, and nobody else wrote any of the disks since.
    pub fn are_unbroken(&self) -> bool {
        let Some(state) = self.try_read() else { return false };
        let all = || (0..self.store.manifest.disks.len()).all(|disk| self.is_unbroken(&state.standing.unbroken, disk));
        state.settled().is_some() && all()
    }

    /// Whether the next [`Leaves::update`] has only what changed to hash: there are leaves of the size that is wanted, and none
    /// have to be proven because somebody else may have written a disk.
    pub fn can_follow(&self) -> bool {
        let Some(state) = self.try_read() else { return false };
        let names = &state.standing.unbroken;
        let follows = |disk| self.is_unbroken(names, disk) || self.store.unbroken(disk).is_none();
        let all = || (0..self.store.manifest.disks.len()).all(follows);
        self.is_as_wanted() && state.settled().is_some() && all()
    }

    /// Whether nobody else wrote the disk since its leaves were made.
    fn is_unbroken(&self, names: &[Option<String>], disk: usize) -> bool {
        names.get(disk).is_some_and(|name| name.is_some() && *name == self.store.unbroken(disk))
    }

    /// The leaves of `offset .. offset + length` of a disk at the point `at`, without reading the disk; none when they are
    /// not kept for that point, are made otherwise than by `recipe`, or are damaged, or somebody else may have written it. `offset` is a multiple of what one stands
    /// for.
    pub fn kept(&self, recipe: &Recipe, at: Attempt, disk: usize, offset: u64, length: u64) -> Option<Vec<Leaf>> {
        let state = self.try_read()?;
        let settled = state.settled().filter(|view| view.point().attempt == at).map(|_| &state.standing.unbroken);
        let learnt = state.learnt.as_ref().filter(|learnt| learnt.is_of(at));
        let names = settled.or(learnt.map(|learnt| &learnt.unbroken)).filter(|_| state.standing.recipe == *recipe)?;
        self.is_unbroken(names, disk).then_some(())?;
        self.store.within(disk, offset, length).ok()?;
        let grain = recipe.bytes.bytes();
        let (first, last) = (offset / grain, (offset + length).div_ceil(grain));
        let mut leaves = Vec::with_capacity((last - first) as usize);
        for page in first / PAGE_LEAVES..last.div_ceil(PAGE_LEAVES) {
            let from = page * PAGE_LEAVES;
            if settled.is_none() && !learnt.is_some_and(|learnt| learnt.has(disk, page)) {
                return None;
            }
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
        let mut state = self.write();
        (state.held, state.learnt) = (None, None);
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

    pub(crate) fn page(&self, disk: usize, page: u64) -> Result<Option<Page>, ReplicaError> {
        let name = file(disk);
        let mut bytes = vec![0; PAGE];
        match self.store.journal.read_at(&name, page * PAGE as u64, &mut bytes) {
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(failed(&self.store, "reading", &name, error)),
            Ok(()) => Ok(decode(self.seed(disk, page), &bytes)),
        }
    }

    /// What a page's checksum begins with.
    pub(crate) fn seed(&self, disk: usize, page: u64) -> u64 {
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

/// Forgets what an earlier replica at the place may have left.
pub(crate) fn forget(retention: &dyn Volume) -> Result<(), ReplicaError> {
    match retention.remove(RECORD) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ReplicaError::io(format!("removing {}", retention.describe(RECORD)), error))
        }
        _ => Ok(()),
    }
}

pub(crate) fn file(disk: usize) -> String {
    format!("{PREFIX}-{disk}.hashes")
}

pub(crate) fn failed(store: &Store, doing: &str, name: &str, error: io::Error) -> ReplicaError {
    ReplicaError::io(format!("{doing} {}", store.journal.describe(name)), error)
}

pub(crate) fn encode(seed: u64, leaves: &[Leaf]) -> Vec<u8> {
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
