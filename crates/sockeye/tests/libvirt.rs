//! The circle with libvirt at one side, at the other, and at both: real guests under a real libvirtd, the ledger read back.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, ensure};
use demo::console::Console;
use demo::net::Hosts;
use demo::world::{At, FORMATS, MACHINE, Part, wait_for};
use platforms::Platform;
use platforms::qemu::Qemu;
use protocol::machine::DiskFormat::Qcow2;
use protocol::machine::{DiskSource, DiskSpec};
use protocol::rest::JobState;

use crate::scene::{Scene, play_with};

/// Moves the machine as planned, from `begin` on, and sees that it goes on at `to` with every record.
fn moves(scene: &mut Scene, begin: &[&str], to: At) -> anyhow::Result<()> {
    let fresh = scene.world.console(to);
    let job = scene.follow(scene.begin(begin)?.id)?;
    if job.state == JobState::Waiting {
        scene.done(&["complete", MACHINE, "--yes"])?;
        scene.end_of(job.id)?;
    }
    scene.lost_nothing(to, &fresh).map(drop)
}

fn goes_round(libvirt: &[At], formats: [&'static str; 2]) {
    play_with(Hosts::Own, libvirt, formats, |scene| {
        scene.protect()?;
        moves(scene, &["failover", MACHINE, "--planned", "--yes"], At::Cloud)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        scene.done(&["reprotect", MACHINE, "--yes"])?;
        scene.flows("protected (reverse)")?;
        moves(scene, &["failback", MACHINE, "--yes"], At::Home)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        // Its owner has the original disks back, and nothing of it runs or stands in the cloud.
        let home = scene.machine(At::Home)?.context("it is not at home")?;
        let is_own = |disk: &DiskSpec| matches!(disk.source, DiskSource::Own { .. });
        ensure!(home.spec.disks.iter().all(is_own), "{:?}", home.spec.disks);
        ensure!(scene.machine(At::Cloud)?.is_none(), "it is still in the cloud");
        scene.done(&["reverse", MACHINE, "--yes"])?;
        scene.flows("protected")?;
        // And as if home were gone: a prefix is there, and the machine comes home again by what is left there.
        let fresh = scene.world.console(At::Cloud);
        scene.world.kill_guest(At::Home)?;
        scene.done(&["failover", MACHINE, "--unplanned", "--shut-down", "skip", "--yes"])?;
        let found = fresh.found()?;
        ensure!(found.consistent && found.found >= 20, "{found:?}");
        scene.runs_only(At::Cloud)
    });
}

/// A raw disk's changes nobody tells there: each epoch compares, and so does the last one.
#[test]
fn home_is_libvirt_and_has_a_raw_disk() {
    goes_round(&[At::Home], FORMATS);
}

#[test]
fn the_cloud_is_libvirt() {
    goes_round(&[At::Cloud], FORMATS);
}

#[test]
fn both_are_libvirt() {
    goes_round(&[At::Home, At::Cloud], ["qcow2"; 2]);
}

/// Home burned down: the machine and its disks are gone there. It is created on the pool that its owner names, and is an ordinary
/// machine there afterwards, with which the circle goes on.
#[test]
fn a_machine_comes_home_to_a_pool_where_nothing_of_it_is() {
    play_with(Hosts::Own, &[At::Home], ["qcow2"; 2], |scene| {
        let folder = scene.world.dir(At::Home).join("vms");
        std::fs::create_dir_all(&folder)?;
        let target = folder.display().to_string();
        scene.virsh(At::Home, &["pool-create-as", "vms", "dir", "--target", &target])?;
        let made = || -> anyhow::Result<usize> { Ok(std::fs::read_dir(&folder)?.count()) };
        scene.protect()?;
        moves(scene, &["failover", MACHINE, "--planned", "--yes"], At::Cloud)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        scene.loses_its_machine(At::Home)?;
        let told = || scene.world.sockeye(&["failback", MACHINE, "--yes", "--sync", "compare"]);
        wait_for("home says that the machine is gone", Duration::from_secs(60), || {
            told().ok().filter(|answer| answer.code == 3 && answer.stderr.contains("CTL-032"))
        })?;
        let refused = scene.world.sockeye(&["failback", MACHINE, "--create-vm", "--datastore", "none", "--yes"])?;
        ensure!(refused.code == 3 && refused.stderr.contains("CTL-031"), "{refused:?}");
        let words = ["failback", MACHINE, "--create-vm", "--datastore", "vms", "--yes"];
        // Given up, nothing of it is left; then all the way.
        let job = scene.begin(&words)?;
        scene.world.sockeye(&["cancel", MACHINE, "--yes"])?;
        scene.end_of(job.id)?;
        ensure!(made()? == 0, "disks were left in {}", folder.display());
        ensure!(scene.machine(At::Home)?.is_none(), "a machine was left");
        moves(scene, &words, At::Home)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        let home = scene.machine(At::Home)?.context("it is not at home")?;
        let is_there = |disk: &DiskSpec| matches!(&disk.source, DiskSource::Own { path, format: Qcow2 } if Path::new(path).starts_with(&folder));
        ensure!(home.spec.disks.iter().all(is_there) && made()? == home.spec.disks.len(), "{:?}", home.spec.disks);
        ensure!(scene.machine(At::Cloud)?.is_none(), "it is still in the cloud");
        scene.done(&["reverse", MACHINE, "--yes"])?;
        scene.flows("protected")?;
        moves(scene, &["failover", MACHINE, "--planned", "--yes"], At::Cloud)
    });
}

/// A process that ends with the test.
struct Mover(Child);

impl Drop for Mover {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another site becomes the machine's home: a new host, which has never seen it.
#[test]
fn a_machine_comes_home_to_another_site() {
    play_with(Hosts::Own, &[], ["qcow2"; 2], |scene| {
        let barn = scene.world.dir(At::Home).join("barn");
        let token = std::fs::read_to_string(scene.world.data_dir(At::Cloud, Part::Control).join("admin.token"))?;
        let mut movers = Vec::new();
        for role in ["master-target", "process-server"] {
            let mut command = scene.world.command(At::Home);
            let data = barn.join(role);
            std::fs::create_dir_all(&data)?;
            command.arg(role).arg("--data-dir").arg(&data).args(["--join-token", token.trim(), "--site", "barn"]);
            command
                .args(["--platform", "qemu"])
                .arg("--site-dir")
                .arg(barn.join("qemu"))
                .arg("--server")
                .arg(scene.world.url());
            if role == "master-target" {
                command.args(["--listen", "0.0.0.0:0", "--advertise"]);
                command.arg(format!("{}:0", scene.world.net.address(At::Home.host())));
            }
            let log = std::fs::File::create(barn.join(format!("{role}.log")))?;
            movers.push(Mover(command.stdout(log.try_clone()?).stderr(log).spawn()?));
        }
        scene.world.wait_connected(6)?;
        scene.protect()?;
        moves(scene, &["failover", MACHINE, "--planned", "--yes"], At::Cloud)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        let console = Console::from_now(barn.join("qemu").join("machines").join(MACHINE).join("console.log"));
        let job = scene.begin(&["failback", MACHINE, "--create-vm", "--to", "barn", "--complete", "--yes"])?;
        let job = scene.follow(job.id)?;
        ensure!(job.state == JobState::Done, "{job:?}");
        let found = console.found()?;
        ensure!(found.consistent && found.highest == scene.highest(), "{found:?}, {} were written", scene.highest());
        scene.done(&["commit", MACHINE, "--yes"])?;
        let item = scene.world.status()?;
        ensure!(item.home.as_str() == "barn" && item.runs_at.as_str() == "barn", "{item:?}");
        let platform = Qemu::open(&barn.join("qemu")).map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let machine = tokio::runtime::Runtime::new()?
            .block_on(platform.machine(MACHINE))
            .map_err(|fault| anyhow::anyhow!("{fault}"))?;
        let disks = machine.context("it is not there")?.spec.disks;
        ensure!(disks.iter().all(|disk| matches!(disk.source, DiskSource::Own { .. })), "{disks:?}");
        scene.done(&["reverse", MACHINE, "--yes"])?;
        scene.flows("protected")?;
        moves(scene, &["failover", MACHINE, "--planned", "--yes"], At::Cloud)
    });
}
