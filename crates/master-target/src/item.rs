//! One item at this master target: its replica, its record, the epoch that is open, the session that feeds it.
//!
//! The open epoch belongs to the item, not to the session: a session may be cut off while a batch is being applied, and
//! the next one goes on where the epoch stands. Everything that touches a disk runs on a blocking thread and holds the
//! epoch's lock while it does, so that nothing sees it half way.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use component::clock::now_ms;
use protocol::epoch::{Basis, DiskSize, EpochHeader, EpochTotals, Point};
use protocol::fault::code;
use protocol::keeping::{ItemManifest, KeepingStatus};
use protocol::leaf::LeafSize;
use protocol::order::Grant;
use protocol::{Attempt, Changes, Fault, ItemId, Position, Retention};
use replica::{Ahead, Batch, Epoch, Leaves, Replica, ReplicaError, Write};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::hashing::Hashing;
use crate::record::{Record, Standing};
use crate::tending::Tending;

/// An item and everything that is open for it.
pub(crate) struct Item {
    pub(crate) replica: Arc<Replica>,
    file: PathBuf,
    record: Mutex<Record>,
    open: Mutex<Option<OpenEpoch>>,
    /// Reads for the open epoch while it is being applied to, when `open` is locked.
    ahead: Mutex<Option<Preparing>>,
    session: Mutex<Option<AbortHandle>>,
    tending: Tending,
    hashing: Arc<Hashing>,
    /// How many epochs were sealed in this process's life.
    sealed: watch::Sender<u64>,
    /// Orders for one item are carried out one after the other.
    pub(crate) gate: tokio::sync::Mutex<()>,
    /// The same for orders about what stands beside it.
    pub(crate) beside: tokio::sync::Mutex<()>,
}

struct OpenEpoch {
    epoch: Epoch,
    header: EpochHeader,
    taken: u64,
    totals: EpochTotals,
    /// What the journal took before it (bytes).
    journal_before: u64,
    /// What was worked on it so far: on preparing batches, and on applying them, which goes on side by side.
    preparing: Duration,
    applying: Duration,
}

/// What prepares batches of the open epoch.
#[derive(Clone)]
struct Preparing {
    attempt: Attempt,
    ahead: Ahead,
    /// The sender's order of disks, as indexes into the replica's.
    order: Arc<[u16]>,
    /// What the epoch builds on, if its way back was given up: the replica has no points meanwhile.
    base: Option<Attempt>,
}

/// A numbered write of an epoch with the checksum of its frame; disks are in the sender's order.
pub(crate) struct Numbered {
    pub(crate) sequence: u64,
    pub(crate) checksum: u64,
    pub(crate) data_bytes: u64,
    pub(crate) zero_bytes: u64,
    pub(crate) write: Write,
}

/// How an epoch was opened: as [`protocol::session::Message::EpochOpened`] says.
pub(crate) struct Opened {
    pub(crate) known: bool,
    pub(crate) resumed: bool,
    pub(crate) resume_after: u64,
}

