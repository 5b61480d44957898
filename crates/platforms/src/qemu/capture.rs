//! Cutting a machine that runs under QEMU (sequence A1 of the project's notes on QEMU).
//!
//! ```text
//!   cut       scratch per disk ─► (freeze) ─► ┌ stop ─► transaction[freeze e_n, begin e_n+1] ─► filter per disk ─► cont ┐ ─► exports
//!                                             └────────── one write to the monitor's FIFO ──────────────────┘ (thaw first)
//!   release   exports, readers of the past, filters, scratch
//!   acknowledged(n+1)   release; e_n goes           failed   release; e_n grows again and takes in e_n+1
//! ```
//! # Why nothing is written down before the guest is stopped
//! The whole critical section reaches QEMU in one write to a FIFO that QEMU itself holds open at both ends. The kernel
//! takes it in one piece (it is smaller than the empty FIFO, and a write that does not have to wait is not interrupted by a
//! signal), and QEMU runs all of it, `cont` at its end, whether this process is then running, stopped or dead; no step
//! depends on a reply to an earlier one, and a refused one does not keep the later ones from being run. So no death of ours
//! leaves a guest paused, and there is nothing that a successor would have to find out from a record. Over a socket this
//! would be wrong (see `qmp`).
//!
//! # Always true
//! - The guest never waits for us: only for QEMU, some milliseconds, between `stop` and `cont`.
//! - A cut that failed in any step is undone before the failure is told; the maps then are as before.
//! - What an epoch carries is in the disk's file before the guest goes on: `stop` flushes every disk. So an overlay whose QEMU
//!   is killed holds at least what its epochs carried, and its allocation stays a superset of what the target was told.
//! - One conversation at a time: [`CAPTURING`] is held as long as a [`QemuCapture`] lives.
//!
//! # If power fails
//! QEMU dies with the host; the maps in qcow2 images are then inconsistent, which `start` and `settle` say.

use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use nbd::{Address, Uri};
use protocol::fault::code;
use protocol::machine::{DiskSource, MachineSpec};
use protocol::position::Distrust;
use protocol::{Attempt, Changes, Fault, Freeze, Lineage, Quiesce};
use serde_json::{Value, json};

use super::bitmap::{self, Bitmaps};
use super::fleece::{self, Bounds};
use super::qmp::{Command, Qmp, QmpError};
use super::{agent, changes, launch, power, process};
use crate::host::folder::Folder;
use crate::host::marks::Carry;
use crate::host::{maps, rest};
use crate::{Capture, Cut, CutDisk, Held};

/// The lock of whoever captures a machine.
pub(crate) const CAPTURING: &str = "capture.lock";
/// How long a predecessor's lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a view may take to be reached before a cut.
const VIEW_PATIENCE: Duration = Duration::from_secs(2);
/// Longer reads through `snapshot-access` can return live data (measured on 7.2), so this is what a reader is allowed.
const READ_LIMIT: u64 = 64 * 1024;

/// A machine opened for capture.
pub(crate) struct QemuCapture {
    folder: Folder,
    spec: MachineSpec,
    lineage: Lineage,
    bounds: Bounds,
    qmp: Qmp,
    open: bool,
    // The newest cut, while it is neither acknowledged nor failed, if it was the first of all.
    first: Option<Attempt>,
    _lock: File,
}

impl QemuCapture {
    /// Opens a machine whose QEMU lives, and sweeps away what a predecessor left.
    pub async fn open(folder: Folder, lineage: Lineage, bounds: Bounds) -> Result<QemuCapture, Fault> {
        let spec = folder.known_spec()?;
        if process::running(&folder).is_none() {
            return Err(folder.fault("cannot be captured", "it is off"));
        }
        if spec.disks.iter().any(|disk| matches!(disk.source, DiskSource::OverlayOnOwn { .. })) {
            return Err(folder.fault("cannot be captured", "it is being folded; repeat that first"));
        }
        if rest::is_in_doubt(&folder)? {
            return Err(folder.fault("cannot be captured", "its start was never finished; start it again"));
        }
        let lock = folder.lock(CAPTURING, LOCK_PATIENCE).await?;
        let qmp = Qmp::over_fifos(&folder.file("capture.in"), &folder.file("capture.out")).await;
        let qmp = qmp.map_err(|why| folder.fault("cannot be captured", why))?;
        agent::goes_on(&folder).await?;
        let mut capture = QemuCapture { folder, spec, lineage, bounds, qmp, open: false, first: None, _lock: lock };
        capture.release().await?;
        Ok(capture)
    }

    fn nodes(&self) -> Vec<(String, bool)> {
        launch::nodes(&self.spec)
    }

    fn fault(&self, what: &str) -> impl Fn(QmpError) -> Fault + use<> {
        let (folder, what) = (self.folder.clone(), what.to_string());
        move |why| folder.fault(&what, why)
    }

