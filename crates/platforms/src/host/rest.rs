//! What the disks looked like when QEMU let go of them: the maps inside are believed only while they still look so.
//!
//! ```text
//!   QEMU ends ── settle looks ──► rest.json   every image's path, inode, size, times of change
//!                                     │
//!   start, settle: the images now ────┤── the same ──► their maps are honest
//!                                     ├── another ───► written or replaced by something else: no map, no mark, no allocation
//!                                     └── no note ───► QEMU ended and nobody looked: no map; what survives a crash counts
//! ```
//! A qcow2 that was restored from a copy, or written by a program that knows nothing of its maps, has consistent maps that
//! are wrong, and QEMU cannot know. Nor can a map's name: two images that were exchanged carry the same names.
//!
//! # Always true
//! - The note is gone before QEMU opens the images, and is made only by whoever saw QEMU end: so it is never older than
//!   what QEMU itself wrote.
//! - Where the images do not look as noted, that is written down before QEMU opens them, and stays written until the maps
//!   in them are gone.
//!
//! # If power fails
//! There is no note: what ended without being looked at is not believed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocol::machine::{DiskSource, DiskSpec, MachineSpec};
use protocol::position::Distrust;
use protocol::{DiskKey, Fault};
use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::image;
use super::marks::Marks;

/// The images as they were when QEMU let go of them.
const NOTE: &str = "rest.json";
/// That the maps in the images were not to be believed when QEMU opened them.
const DOUBT: &str = "doubt.json";

type Stamps = BTreeMap<DiskKey, String>;
type Images = BTreeMap<DiskKey, Image>;

/// How one image looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Image {
    path: PathBuf,
    stamp: String,
}

/// How the images of a machine without a QEMU compare with the note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nobody wrote them since QEMU let go of them.
    Untouched,
    /// Somebody did, or put others in their place.
    Touched,
    /// There is no note.
    Unnoted,
}

/// Why maps in the images were not believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Doubt {
    /// The images were touched: nothing that was known of them counts.
    touched: bool,
    /// The maps are gone; what is left of the doubt is the reason why there is none.
    settled: bool,
}

/// Every image of the machine.
fn images(folder: &Folder, spec: &MachineSpec) -> Result<Images, Fault> {
    let of = |disk: &DiskSpec| {
        let path = match &disk.source {
            DiskSource::Own { path, .. } => folder.disk_path(path),
            DiskSource::OverlayOnView { overlay, .. } | DiskSource::OverlayOnOwn { overlay, .. } => {
                folder.overlay_path(overlay)
            }
        };
        Ok((disk.key.clone(), Image { stamp: stamp(folder, &path)?, path }))
    };
    spec.disks.iter().map(of).collect()
}

/// What identifies the present state of each of the machine's own disks.
pub(crate) fn own_stamps(folder: &Folder, spec: &MachineSpec) -> Result<Stamps, Fault> {
    let mut stamps = Stamps::new();
    for disk in &spec.disks {
        if let DiskSource::Own { path, .. } = &disk.source {
            stamps.insert(disk.key.clone(), stamp(folder, &folder.disk_path(path))?);
        }
    }
    Ok(stamps)
}

fn stamp(folder: &Folder, path: &Path) -> Result<String, Fault> {
    let stamp = image::stamp(path);
    stamp.map_err(|why| folder.fault("has a disk that cannot be found", format!("{}: {why}", path.display())))
}

/// Notes how the images look. For whoever saw QEMU end.
pub(crate) fn note(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    // What is in doubt does not become honest by being left alone.
    if is_in_doubt(folder)? { Ok(()) } else { folder.write(NOTE, &images(folder, spec)?) }
}

