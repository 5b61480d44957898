//! A whole Debian through the circle: boot loader, systemd, NetworkManager, QEMU's guest agent, and a PostgreSQL that commits all
//! the while, under libvirt at both sites. `cargo xtask test --long` makes the image and runs this; what was typed and what came of
//! it is written down as it goes.
//!
//! The guest says in the words of the test guest what it found and what it committed (its `ledger` is a shell script that asks
//! PostgreSQL), and in lines of its own how PostgreSQL started.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use demo::console::{Console, Found};
use demo::net::Hosts;
use demo::world::{At, MACHINE, Part, wait_for};
use protocol::beside::test_name;
use protocol::rest::ItemView;

use crate::freeze::goes_on_while_parts_are_frozen;
use crate::scene::{Scene, now_ms, play, play_bare, play_with};

/// A Debian boots in a minute under emulation, when it has a processor to itself.
const PATIENCE: Duration = Duration::from_secs(600);
/// How the transcript begins.
const TITLE: &str = "# A Debian with PostgreSQL through the circle

What `cargo xtask test --long` typed, and what came of it: libvirt at both sites, the guest under emulation on the two cores of the development machine. `docs/proven.md` says what is claimed.
";
/// Where its owner's profile of NetworkManager has the guest be, and where it is to be at the other site.
const AT_HOME: &str = "10.1.0.5/24";
const AWAY: &str = "10.2.0.5/24";
/// Its card.
const CARD: &str = "52:54:00:5c:0e:01";

#[test]
#[ignore = "ten minutes, and an image that `cargo xtask test --long` makes"]
fn a_debian_with_postgresql_goes_round_and_keeps_what_it_committed() {
    let asked = |name: &str| PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set")));
    let (image, transcript) = (asked("SOCKEYE_DEBIAN"), asked("SOCKEYE_TRANSCRIPT"));
    play_bare(Hosts::Own, &[At::Home, At::Cloud], |scene| {
        define(scene, &image)?;
        let mut story = Story { scene, told: TITLE.into(), began: Instant::now() };
        let ended = story.goes_round();
        // Also of a run that fails: to be read.
        std::fs::write(transcript, &story.told)?;
        ended
    });
}

/// As its owner would have made it.
fn define(scene: &Scene, image: &Path) -> anyhow::Result<()> {
    let home = scene.world.dir(At::Home);
    let (disk, variables) = (home.join("debian.qcow2"), home.join("debian-vars.fd"));
    let console = scene.world.console_file(At::Home);
    std::fs::create_dir_all(scene.world.machine_dir(At::Home, MACHINE))?;
    let copied = Command::new("cp").arg("--reflink=auto").args([image, &disk]).status()?;
    ensure!(copied.success(), "{} could not be copied", image.display());
    let domain = format!(
        "<domain type='qemu'><name>{MACHINE}</name><memory unit='MiB'>768</memory><vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>
  <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>{}</nvram></os><features><acpi/></features>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{}'/>
      <target dev='vda' bus='virtio'/></disk>
    <interface type='user'><mac address='{CARD}'/><model type='virtio'/></interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <serial type='file'><source path='{}' append='on'/></serial>
  </devices></domain>",
        variables.display(),
        disk.display(),
        console.display()
    );
    let file = home.join("debian.xml");
    std::fs::write(&file, domain)?;
    scene.virsh(At::Home, &["define", &file.to_string_lossy()])
}

/// What happens, and what was said about it.
struct Story<'a> {
    scene: &'a mut Scene,
    told: String,
    began: Instant,
}