    async fn bitmaps(&mut self) -> Result<Bitmaps, Fault> {
        let names: Vec<String> = self.nodes().into_iter().map(|(node, _)| node).collect();
        let found = Bitmaps::ask(&mut self.qmp, self.lineage, &names).await;
        found.map_err(self.fault("does not tell its change maps"))
    }

    /// Everything that can be done before the guest is stopped: the sizes of the disks, and opened scratch.
    async fn prepare(&mut self) -> Result<Vec<u64>, Fault> {
        self.reach_views().await?;
        let all = self.qmp.execute("query-named-block-nodes", json!({ "flat": true })).await;
        let all = all.map_err(self.fault("cannot be cut"))?;
        let mut sizes = Vec::new();
        let mut steps = Vec::new();
        for (place, (node, _)) in self.nodes().iter().enumerate() {
            let found = all.as_array().into_iter().flatten().find(|found| found["node-name"] == **node);
            let size = found.and_then(|found| found["image"]["virtual-size"].as_u64());
            let size = size.ok_or_else(|| self.folder.fault("cannot be cut", format!("it has no node {node}")))?;
            let (path, bound) = fleece::scratch(&self.folder, place, size, self.bounds).await?;
            steps.extend(fleece::open_scratch(place, &path, bound));
            sizes.push(size);
        }
        self.all(&steps, "cannot be given scratch for a cut").await?;
        Ok(sizes)
    }

    /// A stopped guest waits for its requests in flight. If they wait for a view that is not served, all of the guest would
    /// wait with them: then there is rather no cut.
    async fn reach_views(&self) -> Result<(), Fault> {
        for disk in &self.spec.disks {
            let DiskSource::OverlayOnView { view, .. } = &disk.source else { continue };
            let uri: Uri =
                view.parse().map_err(|why: nbd::Error| self.folder.fault("has a view that cannot be reached", why))?;
            let reached = tokio::time::timeout(VIEW_PATIENCE, async {
                match &uri.address {
                    Address::Unix(path) => tokio::net::UnixStream::connect(path).await.map(|_| ()),
                    Address::Tcp(address) => tokio::net::TcpStream::connect(address).await.map(|_| ()),
                }
            });
            let reached = reached.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
            reached.map_err(|why| {
                self.folder.fault("cannot be cut", format!("the view under disk {} is not served: {why}", disk.key))
            })?;
        }
        Ok(())
    }

    /// The critical section. When it was, and how long the guest stood still.
    async fn strike(&mut self, attempt: Attempt, since: Option<Attempt>) -> Result<(u64, Duration), Fault> {
        let cannot = self.fault("cannot be cut");
        // Nobody else may let the guest go on in the middle.
        let _cutting = self.folder.lock(power::CUTTING, power::CUT_LOCK_PATIENCE).await?;
        let status = self.qmp.execute("query-status", Value::Null).await.map_err(&cannot)?;
        let running = status["running"] == true;
        let steps = section(self.lineage, attempt, since, &self.nodes(), self.bounds, running);
        #[cfg(feature = "sabotage")]
        let steps = self.cut_apart(steps).await.map_err(&cannot)?;
        self.qmp.take_events();
        let now = SystemTime::now();
        let mut results = self.qmp.burst(&steps).await.map_err(&cannot)?;
        let goes_on = if running { results.pop() } else { None };
        if let Some(Err(why)) = goes_on {
            // Refused when the guest was switched off in this very moment; anything else must not leave it paused.
            let status = self.qmp.execute("query-status", Value::Null).await.map_err(&cannot)?;
            if status["status"] == "paused" {
                tracing::warn!(machine = self.folder.name(), %why, "the guest did not go on after a cut; trying again");
                self.qmp.execute("cont", Value::Null).await.map_err(&cannot)?;
            }
        }
        let events = self.qmp.take_events();
        let when = |name: &str| events.iter().find(|event| event.name == name).map(|event| event.at);
        let stopped = when("STOP");
        let paused = stopped.zip(when("RESUME")).and_then(|(from, to)| to.duration_since(from).ok());
        for result in results {
            result.map_err(&cannot)?;
        }
        let at = stopped.unwrap_or(now).duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok((at.as_millis().try_into().unwrap_or(u64::MAX), paused.unwrap_or_default()))
    }

