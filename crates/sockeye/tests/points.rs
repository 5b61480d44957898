//! Recovery points with real guests: a test failover that outlives a killed master target and a real failover beside it, and a
//! failover whose point is changed before it goes home.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use crate::scene::plain::boot;
use crate::scene::{Scene, now_ms, play};
use anyhow::{Context, ensure};
use demo::console::Console;
use demo::world::{At, MACHINE, Part};
use protocol::beside::{ServedDisk, ServedView};
use protocol::order::Sync;

const TEST: &str = "web01-test";

#[test]
fn a_test_runs_on_beside_a_failover_whose_point_is_changed_and_which_comes_home_tracked() {
    play(true, |scene| {
        scene.protect()?;
        let home = scene.world.console(At::Home);
        home.writes(20)?;
        scene.newer_than("protected", now_ms())?;

        let job = scene.done(&["failover", MACHINE, "--test", "--yes"])?;
        let tested = job.figures.point.context("the test says no point")?;
        let test = scene.world.console_of(At::Cloud, TEST);
        let found = test.found()?;
        ensure!(found.consistent && found.scribbles_checked > 0, "{found:?}");
        scene.say(&format!("the test found {} records at point {}", found.highest, tested.attempt));
        test.writes(5)?;

        scene.say("the master target under the test is killed");
        scene.world.kill(At::Cloud, Part::MasterTarget);
        scene.world.start(At::Cloud, Part::MasterTarget)?;
        scene.world.wait_connected(4)?;
        writes_on(&test).context("the test after its master target was killed")?;
        scene.newer_than("protected", now_ms())?;

        let newest = scene.done(&["failover", MACHINE, "--unplanned", "--shut-down", "require", "--yes"])?;
        let newest = newest.figures.point.context("the failover says no point")?.attempt;
        let moved = scene.world.console_of(At::Cloud, MACHINE);
        let first = moved.found()?;
        ensure!(first.consistent && first.highest > found.highest, "{first:?} after {found:?}");
        writes_on(&moved)?;
        writes_on(&test).context("the test beside the failover")?;
        ensure!(scene.world.status()?.test.is_some(), "the test is forgotten");
        let stands = scene.world.left_of(At::Cloud, "-test")?;
        for part in ["machines/web01-test", "disk1-test.qcow2", "qemu-system-x86_64", "export web01.disk0."] {
            ensure!(stands.iter().any(|one| one.contains(part)), "{part} of the test is not seen: {stands:?}");
        }
        scene.done(&["cleanup", MACHINE, "--yes"])?;
        let left = scene.world.left_of(At::Cloud, "-test")?;
        ensure!(left.is_empty(), "the test left {left:?}");

        // Back to what the test stood on, then to the newest again.
        let mut highest = vec![];
        for point in [tested.attempt, newest] {
            scene.done(&["change-point", MACHINE, "--point", &point.to_string(), "--yes"])?;
            let console = scene.world.console_of(At::Cloud, MACHINE);
            let found = console.found()?;
            ensure!(found.consistent, "{found:?}");
            highest.push(found.highest);
            writes_on(&console)?;
        }
        ensure!(highest == [found.highest, first.highest], "{highest:?} at the points of {found:?} and {first:?}");

        scene.done(&["commit", MACHINE, "--yes"])?;
        let job = scene.done(&["reprotect", MACHINE, "--yes"])?;
        ensure!(job.figures.sync == Some(Sync::Tracked), "{:?}: {:?}", job.figures.sync, job.figures.distrust);
        let cloud = scene.world.console_of(At::Cloud, MACHINE);
        writes_on(&cloud)?;
        let home = scene.world.console(At::Home);
        scene.done(&["failback", MACHINE, "--complete", "--max-downtime", "5m", "--yes"])?;
        let (last, _) = cloud.bye().context("the guest did not shut itself down")?;
        let found = home.found()?;
        ensure!(found.consistent && found.highest == last, "{last} was the last, {found:?}");
        Ok(())
    });
}