impl Story<'_> {
    fn goes_round(&mut self) -> anyhow::Result<()> {
        let console = self.scene.world.console(At::Home);
        self.scene.world.start_guest()?;
        self.boots("at home, for the first time", &console, "clean")?;
        console.writes(20)?;
        let there = || console.text().lines().any(|line| line.starts_with("ADDRESS") && line.contains(AT_HOME));
        wait_for("address of the guest", PATIENCE, || there().then_some(())).with_context(|| console.text())?;

        self.chapter("Protected, with another address for the other site");
        self.types(&format!("protect web01 --from home --to cloud --address away:{CARD}={AWAY} --yes"))?;
        self.flows("protected")?;
        self.types("status")?;

        self.chapter("An application-consistent point, tried in a test failover while the original goes on");
        self.types("point add web01 --app --yes")?;
        self.types("failover web01 --test --point latest-app --yes")?;
        let test = self.scene.world.console_of(At::Cloud, &test_name(MACHINE));
        self.boots("the test machine", &test, "clean")?;
        self.types("cleanup web01 --yes")?;

        self.chapter("Planned failover, and home again");
        self.moves("failover web01 --planned --yes", At::Cloud)?;
        self.has(AWAY)?;
        self.types("commit web01 --yes")?;
        self.types("reprotect web01 --yes")?;
        self.flows("protected (reverse)")?;
        self.types("quote web01")?;
        self.moves("failback web01 --complete --max-downtime 1m --yes", At::Home)?;
        self.has(AT_HOME)?;
        self.types("commit web01 --yes")?;
        self.types("reverse web01 --yes")?;
        self.flows("protected")?;

        self.chapter("Home's QEMU is killed: unplanned failover");
        let mark = self.scene.witness.mark();
        let fresh = self.scene.world.console(At::Cloud);
        self.scene.world.console(At::Home).writes(20)?;
        self.scene.world.kill_guest(At::Home)?;
        self.types("failover web01 --unplanned --shut-down skip --yes")?;
        let found = self.boots("at the cloud", &fresh, "recovered")?;
        let points = self.scene.points()?;
        let point = points.last().context("there is no point")?;
        let heard = self.scene.witness.acknowledged(mark);
        let home = || heard.iter().filter(|ack| ack.at == At::Home);
        let last = home().map(|ack| ack.number).max().context("nothing was committed")?;
        // Each commit that was heard of before the cut is in it; one more may have been on its way to the console.
        let due = home().filter(|ack| ack.heard_ms < point.cut_at_ms).map(|ack| ack.number).max().unwrap_or(0);
        ensure!((due..=last + 1).contains(&found.highest), "{due} to {last} were due, {} are there", found.highest);
        self.says(&format!(
            "Committed at home up to row {last}; the point holds {}, without a gap: {} rows are lost, those of its last moments.",
            found.highest,
            last.saturating_sub(found.highest)
        ));
        fresh.writes(20)?;
        self.has(AWAY)?;

        self.chapter("Home is mended: reprotect compares, and the machine comes home");
        self.types("commit web01 --yes")?;
        self.types("reprotect web01 --yes")?;
        self.flows("protected (reverse)")?;
        self.moves("failback web01 --complete --max-downtime 1m --yes", At::Home)?;
        self.has(AT_HOME)?;
        self.types("commit web01 --yes")?;
        self.types("reverse web01 --yes")?;
        self.flows("protected")?;
        self.types("status").map(drop)
    }

    fn chapter(&mut self, name: &str) {
        self.told += &format!("\n## {name}\n");
    }

    fn says(&mut self, text: &str) {
        let at = self.began.elapsed().as_secs();
        self.scene.say(text);
        self.told += &format!("\n*{}:{:02}* {text}\n", at / 60, at % 60);
    }

    /// Types a line, which must end well; what it printed.
    fn types(&mut self, line: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        self.scene.say(&format!("$ sockeye {line}"));
        let answer = self.scene.world.typed(&words)?;
        self.told += &format!("\n```\n$ sockeye {line}\n{}{}```\n", answer.stderr, answer.stdout);
        ensure!(answer.code == 0, "sockeye {line}: {answer:?}");
        Ok(answer.stdout)
    }

    /// Waits until the guest has told what it found, and that PostgreSQL started `so`.
    fn boots(&mut self, place: &str, console: &Console, so: &str) -> anyhow::Result<Found> {
        let found = wait_for("word of the guest", PATIENCE, || console.found().ok())?;
        ensure!(found.consistent, "{place}: {found:?}");
        let text = console.text();
        let started =
            text.lines().find_map(|line| line.trim().strip_prefix("POSTGRESQL ")).context("nothing of PostgreSQL")?;
        ensure!(started == so, "{place}: PostgreSQL started {started}, not {so}");
        console.writes(3)?;
        let how = if so == "clean" { "without recovery" } else { "by replaying its log" };
        self.says(&format!(
            "The guest boots ({place}): PostgreSQL starts {how}; {} rows, none missing, each fits its proof, `pg_amcheck` finds nothing. It goes on committing.",
            found.found
        ));
        Ok(found)
    }

    /// A planned move, after which every committed row must be there.
    fn moves(&mut self, line: &str, to: At) -> anyhow::Result<()> {
        let (fresh, mark) = (self.scene.world.console(to), self.scene.witness.mark());
        self.scene.world.console(to.other()).writes(20)?;
        self.types(line)?;
        let found = self.boots(&format!("at {}", to.name()), &fresh, "clean")?;
        let heard = self.scene.witness.acknowledged(mark);
        let last = heard.iter().filter(|ack| ack.at == to.other()).map(|ack| ack.number).max();
        let last = last.context("nothing was committed")?;
        ensure!(found.highest >= last, "row {last} was committed, {} is the highest", found.highest);
        self.scene.runs_only(to)?;
        self.says(&format!("Row {last} was the last that it committed before: it is there."));
        Ok(())
    }

    /// What NetworkManager has given the card, as the guest's agent tells, and no step warned of it.
    fn has(&mut self, address: &str) -> anyhow::Result<()> {
        ensure!(!self.told.contains("warning"), "there is a warning");
        ensure!(!self.told.contains(" by none"), "it was not NetworkManager");
        let told = self.types("network show web01")?;
        let now = told.lines().find(|line| line.contains("has now")).context("nothing of now")?;
        ensure!(now.contains(address), "{address} was due: {told}");
        Ok(())
    }

    /// Waits until points come that are newer than now.
    fn flows(&mut self, words: &str) -> anyhow::Result<()> {
        let from = now_ms();
        let newer = |view: &ItemView| {
            let newest = view.newest.as_ref().is_some_and(|point| point.cut_at_ms > from);
            view.stage_words == words && view.job.is_none() && newest
        };
        self.scene.world.wait_status("new points", PATIENCE, newer)?;
        self.says(&format!("{words}: recovery points come."));
        Ok(())
    }
}

