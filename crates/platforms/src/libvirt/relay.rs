//! Between a view and the overlay that stands on it: a small server of QEMU's own that waits for the view when it goes away.
//!
//! ```text
//!   guest ─► overlay ─► <machine's folder>/view-KEY.sock ─ qemu-nbd ─► the view (away for up to five minutes: reads wait)
//! ```
//! libvirt (9.0) passes no reconnect delay on for what is beneath a disk: without this a master target that is started again
//! would give the guest errors. It outlives us, as the machine does.
//!
//! # If power fails
//! It is gone, as the machine is: a start begins it anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nbd::{Address, Uri};
use protocol::machine::{DiskSource, MachineSpec};
use protocol::{DiskKey, Fault};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::process::Command;

use crate::host::folder::Folder;

/// For how long reads wait for a view whose server went away, in seconds.
const RECONNECT_SECONDS: u64 = 300;
/// How long a view may take to be reached at first, in seconds.
const OPEN_SECONDS: u64 = 10;
/// How long the server may take to listen: reaching the view is in it.
const PATIENCE: Duration = Duration::from_secs(30);
/// The views beneath the machine's overlays, as the description names them.
const VIEWS: &str = "views.json";

/// Where the overlay of a disk finds its view.
pub(crate) fn socket(folder: &Folder, key: &DiskKey) -> PathBuf {
    folder.file(&format!("view-{key}.sock"))
}

fn pid_file(folder: &Folder, key: &DiskKey) -> PathBuf {
    folder.file(&format!("view-{key}.pid"))
}

/// Writes down which views the machine's overlays stand on.
pub(crate) fn note(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    let of = |source: &DiskSource| match source {
        DiskSource::OverlayOnView { view, .. } => Some(view.clone()),
        DiskSource::Own { .. } | DiskSource::OverlayOnOwn { .. } => None,
    };
    let views: BTreeMap<&DiskKey, String> =
        spec.disks.iter().filter_map(|disk| Some((&disk.key, of(&disk.source)?))).collect();
    folder.write(VIEWS, &views)
}

/// The views that were written down.
pub(crate) fn views(folder: &Folder) -> Result<BTreeMap<DiskKey, String>, Fault> {
    Ok(folder.read(VIEWS)?.unwrap_or_default())
}

/// Begins to relay every view of the machine that is not relayed yet.
pub(crate) async fn begin(folder: &Folder) -> Result<(), Fault> {
    for (key, view) in views(folder)? {
        if running(folder, &key).is_none() {
            let begun = relay(folder, &key, &view).await;
            begun.map_err(|why| folder.fault(&format!("cannot reach the view under disk {key}"), why))?;
        }
    }
    Ok(())
}

async fn relay(folder: &Folder, key: &DiskKey, view: &str) -> Result<(), String> {
    let uri: Uri = view.parse().map_err(|why: nbd::Error| why.to_string())?;
    let server = match &uri.address {
        Address::Unix(path) => json!({ "type": "unix", "path": path }),
        Address::Tcp(at) => json!({ "type": "inet", "host": at.ip().to_string(), "port": at.port().to_string() }),
    };
    let view = json!({
        "driver": "nbd", "server": server, "export": uri.export,
        "reconnect-delay": RECONNECT_SECONDS, "open-timeout": OPEN_SECONDS,
    });
    let image = json!({ "driver": "raw", "file": view });
    let _ = std::fs::remove_file(socket(folder, key));
    let mut command = Command::new("qemu-nbd");
    command.args([
        "--fork",
        "--persistent",
        "--shared=0",
        "--read-only",
        "--format=raw",
        "--export-name=",
        "--pid-file",
    ]);
    command.arg(pid_file(folder, key)).arg("--socket").arg(socket(folder, key)).arg(format!("json:{image}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| "it did not answer in time")?;
    let ended = ended.map_err(|why| format!("qemu-nbd cannot be run: {why}"))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&ended.stderr).trim().to_string()),
    }
}

/// The process that relays a disk's view, if one does: its command line names the socket.
fn running(folder: &Folder, key: &DiskKey) -> Option<Pid> {
    let pid: i32 = std::fs::read_to_string(pid_file(folder, key)).ok()?.trim().parse().ok()?;
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let names = |path: &Path| line.split(|byte| *byte == 0).any(|word| word == path.as_os_str().as_encoded_bytes());
    if names(&socket(folder, key)) { Pid::from_raw(pid) } else { None }
}

/// Ends them: the machine is off.
pub(crate) fn end(folder: &Folder) -> Result<(), Fault> {
    for (key, _) in views(folder)? {
        if let Some(pid) = running(folder, &key) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    Ok(())
}
