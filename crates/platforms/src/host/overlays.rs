//! The overlays of a machine: qcow2 images that take its writes, above a view or a disk that stays as it is.

use std::collections::BTreeSet;
use std::path::PathBuf;

use protocol::Fault;
use protocol::machine::{DiskSource, DiskSpec, MachineSpec};

use super::folder::{self, Folder};
use super::image;
use super::marks::Marks;

/// Creates the overlays that are absent, each with a note that it is empty.
pub(crate) async fn create(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    let cannot = |why: &dyn std::fmt::Display| folder.fault("cannot be given an overlay", why);
    let mut marks = Marks::read(folder)?;
    for disk in &spec.disks {
        let DiskSource::OverlayOnView { overlay, view } = &disk.source else { continue };
        let path = folder.overlay_path(overlay);
        if path.exists() {
            continue;
        }
        // Under another name first: an overlay that exists is whole and noted.
        let fresh = path.with_extension("new");
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|why| cannot(&why))?;
        }
        folder::remove_file(&fresh).map_err(|why| cannot(&why))?;
        image::create_overlay(&fresh, view, disk.size).await.map_err(|why| cannot(&why))?;
        let settled = || {
            std::fs::File::open(&fresh)?.sync_all()?;
            image::inode(&fresh)
        };
        let inode = settled().map_err(|why| cannot(&why))?;
        marks.fresh(folder, &disk.key, inode)?;
        let placed = std::fs::rename(&fresh, &path).and_then(|()| folder::sync_parent(&path));
        placed.map_err(|why| cannot(&why))?;
    }
    Ok(())
}

/// Lets those of a description that stand on views stand on the disks of the platform's own that are given for them.
pub(crate) fn onto(folder: &Folder, spec: &mut MachineSpec, own: &[DiskSpec]) -> Result<(), Fault> {
    for disk in &mut spec.disks {
        let DiskSource::OverlayOnView { overlay, .. } = &disk.source else { continue };
        let found = own.iter().find(|own| own.key == disk.key).map(|own| &own.source);
        let Some(DiskSource::Own { path, format }) = found else {
            return Err(folder.fault("cannot stand on its own disks", format!("none was given for {}", disk.key)));
        };
        disk.source = DiskSource::OverlayOnOwn { overlay: overlay.clone(), path: path.clone(), format: *format };
    }
    Ok(())
}

/// Removes those of a description that another one took the place of: what that one stands on stays.
pub(crate) fn remove_replaced(folder: &Folder, before: &MachineSpec, now: &MachineSpec) -> Result<(), Fault> {
    let named = |spec: &MachineSpec| {
        let overlays = spec.disks.iter().filter_map(|disk| disk.source.overlay());
        overlays.map(|overlay| folder.overlay_path(overlay)).collect::<BTreeSet<PathBuf>>()
    };
    let own: BTreeSet<PathBuf> = now.disks.iter().filter_map(|disk| own_path(folder, &disk.source)).collect();
    for overlay in named(before).difference(&named(now)).filter(|overlay| !own.contains(*overlay)) {
        folder::remove_file(overlay).map_err(|why| folder.fault("cannot be rid of an overlay", why))?;
    }
    Ok(())
}

fn own_path(folder: &Folder, source: &DiskSource) -> Option<PathBuf> {
    match source {
        DiskSource::Own { path, .. } | DiskSource::OverlayOnOwn { path, .. } => Some(folder.disk_path(path)),
        DiskSource::OverlayOnView { .. } => None,
    }
}

/// Removes them.
pub(crate) fn remove(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    for overlay in spec.disks.iter().filter_map(|disk| disk.source.overlay()) {
        let gone = folder::remove_file(&folder.overlay_path(overlay));
        gone.map_err(|why| folder.fault("cannot be rid of an overlay", why))?;
    }
    Ok(())
}