/// Stopped, not ended: nobody tells libvirt that its backup is waited for no more.
#[test]
#[ignore = "twenty minutes"]
fn a_guest_under_libvirt_goes_on_while_movers_hang_for_ten_minutes() {
    let long = Duration::from_secs(600);
    play_with(Hosts::Own, &[At::Home], ["qcow2"; 2], |scene| goes_on_while_parts_are_frozen(scene, long));
}

/// One program after the other is upgraded while it replicates, the control server first: what the older build made is gone on with,
/// and nothing is compared. Movers of which one is older say so and wait for the other one's upgrade (the mover protocol is
/// version 6 in the older build, 7 in this one).
fn upgraded(first_of_pair: (At, Part)) {
    let older = std::env::var_os("SOCKEYE_OLDER").unwrap_or_else(|| panic!("SOCKEYE_OLDER is not set"));
    let pair = [(At::Home, Part::ProcessServer), (At::Cloud, Part::MasterTarget)];
    let beside = [(At::Home, Part::MasterTarget), (At::Cloud, Part::ProcessServer)];
    play(true, |scene| {
        let newer = std::mem::replace(&mut scene.world.settings.sockeye, older.into());
        for part in [(At::Cloud, Part::Control)].into_iter().chain(pair).chain(beside) {
            scene.kill(part, Duration::ZERO)?;
        }
        scene.world.wait_connected(4)?;
        scene.protect()?;
        let first = scene.points()?.last().context("there is no point")?.attempt.to_string();
        let mark = scene.witness.mark();
        scene.world.settings.sockeye = newer;
        for part in [(At::Cloud, Part::Control)].into_iter().chain(beside) {
            scene.kill(part, Duration::from_millis(200))?;
            scene.flows("protected")?;
        }
        scene.kill(first_of_pair, Duration::from_millis(200))?;
        let differs = |view: &ItemView| {
            let fault = view.replication.as_ref().and_then(|told| told.fault.as_ref());
            fault.is_some_and(|fault| format!("{fault} {}", fault.cause).contains("version"))
        };
        scene.world.wait_status("word of the versions", PATIENCE, differs)?;
        let other = if first_of_pair == pair[0] { pair[1] } else { pair[0] };
        scene.kill(other, Duration::from_millis(200))?;
        scene.flows("protected")?;
        let told = scene.world.status()?.replication;
        ensure!(told.as_ref().is_some_and(|told| told.distrust.is_none()), "it was compared: {told:?}");
        ensure!(scene.witness.acknowledged(mark).len() > 100, "the guest wrote too little to judge");
        // What the older build kept can be started from.
        let test = scene.world.console_of(At::Cloud, &test_name(MACHINE));
        scene.done(&["failover", MACHINE, "--test", "--point", &first, "--yes"])?;
        ensure!(test.found()?.consistent, "point {first} is no prefix of what was written");
        scene.done(&["cleanup", MACHINE, "--yes"])?;
        for (words, to) in
            [(["failover", MACHINE, "--planned"], At::Cloud), (["failback", MACHINE, "--complete"], At::Home)]
        {
            let fresh = scene.world.console(to);
            scene.done(&[&words[..], &["--yes"]].concat())?;
            scene.lost_nothing(to, &fresh)?;
            scene.done(&["commit", MACHINE, "--yes"])?;
            if to == At::Cloud {
                scene.done(&["reprotect", MACHINE, "--yes"])?;
                scene.flows("protected (reverse)")?;
            }
        }
        Ok(())
    });
}

#[test]
#[ignore = "an older build is needed, which `cargo xtask test --long` makes"]
fn an_older_build_is_upgraded_its_sender_first() {
    upgraded((At::Home, Part::ProcessServer));
}

#[test]
#[ignore = "an older build is needed, which `cargo xtask test --long` makes"]
fn an_older_build_is_upgraded_its_receiver_first() {
    upgraded((At::Cloud, Part::MasterTarget));
}
