//! The two sites: their directories, processes and guest, and the hand that ends them.
//!
//! Everything is the shipped program, started as an operator starts it; nothing in here reaches into it. Processes that
//! were started here are ended by their ids, QEMU by the id in its pid file.

mod owner;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

use crate::console::Console;
use crate::net::{Hosts, Net};

/// The machine that is protected.
pub const MACHINE: &str = "web01";

/// Home's disk A is a qcow2, B is raw.
pub const FORMATS: [&str; 2] = ["qcow2", "raw"];

/// Home or away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// Where the machine is at first.
    Home,
    /// Where it is failed over to; the control server stands here.
    Cloud,
}

impl At {
    /// The site's name.
    pub fn name(self) -> &'static str {
        match self {
            At::Home => "home",
            At::Cloud => "cloud",
        }
    }

    /// The other one.
    pub fn other(self) -> At {
        match self {
            At::Home => At::Cloud,
            At::Cloud => At::Home,
        }
    }

    /// Its place among the hosts.
    pub fn host(self) -> usize {
        match self {
            At::Home => 0,
            At::Cloud => 1,
        }
    }
}

/// A process of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The control server.
    Control,
    /// A process server.
    ProcessServer,
    /// A master target.
    MasterTarget,
}

impl Part {
    fn verb(self) -> &'static str {
        match self {
            Part::Control => "server",
            Part::ProcessServer => "process-server",
            Part::MasterTarget => "master-target",
        }
    }
}

/// How the sites are made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where everything is kept. Short: unix sockets lie in it.
    pub root: PathBuf,
    /// The program.
    pub sockeye: PathBuf,
    /// `vmlinuz` and `initrd.img` of the test guest.
    pub guest: PathBuf,
    /// Size of each of the two disks, in bytes.
    pub disk_bytes: u64,
    /// Bytes seeded over both disks.
    pub written_bytes: u64,
    /// Records that the guest writes a second.
    pub rate: u32,
    /// How the sites are connected.
    pub hosts: Hosts,
    /// The sites whose hypervisor is libvirt, and where it is reached; the others' is QEMU itself.
    pub libvirt: BTreeMap<At, String>,
    /// The formats of home's two disks; so that both kinds go round: [`FORMATS`].
    pub formats: [&'static str; 2],
}

/// The whole arrangement. Ends every process it started when it is dropped.
pub struct World {
    /// How it was made.
    pub settings: Settings,
    /// The network.
    pub net: Net,
    /// Why the sites share the loopback, if they do.
    pub why_loopback: Option<String>,
    parts: BTreeMap<(At, Part), Child>,
    port: u16,
    token: String,
}

/// What a run of the command line came to.
#[derive(Debug)]
pub struct Answer {
    /// The exit code of the contract.
    pub code: i32,
    /// The document on stdout.
    pub stdout: String,
    /// What was said beside it.
    pub stderr: String,
}

/// Where the control server listens on a host of its own.
const CONTROL_PORT: u16 = 7410;

impl World {
    /// Makes directories, seeds the disks, defines the guest at home and starts all parts; the guest is not started yet.
    pub fn build(settings: Settings) -> anyhow::Result<World> {
        let mut world = World::without_parts(settings)?;
        world.start_parts()?;
        Ok(world)
    }

    /// The same with nothing of Sockeye on either host.
    pub fn without_parts(settings: Settings) -> anyhow::Result<World> {
        let world = World::empty(settings)?;
        for at in [At::Home, At::Cloud] {
            let boot = world.site_dir(at).join("boot");
            std::fs::create_dir_all(&boot)?;
            for file in ["vmlinuz", "initrd.img"] {
                let from = world.settings.guest.join(file);
                std::fs::copy(&from, boot.join(file)).with_context(|| {
                    format!("the test guest is missing ({}): run cargo xtask setup", from.display())
                })?;
            }
        }
        world.seed()?;
        world.define()?;
        Ok(world)
    }

    /// Makes directories and starts all parts, for a machine without a guest: it sits in its firmware and writes nothing.
    /// Nothing is defined yet ([`World::define_bare`]); sizes, guest and rate of the settings are not looked at.
    pub fn without_guest(settings: Settings) -> anyhow::Result<World> {
        let mut world = World::empty(settings)?;
        for at in [At::Home, At::Cloud] {
            std::fs::create_dir_all(world.site_dir(at))?;
        }
        world.start_parts()?;
        Ok(world)
    }

    fn empty(settings: Settings) -> anyhow::Result<World> {
        let (net, why_loopback) = Net::new(settings.hosts);
        let port = if net.is_real() { CONTROL_PORT } else { free_port()? };
        let (parts, token) = (BTreeMap::new(), String::new());
        Ok(World { settings, net, why_loopback, parts, port, token })
    }

