//! Debian packages: installs what the tests and the demo run, and unpacks what only the test guest needs.
//!
//! Only programs that are not there are installed, nothing is upgraded or downgraded. The guest's kernel and busybox
//! are downloaded and unpacked under the target folder, never installed: they are for another machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{is_installed, output, run, works};

/// A program the tests, the demo or a bench start, or a file that one of them needs, and the package that brings it.
const PROGRAMS: [(&str, &str); 22] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("mtype", "mtools"),
    ("kill", "procps"),
    ("mkfs.ext4", "e2fsprogs"),
    ("python3", "python3"),
    ("xz", "xz-utils"),
    ("fio", "fio"),
    ("rsync", "rsync"),
    ("virsh", "libvirt-clients"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    // libvirtd itself, the user that it wants to find, and the part of it that runs QEMU.
    ("/lib/systemd/system/libvirtd.service", "libvirt-daemon-system"),
    ("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so", "libvirt-daemon-driver-qemu"),
];

/// Installs what the tests, the demo and the benches start, as far as it is missing.
pub(crate) fn install_missing(root: &Path) -> Result<()> {
    install(root, &PROGRAMS)
}

/// Installs the packages of all `programs` that are missing. Does nothing, and needs nobody's rights, if none is.
pub(crate) fn install(root: &Path, programs: &[(&str, &str)]) -> Result<()> {
    let mut packages: Vec<&str> =
        programs.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        println!("   all programs are there");
        return Ok(());
    }
    println!("   installing {} with apt-get (one to three minutes)", packages.join(", "));
    update_lists(root)?;
    let mut line = vec!["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "--no-upgrade"];
    line.extend(&packages);
    run_as_root(root, &line)
}

/// Downloads `package` and unpacks it into `folder`, unless that was done before. Gives `folder`.
pub(crate) fn unpack(root: &Path, package: &str, folder: PathBuf) -> Result<PathBuf> {
    if folder.is_dir() {
        return Ok(folder);
    }
    println!("   fetching the package {package}, to unpack it, not to install it");
    let fresh = folder.with_extension("unpacking");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    fs::create_dir_all(&fresh)?;
    if output(&fresh, &["apt-get", "download", package]).is_err() {
        update_lists(root)?;
        output(&fresh, &["apt-get", "download", package])?;
    }
    let archive = file_with(&fresh, "", ".deb")?;
    let archive = archive.to_str().context("the path of the target folder is not UTF-8")?.to_owned();
    output(&fresh, &["dpkg-deb", "--extract", &archive, "."])?;
    fs::remove_file(&archive)?;
    // The rename is what makes it count: a half-unpacked folder is never taken for a whole one.
    fs::rename(&fresh, &folder)?;
    Ok(folder)
}

/// The package of the current cloud kernel: the one that the meta package of that name depends on.
pub(crate) fn cloud_kernel_package(root: &Path) -> Result<String> {
    let ask = || {
        let answer = output(root, &["apt-cache", "depends", "linux-image-cloud-amd64"]).unwrap_or_default();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let packages = answer.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        packages.map(str::to_owned).find(|package| package.starts_with("linux-image-"))
    };
    if let Some(package) = ask() {
        return Ok(package);
    }
    update_lists(root)?;
    ask().context("apt knows no linux-image-cloud-amd64; this needs Debian 12 or newer on amd64")
}

/// The one file in `folder` whose name begins and ends so.
pub(crate) fn file_with(folder: &Path, begins: &str, ends: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(begins) && name.ends_with(ends) {
            found.push(entry.path());
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        _ => bail!("{} holds {} files {begins}*{ends}, not one", folder.display(), found.len()),
    }
}

fn update_lists(root: &Path) -> Result<()> {
    run_as_root(root, &["apt-get", "update", "--quiet"])
}

/// Runs `line` as root, by sudo where we are not.
pub(crate) fn run_as_root(root: &Path, line: &[&str]) -> Result<()> {
    let who = output(root, &["id", "-u"])?;
    let mut whole = Vec::new();
    if who.trim_ascii() != b"0" {
        if !works(root, &["sudo", "--version"]) {
            bail!("this needs root, and there is no sudo; run as root: {}", line.join(" "));
        }
        println!("   needs root: sudo {}", line.join(" "));
        whole.push("sudo");
    }
    whole.extend(["env", "DEBIAN_FRONTEND=noninteractive"]);
    whole.extend(line);
    run(root, &whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_of_one_name_stand_together_so_that_each_is_asked_for_once() {
        let mut packages: Vec<&str> = PROGRAMS.iter().map(|(_, package)| *package).collect();
        packages.dedup();
        let mut sorted = packages.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), packages.len());
    }
}
