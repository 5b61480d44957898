//! The overlays of a machine: qcow2 images that take its writes, above a view or a disk that stays as it is.

use protocol::Fault;
use protocol::machine::{DiskSource, MachineSpec};

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

/// Removes them.
pub(crate) fn remove(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    for overlay in spec.disks.iter().filter_map(|disk| disk.source.overlay()) {
        let gone = folder::remove_file(&folder.overlay_path(overlay));
        gone.map_err(|why| folder.fault("cannot be rid of an overlay", why))?;
    }
    Ok(())
}
