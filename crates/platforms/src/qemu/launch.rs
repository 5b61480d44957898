//! Launching QEMU: the command line of a machine, and a process that outlives ours.
//!
//! ```text
//!   guest's disk n:   virtio-blk-pci dev-n, serial = disk key
//!                          │ drive
//!          disk-n or over-n   (a disk of the platform's own, or an overlay; capture puts a filter here while a cut is open)
//!                          │ backing, for an overlay
//!                     view-n  (NBD; waits 300 s for a server that restarts instead of failing the guest's reads)
//!                 or share-n  (a disk of the platform's own, while it is being folded: see `fold`)
//! ```
//! Nodes are named by a disk's place in the description: QEMU's names are too short for a disk key.
//!
//! # Always true
//! - The guest's processors stand still at launch; only [`super::start`] lets them go, after tracking is in place.
//! - QEMU belongs to no process of ours: it runs in a session of its own, and `-no-shutdown` keeps it when the guest ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nbd::Address;
use protocol::Fault;
use protocol::fault::code;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{accelerator, agent, firmware};
use crate::guest::seed;
use crate::host::folder::{self, Folder};
use crate::host::image;

/// How long QEMU may take until it runs; connecting a view is in it.
const PATIENCE: Duration = Duration::from_secs(60);
/// For how long the guest's reads wait for a view whose server went away, in seconds.
const RECONNECT_SECONDS: u64 = 300;
/// How long QEMU tries to reach a view at launch, in seconds.
const OPEN_SECONDS: u64 = 10;
/// The longest serial number that virtio-blk passes on (`VIRTIO_BLK_ID_BYTES`).
pub(crate) const LONGEST_SERIAL: usize = 20;

/// The node of a disk of the platform's own at this place.
pub(crate) fn own(place: usize) -> String {
    format!("disk-{place}")
}

/// The node of the overlay at this place.
pub(crate) fn overlay(place: usize) -> String {
    format!("over-{place}")
}

/// The node of what an overlay stands on that another program may have open.
pub(crate) fn share(place: usize) -> String {
    format!("share-{place}")
}

/// The node of a view under an overlay.
pub(crate) fn view(place: usize) -> String {
    format!("view-{place}")
}

/// The node that is the machine's disk at this place.
pub(crate) fn node(place: usize, disk: &DiskSpec) -> String {
    if disk.source.overlay().is_some() { overlay(place) } else { own(place) }
}

/// The guest's device for the disk at this place.
pub(crate) fn device(place: usize) -> String {
    format!("dev-{place}")
}

/// Whether a bitmap on the disk can outlive QEMU.
pub(crate) fn keeps_bitmaps(disk: &DiskSpec) -> bool {
    !matches!(disk.source, DiskSource::Own { format: DiskFormat::Raw, .. })
}

/// Every disk's node, and whether it can keep bitmaps.
pub(crate) fn nodes(spec: &MachineSpec) -> Vec<(String, bool)> {
    spec.disks.iter().enumerate().map(|(place, disk)| (node(place, disk), keeps_bitmaps(disk))).collect()
}

/// Launches QEMU with the guest's processors standing still.
pub(crate) async fn launch(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    prepare(folder).map_err(|why| folder.fault("cannot be launched", why))?;
    let arguments = arguments(folder, spec, accelerator::best().await)?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(&arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = output.map_err(|_| folder.fault("could not be launched", "QEMU did not start in time"))?;
    let output = output.map_err(|why| folder.fault("could not be launched", format!("qemu-system-x86_64: {why}")))?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_string();
    if output.status.success() {
        if !words.is_empty() {
            tracing::debug!(machine = folder.name(), words, "QEMU's words at launch");
        }
        return Ok(());
    }
    if words.contains("Is another process using the image") {
        return Err(Fault::new(code::DISK_IN_USE, format!("machine {} cannot have its disks", folder.name()), words));
    }
    Err(folder.fault("could not be launched", words))
}

/// Removes what a killed QEMU left and makes the FIFOs of the capture monitor and of the guest's agent anew, since old ones may
/// hold half a sentence.
fn prepare(folder: &Folder) -> std::io::Result<()> {
    const FIFOS: [&str; 4] = ["capture.in", "capture.out", "agent.in", "agent.out"];
    for name in ["pid", "nbd.sock", "power-taken"].into_iter().chain(FIFOS) {
        folder::remove_file(&folder.file(name))?;
    }
    agent::forget(folder)?;
    for name in FIFOS {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, folder.file(name), rustix::fs::FileType::Fifo, mode, 0)?;
    }
    Ok(())
}