    /// Sabotage: the first disk is cut and the guest goes on for a moment, before the steps that are left cut the others.
    #[cfg(feature = "sabotage")]
    async fn cut_apart(&mut self, mut steps: Vec<Command>) -> Result<Vec<Command>, QmpError> {
        // Stop, transaction, and three steps for the filter of the first disk.
        const FIRST: usize = 5;
        let stops = steps.first().is_some_and(|step| step.name == "stop") && steps.len() > FIRST + 1;
        if !stops || !protocol::sabotage::is("disks-cut-separately") {
            return Ok(steps);
        }
        let mut others = steps.split_off(FIRST);
        steps.push(Command::new("cont", Value::Null));
        self.qmp.burst(&steps).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        others.insert(0, Command::new("stop", Value::Null));
        Ok(others)
    }

    /// Publishes the past of every disk, with the map that the cut closed.
    async fn publish(
        &mut self,
        attempt: Attempt,
        since: Option<Attempt>,
        sizes: &[u64],
    ) -> Result<Vec<CutDisk>, Fault> {
        let cannot = self.fault("cannot serve a cut");
        changes::serve(&self.folder, &mut self.qmp).await.map_err(&cannot)?;
        let mut steps = Vec::new();
        let mut disks = Vec::new();
        for (place, (disk, size)) in self.spec.disks.iter().zip(sizes).enumerate() {
            // The name says which cut it is, so that a reader of an older one cannot get hold of a newer one.
            let name = format!("{attempt}-{}", disk.key);
            let maps = since
                .map(|since| json!({ "node": launch::node(place, disk), "name": maps::name(self.lineage, since) }));
            let export = json!({
                "type": "nbd", "id": fleece::export(place), "node-name": fleece::past(place), "name": name,
                "bitmaps": maps.into_iter().collect::<Vec<_>>(),
            });
            steps.push(Command::new("block-export-add", export));
            let export = Uri::unix(changes::socket(&self.folder), name);
            let beneath = match &disk.source {
                DiskSource::OverlayOnView { view, .. } => view.parse().ok(),
                DiskSource::Own { .. } | DiskSource::OverlayOnOwn { .. } => None,
            };
            disks.push(CutDisk { key: disk.key.clone(), size: *size, export, beneath, read_limit: READ_LIMIT });
        }
        self.all(&steps, "cannot serve a cut").await?;
        Ok(disks)
    }

    /// What the map since `since` holds, with what it has to carry.
    async fn changes(&self, since: Attempt, disks: &[CutDisk]) -> Result<Changes, Fault> {
        let mut maps = Carry::read(&self.folder, self.lineage, since)?;
        for disk in disks {
            let read = maps::read(&disk.export, &maps::name(self.lineage, since)).await;
            let (map, _) = read.map_err(|why| self.folder.fault("does not tell what changed", why))?;
            let carried = maps.remove(&disk.key).unwrap_or_default();
            maps.insert(disk.key.clone(), map.union(&carried));
        }
        Ok(Changes::Known(maps))
    }

    async fn all(&mut self, steps: &[Command], what: &str) -> Result<(), Fault> {
        let results = self.qmp.burst(steps).await.map_err(self.fault(what))?;
        results.into_iter().collect::<Result<Vec<_>, _>>().map_err(self.fault(what))?;
        Ok(())
    }

    async fn transact(&mut self, actions: Vec<Value>) -> Result<(), Fault> {
        bitmap::transact(&mut self.qmp, actions).await.map_err(self.fault("does not let its change maps be settled"))
    }

    /// The critical section, with the guest's file systems frozen around it where that is wanted and its agent does it.
    async fn strike_frozen(
        &mut self,
        attempt: Attempt,
        since: Option<Attempt>,
        quiesce: Option<Quiesce>,
    ) -> Result<(u64, Duration, Option<Freeze>), Fault> {
        let frozen = match quiesce {
            Some(wish) => Some(agent::freeze(&self.folder, &mut self.qmp, wish).await),
            None => None,
        };
        let struck = self.strike(attempt, since).await;
        // Whatever became of the cut.
        let freeze = match frozen {
            Some(Ok(frozen)) => Some(frozen.thaw().await),
            Some(Err(fault)) => Some(Freeze::failed(&fault)),
            None => None,
        };
        struck.map(|(at_ms, paused)| (at_ms, paused, freeze))
    }

    async fn try_cut(
        &mut self,
        attempt: Attempt,
        since: Option<Attempt>,
        lost: Distrust,
        quiesce: Option<Quiesce>,
    ) -> Result<Cut, Fault> {
        let sizes = self.prepare().await?;
        let (at_ms, paused, freeze) = self.strike_frozen(attempt, since, quiesce).await?;
        let disks = self.publish(attempt, since, &sizes).await?;
        let changes = match since {
            Some(since) => self.changes(since, &disks).await?,
            None => Changes::Unknown(lost),
        };
        Ok(Cut { at_ms, paused, since, changes, disks, freeze })
    }
}

