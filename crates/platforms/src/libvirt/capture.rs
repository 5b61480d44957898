//! Cutting a machine that runs under libvirt: a backup and a checkpoint, begun in one call.
//!
//! ```text
//!   cut n+1          backup since n, checkpoint n+1          QEMU begins both for all disks in one transaction
//!   release          the backup ends
//!   acknowledged     release; checkpoint n is deleted        failed   release; n+1 is deleted, and n takes in what it held
//! ```
//! # Always true
//! - The guest never waits for us. It is stopped for a cut only where it runs on overlays, for as long as libvirt takes to stop
//!   it and let it go on: QEMU then writes down all that it holds. So an overlay whose QEMU is killed holds at least what its
//!   epochs carried, and its allocation stays a superset of what the target was told.
//! - What is told as known is told by QEMU of this very run: one that somebody else started is not believed (see [`super::run`]).
//! - One capture at a time: [`CAPTURING`] is held as long as a [`LibvirtCapture`] lives, and as long as a command of a dead
//!   one is still being carried out.

use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use protocol::machine::{DiskSource, MachineSpec};
use protocol::position::Distrust;
use protocol::{Attempt, Changes, Fault, Lineage, Quiesce};

use super::backup::{self, Wish};
use super::domain::Target;
use super::{Site, agent, chain, life, run, same};
use crate::host::folder::Folder;
use crate::host::marks::Carry;
use crate::host::{maps, rest};
use crate::{Capture, Cut, CutDisk, Held};

/// The lock of whoever captures a machine.
pub(crate) const CAPTURING: &str = "capture.lock";
/// How long a predecessor's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(100);
/// Every server takes reads of this length, and libvirt's exports are exact for each.
const READ_LIMIT: u64 = 1 << 20;

/// A machine opened for capture.
pub(crate) struct LibvirtCapture {
    site: Site,
    folder: Folder,
    spec: MachineSpec,
    disks: Vec<(Target, u64)>,
    lineage: Lineage,
    open: bool,
    // The newest cut, while it is neither acknowledged nor failed, if it was the first of all.
    first: Option<Attempt>,
    // Why nothing was known of the changes when that was last looked at.
    lost: Distrust,
    lock: File,
}

impl LibvirtCapture {
    /// Opens a machine that libvirt runs, and sweeps away what a predecessor left.
    pub async fn open(site: Site, folder: Folder, lineage: Lineage) -> Result<LibvirtCapture, Fault> {
        if rest::is_in_doubt(&folder)? {
            return Err(folder.fault("cannot be captured", "its start was never finished; start it again"));
        }
        let lock = folder.lock(CAPTURING, LOCK_PATIENCE).await?;
        let (spec, targets) = site.known(&folder).await?;
        life::goes_on(&site, &folder, &lock).await?;
        agent::goes_on(&site, &folder)?;
        run::believed(&site, &folder, &lock).await?;
        let disks = targets.into_iter().zip(spec.disks.iter().map(|disk| disk.size)).collect();
        let lost = Distrust::MapAbsent;
        let mut capture = LibvirtCapture { site, folder, spec, disks, lineage, open: false, first: None, lost, lock };
        capture.release().await?;
        Ok(capture)
    }

    async fn maps(&mut self) -> Result<Vec<Held>, Fault> {
        let (held, broken) = chain::held(&self.site, &self.folder, self.lineage).await?;
        self.lost = rest::why_lost(&self.folder, broken)?;
        Ok(held)
    }

    async fn delete(&self, since: Attempt) -> Result<(), Fault> {
        chain::delete(&self.site, &self.folder, &self.lock, &maps::name(self.lineage, since)).await
    }

