//! Capture of a simulated machine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use nbd::{Address, Uri};
use protocol::extent::BLOCK;
use protocol::machine::Power;
use protocol::position::union;
use protocol::{Attempt, Changes, Fault, Lineage, Quiesce};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::export::Past;
use super::machine::{Guest, Map, Mark, OpenCut};
use super::{World, refused};
use crate::{Capture, Cut, CutDisk, Held};

/// How long a predecessor is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A simulated machine opened for capture.
pub(super) struct SimulatedCapture {
    world: Arc<World>,
    name: String,
    lineage: Lineage,
    first: Option<Attempt>,
    _place: OwnedMutexGuard<()>,
}

impl SimulatedCapture {
    pub async fn open(
        world: Arc<World>,
        name: &str,
        lineage: Lineage,
        place: Arc<Mutex<()>>,
    ) -> Result<SimulatedCapture, Fault> {
        let place = tokio::time::timeout(LOCK_PATIENCE, place.lock_owned()).await;
        let place = place.map_err(|_| refused(name, "is busy", "somebody else captures it"))?;
        let mut capture = SimulatedCapture { world, name: name.to_string(), lineage, first: None, _place: place };
        capture.with(|guest| {
            guest.frozen = false;
            Ok(())
        })?;
        capture.release().await?;
        Ok(capture)
    }

    /// Does something to the machine, which is on.
    fn with<T>(&self, act: impl FnOnce(&mut Guest) -> Result<T, Fault>) -> Result<T, Fault> {
        let mut site = self.world.site();
        let guest = site.guest(&self.name)?;
        if guest.power == Power::Off {
            return Err(refused(&self.name, "cannot be captured", "it is off"));
        }
        act(guest)
    }

    /// A cut of all disks at one instant.
    fn cut_now(&mut self, attempt: Attempt) -> Result<Cut, Fault> {
        let lineage = self.lineage;
        let held = self.with(|guest| {
            let held = guest.held(lineage);
            if guest.cut.is_some() || held.len() > 1 {
                return Err(refused(&self.name, "cannot be cut", "an earlier cut is neither acknowledged nor failed"));
            }
            if held.first().is_some_and(|held| held.since >= attempt) {
                return Err(refused(&self.name, "cannot be cut", "its map counts from an attempt that is not earlier"));
            }
            if std::mem::take(&mut guest.fail_next_cut) {
                return Err(refused(&self.name, "cannot be cut", "this was asked for"));
            }
            Ok(held)
        })?;
        let since = held.first().map(|held| held.since);
        let mut site = self.world.site();
        let spec = site.guest(&self.name)?.spec.clone();
        let mut contents = Vec::new();
        for disk in &spec.disks {
            contents.push(site.content(&self.name, &disk.key)?);
        }
        let broken = Arc::new(AtomicBool::new(false));
        let mut disks = Vec::new();
        for (disk, bytes) in spec.disks.iter().zip(contents) {
            let export = format!("{}-{attempt}-{}", self.name, disk.key);
            let Address::Unix(socket) = self.world.server.local_address() else {
                return Err(refused(&self.name, "cannot be cut", "its exports have no socket"));
            };
            let size = bytes.len() as u64;
            self.world.server.add(&export, Arc::new(Past { bytes: Bytes::from(bytes), broken: broken.clone() }));
            disks.push(CutDisk {
                key: disk.key.clone(),
                size,
                export: Uri::unix(socket, export),
                beneath: None,
                read_limit: BLOCK,
            });
        }
        let guest = site.guest(&self.name)?;
        guest.cut = Some(OpenCut::new(disks.iter().map(|disk| disk.export.export.clone()).collect(), broken));
        let changes = match since {
            None => Changes::Unknown(guest.distrust(lineage)),
            Some(since) => {
                let carried = guest.carried(Mark { lineage, attempt: since });
                let map = guest.maps.entry((lineage, since)).or_default();
                map.recording = false;
                Changes::Known(union(&map.changes, &carried))
            }
        };
        guest.maps.insert((lineage, attempt), Map { recording: true, inconsistent: false, changes: BTreeMap::new() });
        self.first = since.is_none().then_some(attempt);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = at.as_millis().try_into().unwrap_or(u64::MAX);
        Ok(Cut { at_ms, paused: Duration::ZERO, since, changes, disks, freeze: None })
    }
}

#[async_trait]
impl Capture for SimulatedCapture {
    async fn held(&mut self) -> Result<Vec<Held>, Fault> {
        self.with(|guest| Ok(guest.held(self.lineage)))
    }

    async fn cut_as(&mut self, attempt: Attempt, quiesce: Option<Quiesce>) -> Result<Cut, Fault> {
        let freeze = match quiesce {
            Some(wish) => Some(self.with(|guest| Ok(guest.freeze(wish)))?),
            None => None,
        };
        let cut = self.cut_now(attempt);
        self.with(|guest| {
            guest.frozen = false;
            Ok(())
        })?;
        Ok(Cut { freeze, ..cut? })
    }

    async fn release(&mut self) -> Result<(), Fault> {
        let cut = self.with(|guest| Ok(guest.cut.take()))?;
        for export in cut.into_iter().flat_map(|cut| cut.exports) {
            self.world.server.withdraw(&export).await;
        }
        Ok(())
    }

    async fn acknowledged(&mut self, attempt: Attempt) -> Result<(), Fault> {
        self.release().await?;
        let lineage = self.lineage;
        self.with(|guest| {
            let held = guest.held(lineage);
            if !held.iter().any(|held| held.since == attempt) && held.iter().any(|held| held.since < attempt) {
                return Err(refused(&self.name, "cannot forget its changes", format!("no map counts from {attempt}")));
            }
            guest.maps.retain(|(of, since), _| *of != lineage || *since >= attempt);
            if guest.carry.as_ref().is_some_and(|(since, _)| since.lineage == lineage && since.attempt < attempt) {
                guest.carry = None;
            }
            Ok(())
        })?;
        self.first = None;
        Ok(())
    }

    async fn failed(&mut self) -> Result<(), Fault> {
        self.release().await?;
        let (lineage, first) = (self.lineage, self.first.take());
        self.with(|guest| {
            match guest.held(lineage).as_slice() {
                [.., old, new] => {
                    let newer = guest.maps.remove(&(lineage, new.since)).unwrap_or_default();
                    let older = guest.maps.entry((lineage, old.since)).or_default();
                    older.changes = union(&older.changes, &newer.changes);
                    older.recording = true;
                }
                [only] if Some(only.since) == first => {
                    guest.maps.remove(&(lineage, only.since));
                }
                _ => {}
            }
            Ok(())
        })
    }
}
