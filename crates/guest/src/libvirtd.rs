//! A libvirtd of a test's own: the real one, in a mount namespace where its folders are the test's.
//!
//! ```text
//!   <dir>/{etc,lib,run,log}  ◄─ bound over /etc/libvirt, /var/lib/libvirt, /run/libvirt, /var/log/libvirt ─  libvirtd
//!   <cache>                  ◄─ bound over /var/cache/libvirt: what it learns about QEMU takes it seconds, and is the same
//! ```
//! Disks, sockets and everything else are where the rest of the system sees them. Several run side by side.
//!
//! libvirt counts a QEMU as gone when its parent has taken notice, which is the first process of the system: where that one
//! takes its time, every end of a machine would take seconds. So a small parent stands between.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long libvirtd may take, with nothing learnt yet.
const PATIENCE: Duration = Duration::from_secs(60);

/// The parent of libvirtd and of the QEMUs that it leaves: takes notice of whatever ends, and ends with libvirtd.
const PARENT: &str = "
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
daemon = os.fork()
if daemon == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
while os.wait()[0] != daemon:
    pass
";

/// Its settings: no other user, no confinement, no helper programs.
const SETTINGS: [(&str, &str); 2] = [
    (
        "qemu.conf",
        "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ndynamic_ownership = 0\n\
         cgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n",
    ),
    ("libvirtd.conf", "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n"),
];

/// It, its machines and what serves them: all of them end with it.
pub struct Libvirtd {
    dir: PathBuf,
    site: PathBuf,
    cache: PathBuf,
    program: Child,
}

impl Libvirtd {
    /// A new one with nothing in it, which keeps everything in `dir` (short: unix sockets lie in it). In `site` Sockeye keeps
    /// what it needs for its machines.
    ///
    /// # Errors
    /// It cannot be started, which takes root, or does not listen in time.
    pub fn start(dir: &Path, site: &Path, cache: &Path) -> io::Result<Libvirtd> {
        for folder in ["etc", "lib", "run", "log"] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        std::fs::create_dir_all(cache)?;
        for (name, text) in SETTINGS {
            std::fs::write(dir.join("etc").join(name), text)?;
        }
        // A host of its own, as far as other libvirts can tell.
        let host = std::fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        let mut settings = OpenOptions::new().append(true).open(dir.join("etc/libvirtd.conf"))?;
        writeln!(settings, "host_uuid = \"{}\"", host.trim())?;
        let program = launch(dir, cache)?;
        let mut libvirtd = Libvirtd { dir: dir.into(), site: site.into(), cache: cache.into(), program };
        libvirtd.answers()?;
        Ok(libvirtd)
    }

    /// Where it is reached.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Ends it and starts it again; its machines run on meanwhile.
    ///
    /// # Errors
    /// As for [`Libvirtd::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.end();
        self.program = launch(&self.dir, &self.cache)?;
        self.answers()
    }

    /// The process of a machine's QEMU.
    pub fn qemu(&self, machine: &str) -> Option<i32> {
        pid_in(&self.dir.join(format!("run/qemu/{machine}.pid"))).map(Pid::as_raw_nonzero).map(i32::from)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run/libvirt-sock")
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("libvirtd.log")).unwrap_or_default()
    }

    fn end(&mut self) {
        // The parent would leave it behind; without a libvirtd it ends by itself.
        let daemon = pid_in(&self.dir.join("run/libvirtd.pid"));
        if daemon.is_none_or(|pid| kill_process(pid, Signal::KILL).is_err()) {
            let _ = self.program.kill();
        }
        let _ = self.program.wait();
        let _ = std::fs::remove_file(self.dir.join("run/libvirtd.pid"));
    }

    fn answers(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.socket()).is_err() {
            if self.program.try_wait()?.is_some() || Instant::now() > deadline {
                return Err(io::Error::other(format!("libvirtd does not listen: {}", self.log())));
            }
            pause();
        }
        Ok(())
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let files = std::fs::read_dir(self.dir.join("run/qemu")).into_iter().flatten().flatten();
        let pids = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|end| end == "pid"));
        let qemus: Vec<Pid> = pids.filter_map(|path| pid_in(&path)).collect();
        self.end();
        for pid in qemus.into_iter().chain(processes_with("qemu-storage-daemon", &self.site)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The processes of a program whose command line names something in a folder.
pub fn processes_with(program: &str, folder: &Path) -> impl Iterator<Item = Pid> {
    let (program, folder) = (program.to_string(), format!("{}/", folder.display()));
    let is_one = move |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.split('\0').next().is_some_and(|first| first.ends_with(&program)) && line.contains(&folder)
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).filter_map(Pid::from_raw)
}

fn pid_in(file: &Path) -> Option<Pid> {
    Pid::from_raw(std::fs::read_to_string(file).ok()?.trim().parse().ok()?)
}

fn launch(dir: &Path, cache: &Path) -> io::Result<Child> {
    let folders = [
        (dir.join("etc"), "/etc/libvirt"),
        (dir.join("lib"), "/var/lib/libvirt"),
        (dir.join("run"), "/run/libvirt"),
        (dir.join("log"), "/var/log/libvirt"),
        (cache.into(), "/var/cache/libvirt"),
    ];
    let bound = folders.iter().map(|(from, to)| format!("mkdir -p {to} && mount --bind {} {to}", from.display()));
    let bound: Vec<String> = bound.collect();
    let pid_file = dir.join("run/libvirtd.pid");
    let script = format!("{} && exec libvirtd --pid-file {}", bound.join(" && "), pid_file.display());
    let log = OpenOptions::new().create(true).append(true).open(dir.join("libvirtd.log"))?;
    Command::new("python3")
        .args(["-c", PARENT, "unshare", "--mount", "--propagation", "private", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

#[allow(clippy::disallowed_methods, reason = "it waits for another program")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
