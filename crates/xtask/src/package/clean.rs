//! A machine that knows nothing of ours: Debian's smallest system in a folder, with what the package may want at hand.
//!
//! ```text
//!   debootstrap ─► apt-get update ─► download what will be installed ─► clean.tar        (kept: minutes the first time)
//!   clean.tar ─► a folder, anew for each trial                                          (seconds)
//! ```
//! Packages are only downloaded: what is installed is decided by apt in the trial, from what ours says that it needs.
//!
//! # If it is interrupted
//! The tar file gets its name by a rename when it is whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::{output, run};

const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
/// What a trial installs: what ours depends on and recommends, an init to boot, and a reader of man pages.
const WANTED: &str = "systemd systemd-sysv qemu-system-x86 qemu-utils man-db bash-completion libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu";

/// Unpacks the clean machine as the folder `name` beside the package; what stood there is thrown away.
pub(super) fn machine(folder: &Path, name: &str) -> Result<PathBuf> {
    let tar = folder.join("clean.tar");
    if !tar.is_file() {
        make(folder, &tar)?;
    }
    let machine = folder.join(name);
    throw_away(&machine)?;
    fs::create_dir_all(&machine)?;
    output(folder, &["tar", "--extract", "--file", &tar.to_string_lossy(), "--directory", &machine.to_string_lossy()])?;
    Ok(machine)
}

/// A second machine that is like the first.
pub(super) fn twin(machine: &Path, twin: &Path) -> Result<()> {
    throw_away(twin)?;
    let (from, to) = (machine.to_string_lossy(), twin.to_string_lossy());
    output(machine, &["cp", "--archive", "--reflink=auto", &from, &to])?;
    Ok(())
}

/// Removes a machine's folder.
pub(super) fn throw_away(machine: &Path) -> Result<()> {
    if machine.exists() {
        fs::remove_dir_all(machine)?;
    }
    Ok(())
}

/// Runs `line` in a shell of a machine that is not booted, with the network of this one; gives what it prints.
pub(super) fn inside(machine: &Path, line: &str) -> Result<String> {
    let folder = machine.to_string_lossy();
    let nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--pipe", "--directory", &folder];
    let line =
        [&nspawn[..], unit(), &["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "sh", "-ec", line]].concat();
    Ok(String::from_utf8_lossy(&output(machine, &line)?).into_owned())
}

/// What `systemd-nspawn` has to be told where no systemd runs that could give it a unit.
pub(super) fn unit() -> &'static [&'static str] {
    if Path::new("/run/systemd/system").is_dir() { &[] } else { &["--keep-unit"] }
}

fn make(folder: &Path, tar: &Path) -> Result<()> {
    println!("   a clean Debian {SUITE}: one to three minutes, once");
    let machine = folder.join("clean");
    throw_away(&machine)?;
    let (path, fresh) = (machine.to_string_lossy().into_owned(), tar.with_extension("tar.new"));
    run(folder, &["debootstrap", "--variant=minbase", SUITE, &path, MIRROR])?;
    inside(&machine, &format!("apt-get update --quiet && apt-get install --yes --quiet --download-only {WANTED}"))?;
    output(folder, &["tar", "--create", "--file", &fresh.to_string_lossy(), "--directory", &path, "."])?;
    fs::rename(&fresh, tar)?;
    throw_away(&machine)
}
