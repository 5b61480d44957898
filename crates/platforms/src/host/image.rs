//! Images on disk, through `qemu-img`: creating overlays, and what an image tells while no QEMU has it open.
//!
//! No format is parsed here. An image is always opened without its backing, which may be a view that is not served now.

use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use protocol::Fault;
use protocol::extent::{BlockMap, Extent};
use protocol::fault::code;
use protocol::machine::{DiskFormat, DiskSource};
use serde_json::{Value, json};
use tokio::process::Command;

use super::folder::Folder;

/// Runs a program of QEMU's; its words on failure.
async fn run(program: &str, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|why| format!("{program} cannot be run: {why}"))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_string())
    }
}

async fn ask(arguments: &[&str]) -> Result<Value, String> {
    let output = run("qemu-img", arguments).await?;
    serde_json::from_slice(&output).map_err(|why| format!("qemu-img's answer is not JSON: {why}"))
}

/// A qcow2 as `qemu-img` takes it, without its backing.
pub(crate) fn alone(path: &Path) -> String {
    let file = json!({ "driver": "file", "filename": path });
    format!("json:{}", json!({ "driver": "qcow2", "backing": null, "file": file }))
}

/// Creates an overlay of `size` bytes. Its backing is written down but not opened, since it need not be served yet.
pub(crate) async fn create_overlay(path: &Path, backing: &str, size: u64) -> Result<(), String> {
    let path = path.to_string_lossy();
    run("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", &path, &size.to_string()])
        .await
        .map(|_| ())
}

/// Creates an empty qcow2 of `size` bytes.
pub(crate) async fn create_empty(path: &Path, size: u64) -> Result<(), String> {
    run("qemu-img", &["create", "-q", "-f", "qcow2", &path.to_string_lossy(), &size.to_string()]).await.map(|_| ())
}

/// Makes an empty disk of the platform's own, durably.
pub(crate) async fn make_own(folder: &Path, name: &str, size: u64) -> Result<DiskSource, Fault> {
    let path = folder.join(format!("{name}.qcow2"));
    let cannot = |why: String| Fault::new(code::HYPERVISOR, format!("the disk {} cannot be made", path.display()), why);
    super::folder::remove_file(&path).map_err(|why| cannot(why.to_string()))?;
    create_empty(&path, size).await.map_err(cannot)?;
    let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
    synced.and_then(|()| super::folder::sync_parent(&path)).map_err(|why| cannot(why.to_string()))?;
    Ok(DiskSource::Own { path: path.to_string_lossy().into_owned(), format: DiskFormat::Qcow2 })
}

/// A bitmap that a qcow2 keeps.
pub(crate) struct Kept {
    pub name: String,
    /// It grows with every write, as soon as a QEMU opens the image.
    pub recording: bool,
    /// It was in use when QEMU died: it says nothing, and can only be removed.
    pub inconsistent: bool,
}

/// The bitmaps that a qcow2 keeps, as they would be found by a QEMU that opens it.
pub(crate) async fn bitmaps(path: &Path) -> Result<Vec<Kept>, String> {
    let info = ask(&["info", "-U", "--output=json", &alone(path)]).await?;
    let maps = info["format-specific"]["data"]["bitmaps"].as_array().into_iter().flatten();
    let of = |map: &Value| {
        let flag = |name: &str| map["flags"].as_array().into_iter().flatten().any(|flag| flag == name);
        Some(Kept { name: map["name"].as_str()?.into(), recording: flag("auto"), inconsistent: flag("in-use") })
    };
    Ok(maps.filter_map(of).collect())
}

/// The image that can keep maps of a disk.
pub(crate) fn keeper(folder: &Folder, source: &DiskSource) -> Option<PathBuf> {
    match source {
        DiskSource::Own { path, format: DiskFormat::Qcow2 } => Some(folder.disk_path(path)),
        DiskSource::Own { format: DiskFormat::Raw, .. } => None,
        DiskSource::OverlayOnView { overlay, .. } | DiskSource::OverlayOnOwn { overlay, .. } => {
            Some(folder.overlay_path(overlay))
        }
    }
}

/// Whether all that an image shows is in it, and nothing in another one beneath it.
pub(crate) async fn stands_alone(path: &Path) -> Result<bool, String> {
    let info = ask(&["info", "-U", "--output=json", "-f", "qcow2", &path.to_string_lossy()]).await?;
    Ok(info["backing-filename"].is_null())
}

/// Takes a bitmap out of a qcow2 that no QEMU has open.
pub(crate) async fn forget(path: &Path, bitmap: &str) -> Result<(), String> {
    run("qemu-img", &["bitmap", "--remove", &alone(path), bitmap]).await.map(drop)
}

/// What an overlay holds itself, zeroes among it: everything that was ever written to it.
pub(crate) async fn allocated(path: &Path) -> Result<BlockMap, String> {
    let map = ask(&["map", "-U", "--output=json", &alone(path)]).await?;
    let mut held = BlockMap::new();
    for piece in map.as_array().ok_or("qemu-img's map is not a list")? {
        let number = |name: &str| piece[name].as_u64().ok_or(format!("qemu-img's map has no {name}"));
        // Without the word (QEMU before 6.1) an unallocated piece cannot be told from a zero: count it.
        if piece["present"].as_bool().unwrap_or(true) {
            held.insert(Extent::new(number("start")?, number("length")?));
        }
    }
    Ok(held)
}

/// What identifies the present state of a disk: inode, size and times of change.
pub(crate) fn stamp(path: &Path) -> std::io::Result<String> {
    let meta = std::fs::metadata(path)?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (modified, changed) = (time(meta.mtime(), meta.mtime_nsec()), time(meta.ctime(), meta.ctime_nsec()));
    Ok(format!("{}:{}:{modified}:{changed}", meta.ino(), meta.size()))
}

/// The inode of a file.
pub(crate) fn inode(path: &Path) -> std::io::Result<u64> {
    Ok(std::fs::metadata(path)?.ino())
}

/// Whether the file can be read and written past the page cache, so that a guest's flush is as good as the disk's.
pub(crate) fn takes_direct(path: &Path) -> bool {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    std::fs::OpenOptions::new().read(true).custom_flags(direct).open(path).is_ok()
}

/// QEMU's driver for a path: block devices are not files.
pub(crate) fn driver(path: &Path) -> &'static str {
    let device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    if device { "host_device" } else { "file" }
}