    fn start_parts(&mut self) -> anyhow::Result<()> {
        self.start(At::Cloud, Part::Control)?;
        self.token = self.admin_token()?;
        for at in [At::Home, At::Cloud] {
            self.start(at, Part::MasterTarget)?;
            self.start(at, Part::ProcessServer)?;
        }
        self.wait_connected(4)
    }

    /// A site's own directory.
    pub fn dir(&self, at: At) -> PathBuf {
        self.settings.root.join(at.name())
    }

    /// The directory of a site's platform.
    pub fn site_dir(&self, at: At) -> PathBuf {
        self.dir(at).join("qemu")
    }

    /// Where a part keeps its data.
    pub fn data_dir(&self, at: At, part: Part) -> PathBuf {
        self.dir(at).join(match part {
            Part::Control => "control",
            Part::ProcessServer => "ps",
            Part::MasterTarget => "mt",
        })
    }

    /// The replica's disks at the other site.
    pub fn replica_disks(&self) -> [PathBuf; 2] {
        let directory = self.data_dir(At::Cloud, Part::MasterTarget).join("replicas").join(MACHINE);
        [directory.join("disk0.raw"), directory.join("disk1.raw")]
    }

    /// The guest's console at a site, from now on.
    pub fn console(&self, at: At) -> Console {
        Console::from_now(self.console_file(at))
    }

    /// The file behind it.
    pub fn console_file(&self, at: At) -> PathBuf {
        self.machine_dir(at, MACHINE).join("console.log")
    }

    /// The folder in which a site's hypervisor keeps a machine.
    pub fn machine_dir(&self, at: At, machine: &str) -> PathBuf {
        self.site_dir(at).join("machines").join(machine)
    }

    /// Where logs of the parts are.
    pub fn log(&self, at: At, part: Part) -> PathBuf {
        self.settings.root.join(format!("{}-{}.log", at.name(), part.verb()))
    }

    /// The program on a host, which sees nothing of the other one's directory.
    pub fn command(&self, at: At) -> Command {
        let hidden = self.net.is_real().then(|| self.dir(at.other()));
        self.net.command(at.host(), &self.settings.sockeye, hidden.as_deref())
    }

