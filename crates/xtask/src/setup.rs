//! Makes this machine ready for the tests and the demo; a second run finds all in place and takes about a second.
//!
//! ```text
//!   programs (apt-get, only those missing)
//!   cloud kernel package ─unpack─► target/guest/vmlinuz
//!   busybox package ─unpack─┐
//!   modules of the kernel ──┼────► target/guest/initrd.img
//!   static `ledger` ────────┴─► with QEMU's guest agent and ifupdown: target/guest/initrd-agent.img
//! ```
//! # If it is interrupted
//! Files and folders get their names by a rename when they are whole; run it again.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};

use crate::command::{phase, run};
use crate::packages::{cloud_kernel_package, file_with, install_missing, unpack};
use crate::{agent_initramfs, initramfs, target_dir};

/// Does all of it.
pub(crate) fn setup(root: &Path) -> Result<()> {
    let guest = target_dir(root).join("guest");
    fs::create_dir_all(&guest)?;
    let alone = File::create(guest.join("setup.lock"))?;
    alone.lock().context("waiting for another setup")?;
    phase("setup: programs", || install_missing(root))?;
    phase("setup: guest", || build_guest(root, &guest))
}

fn build_guest(root: &Path, guest: &Path) -> Result<()> {
    // Without asking apt again when there is a kernel: the second run works offline.
    let kernel = guest.join("kernel");
    if !kernel.is_dir() {
        unpack(root, &cloud_kernel_package(root)?, kernel.clone())?;
    }
    let busybox = unpack(root, "busybox-static", guest.join("busybox"))?;
    let busybox =
        [busybox.join("bin/busybox"), busybox.join("usr/bin/busybox")].into_iter().find(|file| file.is_file());
    let busybox = busybox.context("the package busybox-static has no busybox")?;

    println!("   building the guest's program");
    let ledger = ["cargo", "rustc", "--quiet", "--package", "guest", "--bin", "ledger", "--"];
    let flags = ["-C", "target-feature=+crt-static", "-C", "strip=symbols", "-C", "opt-level=3"];
    run(root, &[&ledger[..], &flags[..]].concat())?;
    let ledger = target_dir(root).join("debug/ledger");

    let image = file_with(&kernel.join("boot"), "vmlinuz-", "")?;
    put(&guest.join("vmlinuz"), &fs::read(image)?)?;
    let mut initrd = initramfs::build(&kernel, &busybox, &ledger)?;
    put(&guest.join("initrd.img"), &initrd)?;
    let agent = unpack(root, "qemu-guest-agent", guest.join("agent"))?;
    let ifupdown = unpack(root, "ifupdown", guest.join("ifupdown"))?;
    initrd.extend(agent_initramfs::build(&kernel, &agent, &ifupdown)?);
    put(&guest.join("initrd-agent.img"), &initrd)
}

/// Makes `path` hold `content`; leaves the file alone if it does already.
fn put(path: &Path, content: &[u8]) -> Result<()> {
    let name = path.display();
    if fs::read(path).is_ok_and(|present| present == content) {
        println!("   {name} is up to date");
        return Ok(());
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, content).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("writing {name}"))?;
    println!("   {name}: {} KiB", content.len() / 1024);
    Ok(())
}
