//! The nodes of an open cut: per disk a filter that saves what a guest write is about to overwrite, and a reader of the past.
//!
//! ```text
//!   guest ─► dev-n ─► cbw-n ────────────────► disk-n        export of past-n
//!                       │ before-images         ▲               │
//!                       ▼                       │ unchanged     ▼
//!                     fleece-n (qcow2) ◄────────┴─────────── past-n
//!                     in scratch-n (raw, `size` = the bound)
//! ```
//! The scratch is bounded by a raw node whose `size` option QEMU enforces: writes behind it get ENOSPC, on which the filter
//! gives the past up (`on-cbw-error=break-snapshot`) and lets the guest's write through. A limit on the qcow2's own size
//! would not do, since that must be the disk's. The same happens when the scratch does not answer in time (`cbw-timeout`).
//!
//! # Always true
//! - The filter is put in while the guest stands still (else a write slips between map and filter: measured, one changed block
//!   missing in three cuts) and taken out after the last reader of the past is gone.
//! - A scratch file is used for one cut.

use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Fault;
use serde_json::{Value, json};

use super::launch::device;
use super::qmp::{Command, Qmp, QmpError};
use crate::host::folder::Folder;
use crate::host::image;

/// How long the readers of an ended cut may take to be thrown out.
const PATIENCE: Duration = Duration::from_secs(20);

/// The node that reads as the disk was at the cut.
pub(crate) fn past(place: usize) -> String {
    format!("past-{place}")
}

/// The id of that node's export.
pub(crate) fn export(place: usize) -> String {
    format!("cut-{place}")
}

/// How much an open cut may need, and how patient a guest's write is with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of scratch per disk; none: a quarter of the disk, at least 64 MiB.
    pub scratch_bytes: Option<u64>,
    /// After this many seconds without an answer from the scratch the cut is given up.
    pub patience_seconds: u32,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { scratch_bytes: None, patience_seconds: 5 }
    }
}

/// Makes an empty scratch file for a disk of `size` bytes; its bound in bytes.
///
/// An empty image is made by `qemu-img` once per size and then copied: a millisecond instead of a process per cut.
pub(crate) async fn scratch(folder: &Folder, place: usize, size: u64, bounds: Bounds) -> Result<(PathBuf, u64), Fault> {
    let made = make_scratch(folder, place, size, bounds).await;
    made.map_err(|why| folder.fault("cannot be given scratch for a cut", why))
}

async fn make_scratch(folder: &Folder, place: usize, size: u64, bounds: Bounds) -> Result<(PathBuf, u64), String> {
    let told = |why: std::io::Error| why.to_string();
    let home = folder.file("scratch");
    std::fs::create_dir_all(&home).map_err(told)?;
    let template = home.join(format!("empty-{size}.qcow2"));
    if !template.exists() {
        let fresh = home.join(format!("empty-{size}-{place}.new"));
        image::create_empty(&fresh, size).await?;
        std::fs::rename(&fresh, &template).map_err(told)?;
    }
    let path = scratch_path(folder, place);
    let _ = tokio::fs::remove_file(&path).await;
    let used = tokio::fs::copy(&template, &path).await.map_err(told)?;
    let wanted = bounds.scratch_bytes.unwrap_or((size / 4).max(64 << 20));
    let bound = wanted.max(used + (1 << 20)).next_multiple_of(64 << 10);
    let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(told)?;
    file.set_len(bound).map_err(told)?;
    Ok((path, bound))
}

fn scratch_path(folder: &Folder, place: usize) -> PathBuf {
    folder.file("scratch").join(format!("cut-{place}"))
}

/// Commands that open a scratch file; nothing in the guest's way yet. The warning comes at 7/8 of the bound.
pub(crate) fn open_scratch(place: usize, path: &Path, bound: u64) -> Vec<Command> {
    // What is in it is worthless after a crash, so nothing is ever synced.
    let file = json!({ "driver": "file", "filename": path, "cache": { "no-flush": true } });
    let raw =
        json!({ "driver": "raw", "node-name": format!("scratch-{place}"), "offset": 0, "size": bound, "file": file });
    vec![
        Command::new("blockdev-add", raw),
        Command::new(
            "blockdev-add",
            json!({ "driver": "qcow2", "node-name": format!("fleece-{place}"), "file": format!("scratch-{place}") }),
        ),
        Command::new(
            "block-set-write-threshold",
            json!({ "node-name": format!("scratch-{place}"), "write-threshold": bound / 8 * 7 }),
        ),
    ]
}

/// Commands that put the filter into the guest's way. Only for a guest that stands still.
pub(crate) fn insert(place: usize, node: &str, bounds: Bounds) -> Vec<Command> {
    let filter = format!("cbw-{place}");
    let cbw = json!({
        "driver": "copy-before-write", "node-name": filter, "file": node, "target": format!("fleece-{place}"),
        "on-cbw-error": "break-snapshot", "cbw-timeout": bounds.patience_seconds, "discard": "unmap",
    });
    vec![
        Command::new("blockdev-add", cbw),
        Command::new("qom-set", drive(place, &filter)),
        Command::new("blockdev-add", json!({ "driver": "snapshot-access", "node-name": past(place), "file": filter })),
    ]
}

fn drive(place: usize, node: &str) -> Value {
    json!({ "path": format!("/machine/peripheral/{}", device(place)), "property": "drive", "value": node })
}

/// Takes away whatever there is of a cut, finished or half made, by whomever; `nodes` are the disks. Safe to repeat.
pub(crate) async fn sweep(folder: &Folder, qmp: &mut Qmp, nodes: &[String]) -> Result<(), QmpError> {
    end_exports(qmp, nodes.len()).await?;
    let all = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
    let all: Vec<String> =
        all.as_array().into_iter().flatten().filter_map(|n| n["node-name"].as_str().map(String::from)).collect();
    let mut steps = Vec::new();
    for (place, node) in nodes.iter().enumerate() {
        let filter = format!("cbw-{place}");
        if all.contains(&past(place)) {
            steps.push(Command::new("blockdev-del", json!({ "node-name": past(place) })));
        }
        if all.contains(&filter) {
            let path = format!("/machine/peripheral/{}", device(place));
            let now = qmp.execute("qom-get", json!({ "path": path, "property": "drive" })).await?;
            if now == filter.as_str() {
                steps.push(Command::new("qom-set", drive(place, node)));
            }
        }
        for node in [filter, format!("fleece-{place}"), format!("scratch-{place}")] {
            if all.contains(&node) {
                steps.push(Command::new("blockdev-del", json!({ "node-name": node })));
            }
        }
    }
    for result in qmp.burst(&steps).await? {
        result?;
    }
    for place in 0..nodes.len() {
        let _ = std::fs::remove_file(scratch_path(folder, place));
    }
    Ok(())
}

/// Ends the exports of a cut and waits until their clients are gone.
async fn end_exports(qmp: &mut Qmp, disks: usize) -> Result<(), QmpError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let all = qmp.execute("query-block-exports", Value::Null).await?;
        let mut left = false;
        for found in all.as_array().into_iter().flatten() {
            if !(0..disks).any(|place| found["id"] == *export(place)) {
                continue;
            }
            left = true;
            if found["shutting-down"] == false {
                // It may have ended by itself in between; the next look tells.
                let end = json!({ "id": found["id"], "mode": "hard" });
                let _ = qmp.execute("block-export-del", end).await;
            }
        }
        if !left {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            return Err(QmpError::Silent("the end of an export".into()));
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