    /// Where the control server is reached.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.net.address(At::Cloud.host()), self.port)
    }

    /// The token that the control server makes at its first start, as soon as it is there.
    fn admin_token(&self) -> anyhow::Result<String> {
        let file = self.data_dir(At::Cloud, Part::Control).join("admin.token");
        wait_for("admin token of the control server", Duration::from_secs(30), || {
            let token = std::fs::read_to_string(&file).ok()?.trim().to_string();
            (!token.is_empty()).then_some(token)
        })
    }

    /// Starts a part as a process of its own.
    pub fn start(&mut self, at: At, part: Part) -> anyhow::Result<()> {
        let data = self.data_dir(at, part);
        std::fs::create_dir_all(&data)?;
        let log = File::options().create(true).append(true).open(self.log(at, part))?;
        let mut command = self.command(at);
        command.arg(part.verb()).arg("--data-dir").arg(&data);
        match part {
            Part::Control => {
                command.arg("--listen").arg(format!("{}:{}", self.net.address(at.host()), self.port));
            }
            Part::ProcessServer | Part::MasterTarget => {
                // Started by hand, by an operator; how hosts join by themselves is tested where that is the point.
                command.arg("--join-token").arg(&self.token).args(["--site", at.name()]);
                match self.settings.libvirt.get(&at) {
                    Some(uri) => command.args(["--platform", "libvirt", "--libvirt-uri", uri]),
                    None => command.args(["--platform", "qemu"]),
                };
                command.arg("--site-dir").arg(self.site_dir(at)).arg("--server").arg(self.url());
            }
        }
        if part == Part::MasterTarget {
            command.arg("--retention").arg(self.dir(at).join("retention"));
        }
        let dialled = match (self.settings.hosts, at, part) {
            (_, _, Part::Control) => false,
            (Hosts::HomeBehindFirewall, At::Home, Part::MasterTarget) => {
                command.arg("--outbound-only");
                false
            }
            (Hosts::HomeBehindFirewall, At::Cloud, Part::ProcessServer) => true,
            (_, _, part) => part == Part::MasterTarget,
        };
        if dialled {
            let address = self.net.address(at.host());
            command.arg("--listen").arg(format!("{address}:0")).arg("--advertise").arg(format!("{address}:0"));
        }
        command
            .env("SOCKEYE_LOG", std::env::var("SOCKEYE_LOG").unwrap_or_else(|_| "info".into()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().with_context(|| format!("{} cannot be started", part.verb()))?;
        self.parts.insert((at, part), child);
        Ok(())
    }

    /// Ends a part at once, without a word (SIGKILL).
    pub fn kill(&mut self, at: At, part: Part) {
        if let Some(mut child) = self.parts.remove(&(at, part)) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops a part where it stands, or lets it go on (SIGSTOP, SIGCONT).
    pub fn freeze(&self, at: At, part: Part, frozen: bool) {
        if let Some(pid) = self.parts.get(&(at, part)).and_then(|child| Pid::from_raw(child.id() as i32)) {
            let _ = kill_process(pid, if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// Ends a site's QEMU at once (SIGKILL).
    pub fn kill_guest(&self, at: At) -> anyhow::Result<()> {
        let pid = self.guest_pid(at).with_context(|| format!("no guest runs at {}", at.name()))?;
        kill_process(pid, Signal::KILL)?;
        let gone = || (!Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists()).then_some(());
        wait_for("the end of QEMU", Duration::from_secs(10), gone)
    }

    fn guest_pid(&self, at: At) -> Option<Pid> {
        self.pid_of(at, MACHINE)
    }

    /// The process of a part that was started here.
    pub fn part_pid(&self, at: At, part: Part) -> Option<u32> {
        self.parts.get(&(at, part)).map(Child::id)
    }

    /// The QEMU of a machine at a site.
    pub fn pid_of(&self, at: At, machine: &str) -> Option<Pid> {
        if self.settings.libvirt.contains_key(&at) {
            return self.qemu_with(at, &format!("guest={machine},"));
        }
        let file = self.machine_dir(at, machine).join("pid");
        let pid = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = String::from_utf8_lossy(&line).contains(&*self.dir(at).to_string_lossy());
        if ours { Pid::from_raw(pid) } else { None }
    }

    /// The QEMU whose command line has that in it and something of a site's.
    fn qemu_with(&self, at: At, words: &str) -> Option<Pid> {
        let ours = self.dir(at).to_string_lossy().into_owned();
        let is_it = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("qemu-system") && line.contains(words) && line.contains(&ours)
        };
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_it).and_then(Pid::from_raw)
    }

    /// Runs the command line at the control server's site. `--output json` and the server are added.
    pub fn sockeye(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        self.typed(&[&["--output", "json"], arguments].concat())
    }

    /// The same as a person sees it.
    pub fn typed(&self, arguments: &[&str]) -> anyhow::Result<Answer> {
        let mut command = self.net.command(At::Cloud.host(), &self.settings.sockeye, None);
        command.args(["--server", &self.url()]).args(arguments);
        command.env("SOCKEYE_TOKEN", &self.token).stdin(Stdio::null());
        let output = command.output().context("the command line cannot be run")?;
        Ok(Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs the command line and reads its document; any other exit code than `code` is an error.
    pub fn ask<T: DeserializeOwned>(&self, arguments: &[&str], code: i32) -> anyhow::Result<T> {
        let answer = self.sockeye(arguments)?;
        if answer.code != code {
            bail!(
                "sockeye {}: exit code {} instead of {code}\n{}{}",
                arguments.join(" "),
                answer.code,
                answer.stdout,
                answer.stderr
            );
        }
        serde_json::from_str(&answer.stdout)
            .with_context(|| format!("sockeye {}: its answer cannot be read: {}", arguments.join(" "), answer.stdout))
    }

    /// The item as `sockeye status` shows it.
    pub fn status(&self) -> anyhow::Result<protocol::rest::ItemView> {
        let items: Vec<protocol::rest::ItemView> = self.ask(&["status", MACHINE], 0)?;
        items.into_iter().next().context("the item is not listed")
    }

    /// Waits until so many components are connected.
    pub fn wait_connected(&self, wanted: usize) -> anyhow::Result<()> {
        wait_for("connected components", Duration::from_secs(60), || {
            let components: Vec<protocol::rest::ComponentView> = self.ask(&["component", "list"], 0).ok()?;
            (components.iter().filter(|component| component.connected).count() >= wanted).then_some(())
        })
    }

    /// Waits until `wanted` likes the item.
    pub fn wait_status(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&protocol::rest::ItemView) -> bool,
    ) -> anyhow::Result<protocol::rest::ItemView> {
        wait_for(what, within, || self.status().ok().filter(|view| wanted(view)))
    }

    /// Ends all parts and guests, and leaves the files.
    pub fn stop(&mut self) {
        for (_, child) in std::mem::take(&mut self.parts) {
            end(child);
        }
        for at in [At::Home, At::Cloud] {
            let _ = self.kill_guest(at);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A port of the loopback that nobody uses at the moment; one that is fixed would keep two worlds apart.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Asks a process to end, and makes it after ten seconds.
fn end(mut child: Child) {
    if let Some(pid) = Pid::from_raw(child.id() as i32) {
        let _ = kill_process(pid, Signal::CONT);
        let _ = kill_process(pid, Signal::TERM);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        crate::pause(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Waits until `ready` gives something.
///
/// # Errors
/// When the time is over.
pub fn wait_for<T>(what: &str, within: Duration, ready: impl Fn() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = ready() {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("no {what} within {} s", within.as_secs());
        }
        crate::pause(Duration::from_millis(50));
    }
}