fn arguments(folder: &Folder, spec: &MachineSpec, accelerator: &str) -> Result<Vec<String>, Fault> {
    let mut words: Vec<String> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "pc",
        "-accel",
        accelerator,
        "-S",
        "-no-shutdown",
        "-daemonize",
    ]
    .map(String::from)
    .to_vec();
    let mut say = |flag: &str, value: String| words.extend([flag.to_string(), value]);
    let path = |path: &Path| escaped(&path.to_string_lossy());
    say("-name", format!("guest={}", folder.name()));
    say("-pidfile", folder.file("pid").to_string_lossy().into_owned());
    say("-m", format!("{}M", spec.memory_mib));
    say("-smp", spec.vcpus.to_string());
    for (n, socket) in folder.life_sockets().iter().enumerate() {
        say("-chardev", format!("socket,id=life-{n},path={},server=on,wait=off", path(socket)));
        say("-mon", format!("chardev=life-{n},mode=control"));
    }
    say("-chardev", format!("pipe,id=capture,path={}", path(&folder.file("capture"))));
    say("-mon", "chardev=capture,mode=control".into());
    say("-chardev", format!("file,id=console,path={},append=on", path(&folder.file("console.log"))));
    say("-serial", "chardev:console".into());
    if let Boot::Kernel { kernel, initrd, command_line } = &spec.boot {
        say("-kernel", folder.boot_path(kernel).to_string_lossy().into_owned());
        if !initrd.is_empty() {
            say("-initrd", folder.boot_path(initrd).to_string_lossy().into_owned());
        }
        say("-append", command_line.clone());
    }
    firmware::arguments(folder, spec)?.into_iter().for_each(|(flag, value)| say(flag, value));
    for (place, disk) in spec.disks.iter().enumerate() {
        for block in blocks(folder, place, disk)? {
            say("-blockdev", block.to_string());
        }
        let boot = if place == 0 { ",bootindex=1" } else { "" };
        say(
            "-device",
            format!("virtio-blk-pci,id={},drive={},serial={}{boot}", device(place), node(place, disk), disk.key),
        );
    }
    super::network::arguments(spec).into_iter().for_each(|(flag, value)| say(flag, value));
    // Behind everything else, so that nothing else has another place on the bus than it had without.
    say("-chardev", format!("pipe,id={},path={}", agent::CHANNEL, path(&folder.file("agent"))));
    say("-device", "virtio-serial-pci,id=serial".into());
    say("-device", format!("virtserialport,chardev={},name=org.qemu.guest_agent.0", agent::CHANNEL));
    if spec.seed.is_some() {
        let file = json!({ "driver": "file", "filename": seed::path(folder), "read-only": true });
        say("-blockdev", json!({ "driver": "raw", "node-name": "seed", "read-only": true, "file": file }).to_string());
        say("-device", format!("virtio-blk-pci,id=seed,drive=seed,serial={}", seed::SERIAL));
    }
    Ok(words)
}

