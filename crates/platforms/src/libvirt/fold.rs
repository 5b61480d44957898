//! Folding: the overlays of a running machine go into the disks beneath them, and the machine runs on those.
//!
//! ```text
//!   over-n ─► relay ─► view-n
//!   over-n ─► relay ─► disk-n  (no lock taken)           stand_on: the view's server may close the disk now
//!   over-n ═══ block copy of what it holds ═══► disk-n   the guest writes on; both are written, until all are ready
//!   disk-n                                               pivot, one disk after the other; the overlays are deleted
//! ```
//! A shallow copy onto an image that is there moves what the overlay holds, and nothing else: libvirt carries the
//! checkpoints over. What the guest still reads through the relay is what the overlay does not hold, which the copy does
//! not write.
//!
//! # Always true
//! - libvirt's description is the truth about what to start from, and it changes with the pivot of each disk. Before, what is
//!   in the overlay is all that is newer than the disk, and it stays there. At the pivot both are equal.
//!
//! # If power fails
//! The machine is off. Each disk is what the description says; a repetition finishes the rest once the machine runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use protocol::Fault;
use protocol::fault::code;
use protocol::machine::{DiskFormat, DiskSource, DiskSpec, MachineSpec, Power};
use xmltree::Element;

use super::capture::CAPTURING;
use super::document::Document;
use super::domain::{self, Target};
use super::{Site, backup, chain, life, relay};
use crate::host::folder::{self, Folder};
use crate::host::{image, maps, overlays};

/// How long whoever captures the machine may take to let it go.
const CAPTURE_PATIENCE: Duration = Duration::from_secs(2);
/// How often the copies are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The overlays that are not needed any more when the fold is done.
const NOTE: &str = "fold.json";

/// Lets overlays stand on disks of the platform's own. The caller holds the machine's lock.
pub(crate) async fn stand_on(site: &Site, folder: &Folder, onto: &[DiskSpec]) -> Result<(), Fault> {
    let (mut spec, _) = site.known(folder).await?;
    overlays::onto(folder, &mut spec, onto)?;
    let _lock = not_captured(folder).await?;
    relay::stand_on(folder, &spec).await
}

/// Folds. The caller holds the machine's lock.
pub(crate) async fn fold(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    let (spec, targets) = site.known(folder).await?;
    if let Some(disk) = spec.disks.iter().find(|disk| matches!(disk.source, DiskSource::OverlayOnView { .. })) {
        return Err(folder.fault("cannot be folded", format!("{} still stands on a view", disk.key)));
    }
    let overlays: BTreeSet<PathBuf> =
        spec.disks.iter().filter_map(|disk| disk.source.overlay()).map(|name| folder.overlay_path(name)).collect();
    if !overlays.is_empty() {
        let now = life::power(site, folder).await?;
        if !matches!(now, Power::Running | Power::Paused) {
            return Err(
                folder.fault("cannot be folded", format!("it is {now:?}; it has to run for that").to_lowercase())
            );
        }
        let _lock = not_captured(folder).await?;
        backup::end(site, folder, lock).await?;
        let noted: BTreeSet<PathBuf> = folder.read(NOTE)?.unwrap_or_default();
        folder.write(NOTE, &noted.union(&overlays).collect::<Vec<_>>())?;
        copy(site, folder, lock, &spec, &targets).await?;
        for (disk, target) in folding(&spec, &targets) {
            let pivoted = site.virsh.run(lock, &["blockjob", folder.name(), &target.dev, "--pivot"]).await;
            pivoted.map_err(|why| folder.fault(&format!("cannot be put on its own disk {}", disk.key), why))?;
        }
    }
    let Some(overlays) = folder.read::<BTreeSet<PathBuf>>(NOTE)? else { return Ok(()) };
    let (spec, _) = site.known(folder).await?;
    if !backup::is_tracked(&spec) {
        // What a raw disk cannot hold is known of no disk.
        chain::forget_all(site, folder, lock).await?;
    }
    relay::end(folder)?;
    relay::note(folder, [&spec])?;
    for overlay in overlays {
        let gone = folder::remove_file(&overlay);
        gone.map_err(|why| folder.fault("cannot be rid of an overlay", why))?;
    }
    folder.remove("marks.json")?;
    folder.remove(NOTE)
}

