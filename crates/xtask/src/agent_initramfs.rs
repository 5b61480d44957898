//! What the test guest needs beside its first archive to have QEMU's guest agent, Debian's own: a second archive that the kernel
//! unpacks over the first one. Tests without an agent do not carry it.
//!
//! ```text
//!   initrd.img                        init, busybox, ledger
//!   initrd-agent.img = initrd.img ‖   qemu-ga, ifup and their libraries · ext4, virtio_console, virtio_net · a hook · /agent, which `init` runs
//! ```
//! The guest mounts the disk with the serial number `files` as ext4 and writes numbered files to it that nobody ever syncs. Words of
//! the kernel's command line say what it does: `hooks=ok,fail,slow` how the hook behaves at the first freeze, the second, and so on
//! (`ok` at all that are not named; `slow` takes five seconds); `address=10.1.0.5/24` that its first card is configured so, by Debian's
//! own ifupdown, with files that lie on the disk; `blocked` that its agent runs no programs, `noagent` that there is none.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::output;
use crate::cpio::Archive;
use crate::initramfs::Modules;

const MODULES: [&str; 4] = ["crc32c_generic", "virtio_console", "virtio_net", "ext4"];

/// Run by `init` before the ledger.
const AGENT: &str = r#"b=/bin/busybox
for folder in run tmp files; do $b mkdir -p /$folder; done
for module in MODULES; do $b insmod /modules/$module.ko || echo "AGENT-ERROR loading $module"; done
for disk in /sys/block/*; do
  if [ "$($b cat $disk/serial 2>/dev/null)" = files ]; then
    # Nothing is written out by itself while a test lasts.
    $b mount -t ext4 -o commit=600 /dev/${disk##*/} /files || echo "AGENT-ERROR mounting $disk"
  fi
done
echo 60000 > /proc/sys/vm/dirty_writeback_centisecs
echo 60000 > /proc/sys/vm/dirty_expire_centisecs
for card in /sys/class/net/eth*; do
  [ -e $card ] && echo "CARD ${card##*/} $($b cat $card/address) $($b readlink -f $card/device)"
done
address=$($b sed -n 's/.*address=\([0-9./]*\).*/\1/p' /proc/cmdline)
if [ -n "$address" ]; then
  # What a guest keeps of its configuration is on its disk.
  # Busybox's shell would take its own ifup for Debian's.
  $b --install -s /bin 2>/dev/null
  $b rm -f /bin/ifup /bin/ifdown
  for folder in etc/network var/lib; do
    $b mkdir -p /files/$folder /$folder
    $b mount -o bind /files/$folder /$folder
  done
  if [ ! -e /etc/network/interfaces ]; then
    $b printf 'auto lo\niface lo inet loopback\n\n# mine\nauto eth0\niface eth0 inet static\n  address %s\n' $address > /etc/network/interfaces
    $b sync
  fi
  $b mkdir -p /run/network
  PATH=/usr/sbin:/sbin:/usr/bin:/bin /usr/sbin/ifup -a || echo 'AGENT-ERROR ifup'
fi
for disk in /sys/block/*; do
  if [ "$($b cat $disk/serial 2>/dev/null)" = sockeye-seed ]; then
    echo "SEED ${disk##*/} $($b grep -a -o 'instance-id: .*' /dev/${disk##*/})"
  fi
done
blocked=
$b grep -q blocked /proc/cmdline && blocked='-b guest-exec'
for port in /sys/class/virtio-ports/*; do
  $b grep -q noagent /proc/cmdline && break
  if [ "$($b cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
    /usr/sbin/qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -f /run/qemu-ga.pid -F/etc/qemu/fsfreeze-hook $blocked &
    echo "AGENT $port"
  fi
done
n=0
while :; do
  n=$((n + 1))
  echo "file $n" > /files/$n && echo "FILE $n"
  $b usleep 50000
done &
"#;

/// Told by the agent before file systems are frozen and after they are thawed.
const HOOK: &str = r#"#!/bin/busybox sh
b=/bin/busybox
if [ "$1" = freeze ]; then
  count=$(($($b cat /run/freezes 2>/dev/null || echo 0) + 1))
  echo $count > /run/freezes
  hooks=$($b sed -n 's/.*hooks=\([a-z,]*\).*/\1/p' /proc/cmdline)
  how=$(echo "$hooks" | $b cut -d, -f$count)
  echo "HOOK freeze $count ${how:-ok}" > /dev/ttyS0
  case "$how" in
    fail) exit 3 ;;
    slow) $b sleep 5 ;;
  esac
  echo "quiesced $count" > /files/marker
