//! Recovery points served to people: any number of views, read only, or writable on a scratch overlay.
//!
//! ```text
//!   read only   view ─► our NBD server ─► whoever connects
//!   writable    view ─► our NBD server ─► qemu-nbd with a scratch overlay ─► whoever connects
//! ```
//! # Always true
//! - What is written to a view never reaches the replica, and is thrown away when the view is ended.
//!
//! # If this process dies
//! - Every view is served again under the same names; a writable one still holds what was written to it.

use std::path::Path;
use std::sync::Arc;

use nbd::qemu_nbd::Settings;
use nbd::{Address, Uri};
use protocol::beside::ServedDisk;
use protocol::epoch::Point;
use protocol::fault::code;
use protocol::{Attempt, DiskKey, Fault};
use tokio::process::Command;

use crate::item::Item;
use crate::outside::{begin_program, forget_program};
use crate::record::Served;
use crate::shelf::Shelf;
use crate::view::Use;

/// For how long a reader of a writable view waits while this process restarts, in seconds.
const RECONNECT_SECONDS: u32 = 60;

/// Serves a point under `number`. Gives the point and where its disks are found.
pub(crate) async fn serve(
    shelf: &Shelf,
    item: &Arc<Item>,
    number: i64,
    wanted: Option<Attempt>,
    writable: bool,
) -> Result<(Point, Vec<ServedDisk>), Fault> {
    // A repeated order finds the point that was chosen when it was first carried out.
    let begun = item.record().views.get(&number).map(|view| view.point);
    let point = item.chosen(begun.or(wanted))?;
    let served = Served { point: point.attempt, writable };
    if begun.is_none() {
        item.change(|record| _ = record.views.insert(number, served.clone()))?;
    }
    match open(shelf, item, number, &served).await {
        Ok(disks) => Ok((point, disks)),
        Err(fault) => {
            if let Err(second) = end(shelf, item, number).await {
                tracing::error!(%second, "a view that could not be served could not be ended either");
            }
            Err(fault)
        }
    }
}

/// Serves every view of the item that the record tells of. One that cannot be served keeps no other from it.
pub(crate) async fn reopen(shelf: &Shelf, item: &Arc<Item>) {
    for (number, served) in item.record().views {
        if let Err(fault) = open(shelf, item, number, &served).await {
            tracing::warn!(item = %item.id(), number, %fault, cause = fault.cause, "a view is not served again");
        }
    }
}

/// Serves a view no longer. Nothing is done when it is not served.
pub(crate) async fn end(shelf: &Shelf, item: &Arc<Item>, number: i64) -> Result<(), Fault> {
    let Some(served) = item.record().views.get(&number).cloned() else { return Ok(()) };
    let programs = shelf.scratch().remove(&(item.id(), number)).unwrap_or_default();
    for program in programs {
        program.stop().await.map_err(|error| unusable(item, &error))?;
    }
    if served.writable {
        for disk in item.replica.disks() {
            // One that a dead predecessor left and nobody could take over goes now.
            let socket = socket(shelf, item, &disk.key, number);
            forget_program(&socket).await.map_err(|error| unusable(item, &error))?;
            match std::fs::remove_file(overlay(shelf, item, &disk.key, number)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(unusable(item, &error)),
                _ => {}
            }
        }
    }
    shelf.withdraw_view(item, served.point, Use::People(number)).await;
    item.change(|record| _ = record.views.remove(&number))
}

async fn open(shelf: &Shelf, item: &Arc<Item>, number: i64, served: &Served) -> Result<Vec<ServedDisk>, Fault> {
    let views = shelf.serve_view(item, served.point, Use::People(number)).await?;
    let mut disks = Vec::new();
    let mut programs = Vec::new();
    let running = shelf.scratch().contains_key(&(item.id(), number));
    for (disk, view) in item.replica.disks().iter().zip(views) {
        let socket = socket(shelf, item, &disk.key, number);
        let uri = if served.writable { Uri::unix(&socket, disk.key.as_str()) } else { view.clone() };
        if served.writable && !running {
            let scratch = overlay(shelf, item, &disk.key, number);
            if !scratch.exists() {
                create(&scratch, disk.size).await.map_err(|why| unusable(item, &why))?;
            }
            let mut settings = Settings::options(options(&scratch, &view), &socket);
            settings.export = disk.key.to_string();
            programs.push(begin_program(&settings).await.map_err(|error| unusable(item, &error))?);
        }
        disks.push(ServedDisk { disk: disk.key.clone(), uri: uri.to_string() });
    }
    if !programs.is_empty() {
        shelf.scratch().insert((item.id(), number), programs);
    }
    Ok(disks)
}

fn overlay(shelf: &Shelf, item: &Item, disk: &DiskKey, number: i64) -> std::path::PathBuf {
    shelf.overlay(&item.id(), disk, &format!("view{number}"))
}

fn socket(shelf: &Shelf, item: &Item, disk: &DiskKey, number: i64) -> std::path::PathBuf {
    shelf.socket(&item.id(), &format!("{disk}-view{number}"))
}

/// Makes an empty overlay, which does not name what it lies over: that is said when it is opened. Under another name first:
/// one that exists is whole.
async fn create(overlay: &Path, size: u64) -> Result<(), String> {
    let fresh = overlay.with_extension("new");
    let mut command = Command::new("qemu-img");
    let output = command
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&fresh)
        .arg(size.to_string())
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.map_err(|error| format!("qemu-img cannot be run: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
    }
    std::fs::rename(&fresh, overlay).map_err(|error| error.to_string())
}

/// The overlay over its view, as `qemu-nbd --image-opts` takes it.
fn options(overlay: &Path, view: &Uri) -> String {
    let escaped = |text: &str| text.replace(',', ",,");
    let server = match &view.address {
        Address::Unix(path) => {
            format!("backing.server.type=unix,backing.server.path={}", escaped(&path.to_string_lossy()))
        }
        Address::Tcp(at) => {
            format!("backing.server.type=inet,backing.server.host={},backing.server.port={}", at.ip(), at.port())
        }
    };
    format!(
        "driver=qcow2,file.driver=file,file.filename={},backing.driver=nbd,{server},backing.export={},\
         backing.reconnect-delay={RECONNECT_SECONDS}",
        escaped(&overlay.to_string_lossy()),
        escaped(&view.export)
    )
}

fn unusable(item: &Item, why: &dyn std::fmt::Display) -> Fault {
    Fault::new(code::REPLICA_IO, format!("a point of {} cannot be served", item.id()), why.to_string())
}
