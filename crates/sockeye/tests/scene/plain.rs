//! A machine that knows nothing of us: plain QEMU with two disks.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A QEMU that is gone when the test is.
pub struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What anybody types who has two raw disks, be they files or NBD URIs, and never heard of us.
pub fn boot(guest: &Path, disks: &[String], console: &Path, rate: u32) -> anyhow::Result<Qemu> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-m", "192", "-display", "none", "-nodefaults"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(guest.join("vmlinuz")).arg("-initrd").arg(guest.join("initrd.img"));
    command.arg("-append").arg(guest::kernel_command_line(rate, guest::Pattern::Mixed));
    for (place, disk) in disks.iter().enumerate() {
        command.arg("-drive").arg(format!("file={disk},format=raw,if=none,id=d{place}"));
        command.arg("-device").arg(format!("virtio-blk-pci,drive=d{place},serial=disk{place}"));
    }
    Ok(Qemu(command.stdin(Stdio::null()).spawn()?))
}