    async fn try_cut(
        &mut self,
        attempt: Attempt,
        since: Option<Attempt>,
        quiesce: Option<Quiesce>,
    ) -> Result<Cut, Fault> {
        same::disks(&self.site, &self.folder, &self.disks).await?;
        // Maps of this lineage that cannot be believed would stand in the way of new ones.
        if since.is_none() {
            let ours = chain::Chain::ask(&self.site, &self.folder, self.lineage).await?;
            for (_, name) in ours.ours() {
                chain::delete(&self.site, &self.folder, &self.lock, name).await?;
            }
        }
        let is_tracked = backup::is_tracked(&self.spec);
        let (from, begins) = (since.map(|since| maps::name(self.lineage, since)), maps::name(self.lineage, attempt));
        let name = attempt.to_string();
        let wish = Wish {
            disks: &self.disks,
            since: from.as_deref(),
            begins: is_tracked.then_some(&*begins),
            name: &name,
            writes: true,
            quiesce,
        };
        // The cut is made while this is carried out: before it is the cautious side.
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let freeze = wish.begin(&self.site, &self.folder, &self.lock).await?;
        let on_overlays = self.spec.disks.iter().any(|disk| disk.source.overlay().is_some());
        let paused = match on_overlays {
            true => life::flush(&self.site, &self.folder, &self.lock).await?,
            false => Duration::ZERO,
        };
        let changes = match since {
            None => Changes::Unknown(self.lost),
            Some(since) => {
                let mut known = Carry::read(&self.folder, self.lineage, since)?;
                for ((target, _), map) in self.disks.iter().zip(wish.changes(&self.folder).await?) {
                    let carried = known.remove(&target.key).unwrap_or_default();
                    known.insert(target.key.clone(), map.union(&carried));
                }
                Changes::Known(known)
            }
        };
        let disks = self.spec.disks.iter().zip(wish.exports(&self.folder)).map(|(disk, export)| CutDisk {
            key: disk.key.clone(),
            size: disk.size,
            export,
            beneath: match &disk.source {
                DiskSource::OverlayOnView { view, .. } => view.parse().ok(),
                DiskSource::Own { .. } | DiskSource::OverlayOnOwn { .. } => None,
            },
            read_limit: READ_LIMIT,
        });
        let disks = disks.collect();
        let at_ms = at.as_millis().try_into().unwrap_or(u64::MAX);
        Ok(Cut { at_ms, paused, since, changes, disks, freeze })
    }
}

#[async_trait]
impl Capture for LibvirtCapture {
    async fn held(&mut self) -> Result<Vec<Held>, Fault> {
        self.maps().await
    }

    async fn cut_as(&mut self, attempt: Attempt, quiesce: Option<Quiesce>) -> Result<Cut, Fault> {
        let held = self.maps().await?;
        if self.open || held.len() > 1 {
            return Err(self.folder.fault("cannot be cut", "an earlier cut is neither acknowledged nor failed"));
        }
        let since = held.first().map(|held| held.since);
        if since.is_some_and(|since| since >= attempt) {
            let why = format!("its map counts from an attempt that is not before {attempt}");
            return Err(self.folder.fault("cannot be cut", why));
        }
        self.first = since.is_none().then_some(attempt);
        self.open = true;
        let cut = self.try_cut(attempt, since, quiesce).await;
        if cut.is_err() {
            // Whatever step failed: what there is of the cut goes, and its map with it.
            self.failed().await?;
        }
        cut
    }

    async fn release(&mut self) -> Result<(), Fault> {
        backup::end(&self.site, &self.folder, &self.lock).await?;
        self.open = false;
        Ok(())
    }

    async fn acknowledged(&mut self, attempt: Attempt) -> Result<(), Fault> {
        self.release().await?;
        let held = self.maps().await?;
        if !held.iter().any(|held| held.since == attempt) && held.iter().any(|held| held.since < attempt) {
            return Err(self.folder.fault("cannot forget its changes", format!("no map counts from {attempt}")));
        }
        for old in held.iter().filter(|held| held.since < attempt) {
            self.delete(old.since).await?;
        }
        self.first = None;
        Carry::forget_before(&self.folder, self.lineage, attempt)?;
        rest::forget(&self.folder)
    }

    async fn failed(&mut self) -> Result<(), Fault> {
        self.release().await?;
        let held = self.maps().await?;
        match held[..] {
            // What it held goes to the one before it.
            [_, .., newest] => self.delete(newest.since).await?,
            [only] if self.first == Some(only.since) => self.delete(only.since).await?,
            _ => {}
        }
        self.first = None;
        Ok(())
    }
}