/// The nodes of one disk, bottom first.
fn blocks(folder: &Folder, place: usize, disk: &DiskSpec) -> Result<Vec<Value>, Fault> {
    match &disk.source {
        DiskSource::Own { path, format } => Ok(vec![own_block(folder, &own(place), path, *format)]),
        DiskSource::OverlayOnOwn { overlay, path, format } => {
            Ok(vec![shared_block(folder, place, path, *format), overlay_block(folder, place, overlay, &share(place))])
        }
        DiskSource::OverlayOnView { overlay, view } => {
            let uri: nbd::Uri =
                view.parse().map_err(|why: nbd::Error| folder.fault("has a view that cannot be reached", why))?;
            let server = match &uri.address {
                Address::Unix(path) => json!({ "type": "unix", "path": path }),
                Address::Tcp(at) => {
                    json!({ "type": "inet", "host": at.ip().to_string(), "port": at.port().to_string() })
                }
            };
            let view = json!({
                "driver": "nbd", "node-name": self::view(place), "server": server, "export": uri.export,
                "read-only": true, "reconnect-delay": RECONNECT_SECONDS, "open-timeout": OPEN_SECONDS,
            });
            Ok(vec![view, overlay_block(folder, place, overlay, &self::view(place))])
        }
    }
}

fn file_block(path: &Path) -> Value {
    let cache = json!({ "direct": image::takes_direct(path) });
    json!({ "driver": image::driver(path), "filename": path, "discard": "unmap", "cache": cache })
}

/// The overlay at this place, over the node `backing`.
fn overlay_block(folder: &Folder, place: usize, overlay: &str, backing: &str) -> Value {
    let mut file = file_block(&folder.overlay_path(overlay));
    let cache = file["cache"].clone();
    // Named, so that it can be named again when the backing is changed.
    file["node-name"] = format!("file-{place}").into();
    json!({
        "driver": "qcow2", "node-name": self::overlay(place), "discard": "unmap", "cache": cache, "file": file,
        "backing": backing,
    })
}

/// The overlay at this place, opened already, over another backing.
pub(crate) fn rebased(folder: &Folder, place: usize, overlay: &str, backing: &str) -> Value {
    let mut block = overlay_block(folder, place, overlay, backing);
    block["file"] = format!("file-{place}").into();
    block
}

/// A disk of the platform's own as the node `name`.
pub(crate) fn own_block(folder: &Folder, name: &str, path: &str, format: DiskFormat) -> Value {
    let file = file_block(&folder.disk_path(path));
    let cache = file["cache"].clone();
    let driver = match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    json!({ "driver": driver, "node-name": name, "discard": "unmap", "cache": cache, "file": file })
}

/// A disk that another program has open too and nobody writes, under an overlay.
pub(crate) fn shared_block(folder: &Folder, place: usize, path: &str, format: DiskFormat) -> Value {
    let mut block = own_block(folder, &share(place), path, format);
    block["read-only"] = true.into();
    block["force-share"] = true.into();
    block
}

/// A value inside QEMU's comma-separated options.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_stands_still_and_finds_its_disks_by_serial_number() {
        let site = tempfile::tempdir().unwrap();
        let folder = Folder::new(site.path(), "m").unwrap();
        let overlay = json!({ "overlay_on_view": { "overlay": "o", "view": "nbd+unix:///x?socket=/tmp/a,b" } });
        let disks = json!([
            { "key": "root", "size": 1, "source": { "own": { "path": "a,b.img", "format": "raw" } } },
            { "key": "data", "size": 1, "source": overlay },
        ]);
        let spec = json!({ "name": "m", "memory_mib": 96, "vcpus": 2, "boot": "firmware", "disks": disks });
        let words = arguments(&folder, &serde_json::from_value(spec).unwrap(), "tcg").unwrap();
        assert!(words.contains(&"-S".to_string()) && words.contains(&"-no-shutdown".to_string()));
        assert!(words.iter().any(|word| word.contains("drive=over-1,serial=data")));
        let blocks: Vec<Value> = words.iter().filter_map(|word| serde_json::from_str(word).ok()).collect();
        let named = |name: &str| blocks.iter().find(|block| block["node-name"] == name).unwrap();
        assert_eq!(named("disk-0")["file"]["filename"], json!(site.path().join("a,b.img")));
        assert_eq!(named("view-1")["reconnect-delay"], 300);
        assert_eq!(named("view-1")["server"]["path"], "/tmp/a,b");
        assert_eq!(named("over-1")["backing"], "view-1");
    }
}