else
  echo "HOOK $1" > /dev/ttyS0
fi
exit 0
"#;

/// The second archive, from the unpacked packages of the kernel, of the agent and of ifupdown.
pub(crate) fn build(kernel: &Path, agent: &Path, ifupdown: &Path) -> Result<Vec<u8>> {
    let modules = Modules::of(kernel)?;
    let order = modules.in_order(&MODULES)?;
    let mut archive = Archive::default();
    for folder in ["bin", "etc", "etc/qemu", "usr", "usr/sbin", "usr/lib", "lib", "lib64"] {
        archive.folder(folder);
    }
    for name in &order {
        archive.program(&format!("modules/{name}.ko"), &modules.read(name)?);
    }
    let program = agent.join("usr/sbin/qemu-ga");
    archive.program("usr/sbin/qemu-ga", &std::fs::read(&program).context("the package has no qemu-ga")?);
    let mut folders = vec![];
    let ifup = [ifupdown.join("sbin/ifup"), ifupdown.join("usr/sbin/ifup")].into_iter().find(|file| file.is_file());
    let ifup = ifup.context("the package has no ifup")?;
    for name in ["ifup", "ifdown", "ifquery"] {
        // It goes by the name that it is called with.
        archive.program(&format!("usr/sbin/{name}"), &std::fs::read(&ifup)?);
    }
    // The shell that Debian has.
    let shell = Path::new("/bin/dash");
    archive.program("bin/sh", &std::fs::read(shell).context("there is no dash")?);
    let mut needed = libraries(&program)?;
    needed.extend(libraries(&ifup)?);
    needed.extend(libraries(shell)?);
    needed.sort();
    needed.dedup();
    for library in needed {
        let inside = library.strip_prefix("/")?.to_path_buf();
        let above: Vec<PathBuf> = inside.ancestors().skip(1).map(Path::to_path_buf).collect();
        for folder in above.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            if !folders.contains(&folder) {
                archive.folder(&folder.to_string_lossy());
                folders.push(folder);
            }
        }
        archive.program(&inside.to_string_lossy(), &std::fs::read(&library)?);
    }
    archive.program("etc/qemu/fsfreeze-hook", HOOK.as_bytes());
    archive.program("agent", AGENT.replace("MODULES", &order.join(" ")).as_bytes());
    Ok(archive.finish())
}

/// The shared libraries that a program of this host's own release needs. QEMU, which the tests need anyway, brings them.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let told = output(Path::new("/"), &["ldd", &program.to_string_lossy()])?;
    let told = String::from_utf8_lossy(&told).into_owned();
    let mut found = vec![];
    for line in told.lines().map(str::trim).filter(|line| !line.starts_with("linux-vdso")) {
        if line.contains("not found") {
            bail!("{} cannot run here: {line}", program.display());
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        found.push(PathBuf::from(path.split_whitespace().next().context("a line of ldd without a path")?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_libraries_and_its_loader_are_found() {
        let found = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(found.iter().all(|library| library.is_file()), "{found:?}");
        assert!(found.iter().any(|library| library.to_string_lossy().contains("libc.so")), "{found:?}");
        assert!(found.iter().any(|library| library.to_string_lossy().contains("ld-linux")), "{found:?}");
    }
}
