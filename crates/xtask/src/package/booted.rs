//! A machine's folder as a running system: systemd is its first process, so services run as they do at an operator's.
//!
//! ```text
//!   systemd-nspawn ─► systemd ─► services            all that runs in it ends with it
//!        │ ready (NOTIFY_SOCKET)   ▲
//!        └─────────► us ───nsenter─┘
//! ```
//! Machines of one trial share a network of their own, so nothing in it meets what listens on this host.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command::output;

/// How long a machine may take to come up.
const PATIENCE: Duration = Duration::from_secs(120);

/// A network namespace that has only its loopback.
pub(super) struct Network(String);

impl Network {
    /// Makes it.
    pub(super) fn new() -> Result<Network> {
        let network = Network(format!("sockeye-package-{}", std::process::id()));
        let here = Path::new("/");
        output(here, &["ip", "netns", "add", &network.0])?;
        output(here, &["ip", "-netns", &network.0, "link", "set", "lo", "up"])?;
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // One that is left behind holds nothing and is found by its name.
        let _ = output(Path::new("/"), &["ip", "netns", "delete", &self.0]);
    }
}

/// A running machine. It is powered off when it is dropped.
pub(super) struct Booted {
    /// Its folder.
    pub(super) folder: PathBuf,
    nspawn: Child,
    /// Its first process, as it is called out here.
    leader: String,
}

impl Booted {
    /// Boots the machine in `folder`, and waits until its services are up.
    pub(super) fn boot(folder: PathBuf, network: &Network) -> Result<Booted> {
        let socket = folder.with_extension("notify");
        let _ = fs::remove_file(&socket);
        let ready = UnixDatagram::bind(&socket)?;
        ready.set_read_timeout(Some(PATIENCE))?;
        let console = File::create(folder.with_extension("console"))?;
        let mut command = Command::new("systemd-nspawn");
        command.args(["--quiet", "--boot", "--register=no", "--notify-ready=yes", "--directory"]).arg(&folder);
        command.arg(format!("--network-namespace-path=/run/netns/{}", network.0));
        command.args(super::clean::unit());
        command.env("NOTIFY_SOCKET", &socket).stdin(Stdio::null()).stderr(console.try_clone()?).stdout(console);
        let nspawn = command.spawn().context("systemd-nspawn")?;
        let mut booted = Booted { folder, nspawn, leader: String::new() };
        let mut message = [0; 4096];
        loop {
            let length = ready.recv(&mut message).with_context(|| {
                format!("the machine does not come up: see {}", booted.folder.with_extension("console").display())
            })?;
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            for line in text.lines() {
                match line.split_once('=') {
                    Some(("X_NSPAWN_LEADER_PID", pid)) => booted.leader = pid.to_string(),
                    Some(("READY", "1")) if !booted.leader.is_empty() => return Ok(booted),
                    _ => {}
                }
            }
        }
    }

    /// Runs `line` in a shell of the machine, as its root; gives what it prints. Not 0 is an error with what it said.
    pub(super) fn run(&self, line: &str) -> Result<String> {
        let output = self.command(line).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        bail!("`{line}` failed ({}): {}\n{}", output.status, text(&output.stdout), text(&output.stderr))
    }

    /// Waits until `line`, which holds no single quote, succeeds.
    pub(super) fn until(&self, line: &str) -> Result<()> {
        let patient = format!("timeout 90 sh -c 'until {line}; do sleep 0.3; done' >/dev/null 2>&1");
        self.run(&patient).map(drop).with_context(|| format!("waiting for `{line}`"))
    }

    /// Powers it off and gives its folder.
    pub(super) fn power_off(self) -> PathBuf {
        self.folder.clone()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.leader, "--all", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(["HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "sh", "-ec", line]);
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // It powers the machine off, and ends when all in it has ended.
        let nspawn = self.nspawn.id().to_string();
        let _ = output(Path::new("/"), &["kill", "-TERM", &nspawn]);
        let _ = self.nspawn.wait();
        let _ = fs::remove_file(self.folder.with_extension("notify"));
    }
}
