//! The six lines of `docs/install.md`, as they stand there: two hosts that have nothing of ours, each with a libvirtd of its
//! own and one of them behind a firewall that lets nobody in, until a real guest is protected.
//!
//! What is put in the place of what the page cannot know: the address, the token that `init` printed, `--yes` where a person
//! would be asked, and, as there is neither systemd nor QEMU's own platform here, `--foreground` and where libvirt is.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use demo::net::Hosts;
use demo::world::{At, MACHINE, Settings, World, wait_for};
use guest::Libvirtd;
use protocol::rest::{ComponentView, Health, ItemView};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::outbound::reaches_home;
use crate::scene::now_ms;

const PAGE: &str = include_str!("../../../docs/install.md");
const HOSTS: [At; 2] = [At::Home, At::Cloud];

/// The page's lines, and who types each.
fn six_lines() -> anyhow::Result<Vec<(At, Vec<String>)>> {
    let block =
        PAGE.split("```").find(|block| block.contains("sockeye init --site")).context("the page has no block")?;
    let typed = |line: &str| {
        let (host, words) = line.split_once("# ").with_context(|| format!("who types {line:?}?"))?;
        let at =
            HOSTS.into_iter().find(|at| at.name() == host).with_context(|| format!("there is no host {host:?}"))?;
        Ok((at, words.split_whitespace().map(String::from).collect()))
    };
    block.lines().skip(1).filter(|line| !line.is_empty()).map(typed).collect()
}

/// The two hosts, and what was started on them.
struct Hands {
    world: World,
    libvirt: BTreeMap<At, String>,
    running: BTreeMap<At, Child>,
    token: String,
    began: Instant,
}

impl Drop for Hands {
    fn drop(&mut self) {
        HOSTS.iter().for_each(|at| self.end(*at, Signal::TERM));
    }
}

impl Hands {
    fn root(&self) -> &Path {
        &self.world.settings.root
    }

