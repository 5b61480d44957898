//! The libvirt bench: a libvirtd of the test's own, and what its users do with virsh.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use guest::Libvirtd;
use platforms::Platform;
use platforms::libvirt::Libvirt;
use protocol::DiskKey;
use protocol::machine::{DiskFormat, DiskSource, Power};

use super::{Bench, kill, run};

pub struct LibvirtBench {
    platform: Libvirt,
    daemon: Libvirtd,
    dir: tempfile::TempDir,
}

pub async fn libvirt() -> LibvirtBench {
    let dir = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
    let daemon = Libvirtd::start(dir.path(), &dir.path().join("site"), &cache).unwrap();
    let platform = Libvirt::open(&daemon.uri(), &dir.path().join("site")).await.unwrap();
    LibvirtBench { platform, daemon, dir }
}

impl Drop for LibvirtBench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.daemon.log());
        }
    }
}

impl LibvirtBench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ends libvirtd and starts it again; the machines run on meanwhile.
    pub fn restart(&mut self) {
        self.daemon.restart().unwrap();
    }

    /// Where it may only be looked at.
    pub fn read_only_uri(&self) -> String {
        format!("{}-ro", self.daemon.uri())
    }

    /// Where it is reached.
    pub fn uri(&self) -> String {
        self.daemon.uri()
    }

    /// Runs virsh as a person would.
    pub async fn virsh(&self, words: &[&str]) -> String {
        let told = run("virsh", &[&["-q", "-c", &self.daemon.uri()], words].concat()).await;
        String::from_utf8(told).unwrap()
    }

    /// A request through the device's own connection to its disk, as the guest's go.
    pub async fn io(&self, machine: &str, place: usize, request: &str) {
        let line = format!("qemu-io -d /machine/peripheral/virtio-disk{place}/virtio-backend \"{request}\"");
        let said = self.virsh(&["qemu-monitor-command", machine, "--hmp", &line]).await;
        assert!(!said.contains("rror"), "{said}");
    }
}

#[async_trait]
impl Bench for LibvirtBench {
    fn platform(&self) -> &dyn Platform {
        &self.platform
    }

    fn dir(&self) -> PathBuf {
        self.path("site")
    }

    async fn own(&self, name: &str, format: DiskFormat, size: u64) -> DiskSource {
        let path = self.path(name).display().to_string();
        let word = if format == DiskFormat::Raw { "raw" } else { "qcow2" };
        run("qemu-img", &["create", "-q", "-f", word, &path, &size.to_string()]).await;
        DiskSource::Own { path, format }
    }

    async fn write(&self, machine: &str, place: usize, _: &DiskKey, offset: u64, length: u64, value: u8) {
        self.io(machine, place, &format!("write -P {value} {offset} {length}")).await;
    }

    async fn flush(&self, machine: &str, place: usize) {
        self.io(machine, place, "flush").await;
    }

    async fn read_own(&self, source: &DiskSource) -> Vec<u8> {
        let DiskSource::Own { path, .. } = source else { panic!("not its own") };
        let plain = format!("{path}.plain");
        run("qemu-img", &["convert", "-O", "raw", path, &plain]).await;
        std::fs::read(plain).unwrap()
    }

    async fn kill(&self, machine: &str) {
        kill(self.daemon.qemu(machine).unwrap());
        while self.platform.machine(machine).await.unwrap().unwrap().power != Power::Off {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    fn limit_scratch(&self, _: &str) {}

    fn tracked(&self, _: DiskFormat) -> DiskFormat {
        DiskFormat::Qcow2
    }

    fn keeps_cuts(&self) -> bool {
        false
    }

    fn make_deaf(&self, _: &str) {}
}
