//! The test guest's first and only file system: busybox, a few kernel modules in the order they need each other, the
//! static `ledger` program, and a script of ten lines that starts it (after `/agent`, which a second archive may bring: see
//! [`crate::agent_initramfs`]).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::output;
use crate::cpio::Archive;

/// What the machine needs beyond the kernel itself: its disks and its power button.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "button", "evdev"];

/// Builds the archive from the unpacked kernel package, a static busybox and the static program `ledger`.
pub(crate) fn build(kernel: &Path, busybox: &Path, ledger: &Path) -> Result<Vec<u8>> {
    let modules = Modules::of(kernel)?;
    let order = modules.in_order(&MODULES)?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.program("init", script(&order).as_bytes());
    archive.program("bin/busybox", &static_program(busybox)?);
    archive.program("bin/ledger", &static_program(ledger)?);
    for name in &order {
        archive.program(&format!("modules/{name}.ko"), &modules.read(name)?);
    }
    Ok(archive.finish())
}

fn script(modules: &[String]) -> String {
    let load: String = modules
        .iter()
        .map(|name| format!("$b insmod /modules/{name}.ko || echo 'LEDGER-ERROR loading {name}'\n"))
        .collect();
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t devtmpfs dev /dev\n\
         $b mount -t proc proc /proc\n\
         $b mount -t sysfs sys /sys\n\
         exec </dev/ttyS0 >/dev/ttyS0 2>&1\n\
         {load}\
         [ -f /agent ] && . /agent\n\
         exec /bin/ledger run\n"
    )
}

/// A program that runs where there is no C library: an ELF file that asks for no interpreter.
fn static_program(path: &Path) -> Result<Vec<u8>> {
    const INTERPRETER: u32 = 3;
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let half = |at: usize| bytes.get(at..at + 2).map(|half| usize::from(u16::from_le_bytes([half[0], half[1]])));
    if !bytes.starts_with(b"\x7fELF\x02") {
        bail!("{} is not a 64-bit ELF program", path.display());
    }
    let (Some(table), Some(size), Some(count)) = (bytes.get(32..36), half(54), half(56)) else {
        bail!("{} is cut off", path.display());
    };
    let table = u32::from_le_bytes([table[0], table[1], table[2], table[3]]) as usize;
    let wants_interpreter = (0..count)
        .filter_map(|index| bytes.get(table + index * size..)?.first_chunk::<4>())
        .any(|kind| u32::from_le_bytes(*kind) == INTERPRETER);
    if wants_interpreter {
        bail!("{} is not statically linked", path.display());
    }
    Ok(bytes)
}

/// The modules of an unpacked kernel package. It has no `modules.dep` (that is made at installation), so what a module
/// needs is read from the module itself.
pub(crate) struct Modules {
    files: Vec<PathBuf>,
    builtin: String,
}

impl Modules {
    pub(crate) fn of(kernel: &Path) -> Result<Self> {
        // Newer Debian packages have everything below /usr.
        let folders = [kernel.join("lib/modules"), kernel.join("usr/lib/modules")];
        let folder = folders.iter().find(|folder| folder.is_dir()).context("the kernel package has no modules")?;
        let version = fs::read_dir(folder)?.next().context("no kernel version in the package")??.path();
        let mut files = Vec::new();
        collect_files(&version.join("kernel"), &mut files)?;
        Ok(Self { files, builtin: fs::read_to_string(version.join("modules.builtin"))? })
    }

    /// `wanted` and all they need, those needed first; modules built into the kernel are left out.
    pub(crate) fn in_order(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(name, &mut order)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<String>) -> Result<()> {
        let built_in = self.builtin.lines().any(|path| module_name(Path::new(path)).as_deref() == Some(name));
        if built_in || order.iter().any(|present| present == name) {
            return Ok(());
        }
        for needed in needs(&self.read(name)?) {
            self.add(&needed, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.files.iter().find(|file| module_name(file).as_deref() == Some(name));
        let file = file.with_context(|| format!("the kernel package has no module {name}"))?;
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => output(Path::new("/"), &["xz", "--decompress", "--stdout", &file.to_string_lossy()]),
            Some("zst") => output(Path::new("/"), &["zstd", "--decompress", "--stdout", &file.to_string_lossy()]),
            _ => Ok(fs::read(file)?),
        }
    }
}

/// `virtio_pci` for `.../virtio_pci.ko.xz`; dashes count as underscores, as the kernel has it.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

/// The names after `depends=` in a module.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let list = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(list);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn collect_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_is_read_from_the_module() {
        assert_eq!(needs(b"junk\0license=GPL\0depends=virtio-ring,virtio\0name=x\0"), ["virtio_ring", "virtio"]);
        assert!(needs(b"\0depends=\0name=x\0").is_empty());
        assert!(needs(b"no such thing").is_empty());
    }

    #[test]
    fn module_names_are_the_kernels_whatever_the_file_is_called() {
        assert_eq!(module_name(Path::new("a/virtio-rng.ko")).as_deref(), Some("virtio_rng"));
        assert_eq!(module_name(Path::new("a/evdev.ko.xz")).as_deref(), Some("evdev"));
        assert_eq!(module_name(Path::new("a/modules.order")), None);
    }

    #[test]
    fn a_program_that_needs_a_c_library_is_refused() {
        let this = std::env::current_exe().unwrap();
        assert!(static_program(&this).unwrap_err().to_string().contains("not statically linked"));
    }
}