    /// Types a line of the page on a host.
    fn types(&mut self, at: At, words: &[String]) -> anyhow::Result<()> {
        eprintln!("{:5.1} s  {}# {}", self.began.elapsed().as_secs_f64(), at.name(), words.join(" "));
        match [words[0].as_str(), words[1].as_str()] {
            ["apt", "install"] => {
                let package = format!("./sockeye_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
                ensure!(words[2..] == [package], "that is not what cargo xtask package makes: {words:?}");
                Ok(())
            }
            ["sockeye", "init" | "join"] => self.goes_on(at, words),
            ["sockeye", "protect"] => self.asks::<Value>(at, &[&words[1..], &["--yes".into()]].concat()).map(drop),
            ["sockeye", "status"] => self.is_protected(at, &words[1..]),
            _ => bail!("nobody knows how to type {words:?}"),
        }
    }

    /// The same program with what the page cannot know.
    fn command(&self, at: At, words: &[String]) -> Command {
        let cloud = self.world.net.address(1);
        let mut command = self.world.command(at);
        command.args(words.iter().map(|word| word.replace("192.0.2.7", cloud).replace("TOKEN", &self.token)));
        command.args(["--output", "json"]).stdin(Stdio::null());
        // Whoever types has a home directory of their own.
        command.env_remove("SOCKEYE_TOKEN").env_remove("SOCKEYE_SERVER");
        command.env("SOCKEYE_CONFIG", self.world.dir(at).join("profiles.toml"));
        command
    }

    /// Starts `init` or `join`, and reads what it tells.
    fn goes_on(&mut self, at: At, words: &[String]) -> anyhow::Result<()> {
        let out = self.root().join(format!("{}-told.json", at.name()));
        let log = File::options().create(true).append(true).open(self.root().join(format!("{}.log", at.name())))?;
        let mut command = self.command(at, &words[1..]);
        command.arg("--foreground").arg("--data-dir").arg(self.world.dir(at).join("sockeye"));
        command.args(["--platform", "libvirt", "--libvirt-uri", &self.libvirt[&at]]);
        self.running.insert(at, command.stdout(File::create(&out)?).stderr(log).spawn()?);
        let told = wait_for(&format!("word of {words:?}"), Duration::from_secs(60), || {
            serde_json::from_slice::<Value>(&std::fs::read(&out).ok()?).ok()
        })?;
        if let Some(token) = told["token"]["token"].as_str() {
            let line = format!("sockeye join http://{}:7410 --token {token} --site SITE", self.world.net.address(1));
            ensure!(told["join"] == line.as_str(), "the line that it prints is another one: {told}");
            self.token = token.into();
        }
        Ok(())
    }

    fn asks<T: DeserializeOwned>(&self, at: At, words: &[String]) -> anyhow::Result<T> {
        let output = self.command(at, words).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        ensure!(output.status.success(), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice(&output.stdout).with_context(|| format!("{words:?}: {}", text(&output.stdout)))
    }

    /// Waits until the page's `status` shows a point that was cut after now.
    fn is_protected(&self, at: At, words: &[String]) -> anyhow::Result<()> {
        let from = now_ms();
        let so = |view: &ItemView| {
            let newer = view.newest.as_ref().is_some_and(|point| point.cut_at_ms > from);
            view.stage_words == "protected" && view.health == Health::Ok && view.job.is_none() && newer
        };
        let status = || self.asks::<Vec<ItemView>>(at, words);
        let seen = wait_for("recovery point", Duration::from_secs(60), || {
            status().ok()?.iter().any(|view| view.item.as_str() == MACHINE && so(view)).then_some(())
        });
        seen.with_context(|| format!("{:?}", status()))
    }

    fn end(&mut self, at: At, signal: Signal) {
        let Some(mut child) = self.running.remove(&at) else { return };
        if let Some(pid) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
        let ended = wait_for("end", Duration::from_secs(15), || child_ended(child.id()).then_some(()));
        if ended.is_err() {
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

/// Whether a process that nobody has waited for yet is over.
fn child_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// Everything below one directory, which is left when something fails.
fn hands(root: &Path, daemons: &BTreeMap<At, Libvirtd>) -> anyhow::Result<Hands> {
    let libvirt: BTreeMap<_, _> = daemons.iter().map(|(at, daemon)| (*at, daemon.uri())).collect();
    let settings = Settings {
        root: root.into(),
        sockeye: env!("CARGO_BIN_EXE_sockeye").into(),
        guest: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
        disk_bytes: 256 << 20,
        written_bytes: 16 << 20,
        rate: 50,
        hosts: Hosts::HomeBehindFirewall,
        libvirt: libvirt.clone(),
        formats: ["qcow2"; 2],
    };
    let world = World::without_parts(settings)?;
    ensure!(world.net.is_real(), "the hosts cannot be made: {:?}", world.why_loopback);
    Ok(Hands { world, libvirt, running: BTreeMap::new(), token: String::new(), began: Instant::now() })
}

fn play(root: &Path, daemons: &BTreeMap<At, Libvirtd>) -> anyhow::Result<()> {
    let mut hands = hands(root, daemons)?;
    ensure!(reaches_home(&hands.world.net, 0)?, "home does not reach itself: that proves nothing of a firewall");
    ensure!(!reaches_home(&hands.world.net, 1)?, "the firewall lets the cloud in");
    let console = hands.world.console(At::Home);
    hands.world.start_guest()?;
    console.writes(20)?;

    let lines = six_lines()?;
    ensure!(lines.len() == 6, "they are {} lines: {lines:?}", lines.len());
    for (at, words) in &lines {
        hands.types(*at, words)?;
    }
    let components: Vec<ComponentView> = hands.asks(At::Cloud, &["component".into(), "list".into()])?;
    let dialled: Vec<_> =
        components.iter().map(|component| (component.connected, component.address.is_some())).collect();
    ensure!(dialled == [(true, true), (true, true), (true, false), (true, false)], "{components:?}");

    // Both hosts lose power, and the same lines bring them up again: the token is used up, and not asked for.
    for at in HOSTS {
        hands.end(at, Signal::KILL);
    }
    let used = hands.token.clone();
    for (at, words) in lines.iter().filter(|(_, words)| ["init", "join"].contains(&words[1].as_str())) {
        hands.types(*at, words)?;
        hands.token.clone_from(&used);
    }
    hands.is_protected(At::Cloud, &["status".into()])?;
    eprintln!("{:5.1} s  both are there again", hands.began.elapsed().as_secs_f64());
    Ok(())
}

#[test]
fn the_six_lines_of_the_page_bring_two_hosts_from_nothing_to_protected() {
    let root = PathBuf::from(format!("/tmp/sk{}-six", std::process::id()));
    std::fs::create_dir(&root).unwrap();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
    let start =
        |at: At| (at, Libvirtd::start(&root.join(format!("lv-{}", at.name())), &root.join(at.name()), &cache).unwrap());
    let daemons: BTreeMap<At, Libvirtd> = HOSTS.into_iter().map(start).collect();
    if let Err(error) = play(&root, &daemons) {
        for log in HOSTS.map(|at| root.join(format!("{}.log", at.name()))) {
            eprintln!("--- {}\n{}", log.display(), std::fs::read_to_string(&log).unwrap_or_default());
        }
        daemons.values().for_each(|daemon| eprintln!("--- libvirtd\n{}", daemon.log()));
        panic!("{error:#}; everything is left in {}", root.display());
    }
    drop(daemons);
    std::fs::remove_dir_all(&root).unwrap();
}