/// Takes the lock of whoever captures the machine.
async fn not_captured(folder: &Folder) -> Result<File, Fault> {
    folder
        .lock(CAPTURING, CAPTURE_PATIENCE)
        .await
        .map_err(|busy| Fault::new(code::CAPTURED, format!("machine {} cannot be folded", folder.name()), busy.cause))
}

/// The disks that stand on disks of the platform's own.
fn folding<'a>(spec: &'a MachineSpec, targets: &'a [Target]) -> impl Iterator<Item = (&'a DiskSpec, &'a Target)> {
    let both = spec.disks.iter().zip(targets);
    both.filter(|(disk, _)| matches!(disk.source, DiskSource::OverlayOnOwn { .. }))
}

/// Runs the copies until all are ready; the guest writes on.
async fn copy(site: &Site, folder: &Folder, lock: &File, spec: &MachineSpec, targets: &[Target]) -> Result<(), Fault> {
    let under_way = mirrors(site, folder).await?;
    for (disk, target) in folding(spec, targets).filter(|(_, target)| !under_way.contains_key(&target.dev)) {
        let DiskSource::OverlayOnOwn { path, format, .. } = &disk.source else { continue };
        let path = folder.disk_path(path);
        let cannot = |why: String| folder.fault(&format!("cannot be put on its own disk {}", disk.key), why);
        if *format == DiskFormat::Qcow2 {
            // What it had kept of older days would go on growing.
            for map in image::bitmaps(&path).await.map_err(cannot)? {
                if map.name.starts_with(maps::PREFIX) {
                    image::forget(&path, &map.name).await.map_err(cannot)?;
                }
            }
        }
        let file = folder.file("fold.xml");
        std::fs::write(&file, domain::destination(&path, *format).written()).map_err(|why| cannot(why.to_string()))?;
        let file = file.to_string_lossy();
        let words = ["blockcopy", folder.name(), &target.dev, "--xml", &file, "--reuse-external", "--shallow"];
        let words = [&words[..], &["--transient-job"]].concat();
        match site.virsh.run(lock, &words).await {
            Ok(_) => {}
            Err(why) if why.to_string().contains("lock") => {
                let what = format!("machine {} cannot have its own disks", folder.name());
                return Err(Fault::new(code::DISK_IN_USE, what, why.to_string()));
            }
            Err(why) => return Err(cannot(why.to_string())),
        }
    }
    loop {
        let under_way = mirrors(site, folder).await?;
        let mut is_ready = true;
        for (disk, target) in folding(spec, targets) {
            match under_way.get(&target.dev) {
                Some(ready) => is_ready &= ready,
                None => {
                    return Err(folder.fault("cannot be folded", format!("the copy that writes {} ended", disk.key)));
                }
            }
        }
        if is_ready {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The copies under way, by disk, and whether each has caught up with the guest.
async fn mirrors(site: &Site, folder: &Folder) -> Result<BTreeMap<String, bool>, Fault> {
    let live =
        site.live(folder).await.ok_or_else(|| folder.fault("cannot be asked", "libvirt does not describe it"))?;
    let disks = live.at(&["devices"]).into_iter().flat_map(|devices| devices.all("disk"));
    let of = |disk: &Element| {
        let mirror = disk.at(&["mirror"]).filter(|mirror| mirror.has("job") == Some("copy"))?;
        Some((disk.has_at(&["target"], "dev")?.to_string(), mirror.has("ready") == Some("yes")))
    };
    Ok(disks.filter_map(of).collect())
}
