//! Pinned points written out as files of their own, before the history that they belong to ends.
//!
//! ```text
//!   view of the point ─► our NBD server ─► qemu-img convert ─► <retention>/@exported/<item>/<lineage>/<point>/<disk>.qcow2
//! ```
//! The files need neither Sockeye nor the replica any more; nothing here ever reads or removes them again.
//!
//! # If this process dies
//! - A file under its final name is whole and on stable storage; the order is given again, and writes what is missing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use component::Ticket;
use protocol::fault::code;
use protocol::{Attempt, Fault};
use tokio::process::Command;

use crate::item::Item;
use crate::record::sync_parent;
use crate::retention;
use crate::shelf::{Shelf, blocking};
use crate::view::Use;

/// How the name of a file ends that is not whole yet.
const UNFINISHED: &str = "new";

/// Writes every pinned point of `item` out. Gives the folders, one for each point, oldest first.
pub(crate) async fn pinned(shelf: &Shelf, item: &Arc<Item>, ticket: &Ticket) -> Result<Vec<String>, Fault> {
    let pins = item.replica.pins();
    let mut folders = Vec::new();
    for (n, pin) in pins.iter().enumerate() {
        let percent = u8::try_from(n * 100 / pins.len()).ok();
        ticket.step(format!("writing the pinned point {pin} to files of its own"), percent);
        // Points are numbered anew when an item is protected anew: its files then lie beside those of its predecessor.
        let of = shelf.exported(&item.id()).join(item.record().lineage.to_string());
        let folder = of.join(pin.to_string());
        let written = tokio::select! {
            written = point(shelf, item, *pin, &folder) => written,
            () = ticket.cancelled() => {
                Err(Fault::new(code::CANCELLED, "a pinned point was not written out", "control no longer wants it"))
            }
        };
        // Also when it was given up half-way: nobody holds the point any more then.
        shelf.withdraw_view(item, *pin, Use::Export).await;
        if written.is_err() {
            remove_unfinished(&folder);
        }
        written?;
        folders.push(folder.display().to_string());
    }
    Ok(folders)
}

async fn point(shelf: &Shelf, item: &Arc<Item>, point: Attempt, folder: &Path) -> Result<(), Fault> {
    let failed = |what: String| Fault::new(code::REPLICA_IO, format!("point {point} cannot be written out"), what);
    std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    let files: Vec<PathBuf> =
        item.replica.disks().iter().map(|disk| folder.join(format!("{}.qcow2", disk.key))).collect();
    let missing: Vec<usize> = (0..files.len()).filter(|disk| !files[*disk].exists()).collect();
    fits(item, point, folder, missing.clone()).await?;
    let views = shelf.serve_view(item, point, Use::Export).await?;
    for disk in missing {
        convert(&views[disk].to_string(), &files[disk]).await.map_err(failed)?;
    }
    Ok(())
}

/// Gives back the room of what was not finished. What cannot be removed is written over by the next attempt.
fn remove_unfinished(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.path().extension().is_some_and(|end| end == UNFINISHED)) {
        if let Err(error) = std::fs::remove_file(entry.path()) {
            tracing::warn!(%error, file = %entry.path().display(), "an unfinished file stays");
        }
    }
}

/// Refuses what the volume has no room for, before anything is written.
async fn fits(item: &Arc<Item>, point: Attempt, folder: &Path, disks: Vec<usize>) -> Result<(), Fault> {
    let (of, folder) = (item.clone(), folder.to_path_buf());
    blocking(move || {
        let view = of.replica.view(point).map_err(|error| of.fault(&error))?;
        let mut wanted = 0u64;
        for disk in disks {
            let size = of.replica.disks()[disk].size;
            wanted += view.data(disk, 0, size).map_err(|error| of.fault(&error))?.bytes();
        }
        let unseen = |error: std::io::Error| {
            Fault::new(code::REPLICA_IO, "the retention volume does not tell what room it has", error.to_string())
        };
        let room = retention::room(&folder).map_err(unseen)?;
        if wanted <= room.free_bytes {
            return Ok(());
        }
        let message = format!("the pinned point {point} does not fit on the retention volume as files of its own");
        let cause = format!("it holds {} MiB, and {} MiB are free", wanted >> 20, room.free_bytes >> 20);
        let remedy = format!("enlarge the volume, or unpin the point; then: sockeye fold {}", of.id());
        Err(Fault::new(code::NO_SPACE, message, cause).with_remedy(remedy))
    })
    .await
}

/// Copies what is served at `uri` into a file that is there whole or not at all.
async fn convert(uri: &str, file: &Path) -> Result<(), String> {
    let fresh: PathBuf = file.with_extension(UNFINISHED);
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2", uri]).arg(&fresh).kill_on_drop(true);
    let output = command.output().await.map_err(|error| format!("qemu-img cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
    }
    let file = file.to_path_buf();
    let named = move || -> std::io::Result<()> {
        std::fs::File::open(&fresh)?.sync_all()?;
        std::fs::rename(&fresh, &file)?;
        sync_parent(&file)
    };
    let done = tokio::task::spawn_blocking(named).await.map_err(|panic| panic.to_string())?;
    done.map_err(|error| error.to_string())
}
