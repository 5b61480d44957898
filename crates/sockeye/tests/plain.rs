//! The exit hatch: when Sockeye is gone, a replica is a plain disk that QEMU's own tools open and a machine boots from.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use crate::scene;
use crate::scene::plain::boot;
use crate::scene::play;
use anyhow::{Context, ensure};
use demo::console::Console;
use demo::world::At;

#[test]
fn a_replica_opens_with_qemu_img_and_boots_with_plain_qemu_once_sockeye_is_gone() {
    play(false, |scene| {
        scene.protect()?;
        let acknowledged = scene.highest();
        scene.newer_than("protected", scene::now_ms())?;
        // Everything of ours ends, and nothing but the replica's directory is looked at from here on.
        scene.world.stop();
        let disks = scene.world.replica_disks().map(|disk| disk.display().to_string());
        for disk in &disks {
            let told = Command::new("qemu-img").args(["info", "--output=json", "-f", "raw"]).arg(disk).output()?;
            let told: serde_json::Value = serde_json::from_slice(&told.stdout).context("qemu-img tells nothing")?;
            ensure!(told["virtual-size"] == scene.world.settings.disk_bytes, "{told}");
        }
        let file = scene.world.dir(At::Cloud).join("plain.console");
        std::fs::write(&file, b"")?;
        let console = Console::from_now(file.clone());
        let _qemu = boot(&scene.world.settings.guest, &disks, &file, scene.world.settings.rate)?;
        let found = console.found()?;
        ensure!(found.consistent && found.scribbles_checked > 0, "the replica is no prefix: {found:?}");
        ensure!(found.highest >= acknowledged && acknowledged >= 20, "{acknowledged} were acknowledged: {found:?}");
        console.writes(3)?;
        scene.say(&format!("plain QEMU found {} records and goes on", found.found));
        Ok(())
    });
}