#[test]
fn a_point_is_looked_at_and_tried_on_by_plain_qemu_while_epochs_arrive() {
    play(false, |scene| {
        scene.protect()?;
        scene.newer_than("protected", now_ms())?;
        let looked = served(scene, &["--point", "latest"])?;
        let point = looked.point.to_string();
        let tried = served(scene, &["--point", &point, "--writable"])?;
        ensure!((looked.writable, tried.writable, tried.point) == (false, true, looked.point), "{looked:?} {tried:?}");
        for disk in &looked.disks {
            let can = Command::new("nbdinfo").args(["--can", "write", &disk.uri]).status()?;
            ensure!(can.code() == Some(2), "{} can be written: {can}", disk.uri);
        }
        let was = contents(scene, &looked)?;
        ensure!(contents(scene, &tried)? == was, "the two views of one point are not the same");

        let file = scene.world.dir(At::Cloud).join("plain.console");
        std::fs::write(&file, b"")?;
        let console = Console::from_now(file.clone());
        let disks: Vec<String> = tried.disks.iter().map(|disk| disk.uri.clone()).collect();
        let qemu = boot(&scene.world.settings.guest, &disks, &file, scene.world.settings.rate)?;
        let found = console.found()?;
        ensure!(found.consistent && found.scribbles_checked > 0 && found.highest >= 20, "no prefix: {found:?}");
        console.writes(3)?;
        let view = scene.newer_than("protected", now_ms())?;
        ensure!(view.views.len() == 2, "status does not tell of them: {:?}", view.views);
        drop(qemu);
        scene.say(&format!("plain QEMU found {} records at point {point} and wrote on", found.highest));
        ensure!(contents(scene, &looked)? == was, "what was written to one view shows in the other");
        ensure!(contents(scene, &tried)? != was, "what was written to the view is not in it");

        for view in [&looked, &tried] {
            let number = view.number.to_string();
            let stands = scene.world.left_of(At::Cloud, &format!("-view{number}"))?;
            let wanted = if view.writable {
                &["export web01.disk1.", "disk0-view", "qemu-nbd"][..]
            } else {
                &["export web01.disk1."]
            };
            for part in wanted {
                ensure!(stands.iter().any(|one| one.contains(part)), "{part} of view {number} is not seen: {stands:?}");
            }
            scene.done(&["view", MACHINE, "--end", &number, "--yes"])?;
            let left = scene.world.left_of(At::Cloud, &format!("-view{number}"))?;
            ensure!(left.is_empty(), "view {number} left {left:?}");
        }
        ensure!(scene.world.status()?.views.is_empty(), "they are told of yet");
        scene.newer_than("protected", now_ms()).map(drop)
    });
}

/// Serves a point.
fn served(scene: &Scene, arguments: &[&str]) -> anyhow::Result<ServedView> {
    let job = scene.done(&[&["view", MACHINE, "--yes"], arguments].concat())?;
    job.figures.served.context("the job says no view")
}

/// Hashes of what a view's disks hold, as libnbd's own program reads them.
fn contents(scene: &Scene, view: &ServedView) -> anyhow::Result<Vec<String>> {
    let file = scene.world.settings.root.join("copied.raw");
    let hash = |disk: &ServedDisk| {
        let done = Command::new("nbdcopy").arg(&disk.uri).arg(&file).output()?;
        ensure!(done.status.success(), "nbdcopy: {}", String::from_utf8_lossy(&done.stderr));
        let hash = demo::content::hash(&file)?;
        std::fs::remove_file(&file)?;
        Ok(hash)
    };
    view.disks.iter().map(hash).collect()
}

/// Waits until more is acknowledged than is now.
fn writes_on(console: &Console) -> anyhow::Result<()> {
    let before = console.acknowledged().len();
    console.writes(before + 3).map(drop)
}
