//! A libvirtd of the test's own: the real one, in a mount namespace where its folders are the test's.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use platforms::Platform;
use platforms::libvirt::Libvirt;
use protocol::DiskKey;
use protocol::machine::{DiskFormat, DiskSource, Power};

use super::{Bench, kill, run};

/// What libvirtd learns about QEMU takes it seconds and is the same for every test.
const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/libvirt-cache");
/// How long libvirtd may take, with nothing learnt yet.
const PATIENCE: Duration = Duration::from_secs(60);

/// Its settings: no other user, no confinement, no helper programs.
const SETTINGS: [(&str, &str); 2] = [
    (
        "qemu.conf",
        "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ndynamic_ownership = 0\n\
         cgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n",
    ),
    ("libvirtd.conf", "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n"),
];

pub struct LibvirtBench {
    platform: Libvirt,
    daemon: Daemon,
}

pub async fn libvirt() -> LibvirtBench {
    let daemon = Daemon::new();
    let uri = format!("qemu+unix:///system?socket={}", daemon.path("run/libvirt-sock").display());
    let platform = Libvirt::open(&uri, &daemon.path("site")).await.unwrap();
    LibvirtBench { platform, daemon }
}

struct Daemon {
    dir: tempfile::TempDir,
    program: Child,
    uri: String,
}

impl Daemon {
    /// A new one, with nothing in it.
    fn new() -> Daemon {
        let dir = tempfile::Builder::new().prefix("lv").tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["etc", "lib", "run", "log", "site", CACHE] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        for (name, text) in SETTINGS {
            std::fs::write(at("etc").join(name), text).unwrap();
        }
        let program = Daemon::launch(dir.path());
        let uri = format!("qemu+unix:///system?socket={}", at("run/libvirt-sock").display());
        let mut daemon = Daemon { dir, program, uri };
        daemon.answers();
        daemon
    }

    fn launch(dir: &Path) -> Child {
        let at = |name: &str| dir.join(name);
        let folders = [
            (at("etc"), "/etc/libvirt"),
            (at("lib"), "/var/lib/libvirt"),
            (at("run"), "/run/libvirt"),
            (at("log"), "/var/log/libvirt"),
            (CACHE.into(), "/var/cache/libvirt"),
        ];
        let mounted: Vec<String> =
            folders.iter().map(|(from, to)| format!("mkdir -p {to} && mount --bind {} {to}", from.display())).collect();
        let pid = at("run/libvirtd.pid");
        let script = format!("{} && exec libvirtd --pid-file {}", mounted.join(" && "), pid.display());
        let log = OpenOptions::new().create(true).append(true).open(at("libvirtd.log")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Waits until it listens.
    fn answers(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(self.path("run/libvirt-sock")).is_err() {
            let said = || std::fs::read_to_string(self.dir.path().join("libvirtd.log")).unwrap();
            assert!(Instant::now() < deadline, "{}", said());
            assert!(self.program.try_wait().unwrap().is_none(), "{}", said());
            pause();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn qemus(&self) -> Vec<i32> {
        let files = std::fs::read_dir(self.path("run/qemu")).into_iter().flatten().flatten();
        let pids = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "pid"));
        pids.filter_map(|path| pid_in(&path)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.path("libvirtd.log")).unwrap_or_default());
        }
        let _ = self.program.kill();
        let _ = self.program.wait();
        self.qemus().into_iter().for_each(kill);
    }
}

fn pid_in(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[allow(clippy::disallowed_methods, reason = "a test waits for another program")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

impl LibvirtBench {
    pub fn path(&self, name: &str) -> PathBuf {
        self.daemon.path(name)
    }

    /// Ends libvirtd and starts it again; the machines run on meanwhile.
    pub fn restart(&mut self) {
        let _ = self.daemon.program.kill();
        let _ = self.daemon.program.wait();
        self.daemon.program = Daemon::launch(self.daemon.dir.path());
        self.daemon.answers();
    }

    /// Runs virsh as a person would.
    pub async fn virsh(&self, words: &[&str]) -> String {
        let told = run("virsh", &[&["-q", "-c", &self.daemon.uri], words].concat()).await;
        String::from_utf8(told).unwrap()
    }

    /// A request through the device's own connection to its disk, as the guest's go.
    pub async fn io(&self, machine: &str, place: usize, request: &str) {
        let line = format!("qemu-io -d /machine/peripheral/virtio-disk{place}/virtio-backend \"{request}\"");
        let said = self.virsh(&["qemu-monitor-command", machine, "--hmp", &line]).await;
        assert!(!said.contains("rror"), "{said}");
    }

    pub fn pid(&self, machine: &str) -> i32 {
        pid_in(&self.daemon.path(&format!("run/qemu/{machine}.pid"))).unwrap()
    }
}

#[async_trait]
impl Bench for LibvirtBench {
    fn platform(&self) -> &dyn Platform {
        &self.platform
    }

    fn dir(&self) -> PathBuf {
        self.daemon.path("site")
    }

    async fn own(&self, name: &str, format: DiskFormat, size: u64) -> DiskSource {
        let path = self.daemon.path(name).display().to_string();
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
        kill(self.pid(machine));
        while self.platform.machine(machine).await.unwrap().unwrap().power != Power::Off {
            tokio::time::sleep(Duration::from_millis(5)).await;
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
