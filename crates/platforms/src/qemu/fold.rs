//! Folding: the overlays of a running machine go into the disks beneath them, and the machine runs on those.
//!
//! ```text
//!   over-n ─► view-n                                      description: overlay on view
//!   over-n ─► share-n  (the disk, its locks ignored)      stand_on: the view's server may close the disk now
//!                                                         description: overlay on own
//!   over-n ─► disk-n   commit jobs run, the guest writes on, until all are ready
//!   ┌ stop ─► complete all jobs: both are equal now, the guest is on disk-n ─► maps copied ─► description: own ─► cont ┐
//!   disk-n             the overlays are deleted
//! ```
//! # Always true
//! - The description is the truth about what to start from. While it says *overlay*, what is in the overlay is all that is
//!   newer than the disk, and it stays there: a commit copies. When it says *own*, no guest has run since both were equal.
//! - The maps on the disk hold what those on the overlay held, since the same cuts.
//!
//! # If power fails
//! QEMU is gone: the description tells what it is started from. If only we die between `stop` and `cont`, the guest stands
//! still until the fold is repeated or the machine resumed, both of which write the description first.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::fault::code;
use protocol::machine::{DiskFormat, DiskSource, DiskSpec, MachineSpec, Power};
use protocol::{DiskKey, Fault, Lineage};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bitmap::{self, Bitmaps};
use super::capture::CAPTURING;
use super::qmp::{Qmp, QmpError};
use super::{fleece, launch, power};
use crate::host::folder::{self, Folder};
use crate::host::{maps, overlays};

/// How long whoever captures the machine may take to let it go.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the commit jobs are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long the jobs may take to complete once the guest stands still.
const COMPLETE_PATIENCE: Duration = Duration::from_secs(30);
/// The note of a fold that is under way.
const NOTE: &str = "fold.json";

/// What has to be done after the pivot, whoever does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The guest, which stands still for it, is to go on.
    goes_on: bool,
    /// Overlays that are not needed any more then.
    overlays: Vec<String>,
}

/// One disk that is being folded.
struct Folding {
    place: usize,
    key: DiskKey,
    overlay: String,
    path: String,
    format: DiskFormat,
}

impl Folding {
    fn job(&self) -> String {
        format!("fold-{}", self.place)
    }
}

/// The disks that stand on a disk of the platform's own.
fn folding(spec: &MachineSpec) -> Vec<Folding> {
    let of = |(place, disk): (usize, &DiskSpec)| match &disk.source {
        DiskSource::OverlayOnOwn { overlay, path, format } => {
            let (overlay, path) = (overlay.clone(), path.clone());
            Some(Folding { place, key: disk.key.clone(), overlay, path, format: *format })
        }
        _ => None,
    };
    spec.disks.iter().enumerate().filter_map(of).collect()
}

/// Lets overlays stand on disks of the platform's own. The caller holds the machine's lock.
pub(crate) async fn stand_on(folder: &Folder, onto: &[DiskSpec]) -> Result<(), Fault> {
    let mut spec = folder.known_spec()?;
    overlays::onto(folder, &mut spec, onto)?;
    let all = folding(&spec);
    if power::power(folder).await? != Power::Off {
        let _lock = not_captured(folder).await?;
        let mut qmp = power::converse(folder).await?;
        let done = reopen(folder, &spec, &all, &mut qmp).await;
        done.map_err(|why| folder.fault("cannot stand on its own disks", why))?;
    }
    folder.write("machine.json", &spec)
}

/// Reopens every overlay that QEMU has on a view over its own disk.
async fn reopen(folder: &Folder, spec: &MachineSpec, all: &[Folding], qmp: &mut Qmp) -> Result<(), QmpError> {
    let names = launch::nodes(spec).into_iter().map(|(node, _)| node).collect::<Vec<_>>();
    fleece::sweep(folder, qmp, &names).await?;
    let nodes = nodes(qmp).await?;
    for disk in all.iter().filter(|disk| nodes.contains(&launch::view(disk.place))) {
        if !nodes.contains(&launch::share(disk.place)) {
            let share = launch::shared_block(folder, disk.place, &disk.path, disk.format);
            qmp.execute("blockdev-add", share).await?;
        }
        let over = launch::rebased(folder, disk.place, &disk.overlay, &launch::share(disk.place));
        qmp.execute("blockdev-reopen", json!({ "options": [over] })).await?;
        qmp.execute("blockdev-del", json!({ "node-name": launch::view(disk.place) })).await?;
    }
    Ok(())
}

