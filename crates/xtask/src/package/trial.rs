//! The package on two clean machines: installed by apt, started by systemd under all its restrictions, used, and removed.
//!
//! ```text
//!   home                                      cloud
//!   sockeye-server
//!   sockeye-process-server ══════ epochs ═══► sockeye-master-target  (a test failover, then a planned one)
//!   sockeye-master-target                     sockeye-process-server
//! ```
//! Before that the same way on two others, with libvirt and a real guest.
//! What is tried is what is shipped: nothing of the units is repeated here, and their settings are made as `docs/install.md` says.
//! The guests have no system on their disks; that one is brought over whole is for the demo, which has real ones.

mod installed;
mod libvirt;
mod removed;
mod used;
mod walk;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::booted::{Booted, Network};
use super::clean;
use crate::command::phase;
use crate::packages::install;

/// What a trial starts on this host.
const PROGRAMS: [(&str, &str); 4] = [
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
];

/// Tries the package `deb`; needs root.
pub(super) fn trial(root: &Path, deb: &Path) -> Result<()> {
    let folder = deb.parent().context("the package stands in a folder")?;
    phase("trial: programs", || install(root, &PROGRAMS))?;
    let (mut home, mut cloud) = (PathBuf::new(), PathBuf::new());
    phase("trial: installed", || {
        home = clean::machine(folder, "home")?;
        fs::copy(deb, home.join("sockeye.deb"))?;
        installed::alone(&home)?;
        installed::complete(&home)?;
        cloud = folder.join("cloud");
        clean::twin(&home, &cloud)
    })?;
    let network = Network::new()?;
    phase("trial: libvirt", || libvirt::circle(root, &home, &network))?;
    let home = Booted::boot(home, &network)?;
    phase("trial: the README's walk", || walk::walk(root, &home))?;
    let cloud = Booted::boot(cloud, &network)?;
    phase("trial: services", || used::services(&home, &cloud))?;
    phase("trial: used", || used::circle(&home, &cloud))?;
    phase("trial: upgraded and removed", || removed::removed(&cloud))?;
    // Their folders are left only where something failed, to be looked at.
    for machine in [home, cloud] {
        clean::throw_away(&machine.power_off())?;
    }
    Ok(())
}

/// One claim about the package; what it says when it does not hold.
fn claim(what: &str, holds: impl FnOnce() -> Result<()>) -> Result<()> {
    holds().with_context(|| format!("not so: {what}"))?;
    println!("   {what}");
    Ok(())
}

/// Two things that shall be the same.
fn same(is: &str, shall_be: &str) -> Result<()> {
    anyhow::ensure!(is.trim() == shall_be, "it is {is:?} and not {shall_be:?}");
    Ok(())
}
