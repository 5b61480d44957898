//! What overlays stand on: a small server of QEMU's own between an overlay and the view, or the disk, beneath it.
//!
//! ```text
//!   guest ─► overlay ─► <machine's folder>/run/view-KEY.sock ─ qemu-storage-daemon ─► the view (away for up to five minutes: reads wait)
//!                                                                            └──► from stand_on to fold: a disk of the platform's own
//! ```
//! libvirt (9.0) passes no reconnect delay on for what is beneath a disk: without this a master target that is started again
//! would give the guest errors. Nor can libvirt put a running overlay on another disk: here that is one command. The server
//! outlives us, as the machine does.
//!
//! # Always true
//! - What an overlay stands on is written down before the server reads it from there.
//!
//! # If power fails
//! It is gone, as the machine is: a start begins it anew, on what is written down.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nbd::{Address, Uri};
use protocol::machine::{DiskFormat, DiskSource, MachineSpec};
use protocol::{DiskKey, Fault};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

use super::access::{self, RUN};
use crate::host::folder::Folder;
use crate::host::image;
use crate::qemu::qmp::{Qmp, QmpError};

/// For how long reads wait for a view whose server went away, in seconds.
const RECONNECT_SECONDS: u64 = 300;
/// How long a view may take to be reached at first, in seconds.
const OPEN_SECONDS: u64 = 10;
/// How long the server may take to listen: reaching the view is in it.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is beneath the machine's overlays.
const NOTE: &str = "beneath.json";
/// The node that is served, whatever it stands on.
const SERVED: &str = "served";

/// What is beneath an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Beneath {
    /// A view, by its URI.
    View(String),
    /// A disk of the platform's own, which nobody else writes.
    Own { path: String, format: DiskFormat },
}

impl Beneath {
    /// The disk that stands on it with this overlay.
    pub fn under(self, overlay: String) -> DiskSource {
        match self {
            Beneath::View(view) => DiskSource::OverlayOnView { overlay, view },
            Beneath::Own { path, format } => DiskSource::OverlayOnOwn { overlay, path, format },
        }
    }

    fn of(source: &DiskSource) -> Option<Beneath> {
        match source {
            DiskSource::Own { .. } => None,
            DiskSource::OverlayOnView { view, .. } => Some(Beneath::View(view.clone())),
            DiskSource::OverlayOnOwn { path, format, .. } => Some(Beneath::Own { path: path.clone(), format: *format }),
        }
    }

    /// The name of the server's node for it.
    fn node(&self) -> &'static str {
        match self {
            Beneath::View(_) => "view",
            Beneath::Own { .. } => "own",
        }
    }

    /// The node as the server opens it: read only, and no lock is taken on a disk that others have open.
    fn block(&self, folder: &Folder) -> Result<Value, String> {
        match self {
            Beneath::View(view) => {
                let uri: Uri = view.parse().map_err(|why: nbd::Error| why.to_string())?;
                let server = match &uri.address {
                    Address::Unix(path) => json!({ "type": "unix", "path": path }),
                    Address::Tcp(at) => {
                        json!({ "type": "inet", "host": at.ip().to_string(), "port": at.port().to_string() })
                    }
                };
                Ok(json!({
                    "driver": "nbd", "node-name": self.node(), "server": server, "export": uri.export,
                    "reconnect-delay": RECONNECT_SECONDS, "open-timeout": OPEN_SECONDS, "read-only": true,
                }))
            }
            Beneath::Own { path, format } => {
                let path = folder.disk_path(path);
                let driver = match format {
                    DiskFormat::Raw => "raw",
                    DiskFormat::Qcow2 => "qcow2",
                };
                let file =
                    json!({ "driver": image::driver(&path), "filename": path, "locking": "off", "read-only": true });
                Ok(json!({
                    "driver": driver, "node-name": self.node(), "file": file, "read-only": true, "force-share": true,
                }))
            }
        }
    }
}

fn served(on: &Beneath) -> Value {
    json!({ "driver": "raw", "node-name": SERVED, "file": on.node(), "read-only": true })
}

/// Where the overlay of a disk finds what it stands on.
pub(crate) fn socket(folder: &Folder, key: &DiskKey) -> PathBuf {
    folder.file(RUN).join(format!("view-{key}.sock"))
}

fn monitor(folder: &Folder, key: &DiskKey) -> PathBuf {
    folder.file(&format!("view-{key}.qmp"))
}

fn pid_file(folder: &Folder, key: &DiskKey) -> PathBuf {
    folder.file(&format!("view-{key}.pid"))
}

