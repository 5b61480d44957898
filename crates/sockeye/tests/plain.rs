//! The exit hatch: when Sockeye is gone, a replica is a plain disk that QEMU's own tools open and a machine boots from.

#![allow(clippy::unwrap_used)]

mod scene;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use demo::console::Console;
use demo::world::At;
use scene::play;

/// A QEMU that is gone when the test is.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What anybody types who has the two files and never heard of us.
fn boot(guest: &Path, disks: &[std::path::PathBuf], console: &Path, rate: u32) -> anyhow::Result<Qemu> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "192", "-display", "none", "-nodefaults"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(guest.join("vmlinuz")).arg("-initrd").arg(guest.join("initrd.img"));
    command.arg("-append").arg(guest::kernel_command_line(rate, guest::Pattern::Mixed));
    for (place, disk) in disks.iter().enumerate() {
        command.arg("-drive").arg(format!("file={},format=raw,if=none,id=d{place}", disk.display()));
        command.arg("-device").arg(format!("virtio-blk-pci,drive=d{place},serial=disk{place}"));
    }
    Ok(Qemu(command.stdin(Stdio::null()).spawn()?))
}

#[test]
fn a_replica_opens_with_qemu_img_and_boots_with_plain_qemu_once_sockeye_is_gone() {
    play(false, |scene| {
        scene.protect()?;
        let acknowledged = scene.highest();
        scene.newer_than("protected", scene::now_ms())?;
        // Everything of ours ends, and nothing but the replica's directory is looked at from here on.
        scene.world.stop();
        let disks = scene.world.replica_disks();
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