/// Folds. The caller holds the machine's lock.
pub(crate) async fn fold(folder: &Folder, lineage: Lineage) -> Result<(), Fault> {
    let spec = folder.known_spec()?;
    if let Some(disk) = spec.disks.iter().find(|disk| matches!(disk.source, DiskSource::OverlayOnView { .. })) {
        return Err(folder.fault("cannot be folded", format!("{} still stands on a view", disk.key)));
    }
    let all = folding(&spec);
    let now = power::power(folder).await?;
    if !all.is_empty() && !matches!(now, Power::Running | Power::Paused) {
        return Err(folder.fault("cannot be folded", format!("it is {now:?}; it has to run for that").to_lowercase()));
    }
    if now != Power::Off {
        let _lock = not_captured(folder).await?;
        let mut qmp = power::converse(folder).await?;
        if !all.is_empty() {
            commit(folder, &spec, &all, &mut qmp).await?;
            let pivoted = pivot(folder, &spec, &all, lineage, &mut qmp).await;
            describe(folder, spec.clone(), &mut qmp).await?;
            if folder.read::<Note>(NOTE)?.is_some_and(|note| note.goes_on) {
                power::go(folder, &mut qmp).await?;
            }
            pivoted?;
        }
        let left = nodes(&mut qmp).await.map_err(|why| folder.fault("cannot be asked", why))?;
        for place in 0..spec.disks.len() {
            if left.contains(&launch::overlay(place)) {
                let node = json!({ "node-name": launch::overlay(place) });
                let gone = qmp.execute("blockdev-del", node).await;
                gone.map_err(|why| folder.fault("cannot be rid of an overlay", why))?;
            }
        }
    }
    if let Some(note) = folder.read::<Note>(NOTE)? {
        for overlay in note.overlays {
            let gone = folder::remove_file(&folder.overlay_path(&overlay));
            gone.map_err(|why| folder.fault("cannot be rid of an overlay", why))?;
        }
        folder.remove("marks.json")?;
        folder.remove(NOTE)?;
    }
    Ok(())
}

/// Takes the lock of whoever captures the machine.
async fn not_captured(folder: &Folder) -> Result<std::fs::File, Fault> {
    folder
        .lock(CAPTURING, CAPTURE_PATIENCE)
        .await
        .map_err(|busy| Fault::new(code::CAPTURED, format!("machine {} cannot be folded", folder.name()), busy.cause))
}

async fn nodes(qmp: &mut Qmp) -> Result<BTreeSet<String>, QmpError> {
    let all = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
    let names = all.as_array().into_iter().flatten().filter_map(|node| node["node-name"].as_str().map(String::from));
    Ok(names.collect())
}

/// The node that the guest's device at this place is connected with.
async fn drive(qmp: &mut Qmp, place: usize) -> Result<String, QmpError> {
    let path = format!("/machine/peripheral/{}", launch::device(place));
    let drive = qmp.execute("qom-get", json!({ "path": path, "property": "drive" })).await?;
    Ok(drive.as_str().unwrap_or_default().to_string())
}