/// A batch that can be applied.
pub(crate) struct Ready {
    attempt: Attempt,
    /// Sequence, bytes of data, bytes of zeroes, checksum of each write's frame.
    frames: Vec<(u64, u64, u64, u64)>,
    batch: Batch,
    prepared_in: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Item {
    /// `journal`: its directory on the retention volume.
    pub(crate) fn new(replica: Replica, record: Record, file: PathBuf, journal: PathBuf) -> Item {
        let tending = Tending::new(journal);
        tending.keep(record.needed());
        let hashing = Arc::<Hashing>::default();
        hashing.want(record.leaf_bytes);
        Item {
            replica: Arc::new(replica),
            file,
            record: Mutex::new(record),
            open: Mutex::default(),
            ahead: Mutex::default(),
            session: Mutex::default(),
            tending,
            hashing,
            sealed: watch::Sender::default(),
            gate: tokio::sync::Mutex::default(),
            beside: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Changes the record durably.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), Fault> {
        let mut record = lock(&self.record);
        let mut changed = record.clone();
        change(&mut changed);
        changed.save(&self.file).map_err(|error| {
            let message = format!("the record of {} could not be written", record.item);
            Fault::new(code::REPLICA_IO, message, error.to_string())
        })?;
        self.tending.keep(changed.needed());
        *record = changed;
        Ok(())
    }

    pub(crate) fn id(&self) -> ItemId {
        lock(&self.record).item.clone()
    }

    pub(crate) fn fault(&self, error: &ReplicaError) -> Fault {
        error.fault(&self.id())
    }

    pub(crate) fn file(&self) -> &PathBuf {
        &self.file
    }

    /// The point that was asked for, the newest if none was.
    pub(crate) fn chosen(&self, wanted: Option<Attempt>) -> Result<Point, Fault> {
        if self.is_damaged() {
            return Err(self.damaged("what was to be copied over them did not all arrive"));
        }
        let wanted = wanted.or(self.replica.newest().map(|point| point.attempt));
        wanted.and_then(|wanted| self.replica.point(wanted)).ok_or_else(|| {
            let what = wanted.map_or("a point".into(), |point| format!("point {point}"));
            let message = format!("{} cannot be had from {what}", self.id());
            Fault::new(code::POINT_GONE, message, "the replica does not keep that point")
        })
    }

    /// Whether nothing may be started from the copy (H14).
    pub(crate) fn is_damaged(&self) -> bool {
        self.replica.is_half_written() || self.record().damaged
    }

    /// Whether what the copy was when it was taken over cannot be had any more.
    pub(crate) fn has_lost_its_way_back(&self) -> bool {
        let kept = self.record().kept;
        self.is_damaged() || kept.is_some_and(|kept| self.replica.point(kept.at).is_none())
    }

    /// The refusal to use disks that are damaged.
    pub(crate) fn damaged(&self, cause: &str) -> Fault {
        Fault::new(code::DAMAGED, format!("the disks of {} are damaged", self.id()), cause)
    }

    /// What the next epoch builds on, or the open one did, as senders see it.
    pub(crate) fn newest(&self) -> Option<Attempt> {
        let base = lock(&self.ahead).as_ref().and_then(|open| open.base);
        base.or_else(|| self.replica.newest().map(|point| point.attempt))
    }

    /// Where the copy stands; none while it has no point.
    pub(crate) fn position(&self) -> Option<Position> {
        let newest = self.newest()?;
        let record = self.record();
        match record.standing {
            Some(Standing { at, position }) if at == newest => Some(position),
            _ => Some(Position { lineage: record.lineage, base: newest, authored: None, changes: Changes::none() }),
        }
    }

    pub(crate) fn disks(&self) -> Vec<DiskSize> {
        let disks = self.replica.disks().iter();
        disks.map(|disk| DiskSize { disk: disk.key.clone(), size: disk.size }).collect()
    }

    /// Checks who wants to send, and takes the place of an older session.
    pub(crate) fn admit(&self, token: &str, generation: u64, session: AbortHandle) -> Result<(), Fault> {
        let record = self.record();
        let message = format!("{} takes no epochs from this sender", record.item);
        let grant = record.grant.ok_or_else(|| Fault::new(code::REPLICA_CLOSED, &*message, "its replica is closed"))?;
        #[cfg(feature = "sabotage")]
        let generation =
            if protocol::sabotage::is("stale-generation-admitted") { grant.generation } else { generation };
        if generation < grant.generation {
            let cause = format!("it was sent as generation {generation}; {} is authorised", grant.generation);
            return Err(Fault::new(code::STALE_GENERATION, message, cause));
        }
        if !authorised(&grant, token, generation) {
            return Err(Fault::new(code::NOT_AUTHORISED, message, "its secret is not the one that control gave out"));
        }
        if let Some(older) = lock(&self.session).replace(session) {
            older.abort();
        }
        Ok(())
    }

    /// Opens an epoch, or goes on with it if it is the one that is open, or with what an earlier attempt had written.
    pub(crate) fn open_epoch(&self, header: &EpochHeader) -> Result<Opened, Fault> {
        let mut open = lock(&self.open);
        if let Some(same) = open.as_ref().filter(|open| open.header == *header) {
            return Ok(Opened { known: true, resumed: same.epoch.is_resumed(), resume_after: same.taken });
        }
        // Dropped, not rolled back: it is resumed, or rolled back by the one that begins.
        open.take();
        lock(&self.ahead).take();
        // The first epoch of a grant overwrites what was taken over: without a way back, if that was given up.
        let newest = self.replica.newest().map(|point| point.attempt);
        let first = newest.is_some_and(|newest| newest.generation != header.attempt.generation);
        let (begun, base) = match first && self.record().no_way_back {
            true => {
                // The kept hashes hold a point, and no point can be held.
                self.leaves().map_err(|error| self.fault(&error))?.let_go();
                (self.replica.begin_without_way_back(header), newest)
            }
            false => (self.replica.resume(header), None),
        };
        let epoch = begun.map_err(|error| self.not_taken(&error, header))?;
        let disks = self.replica.disks();
        let order = header.disks.iter().filter_map(|disk| disks.iter().position(|here| here.key == disk.disk));
        let order = order.map(|index| index as u16).collect();
        *lock(&self.ahead) = Some(Preparing { attempt: header.attempt, ahead: epoch.ahead(), order, base });
        let (journal_before, header, resumed) = (self.replica.journal_bytes(), header.clone(), epoch.is_resumed());
        let (totals, preparing, applying) = (EpochTotals::default(), Duration::ZERO, Duration::ZERO);
        *open = Some(OpenEpoch { epoch, header, taken: 0, totals, journal_before, preparing, applying });
        Ok(Opened { known: false, resumed, resume_after: 0 })
    }

    /// Reads what a batch of the open epoch will replace, while the one before may still be applied.
    pub(crate) fn prepare(&self, numbered: Vec<Numbered>) -> Result<Ready, Fault> {
        let begun = Instant::now();
        let Preparing { attempt, ahead, order, .. } = lock(&self.ahead).clone().ok_or_else(no_epoch)?;
        let mut frames = Vec::with_capacity(numbered.len());
        let mut writes = Vec::with_capacity(numbered.len());
        for one in numbered {
            let disk = order.get(usize::from(one.write.disk)).copied();
            let disk = disk.ok_or_else(|| protocol_fault("a frame names a disk that the epoch does not have"))?;
            frames.push((one.sequence, one.data_bytes, one.zero_bytes, one.checksum));
            writes.push(Write { disk, ..one.write });
        }
        let batch = ahead.prepare(writes).map_err(|error| self.fault(&error))?;
        Ok(Ready { attempt, frames, batch, prepared_in: begun.elapsed() })
    }

    /// Applies a batch of the open epoch. Gives the number up to which frames were taken.
    pub(crate) fn apply(&self, ready: Ready) -> Result<u64, Fault> {
        let mut guard = lock(&self.open);
        // A session that was cut off may leave a batch behind, when another epoch is open already.
        let open = guard.as_mut().filter(|open| open.header.attempt == ready.attempt).ok_or_else(no_epoch)?;
        // What an older session of the same epoch brought already is not taken twice.
        let known = ready.frames.iter().take_while(|(sequence, ..)| *sequence <= open.taken).count();
        // Looked at before any is counted: what was counted as taken must be there when the epoch is gone on with.
        if !(open.taken + 1..).zip(&ready.frames[known..]).all(|(next, (sequence, ..))| next == *sequence) {
            return Err(protocol_fault("a frame of the epoch is missing"));
        }
        for (sequence, data_bytes, zero_bytes, checksum) in &ready.frames[known..] {
            open.taken = *sequence;
            open.totals.count(*data_bytes, *zero_bytes, *checksum);
        }
        let (taken, begun) = (open.taken, Instant::now());
        let applied = match known {
            0 => open.epoch.apply_prepared(ready.batch),
            _ => open.epoch.apply(&ready.batch.into_writes()[known..]),
        };
        open.preparing += ready.prepared_in;
        open.applying += begun.elapsed();
        if let Err(error) = applied {
            // What was counted as taken is not there: the epoch cannot be continued by anybody.
            lock(&self.ahead).take();
            let Some(open) = guard.take() else { return Err(self.fault(&error)) };
            if let Err(error) = open.epoch.roll_back() {
                tracing::error!(%error, "an epoch that failed could not be rolled back; the next start does it");
            }
            return Err(self.not_taken(&error, &open.header));
        }
        Ok(taken)
    }

    /// Makes the open epoch a point, if all of it arrived. Gives the point, and how long was worked on the epoch.
    pub(crate) fn seal(&self, attempt: Attempt, totals: EpochTotals) -> Result<(Point, Duration), Fault> {
        let begun = Instant::now();
        let mut guard = lock(&self.open);
        let Some(open) = guard.take_if(|open| open.header.attempt == attempt) else {
            return Err(protocol_fault("the epoch to be sealed is not open"));
        };
        lock(&self.ahead).take();
        let worked = open.preparing.max(open.applying);
        #[cfg(feature = "sabotage")]
        let totals = if protocol::sabotage::is("totals-unchecked") { open.totals } else { totals };
        if open.totals != totals {
            let cause = format!("sent: {totals:?}; arrived: {:?}", open.totals);
            open.epoch.roll_back().map_err(|error| self.fault(&error))?;
            return Err(Fault::new(code::TOTALS, format!("epoch {attempt} of {} is incomplete", self.id()), cause));
        }
        let point = open.epoch.seal(now_ms()).map_err(|error| {
            let fault = self.not_taken(&error, &open.header);
            // The sender would leave out the same again.
            if matches!(error, ReplicaError::Unproven)
                && let Err(error) = self.replica.undo_unfinished()
            {
                tracing::error!(%error, "an epoch that lacks something could not be rolled back");
            }
            fault
        })?;
        // Only now: what is gathered for the journal is written with the seal at the latest.
        self.tending.taken(self.replica.journal_bytes().saturating_sub(open.journal_before));
        self.sealed.send_modify(|count| *count += 1);
        if self.record().damaged {
            self.change(|record| record.damaged = false)?;
        }
        Ok((point, worked + begun.elapsed()))
    }

    /// Why an epoch was not taken. Where it did not fit, history makes room for it.
    fn not_taken(&self, error: &ReplicaError, header: &EpochHeader) -> Fault {
        let fault = self.fault(error);
        if fault.is(code::NO_SPACE) {
            self.tending.starved(header.expected_bytes, fault.clone());
            self.tend();
        }
        fault
    }

    /// What the open epoch is to bring was found, if it goes on with what an earlier attempt had written.
    pub(crate) fn resumed(&self) -> Option<Basis> {
        lock(&self.open).as_ref().filter(|open| open.epoch.is_resumed()).map(|open| open.header.basis)
    }

    /// Reads a block that the open epoch, or the one that it goes on with, has written; false where neither has.
    pub(crate) fn look(&self, disk: usize, offset: u64, block: &mut [u8]) -> Result<bool, Fault> {
        let looked = lock(&self.open).as_mut().map(|open| open.epoch.look(disk, offset, block));
        looked.ok_or_else(no_epoch)?.map_err(|error| {
            // The next attempt would meet the same: it begins from the newest point.
            if let Err(error) = self.undo_open() {
                tracing::error!(%error, "an epoch that cannot be resumed could not be rolled back either");
            }
            self.fault(&error)
        })
    }

    /// Rolls back the epoch that is open, or was left unfinished.
    fn undo_open(&self) -> Result<(), Fault> {
        let mut open = lock(&self.open);
        lock(&self.ahead).take();
        let undone = match open.take() {
            Some(open) => open.epoch.roll_back(),
            None if self.replica.unfinished().is_some() => self.replica.undo_unfinished(),
            None => Ok(()),
        };
        undone.map_err(|error| self.fault(&error))
    }

    /// Ends the session that feeds the item, if one does, and rolls an unfinished epoch back. The grant stays.
    pub(crate) fn rest(&self) -> Result<(), Fault> {
        if let Some(session) = lock(&self.session).take() {
            session.abort();
        }
        self.undo_open()
    }

    /// Takes no more epochs: the grant goes, the session ends, an open epoch is rolled back.
    pub(crate) fn close(&self) -> Result<(), Fault> {
        self.change(|record| record.grant = None)?;
        self.rest()
    }

    /// The kept hashes of the replica. Blocks.
    pub(crate) fn leaves(&self) -> Result<Arc<Leaves>, ReplicaError> {
        self.hashing.leaves(&self.replica)
    }

    /// Lets go of points that are not kept any more and hashes what is new, aside: nobody waits for it. To be called inside
    /// the runtime.
    pub(crate) fn tend(&self) {
        let record = self.record();
        self.hashing.begin(record.item.clone(), &self.replica);
        let hashing = self.hashing.clone();
        self.tending.begin(record.item, &self.replica, record.retention, move || hashing.let_go());
    }

    /// Goes by these from now on.
    pub(crate) fn keep_by(&self, retention: &Retention, leaf_bytes: LeafSize) -> Result<(), Fault> {
        let record = self.record();
        if (&record.retention, record.leaf_bytes) != (retention, leaf_bytes) {
            self.change(|record| (record.retention, record.leaf_bytes) = (retention.clone(), leaf_bytes))?;
            self.hashing.want(leaf_bytes);
            self.tend();
        }
        Ok(())
    }

    /// Writes down what control knows of the item.
    pub(crate) fn remember(&self, manifest: &ItemManifest) -> Result<(), Fault> {
        match self.record().manifest.as_ref() == Some(manifest) {
            true => Ok(()),
            false => self.change(|record| record.manifest = Some(manifest.clone())),
        }
    }

    /// How the history stands. Blocks.
    pub(crate) fn keeping(&self) -> KeepingStatus {
        self.replica.watch();
        self.tending.status(self.id(), &self.replica)
    }

    /// Waits until a point is sealed that was cut after this call began, and gives it.
    ///
    /// The epoch that is on its way may have been cut before; the one after it is cut only when this one was acknowledged.
    pub(crate) async fn next_point(&self) -> Option<Point> {
        let mut sealed = self.sealed.subscribe();
        let before = *sealed.borrow_and_update();
        // The sender lives as long as `self`.
        sealed.wait_for(|count| *count >= before + 2).await.ok()?;
        self.replica.newest()
    }

    /// Waits until nothing is left of what [`Item::tend`] began.
    #[cfg(test)]
    pub(crate) async fn tended(&self) {
        self.tending.done().await;
    }

    /// Ends what [`Item::tend`] began, and waits for it.
    pub(crate) async fn end_tending(&self) {
        self.hashing.end().await;
        self.tending.end().await;
    }
}

fn authorised(grant: &Grant, token: &str, generation: u64) -> bool {
    #[cfg(feature = "sabotage")]
    let token = if protocol::sabotage::is("token-unchecked") { grant.token.as_str() } else { token };
    generation == grant.generation && is_secret(token, &grant.token)
}

/// Whether that is the secret. Compared as hashes, so that the time it takes tells nothing about it.
pub(crate) fn is_secret(token: &str, secret: &str) -> bool {
    blake3::hash(token.as_bytes()) == blake3::hash(secret.as_bytes())
}

fn no_epoch() -> Fault {
    protocol_fault("data came before an epoch was opened")
}

pub(crate) fn protocol_fault(why: &str) -> Fault {
    Fault::new(code::PROTOCOL, "the sender broke the session", why)
}

#[cfg(test)]
mod tests;
