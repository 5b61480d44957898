//! A failback that is given up half-way leaves home's disks as they were, bit by bit, whatever died meanwhile; and the
//! next one brings the machine home all the same.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use crate::scene::{Scene, play};
use anyhow::{Context, bail, ensure};
use demo::console::Console;
use demo::content::hash;
use demo::world::{At, MACHINE, Part};
use protocol::PointKind;
use protocol::difference::Difference;
use protocol::rest::{Job, JobState};
use protocol::stage::{Side, Stage};

/// What home's own disks hold.
fn home_holds(scene: &Scene) -> anyhow::Result<[String; 2]> {
    let [a, b] = scene.world.home_disks();
    Ok([hash(&a)?, hash(&b)?])
}

/// How long the files of home's disks are. New clusters of an image are written before its map of itself tells of them.
fn home_lengths(scene: &Scene) -> anyhow::Result<[u64; 2]> {
    let [a, b] = scene.world.home_disks();
    Ok([a.metadata()?.len(), b.metadata()?.len()])
}

/// Begins to bring everything home and holds the receiving side as soon as a part of it is there.
fn half_way_home(scene: &Scene) -> anyhow::Result<Job> {
    let job = scene.begin(&["failback", MACHINE, "--sync", "full", "--yes"])?;
    // What is overwritten at home is journalled first, so the journal tells how far it is, sooner than any status.
    let journal = scene.world.dir(At::Home).join("retention").join(MACHINE);
    let open = || std::fs::read_dir(&journal).into_iter().flatten().flatten();
    let sealed: u64 = open().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let bytes: u64 = open().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
        if bytes > sealed + (6 << 20) {
            break;
        }
        ensure!(Instant::now() < deadline, "nothing arrives at home: {:?}", scene.world.status());
        demo::pause(Duration::from_millis(1));
    }
    scene.world.freeze(At::Home, Part::MasterTarget, true);
    let newest = scene.world.status()?.newest;
    ensure!(newest.is_none(), "it was quicker than this test: {newest:?}");
    Ok(job)
}

/// Calls the job off and waits until it is undone: the machine runs on where it was.
fn call_off(scene: &Scene, job: &Job) -> anyhow::Result<()> {
    scene.begin(&["cancel", MACHINE, "--yes"])?;
    let job = scene.end_of(job.id)?;
    ensure!(job.state == JobState::Cancelled, "{job:?}");
    let view = scene.world.status()?;
    ensure!(view.stage == Stage::NotProtected { runs_at: Side::Away }, "{view:?}");
    scene.runs_only(At::Cloud)
}

#[test]
fn a_failback_that_is_called_off_leaves_home_as_it_was_and_the_next_one_arrives() {
    play(false, |scene| {
        scene.protect()?;
        let fresh = scene.world.console(At::Cloud);
        scene.done(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
        scene.lost_nothing(At::Cloud, &fresh)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        let before = home_holds(scene)?;
        scene.say(&format!("home before: {before:?}"));

        let lengths = home_lengths(scene)?;
        let job = half_way_home(scene)?;
        ensure!(
            home_lengths(scene)? != lengths || home_holds(scene)? != before,
            "nothing had arrived: calling it off would prove nothing"
        );
        scene.world.freeze(At::Home, Part::MasterTarget, false);
        call_off(scene, &job)?;
        ensure!(home_holds(scene)? == before, "home is not what it was");

        let lengths = home_lengths(scene)?;
        let job = half_way_home(scene)?;
        ensure!(
            home_lengths(scene)? != lengths || home_holds(scene)? != before,
            "nothing had arrived: a power loss would prove nothing"
        );
        scene.kill((At::Home, Part::MasterTarget), Duration::from_millis(300))?;
        call_off(scene, &job)?;
        ensure!(home_holds(scene)? == before, "after the power loss home is not what it was");

        // Not called off: it goes on, and what had arrived does not travel again.
        let job = half_way_home(scene)?;
        scene.kill((At::Home, Part::MasterTarget), Duration::from_millis(300))?;
        let waiting = scene.follow(job.id)?;
        let first = waiting.figures.first.context("it is not said what the first copy moved")?;
        let mut whole = 0;
        for disk in scene.world.replica_disks() {
            whole += disk.metadata()?.len();
        }
        // What had been written was looked at, and what was not sent is what was found to be right.
        let (arrived, kept) = (first.read_target, whole.saturating_sub(first.changed));
        scene
            .say(&format!("of {whole} bytes {arrived} had arrived before the power loss, {kept} did not travel again"));
        ensure!(arrived > 6 << 20, "{arrived} bytes had arrived: too few to tell, {first:?}");
        // The guest writes on: some of its blocks changed since they had arrived.
        ensure!(kept + arrived / 100 + (1 << 20) > arrived, "too much travelled again: {first:?}");
        call_off(scene, &job)?;
        ensure!(home_holds(scene)? == before, "after all had arrived home is not what it was");

        // Killed, and dead while it is called off: it is rolled back when it is there again.
        let job = half_way_home(scene)?;
        scene.world.kill(At::Home, Part::MasterTarget);
        scene.begin(&["cancel", MACHINE, "--yes"])?;
        scene.world.start(At::Home, Part::MasterTarget)?;
        let job = scene.end_of(job.id)?;
        ensure!(job.state == JobState::Cancelled, "{job:?}");
        ensure!(home_holds(scene)? == before, "called off while its keeper was dead: home is not what it was");

        let fresh = scene.world.console(At::Home);
        scene.done(&["failback", MACHINE, "--complete", "--max-downtime", "5m", "--yes"])?;
        scene.lost_nothing(At::Home, &fresh)?;
        taken_back_from_home(scene, &fresh)
    });
}

/// The failback is taken back although the machine ran at home: what it wrote there is kept as a point of its own, and
/// can be compared with the line that went on without it.
fn taken_back_from_home(scene: &mut Scene, home: &Console) -> anyhow::Result<()> {
    home.writes(20)?;
    scene.done(&["cancel", MACHINE, "--yes"])?;
    scene.flows("protected (reverse)")?;
    scene.runs_only(At::Cloud)?;
    let points = scene.points()?;
    let kept = points.iter().rev().find(|point| point.kind == PointKind::Unreplicated);
    let (Some(kept), Some(newest)) = (kept, points.last()) else { bail!("nothing was kept: {points:?}") };
    let two = [kept.attempt.to_string(), newest.attempt.to_string()];
    let told: Difference = scene.world.ask(&["points", MACHINE, "--diff", &two[0], &two[1], "--at", "home"], 0)?;
    let differ: Vec<u64> = told.disks.iter().map(|disk| disk.bytes).collect();
    scene.say(&format!("kept as {}: {} bytes written, {differ:?} differ from {}", two[0], kept.changed_bytes, two[1]));
    // Each record is two writes, one on each disk.
    ensure!(kept.changed_bytes > 0 && differ.iter().all(|bytes| *bytes >= 4096), "{kept:?} {told:?}");
    Ok(())
}
