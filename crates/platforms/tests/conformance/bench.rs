//! The platforms under test, and what a test does to them from outside.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
mod daemon;

pub use daemon::{LibvirtBench, libvirt};
use platforms::Platform;
use platforms::qemu::Qemu;
use platforms::simulated::Simulated;
use protocol::DiskKey;
use protocol::machine::{DiskFormat, DiskSource};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// A disk overwritten by more than this breaks an open cut (with room for what an empty scratch image takes).
pub const SCRATCH: u64 = 1 << 20;

/// What a test can do that no platform's contract offers.
#[async_trait]
pub trait Bench: Send + Sync {
    fn platform(&self) -> &dyn Platform;
    /// A folder of the test's own.
    fn dir(&self) -> PathBuf;
    /// A new empty disk of the platform's own.
    async fn own(&self, name: &str, format: DiskFormat, size: u64) -> DiskSource;
    /// Writes `length` bytes of `value` as the guest would.
    async fn write(&self, machine: &str, place: usize, key: &DiskKey, offset: u64, length: u64, value: u8);
    /// Makes what the guest wrote durable, as its flush does.
    async fn flush(&self, machine: &str, place: usize);
    /// The bytes of one of the platform's own disks, of a machine that is off.
    async fn read_own(&self, source: &DiskSource) -> Vec<u8>;
    /// Kills the machine's hypervisor.
    async fn kill(&self, machine: &str);
    /// From now on the machine's scratch is [`SCRATCH`].
    fn limit_scratch(&self, machine: &str);
    /// The format on which a claim about change maps can be made that is made on this one.
    fn tracked(&self, format: DiskFormat) -> DiskFormat {
        format
    }
    /// Whether an open cut can still be read after the machine's power was taken.
    fn keeps_cuts(&self) -> bool {
        true
    }
    /// The guest does not listen. (A guest in the firmware does not, anyway.)
    fn make_deaf(&self, machine: &str);
}

pub struct SimulatedBench {
    platform: Simulated,
    dir: tempfile::TempDir,
}

pub async fn simulated() -> SimulatedBench {
    let dir = tempfile::tempdir().unwrap();
    SimulatedBench { platform: Simulated::open(dir.path()).await.unwrap(), dir }
}

impl SimulatedBench {
    pub fn simulated(&self) -> &Simulated {
        &self.platform
    }
}

#[async_trait]
impl Bench for SimulatedBench {
    fn platform(&self) -> &dyn Platform {
        &self.platform
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    async fn own(&self, name: &str, format: DiskFormat, size: u64) -> DiskSource {
        self.platform.put_disk(name, vec![0; size as usize]);
        DiskSource::Own { path: name.into(), format }
    }

    async fn write(&self, machine: &str, _: usize, key: &DiskKey, offset: u64, length: u64, value: u8) {
        self.platform.write(machine, key, offset, &vec![value; length as usize]).unwrap();
    }

    async fn flush(&self, _: &str, _: usize) {}

    async fn read_own(&self, source: &DiskSource) -> Vec<u8> {
        let DiskSource::Own { path, .. } = source else { panic!("not its own") };
        self.platform.disk(path).unwrap()
    }

    async fn kill(&self, machine: &str) {
        self.platform.kill(machine).unwrap();
    }

    fn limit_scratch(&self, machine: &str) {
        self.platform.limit_scratch(machine, SCRATCH).unwrap();
    }

    fn make_deaf(&self, machine: &str) {
        self.platform.ignore_shutdown(machine, true).unwrap();
    }
}

pub struct QemuBench {
    platform: Qemu,
    dir: tempfile::TempDir,
}

pub async fn qemu() -> QemuBench {
    let dir = tempfile::Builder::new().prefix("plt").tempdir().unwrap();
    QemuBench { platform: Qemu::open(dir.path()).unwrap().with_scratch_bytes(SCRATCH), dir }
}

impl QemuBench {
    fn pids(&self) -> Vec<i32> {
        let machines = std::fs::read_dir(self.dir.path().join("machines")).unwrap().flatten();
        let pids = machines.filter_map(|machine| std::fs::read_to_string(machine.path().join("pid")).ok());
        pids.filter_map(|pid| pid.trim().parse().ok()).collect()
    }