/// Writes down what the machine's overlays stand on: as the last description says that speaks of a disk.
pub(crate) fn note<'a>(folder: &Folder, specs: impl IntoIterator<Item = &'a MachineSpec>) -> Result<(), Fault> {
    let disks = specs.into_iter().flat_map(|spec| &spec.disks);
    let beneath: BTreeMap<&DiskKey, Beneath> =
        disks.filter_map(|disk| Some((&disk.key, Beneath::of(&disk.source)?))).collect();
    folder.write(NOTE, &beneath)
}

/// What was written down.
pub(crate) fn noted(folder: &Folder) -> Result<BTreeMap<DiskKey, Beneath>, Fault> {
    Ok(folder.read(NOTE)?.unwrap_or_default())
}

/// Begins to serve what every overlay of the machine stands on, where that is not served yet.
pub(crate) async fn begin(folder: &Folder) -> Result<(), Fault> {
    for (key, beneath) in noted(folder)? {
        if running(folder, &key).is_none() {
            let begun = serve(folder, &key, &beneath).await;
            begun.map_err(|why| folder.fault(&format!("cannot reach what is beneath disk {key}"), why))?;
        }
    }
    Ok(())
}

async fn serve(folder: &Folder, key: &DiskKey, on: &Beneath) -> Result<(), String> {
    for stale in [socket(folder, key), monitor(folder, key)] {
        let _ = std::fs::remove_file(stale);
    }
    let (socket, monitor) = (socket(folder, key), monitor(folder, key));
    let server = json!({ "addr": { "type": "unix", "path": socket }, "max-connections": 0 });
    let export = json!({ "type": "nbd", "id": "served", "node-name": SERVED, "name": "", "writable": false });
    let chardev =
        format!("socket,id=monitor,server=on,wait=off,path={}", monitor.display().to_string().replace(',', ",,"));
    let mut command = Command::new("qemu-storage-daemon");
    command.args(["--daemonize", "--pidfile"]).arg(pid_file(folder, key));
    command.args(["--chardev", &chardev, "--monitor", "chardev=monitor"]);
    command.args(["--blockdev", &on.block(folder)?.to_string(), "--blockdev", &served(on).to_string()]);
    command.args(["--nbd-server", &server.to_string(), "--export", &export.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| "it did not answer in time")?;
    let ended = ended.map_err(|why| format!("qemu-storage-daemon cannot be run: {why}"))?;
    match ended.status.success() {
        true => {
            access::share(folder, &socket).map_err(|why| format!("QEMU cannot be let to {}: {why}", socket.display()))
        }
        false => Err(String::from_utf8_lossy(&ended.stderr).trim().to_string()),
    }
}

/// Lets the overlays that stand on views stand on these disks, which hold the same, from the next read on.
pub(crate) async fn stand_on(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    note(folder, [spec])?;
    for (key, beneath) in noted(folder)? {
        if running(folder, &key).is_some() {
            let moved = reopen(folder, &key, &beneath).await;
            moved.map_err(|why| folder.fault(&format!("cannot let disk {key} stand on its own disk"), why))?;
        }
    }
    Ok(())
}

async fn reopen(folder: &Folder, key: &DiskKey, on: &Beneath) -> Result<(), String> {
    let told = |why: QmpError| why.to_string();
    let mut qmp = Qmp::over_sockets(&[monitor(folder, key)]).await.map_err(told)?;
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await.map_err(told)?;
    let is_there = |name: &str| nodes.as_array().into_iter().flatten().any(|node| node["node-name"] == name);
    let before = ["view", "own"].into_iter().find(|name| *name != on.node() && is_there(name));
    if !is_there(on.node()) {
        qmp.execute("blockdev-add", on.block(folder)?).await.map_err(told)?;
    }
    qmp.execute("blockdev-reopen", json!({ "options": [served(on)] })).await.map_err(told)?;
    if let Some(before) = before {
        qmp.execute("blockdev-del", json!({ "node-name": before })).await.map_err(told)?;
    }
    Ok(())
}

/// The process that serves what is beneath a disk, if one does: its command line names its file.
fn running(folder: &Folder, key: &DiskKey) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(pid_file(folder, key)).ok()?.trim().parse().ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let names = |path: &Path| line.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_encoded_bytes());
    if names(&pid_file(folder, key)) { Pid::from_raw(pid) } else { None }
}

/// Ends them: nothing stands on them any more, or the machine is off.
pub(crate) fn end(folder: &Folder) -> Result<(), Fault> {
    for (key, _) in noted(folder)? {
        if let Some(pid) = running(folder, &key) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    Ok(())
}
