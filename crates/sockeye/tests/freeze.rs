//! What stands still must not make the guest stand still: frozen movers, a cut link, a failback that is called off.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::scene::{Scene, now_ms, play, play_with};
use anyhow::{Context, ensure};
use demo::net::Hosts;
use demo::world::{At, MACHINE, Part, wait_for};
use protocol::rest::JobState;
use protocol::stage::{Side, Stage};

/// The longest time without an acknowledged record that a loaded machine without KVM may make by itself.
const NOISE: Duration = Duration::from_secs(6);

/// For how long something is frozen; ten minutes in `long::`.
const FROZEN: Duration = Duration::from_secs(10);

/// The guest wrote all the time since then.
fn went_on(scene: &Scene, from_ms: u64, what: &str) -> anyhow::Result<()> {
    let gap = scene.witness.longest_gap(At::Home, from_ms);
    let written = scene.witness.acknowledged(0).iter().filter(|ack| ack.heard_ms >= from_ms).count();
    scene.say(&format!("{what}: {written} records, the longest gap {} ms", gap.as_millis()));
    ensure!(gap <= NOISE, "{what}, and the guest acknowledged nothing for {} ms", gap.as_millis());
    Ok(())
}

/// Stops a part where it stands, for a while; replication goes on by itself afterwards.
fn freeze(scene: &mut Scene, at: At, part: Part, long: Duration) -> anyhow::Result<()> {
    let from_ms = now_ms();
    scene.world.freeze(at, part, true);
    demo::pause(long);
    went_on(scene, from_ms, &format!("{} {part:?} was frozen", at.name()))?;
    scene.world.freeze(at, part, false);
    scene.newer_than("protected", now_ms())?;
    went_on(scene, from_ms, "until epochs flowed again")
}

/// Cuts the link for longer than an open cut waits for it: all that was written meanwhile comes as one epoch.
fn cut_the_link(scene: &mut Scene) -> anyhow::Result<()> {
    let dark = Duration::from_secs(20);
    scene.world.net.link(false)?;
    let from_ms = now_ms();
    demo::pause(dark);
    went_on(scene, from_ms, "the link was cut")?;
    let mended_ms = now_ms();
    scene.world.net.link(true)?;
    let view = scene.newer_than("protected", mended_ms)?;
    went_on(scene, from_ms, "until epochs flowed again")?;
    let points = scene.points()?;
    let in_the_dark: Vec<_> = points.iter().filter(|point| (from_ms..mended_ms).contains(&point.cut_at_ms)).collect();
    // One epoch may have been on its way when the cable was dug up, and arrives if the connection outlives the dark.
    ensure!(in_the_dark.len() <= 1, "points of the time without a link: {in_the_dark:?}");
    let first =
        points.iter().find(|point| point.cut_at_ms >= mended_ms).context("no point after the link was mended")?;
    ensure!(first.changed_bytes > 0, "{first:?}");
    let lived = view.replication.map(|told| told.rpo_ms).unwrap_or_default();
    ensure!(lived.iter().any(|rpo| u128::from(*rpo) >= dark.as_millis()), "the RPO does not tell of it: {lived:?}");
    Ok(())
}

pub fn goes_on_while_parts_are_frozen(scene: &mut Scene, long: Duration) -> anyhow::Result<()> {
    scene.protect()?;
    freeze(scene, At::Home, Part::ProcessServer, long)?;
    freeze(scene, At::Cloud, Part::MasterTarget, long)?;
    match scene.world.why_loopback.clone() {
        None => cut_the_link(scene)?,
        Some(why) => scene.say(&format!("there is no link that could be cut: {why}")),
    }
    let fresh = scene.world.console(At::Cloud);
    scene.done(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
    scene.lost_nothing(At::Cloud, &fresh).map(drop)
}

#[test]
fn the_guest_goes_on_while_movers_are_frozen_and_without_a_link() {
    play(true, |scene| goes_on_while_parts_are_frozen(scene, FROZEN));
}

#[test]
fn the_guest_goes_on_under_libvirt_as_well() {
    play_with(Hosts::Own, &[At::Home], ["qcow2"; 2], |scene| goes_on_while_parts_are_frozen(scene, FROZEN));
}

/// What home's own disks hold, whatever format they have. Somebody may have them open.
fn home_holds(scene: &Scene) -> anyhow::Result<[blake3::Hash; 2]> {
    let copy = scene.world.settings.root.join("copy.raw");
    let [a, b] = scene.world.home_disks();
    Ok([content(&a, "qcow2", &copy)?, content(&b, "raw", &copy)?])
}

fn content(disk: &Path, format: &str, copy: &Path) -> anyhow::Result<blake3::Hash> {
    let made =
        Command::new("qemu-img").args(["convert", "-U", "-f", format, "-O", "raw"]).arg(disk).arg(copy).status()?;
    ensure!(made.success(), "qemu-img cannot read {}", disk.display());
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut std::fs::File::open(copy)?, &mut hasher)?;
    std::fs::remove_file(copy)?;
    Ok(hasher.finalize())
}

#[test]
fn a_failback_that_is_called_off_leaves_home_as_it_was() {
    play(false, |scene| {
        scene.protect()?;
        let fresh = scene.world.console(At::Cloud);
        scene.done(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
        scene.lost_nothing(At::Cloud, &fresh)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        let before = home_holds(scene)?;

        let job = scene.follow(scene.begin(&["failback", MACHINE, "--yes"])?.id)?;
        ensure!(job.state == JobState::Waiting, "{job:?}");
        let acknowledged = scene.highest();
        wait_for("records while it waits", Duration::from_secs(60), || {
            (scene.highest() > acknowledged + 100).then_some(())
        })?;
        scene.world.wait_status("a point at home", Duration::from_secs(60), |view| view.newest.is_some())?;
        ensure!(home_holds(scene)? != before, "phase 1 wrote nothing at home: that proves nothing");

        let from_ms = now_ms();
        let cancelled = scene.end_of(scene.begin(&["cancel", MACHINE, "--yes"])?.id)?;
        ensure!(cancelled.state == JobState::Cancelled, "{cancelled:?}");
        let view = scene.world.status()?;
        ensure!(view.stage == Stage::NotProtected { runs_at: Side::Away }, "{view:?}");
        ensure!(home_holds(scene)? == before, "home's disks are not what they were before the failback");
        let gap = scene.witness.longest_gap(At::Cloud, from_ms);
        ensure!(gap <= NOISE, "the guest stood still for {} ms", gap.as_millis());
        scene.runs_only(At::Cloud)?;

        // And it can be tried again.
        let waiting = scene.follow(scene.begin(&["failback", MACHINE, "--yes"])?.id)?;
        ensure!(waiting.state == JobState::Waiting, "{waiting:?}");
        let fresh = scene.world.console(At::Home);
        scene.done(&["complete", MACHINE, "--yes"])?;
        scene.lost_nothing(At::Home, &fresh)?;
        scene.done(&["commit", MACHINE, "--yes"]).map(drop)
    });
}