    pub fn machine_dir(&self, machine: &str) -> PathBuf {
        self.platform.machine_dir(machine).unwrap()
    }

    /// A request through the device's own connection to its disk, as the guest's go.
    pub async fn io(&self, machine: &str, place: usize, request: &str) {
        let line = format!("qemu-io -d /machine/peripheral/dev-{place}/virtio-backend \"{request}\"");
        let socket = self.platform.machine_dir(machine).unwrap().join("life-2.sock");
        let said = qmp(socket, "human-monitor-command", json!({ "command-line": line })).await;
        assert!(!said.as_str().unwrap().contains("rror"), "{said}");
    }
}

impl Drop for QemuBench {
    fn drop(&mut self) {
        self.pids().into_iter().for_each(kill);
    }
}

fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Runs a program to its end, which must be a good one. Gives what it printed.
pub async fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let ended = tokio::process::Command::new(program).args(arguments).output().await.unwrap();
    assert!(ended.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    ended.stdout
}

/// Runs one command on one of a machine's monitors.
pub async fn qmp(socket: PathBuf, command: &str, arguments: Value) -> Value {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    lines.next_line().await.unwrap().unwrap();
    for (command, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        writer.write_all(line.as_bytes()).await.unwrap();
        loop {
            let answer: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            if answer.get("event").is_some() {
                continue;
            }
            assert!(answer.get("error").is_none(), "{answer}");
            if command != "qmp_capabilities" {
                return answer["return"].clone();
            }
            break;
        }
    }
    unreachable!("the second command was answered")
}

#[async_trait]
impl Bench for QemuBench {
    fn platform(&self) -> &dyn Platform {
        &self.platform
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    async fn own(&self, name: &str, format: DiskFormat, size: u64) -> DiskSource {
        let path = self.dir.path().join(name);
        let word = if format == DiskFormat::Raw { "raw" } else { "qcow2" };
        let made = tokio::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", word])
            .arg(path)
            .arg(size.to_string())
            .status()
            .await;
        assert!(made.unwrap().success());
        DiskSource::Own { path: name.into(), format }
    }

    async fn write(&self, machine: &str, place: usize, _: &DiskKey, offset: u64, length: u64, value: u8) {
        self.io(machine, place, &format!("write -P {value} {offset} {length}")).await;
    }

    async fn flush(&self, machine: &str, place: usize) {
        self.io(machine, place, "flush").await;
    }

    async fn read_own(&self, source: &DiskSource) -> Vec<u8> {
        let DiskSource::Own { path, format } = source else { panic!("not its own") };
        let path = self.dir.path().join(path);
        if *format == DiskFormat::Raw {
            return std::fs::read(path).unwrap();
        }
        let plain = path.with_extension("plain");
        let made = tokio::process::Command::new("qemu-img")
            .args(["convert", "-O", "raw"])
            .arg(path)
            .arg(&plain)
            .status()
            .await;
        assert!(made.unwrap().success());
        std::fs::read(plain).unwrap()
    }

    async fn kill(&self, machine: &str) {
        let pid = std::fs::read_to_string(self.platform.machine_dir(machine).unwrap().join("pid")).unwrap();
        kill(pid.trim().parse().unwrap());
        while self.platform.machine(machine).await.unwrap().unwrap().power != protocol::machine::Power::Off {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn limit_scratch(&self, _: &str) {}

    fn make_deaf(&self, _: &str) {}
}

/// A view: bytes that are served, and stop being served when this is dropped.
pub struct View {
    _server: nbd::Server,
    pub uri: nbd::Uri,
}

struct Bytes(Vec<u8>);

#[async_trait]
impl nbd::Export for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, length: u32) -> Result<bytes::Bytes, nbd::ErrorCode> {
        Ok(bytes::Bytes::copy_from_slice(&self.0[offset as usize..offset as usize + length as usize]))
    }
}

/// Serves `content` on a socket in `dir`.
pub async fn view(dir: PathBuf, content: Vec<u8>) -> View {
    let socket = dir.join("view.sock");
    let server = nbd::Server::bind(&nbd::Address::Unix(socket.clone())).await.unwrap();
    server.add("point", Arc::new(Bytes(content)));
    View { _server: server, uri: nbd::Uri::unix(socket, "point") }
}
