//! What a disk holds, as one short word: equal words, equal disks, whatever the format and wherever its holes are.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use rustix::fs::{SeekFrom, seek};

/// Blocks of zeroes are left out, in pieces of so many bytes.
const BLOCK: u64 = 65536;

/// SHA-256 over the size and every block that is not zero, each with its place. A qcow2 is read through `qemu-img`.
///
/// # Errors
/// The disk cannot be read, `qemu-img` or `sha256sum` failed.
pub fn hash(disk: &Path) -> anyhow::Result<String> {
    if disk.extension().is_none_or(|extension| extension != "qcow2") {
        return hash_raw(disk);
    }
    let raw = disk.with_extension("hashed");
    // Without its locks: a machine or a replica may have the disk open while nobody writes it.
    let status = Command::new("qemu-img").args(["convert", "-U", "-O", "raw"]).arg(disk).arg(&raw).status()?;
    ensure!(status.success(), "qemu-img could not read {}", disk.display());
    let hash = hash_raw(&raw);
    std::fs::remove_file(&raw)?;
    hash
}

fn hash_raw(disk: &Path) -> anyhow::Result<String> {
    let file = File::open(disk).with_context(|| disk.display().to_string())?;
    let size = file.metadata()?.len();
    let mut program = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut into = program.stdin.take().context("sha256sum has no input")?;
    into.write_all(&size.to_le_bytes())?;
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    while at < size {
        match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => at = data / BLOCK * BLOCK,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        }
        let part = &mut block[..BLOCK.min(size - at) as usize];
        file.read_exact_at(part, at)?;
        if part.iter().any(|byte| *byte != 0) {
            into.write_all(&at.to_le_bytes())?;
            into.write_all(part)?;
        }
        at += BLOCK;
    }
    drop(into);
    let output = program.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.split_whitespace().next() {
        Some(hash) if output.status.success() => Ok(hash.to_string()),
        _ => bail!("sha256sum failed"),
    }
}
