//! The circle with libvirt at one side, at the other, and at both: real guests under a real libvirtd, the ledger read back.
#![allow(clippy::unwrap_used)]

use anyhow::ensure;
use demo::net::Hosts;
use demo::world::{At, FORMATS, MACHINE};
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