/// Compares the images with the note. No QEMU has them open.
pub(crate) fn look(folder: &Folder, spec: &MachineSpec) -> Result<Rest, Fault> {
    let Some(noted) = folder.read::<Images>(NOTE)? else { return Ok(Rest::Unnoted) };
    #[cfg(feature = "sabotage")]
    if protocol::sabotage::is("touched-disk-believed") {
        return Ok(Rest::Untouched);
    }
    let now = images(folder, spec)?;
    let is_fresh = |disk: &DiskSpec| {
        // An overlay that was made since: `marks` knows it.
        disk.source.overlay().is_some() && noted.values().all(|image| Some(&image.path) != path(&now, disk))
    };
    let fresh: Vec<&DiskSpec> = spec.disks.iter().filter(|disk| is_fresh(disk)).collect();
    let same = |disk: &DiskSpec| noted.get(&disk.key) == now.get(&disk.key);
    Ok(match () {
        () if spec.disks.iter().any(|disk| !same(disk) && !fresh.contains(&disk)) => Rest::Touched,
        () if fresh.is_empty() => Rest::Untouched,
        () => Rest::Unnoted,
    })
}

fn path<'a>(images: &'a Images, disk: &DiskSpec) -> Option<&'a PathBuf> {
    images.get(&disk.key).map(|image| &image.path)
}

/// Before QEMU opens the images: what is to be doubted is written down, the note goes.
pub(crate) fn leave(folder: &Folder, spec: &MachineSpec, marks: &mut Marks) -> Result<(), Fault> {
    let rest = look(folder, spec)?;
    if rest != Rest::Untouched {
        let before: Doubt = folder.read(DOUBT)?.unwrap_or_default();
        let touched = rest == Rest::Touched || (before.touched && !before.settled);
        folder.write(DOUBT, &Doubt { touched, settled: false })?;
        if touched {
            tracing::warn!(
                machine = folder.name(),
                "its disks were written or replaced by something else; it is compared"
            );
            marks.forget(folder)?;
        }
    }
    folder.remove(NOTE)
}

/// A hypervisor opened the images and nobody looked at them before.
pub(crate) fn unseen(folder: &Folder) -> Result<(), Fault> {
    let before: Doubt = folder.read(DOUBT)?.unwrap_or_default();
    folder.write(DOUBT, &Doubt { touched: before.touched && !before.settled, settled: false })?;
    folder.remove(NOTE)
}

/// Before the guest runs: has the images rid of maps that are not to be believed by `forget`, which says how many it found.
/// Gives whether a mark is not to be believed either.
pub(crate) async fn doubt<E: std::fmt::Display>(
    folder: &Folder,
    forget: impl AsyncFnOnce() -> Result<usize, E>,
) -> Result<bool, Fault> {
    let Some(doubt) = folder.read::<Doubt>(DOUBT)?.filter(|doubt| !doubt.settled) else { return Ok(false) };
    let gone = forget().await;
    let gone = gone.map_err(|why| folder.fault("cannot be rid of maps that are not to be believed", why))?;
    match doubt.touched || gone > 0 {
        true => folder.write(DOUBT, &Doubt { settled: true, ..doubt })?,
        false => folder.remove(DOUBT)?,
    }
    Ok(doubt.touched)
}

/// Whether a QEMU was launched on images whose maps are not to be believed, and still has them.
pub(crate) fn is_in_doubt(folder: &Folder) -> Result<bool, Fault> {
    Ok(folder.read::<Doubt>(DOUBT)?.is_some_and(|doubt| !doubt.settled))
}

/// Why none of the maps that were found can be used, some of which were `inconsistent`.
pub(crate) fn why_lost(folder: &Folder, inconsistent: bool) -> Result<Distrust, Fault> {
    Ok(match folder.read::<Doubt>(DOUBT)? {
        _ if inconsistent => Distrust::MapInconsistent,
        Some(_) => Distrust::DiskTouched,
        None => Distrust::MapAbsent,
    })
}

/// What changed is known from a cut on: no reason is needed any more why it was not.
pub(crate) fn forget(folder: &Folder) -> Result<(), Fault> {
    folder.remove(DOUBT)
}
