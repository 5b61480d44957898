//! The circle with libvirt at one side, at the other, and at both: real guests under a real libvirtd, the ledger read back.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, ensure};
use demo::net::Hosts;
use demo::world::{At, FORMATS, MACHINE, wait_for};
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

/// Home burned down: the machine and its disks are gone there. It is created where its owner says, and is an ordinary machine
/// there afterwards, which the circle goes on with.
fn comes_home_where_nothing_of_it_is(libvirt: &[At]) {
    play_with(Hosts::Own, libvirt, ["qcow2"; 2], |scene| {
        let (pool, folder) = match libvirt.is_empty() {
            true => ("site", scene.world.site_dir(At::Home)),
            false => ("vms", scene.world.dir(At::Home).join("vms")),
        };
        if !libvirt.is_empty() {
            std::fs::create_dir_all(&folder)?;
            let target = folder.display().to_string();
            scene.virsh(At::Home, &["pool-create-as", pool, "dir", "--target", &target])?;
        }
        let made = || -> anyhow::Result<usize> {
            let names = std::fs::read_dir(&folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let names: Vec<String> = names.collect::<std::io::Result<_>>()?;
            Ok(names.iter().filter(|name| name.starts_with(&format!("{MACHINE}-disk"))).count())
        };
        scene.protect()?;
        scene.world.kill_guest(At::Home)?;
        let fresh = scene.world.console(At::Cloud);
        scene.done(&["failover", MACHINE, "--unplanned", "--shut-down", "skip", "--yes"])?;
        let found = fresh.found()?;
        ensure!(found.consistent, "{found:?}");
        scene.done(&["commit", MACHINE, "--yes"])?;
        scene.loses_its_machine(At::Home)?;
        let told = || scene.world.sockeye(&["failback", MACHINE, "--yes", "--sync", "compare"]);
        wait_for("home says that the machine is gone", Duration::from_secs(60), || {
            told().ok().filter(|answer| answer.code == 3 && answer.stderr.contains("CTL-032"))
        })?;
        let refused = scene.world.sockeye(&["failback", MACHINE, "--create-vm", "--datastore", "none", "--yes"])?;
        ensure!(refused.code == 3 && refused.stderr.contains("CTL-031"), "{refused:?}");
        let words = ["failback", MACHINE, "--create-vm", "--datastore", pool, "--yes"];
        // Given up, nothing of it is left; then all the way.
        let job = scene.begin(&words)?;
        scene.world.sockeye(&["cancel", MACHINE, "--yes"])?;
        scene.end_of(job.id)?;
        ensure!(made()? == 0, "disks were left in {}", folder.display());
        ensure!(scene.machine(At::Home)?.is_none(), "a machine was left");
        moves(scene, &words, At::Home)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        let home = scene.machine(At::Home)?.context("it is not at home")?;
        let is_own = |disk: &DiskSpec| matches!(&disk.source, DiskSource::Own { path, .. } if path.ends_with(".qcow2"));
        ensure!(home.spec.disks.iter().all(is_own) && made()? == home.spec.disks.len(), "{:?}", home.spec.disks);
        ensure!(scene.machine(At::Cloud)?.is_none(), "it is still in the cloud");
        scene.done(&["reverse", MACHINE, "--yes"])?;
        scene.flows("protected")?;
        moves(scene, &["failover", MACHINE, "--planned", "--yes"], At::Cloud)
    });
}

#[test]
fn a_machine_comes_home_to_a_pool_of_libvirt_where_nothing_of_it_is() {
    comes_home_where_nothing_of_it_is(&[At::Home]);
}

#[test]
fn a_machine_comes_home_to_a_qemu_site_where_nothing_of_it_is() {
    comes_home_where_nothing_of_it_is(&[]);
}
