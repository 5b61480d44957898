//! The guest of the bench that measures what replication costs inside a guest: fio, Debian's own, which writes to one of its disks
//! again and again and prints what it got.
//!
//! ```text
//!   initrd.img = the test guest's ‖ ext4 · /agent, which `init` runs     tools.img = fio and its libraries (80 MB), as ext4
//! ```
//! The disk with the serial number `work` is written to, the one called `tools` is read.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::agent_initramfs::libraries;
use crate::command::output;
use crate::cpio::Archive;
use crate::initramfs::Modules;

const MODULES: [&str; 2] = ["crc32c_generic", "ext4"];
/// Room for what fio of today needs, and of tomorrow.
const TOOLS_MIB: u64 = 256;

/// Run by `init` in the place of the ledger. The terse report (version 3) is one line.
const WRITER: &str = r#"b=/bin/busybox
for folder in tools tmp; do $b mkdir -p /$folder; done
for module in MODULES; do $b insmod /modules/$module.ko || echo "FIO-ERROR loading $module"; done
for disk in /sys/block/*; do
  case "$($b cat $disk/serial 2>/dev/null)" in
    tools) $b mount -t ext4 -o ro,noload /dev/${disk##*/} /tools || echo "FIO-ERROR mounting $disk" ;;
    work) work=/dev/${disk##*/} ;;
  esac
done
while :; do
  for block in 4k 64k; do
    said=$(/tools/LOADER --library-path /tools /tools/fio --name=work --filename=$work --thread --direct=1 \
      --ioengine=psync --rw=randwrite --bs=$block --size=64m --time_based --runtime=3 --randrepeat=0 \
      --output-format=terse --terse-version=3 2>&1 | $b tail -n 1)
    echo "FIO $block $said"
  done
done
"#;

/// Makes `folder` with the kernel, the archive and the disk; what is there already is made anew.
pub(crate) fn build(guest: &Path, folder: &Path) -> Result<()> {
    let tools = folder.join("tools");
    let _ = fs::remove_dir_all(&tools);
    fs::create_dir_all(&tools)?;
    let which = output(Path::new("/"), &["which", "fio"])?;
    let fio = Path::new(String::from_utf8_lossy(&which).trim()).to_path_buf();
    let mut loader = None;
    for library in libraries(&fio)? {
        let name = library.file_name().context("a library without a name")?.to_string_lossy().into_owned();
        fs::copy(&library, tools.join(&name)).with_context(|| format!("copying {}", library.display()))?;
        if name.starts_with("ld-") {
            loader = Some(name);
        }
    }
    fs::copy(&fio, tools.join("fio"))?;
    let (image, loader) = (folder.join("tools.img"), loader.context("fio has no loader")?);
    let _ = fs::remove_file(&image);
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-d"]).arg(&tools).arg(&image).arg(format!("{TOOLS_MIB}M"));
    ensure!(make.status().context("mkfs.ext4 cannot be run")?.success(), "mkfs.ext4 failed");
    fs::remove_dir_all(&tools)?;

    let modules = Modules::of(&guest.join("kernel"))?;
    let order = modules.in_order(&MODULES)?;
    let mut archive = Archive::default();
    for name in &order {
        archive.program(&format!("modules/{name}.ko"), &modules.read(name)?);
    }
    let script = WRITER.replace("MODULES", &order.join(" ")).replace("LOADER", &loader);
    archive.program("agent", script.as_bytes());
    let mut initrd = fs::read(guest.join("initrd.img"))?;
    initrd.extend(archive.finish());
    fs::write(folder.join("initrd.img"), initrd)?;
    fs::copy(guest.join("vmlinuz"), folder.join("vmlinuz"))?;
    Ok(())
}
