//! Disks that were made for a machine that comes to a site where nothing of it was (H13, R14).
//!
//! ```text
//!   prepare ─► note (its files) ─► files ─► replica around them ─► machine on overlays ─► fold: they are its own, the note goes
//!                                             └── given up: the files go, then the note
//! ```
//! # Always true
//! - A file that was there before is never touched: the note, which is older than the files, says which are ours.
//!
//! # If power fails
//! The note tells what may have been made: it is made again, or removed.

use std::path::PathBuf;

use protocol::epoch::DiskSize;
use protocol::fault::code;
use protocol::machine::{DiskSource, NewDisks};
use protocol::{Fault, ItemId};
use replica::{DiskHome, DiskRecord};

use crate::shelf::Shelf;

fn note(shelf: &Shelf, item: &ItemId) -> PathBuf {
    shelf.record_file(item).with_extension("made")
}

fn noted(shelf: &Shelf, item: &ItemId) -> Result<Vec<PathBuf>, Fault> {
    match std::fs::read_to_string(note(shelf, item)) {
        Ok(text) => Ok(text.lines().map(PathBuf::from).collect()),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(vec![]),
        Err(why) => Err(failed(item, &why)),
    }
}

fn failed(item: &ItemId, why: &std::io::Error) -> Fault {
    Fault::new(code::REPLICA_IO, format!("what was made for {item} cannot be noted"), why.to_string())
}

/// Makes the disks, empty.
pub(crate) async fn make(
    shelf: &Shelf,
    item: &ItemId,
    disks: Vec<DiskSize>,
    own: &NewDisks,
) -> Result<Vec<DiskRecord>, Fault> {
    let folder = PathBuf::from(&own.folder);
    let name = |disk: &DiskSize| format!("{}-{}", own.machine, disk.disk);
    let known = noted(shelf, item)?;
    let paths: Vec<PathBuf> = disks.iter().map(|disk| folder.join(format!("{}.qcow2", name(disk)))).collect();
    if let Some(theirs) = paths.iter().find(|path| path.exists() && !known.contains(path)) {
        let message = format!("the disks of {} cannot be made", own.machine);
        return Err(Fault::new(code::DISK_EXISTS, message, format!("{} is there already", theirs.display())));
    }
    let all: Vec<String> = known.iter().chain(&paths).map(|path| path.to_string_lossy().into_owned()).collect();
    crate::record::replace(&note(shelf, item), all.join("\n").as_bytes()).map_err(|why| failed(item, &why))?;
    let mut made = Vec::new();
    for disk in disks {
        let source = shelf.platform.make_disk(&own.folder, &name(&disk), disk.size).await?;
        let DiskSource::Own { path, format } = source else {
            return Err(Fault::new(
                code::INTERNAL,
                format!("{} was made as something else", disk.disk),
                "a mistake of ours",
            ));
        };
        made.push(DiskRecord { key: disk.disk, size: disk.size, home: DiskHome::Outside { path, format } });
    }
    Ok(made)
}

/// They stay.
pub(crate) fn keep(shelf: &Shelf, item: &ItemId) -> Result<(), Fault> {
    match std::fs::remove_file(note(shelf, item)) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(failed(item, &why)),
        _ => Ok(()),
    }
}

/// They go: nothing came of it.
pub(crate) fn remove(shelf: &Shelf, item: &ItemId) -> Result<(), Fault> {
    for path in noted(shelf, item)? {
        match std::fs::remove_file(&path) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("the disk {} that was made for {item} cannot be removed", path.display());
                return Err(Fault::new(code::REPLICA_IO, message, why.to_string()));
            }
            _ => {}
        }
    }
    keep(shelf, item)
}
