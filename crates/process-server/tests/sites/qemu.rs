//! The machine at home under a real QEMU, in a test's hand. Its guest sits in the firmware and writes nothing: writes are
//! made through its devices, where a filter sees them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use platforms::qemu::Qemu;
use platforms::{Platform, Start};
use protocol::epoch::DiskSize;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec, Power};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::{NAME, disks};

/// A site with one machine. Its QEMU ends with it.
pub struct Home {
    dir: tempfile::TempDir,
    pub platform: Qemu,
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            kill(pid);
        }
    }
}

impl Home {
    /// A defined machine with empty disks of this format.
    pub async fn new(format: DiskFormat) -> Home {
        Home::with(format, disks()).await
    }

    /// The same with other disks.
    pub async fn with(format: DiskFormat, disks: Vec<DiskSize>) -> Home {
        let dir = tempfile::Builder::new().prefix("skh").tempdir().unwrap();
        let platform = Qemu::open(dir.path()).unwrap();
        let mut specs = Vec::new();
        for (place, disk) in disks.into_iter().enumerate() {
            let path = dir.path().join(format!("disk{place}.img")).to_string_lossy().into_owned();
            let word = if format == DiskFormat::Raw { "raw" } else { "qcow2" };
            run("qemu-img", &["create", "-q", "-f", word, &path, &disk.size.to_string()]).await;
            specs.push(DiskSpec { key: disk.disk, size: disk.size, source: DiskSource::Own { path, format } });
        }
        let native = std::collections::BTreeMap::new();
        let (boot, name) = (Boot::Firmware, NAME.into());
        platform
            .define(&MachineSpec {
                name,
                memory_mib: 64,
                vcpus: 1,
                boot,
                disks: specs,
                cards: vec![],
                seed: None,
                native,
            })
            .await
            .unwrap();
        Home { dir, platform }
    }

    pub fn image(&self, place: usize) -> PathBuf {
        self.dir.path().join(format!("disk{place}.img"))
    }

    /// The folder in which the platform keeps what it knows of the machine.
    pub fn folder(&self) -> PathBuf {
        self.platform.machine_dir(NAME).unwrap()
    }

    pub async fn start(&self) {
        self.platform.start(NAME, Start::default()).await.unwrap();
    }

    fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.folder().join("pid")).ok()?.trim().parse().ok()
    }

    /// Kills its QEMU.
    pub async fn kill(&self) {
        kill(self.pid().unwrap());
        while self.platform.machine(NAME).await.unwrap().unwrap().power != Power::Off {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Writes `length` bytes of `value` as the guest would, and flushes them.
    pub async fn write(&self, place: usize, offset: u64, length: u64, value: u8) {
        self.write_only(place, offset, length, value).await;
        self.request(place, "flush").await;
    }

    /// Writes them and flushes nothing.
    pub async fn write_only(&self, place: usize, offset: u64, length: u64, value: u8) {
        self.request(place, &format!("write -P {value} {offset} {length}")).await;
    }

    async fn request(&self, place: usize, request: &str) {
        let line = format!("qemu-io -d /machine/peripheral/dev-{place}/virtio-backend \"{request}\"");
        let said = self.qmp("human-monitor-command", json!({ "command-line": line })).await;
        assert!(!said.as_str().unwrap().contains("rror"), "{said}");
    }

    /// The bytes of a disk that nobody writes at the moment.
    pub async fn content(&self, place: usize) -> Vec<u8> {
        let plain = self.dir.path().join("plain");
        let (image, out) = (self.image(place).to_string_lossy().into_owned(), plain.to_string_lossy().into_owned());
        run("qemu-img", &["convert", "-U", "-O", "raw", &image, &out]).await;
        std::fs::read(plain).unwrap()
    }

    async fn qmp(&self, command: &str, arguments: Value) -> Value {
        let (reader, mut writer) = UnixStream::connect(self.folder().join("life-2.sock")).await.unwrap().into_split();
        let mut lines = BufReader::new(reader).lines();
        lines.next_line().await.unwrap().unwrap();
        let mut answer = Value::Null;
        for (command, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
            let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
            writer.write_all(line.as_bytes()).await.unwrap();
            loop {
                answer = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
                if answer.get("event").is_none() {
                    break;
                }
            }
            assert!(answer.get("error").is_none(), "{answer}");
        }
        answer["return"].take()
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Runs a program to its end, which must be a good one. Gives what it printed.
pub async fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let ended = tokio::process::Command::new(program).args(arguments).output().await.unwrap();
    assert!(ended.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    ended.stdout
}

/// Copies a file as `cp` with these words does.
pub async fn copy(words: &[&str], from: &Path, to: &Path) {
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    run("cp", &[words, &[&from, &to]].concat()).await;
}