/// The commands of the critical section, in order.
fn section(
    lineage: Lineage,
    attempt: Attempt,
    since: Option<Attempt>,
    nodes: &[(String, bool)],
    bounds: Bounds,
    running: bool,
) -> Vec<Command> {
    let mut actions = since.map(|since| bitmap::freeze(lineage, since, nodes)).unwrap_or_default();
    actions.extend(bitmap::begin(lineage, attempt, nodes));
    let mut steps: Vec<Command> = Vec::new();
    steps.extend(running.then(|| Command::new("stop", Value::Null)));
    steps.extend(bitmap::transaction(actions));
    steps.extend(nodes.iter().enumerate().flat_map(|(place, (node, _))| fleece::insert(place, node, bounds)));
    steps.extend(running.then(|| Command::new("cont", Value::Null)));
    steps
}

#[async_trait]
impl Capture for QemuCapture {
    async fn held(&mut self) -> Result<Vec<Held>, Fault> {
        Ok(self.bitmaps().await?.held())
    }

    async fn cut_as(&mut self, attempt: Attempt, quiesce: Option<Quiesce>) -> Result<Cut, Fault> {
        let found = self.bitmaps().await?;
        let held = found.held();
        if self.open || held.len() > 1 {
            return Err(self.folder.fault("cannot be cut", "an earlier cut is neither acknowledged nor failed"));
        }
        let since = held.first().map(|held| held.since);
        if since.is_some_and(|since| since >= attempt) {
            return Err(self
                .folder
                .fault("cannot be cut", format!("its map counts from an attempt that is not before {attempt}")));
        }
        self.first = since.is_none().then_some(attempt);
        self.open = true;
        let lost = rest::why_lost(&self.folder, found.inconsistent())?;
        let cut = self.try_cut(attempt, since, lost, quiesce).await;
        if cut.is_err() {
            // Whatever step failed: what there is of the cut goes, and its map with it.
            self.failed().await?;
        }
        cut
    }

    async fn release(&mut self) -> Result<(), Fault> {
        let nodes: Vec<String> = self.nodes().into_iter().map(|(node, _)| node).collect();
        let swept = fleece::sweep(&self.folder, &mut self.qmp, &nodes).await;
        swept.map_err(self.fault("does not let go of a cut"))?;
        self.open = false;
        for event in self.qmp.take_events().iter().filter(|event| event.name == "BLOCK_WRITE_THRESHOLD") {
            tracing::warn!(machine = self.folder.name(), code = code::SCRATCH_FULL.code, data = %event.data, "scratch ran short");
        }
        Ok(())
    }

    async fn acknowledged(&mut self, attempt: Attempt) -> Result<(), Fault> {
        self.release().await?;
        let found = self.bitmaps().await?;
        let held = found.held();
        if !held.iter().any(|held| held.since == attempt) && held.iter().any(|held| held.since < attempt) {
            return Err(self.folder.fault("cannot forget its changes", format!("no map counts from {attempt}")));
        }
        let names: Vec<String> = self.nodes().into_iter().map(|(node, _)| node).collect();
        self.transact(found.removals(self.lineage, &names, |since| since < attempt)).await?;
        Carry::forget_before(&self.folder, self.lineage, attempt)?;
        rest::forget(&self.folder)?;
        self.first = None;
        Ok(())
    }

    async fn failed(&mut self) -> Result<(), Fault> {
        self.release().await?;
        let found = self.bitmaps().await?;
        let held = found.held();
        let nodes = self.nodes();
        match held.as_slice() {
            [.., old, new] => self.transact(bitmap::merge_back(self.lineage, old.since, new.since, &nodes)).await?,
            [only] if Some(only.since) == self.first => {
                let names: Vec<String> = nodes.into_iter().map(|(node, _)| node).collect();
                self.transact(found.removals(self.lineage, &names, |since| since == only.since)).await?;
            }
            _ => {}
        }
        self.first = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_happens_while_the_guest_stands_still() {
        let nodes: Vec<(String, bool)> = (0..20).map(|place| (launch::overlay(place), place % 2 == 0)).collect();
        let at = |number| Attempt { generation: u64::MAX, number };
        let lineage = Lineage::fresh();
        let steps = section(lineage, at(u64::MAX), Some(at(u64::MAX - 1)), &nodes, Bounds::default(), true);
        let names: Vec<&str> = steps.iter().map(|step| step.name).collect();
        assert_eq!((names[0], names[1], names[names.len() - 1]), ("stop", "transaction", "cont"));
        assert_eq!(names.iter().filter(|name| **name == "qom-set").count(), 20);
        assert_eq!(steps[1].arguments["actions"].as_array().map(Vec::len), Some(40));
        assert_eq!(names.len(), 3 + 3 * 20);

        let still = section(lineage, at(1), None, &nodes, Bounds::default(), false);
        assert!(still.iter().all(|step| !["stop", "cont"].contains(&step.name)));
    }
}