/// Runs the commit jobs until all are ready; the guest writes on.
async fn commit(folder: &Folder, spec: &MachineSpec, all: &[Folding], qmp: &mut Qmp) -> Result<(), Fault> {
    let cannot = |why: QmpError| match why.to_string() {
        why if why.contains("lock") => {
            Fault::new(code::DISK_IN_USE, format!("machine {} cannot have its own disks", folder.name()), why)
        }
        why => folder.fault("cannot be folded", why),
    };
    let names = launch::nodes(spec).into_iter().map(|(node, _)| node).collect::<Vec<_>>();
    let mut waiting = Vec::new();
    for disk in all {
        if drive(qmp, disk.place).await.map_err(cannot)? != launch::own(disk.place) {
            waiting.push(disk);
        }
    }
    if waiting.len() == all.len() {
        fleece::sweep(folder, qmp, &names).await.map_err(cannot)?;
    }
    for disk in &waiting {
        let there = nodes(qmp).await.map_err(cannot)?;
        if there.contains(&launch::share(disk.place)) {
            if !there.contains(&launch::own(disk.place)) {
                let mut own = launch::own_block(folder, &launch::own(disk.place), &disk.path, disk.format);
                own["read-only"] = true.into(); // until the commit writes
                qmp.execute("blockdev-add", own).await.map_err(cannot)?;
            }
            let over = launch::rebased(folder, disk.place, &disk.overlay, &launch::own(disk.place));
            qmp.execute("blockdev-reopen", json!({ "options": [over] })).await.map_err(cannot)?;
            qmp.execute("blockdev-del", json!({ "node-name": launch::share(disk.place) })).await.map_err(cannot)?;
        }
        if !jobs(qmp).await.map_err(cannot)?.iter().any(|(job, _)| *job == disk.job()) {
            let job = json!({ "device": launch::overlay(disk.place), "job-id": disk.job() });
            qmp.execute("block-commit", job).await.map_err(cannot)?;
        }
    }
    loop {
        let jobs = jobs(qmp).await.map_err(cannot)?;
        let of = |disk: &&Folding| jobs.iter().find(|(job, _)| *job == disk.job());
        if let Some(gone) = waiting.iter().find(|disk| of(disk).is_none()) {
            return Err(folder.fault("cannot be folded", format!("the job that writes {} ended", gone.key)));
        }
        if waiting.iter().all(|disk| of(disk).is_some_and(|(_, ready)| *ready)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The jobs that there are, and whether each is ready.
async fn jobs(qmp: &mut Qmp) -> Result<Vec<(String, bool)>, QmpError> {
    let all = qmp.execute("query-block-jobs", Value::Null).await?;
    let of = |job: &Value| Some((job["device"].as_str()?.to_string(), job["ready"] == true));
    Ok(all.as_array().into_iter().flatten().filter_map(of).collect())
}

/// The short moment in which the guest stands still: both are made equal, the guest is put on the disk, maps are copied.
async fn pivot(
    folder: &Folder,
    spec: &MachineSpec,
    all: &[Folding],
    lineage: Lineage,
    qmp: &mut Qmp,
) -> Result<(), Fault> {
    let cannot = |why: QmpError| folder.fault("cannot be folded", why);
    if folder.read::<Note>(NOTE)?.is_none() {
        let goes_on = power::power(folder).await? == Power::Running;
        let overlays = all.iter().map(|disk| disk.overlay.clone()).collect();
        folder.write(NOTE, &Note { goes_on, overlays })?;
    }
    qmp.execute("stop", Value::Null).await.map_err(cannot)?;
    for (job, _) in jobs(qmp).await.map_err(cannot)? {
        qmp.execute("job-complete", json!({ "id": job })).await.map_err(cannot)?;
    }
    let deadline = tokio::time::Instant::now() + COMPLETE_PATIENCE;
    while !jobs(qmp).await.map_err(cannot)?.is_empty() {
        if tokio::time::Instant::now() > deadline {
            return Err(folder.fault("cannot be folded", "QEMU does not complete what it wrote"));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for disk in all {
        let now = drive(qmp, disk.place).await.map_err(cannot)?;
        if now != launch::own(disk.place) {
            return Err(folder.fault("cannot be folded", format!("its {} is still on {now}", disk.key)));
        }
    }
    copy_maps(spec, all, lineage, qmp).await.map_err(cannot)
}

/// The maps of the overlays, on the disks beneath them; what those had kept of older days goes.
async fn copy_maps(spec: &MachineSpec, all: &[Folding], lineage: Lineage, qmp: &mut Qmp) -> Result<(), QmpError> {
    let after = folded(spec);
    let over: Vec<String> = all.iter().map(|disk| launch::overlay(disk.place)).collect();
    let own: Vec<String> = all.iter().map(|disk| launch::own(disk.place)).collect();
    let old = Bitmaps::ask(qmp, lineage, &own).await?.removals(lineage, &own, |_| true);
    bitmap::transact(qmp, old).await?;
    let mut actions = Vec::new();
    for held in Bitmaps::ask(qmp, lineage, &over).await?.held() {
        let name = maps::name(lineage, held.since);
        for disk in all {
            let (own, over) = (launch::own(disk.place), launch::overlay(disk.place));
            let keeps = after.disks.get(disk.place).is_some_and(launch::keeps_bitmaps);
            let add = json!({
                "node": own, "name": name, "granularity": bitmap::GRANULARITY, "persistent": keeps,
                "disabled": !held.recording,
            });
            actions.push(json!({ "type": "block-dirty-bitmap-add", "data": add }));
            let from = json!([{ "node": over, "name": name }]);
            let merge = json!({ "node": own, "target": name, "bitmaps": from });
            actions.push(json!({ "type": "block-dirty-bitmap-merge", "data": merge }));
        }
    }
    bitmap::transact(qmp, actions).await
}

/// The machine after its fold.
fn folded(spec: &MachineSpec) -> MachineSpec {
    let mut after = spec.clone();
    for disk in &mut after.disks {
        if let DiskSource::OverlayOnOwn { path, format, .. } = &disk.source {
            disk.source = DiskSource::Own { path: path.clone(), format: *format };
        }
    }
    after
}

/// Makes the description say what the guest's devices are connected with. Only for a guest that stands still: then a disk
/// that was pivoted and one that was not are both what they were at this instant.
async fn describe(folder: &Folder, mut spec: MachineSpec, qmp: &mut Qmp) -> Result<(), Fault> {
    let before = spec.clone();
    for (place, disk) in spec.disks.iter_mut().enumerate() {
        let DiskSource::OverlayOnOwn { path, format, .. } = &disk.source else { continue };
        let now = drive(qmp, place).await.map_err(|why| folder.fault("cannot be asked", why))?;
        if now == launch::own(place) {
            disk.source = DiskSource::Own { path: path.clone(), format: *format };
        }
    }
    if spec == before { Ok(()) } else { folder.write("machine.json", &spec) }
}

/// Before a guest goes on that a fold may have left behind: its description. Maps that were not copied yet are then absent,
/// which means unknown.
pub(crate) async fn note_pivot(folder: &Folder) -> Result<(), Fault> {
    let spec = folder.known_spec()?;
    if folding(&spec).is_empty() || power::power(folder).await? != Power::Paused {
        return Ok(());
    }
    describe(folder, spec, &mut power::converse(folder).await?).await
}
