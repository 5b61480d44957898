//! Which accelerator runs guests here: KVM where a guest really starts under it, else QEMU's translator (TCG).
//!
//! An openable `/dev/kvm` is no proof, and neither is a firmware that boots: seen on a nested host without virtualization
//! in hardware, whose KVM ran SeaBIOS to its last line and stopped every kernel at its first SSE2 instruction
//! ("emulation failure"). So the probe is a guest that does what every kernel does first: a boot sector that goes to long mode, moves a word
//! through an SSE2 register and says it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How long the probe may take to say its word; about half a second under TCG.
const PATIENCE: Duration = Duration::from_secs(10);
/// What it says, on the firmware's debug port. No firmware's words have these bytes.
const WORD: [u8; 2] = [0xa5, 0x5a];

/// The boot sector, loaded at 0x7c00, up to its signature.
#[rustfmt::skip]
const PROBE: [u8; 0xa6] = [
    // 16 bits: no interrupts, all segments and the page tables at 0x1000..0x4000 zero
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c,
    0xbf, 0x00, 0x10, 0xb9, 0x00, 0x18, 0xfc, 0xf3, 0xab,
    // one 2 MiB page: [0x1000] = 0x2007, [0x2000] = 0x3007, [0x3000] = 0x87
    0x66, 0xc7, 0x06, 0x00, 0x10, 0x07, 0x20, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x07, 0x30, 0x00, 0x00,
    0x66, 0xc7, 0x06, 0x00, 0x30, 0x87, 0x00, 0x00, 0x00,
    // cr3 = 0x1000; cr4 = PAE, OSFXSR, OSXMMEXCPT; EFER |= LME
    0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb8, 0x20, 0x06, 0x00, 0x00, 0x0f, 0x22, 0xe0,
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0d, 0x00, 0x01, 0x0f, 0x30,
    // lgdt [0x7ca0]; cr0 |= PG, PE; far jump to 0x7c65
    0x0f, 0x01, 0x16, 0xa0, 0x7c, 0x0f, 0x20, 0xc0, 0x66, 0x0d, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0,
    0xea, 0x65, 0x7c, 0x08, 0x00,
    // 64 bits: rax = the word; xmm0 = rax; paddq xmm0, xmm0; psrlq xmm0, 1; rax = xmm0
    0x48, 0xc7, 0xc0, 0xa5, 0x5a, 0x00, 0x00, 0x66, 0x48, 0x0f, 0x6e, 0xc0, 0x66, 0x0f, 0xd4, 0xc0,
    0x66, 0x0f, 0x73, 0xd0, 0x01, 0x66, 0x48, 0x0f, 0x7e, 0xc0,
    // out 0x402, al; out 0x402, ah; halt for ever
    0x66, 0xba, 0x02, 0x04, 0xee, 0x88, 0xe0, 0xee, 0xf4, 0xeb, 0xfd,
    // padding; the null descriptor; a 64-bit code segment; the table's limit and address
    0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9a, 0x20, 0x00, 0x0f, 0x00, 0x90, 0x7c, 0x00, 0x00,
];

static KVM_RUNS: OnceCell<bool> = OnceCell::const_new();

/// The accelerator, `kvm` or `tcg`; found out once per process.
pub(crate) async fn best() -> &'static str {
    let kvm = KVM_RUNS.get_or_init(|| async { Path::new("/dev/kvm").exists() && starts_a_guest("kvm").await }).await;
    if *kvm { "kvm" } else { "tcg" }
}

/// Whether a guest really starts under the accelerator.
async fn starts_a_guest(accelerator: &str) -> bool {
    let disk = std::env::temp_dir().join(format!("sockeye-probe-{}", uuid::Uuid::new_v4().simple()));
    let spoke =
        write_disk(&disk).is_ok() && tokio::time::timeout(PATIENCE, listen(accelerator, &disk)).await == Ok(true);
    let _ = std::fs::remove_file(&disk);
    tracing::debug!(accelerator, spoke, "started a probe guest");
    spoke
}

fn write_disk(path: &PathBuf) -> std::io::Result<()> {
    let mut sector = [0; 512];
    sector[..PROBE.len()].copy_from_slice(&PROBE);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    std::fs::OpenOptions::new().write(true).create_new(true).open(path)?.write_all(&sector)
}

async fn listen(accelerator: &str, disk: &Path) -> bool {
    let disk = disk.to_string_lossy().replace(',', ",,");
    let probe = Command::new("qemu-system-x86_64")
        // Features that every 64-bit processor has: where even these are lacking, QEMU says so at once.
        .args([
            "-accel",
            accelerator,
            "-cpu",
            "qemu64,enforce",
            "-m",
            "32",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args(["-drive", &format!("if=ide,format=raw,file={disk}")])
        .args(["-chardev", "stdio,id=words", "-device", "isa-debugcon,iobase=0x402,chardev=words"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut probe) = probe else { return false };
    let (Some(mut words), Some(mut complaints)) = (probe.stdout.take(), probe.stderr.take()) else { return false };
    let spoke = async {
        let mut last = 0;
        while let Ok(byte) = words.read_u8().await {
            if [last, byte] == WORD {
                return true;
            }
            last = byte;
        }
        false
    };
    // A guest that QEMU had to stop does not come back; that need not be waited out.
    let stopped = async {
        let mut said = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(read @ 1..) = complaints.read(&mut piece).await {
            said.extend_from_slice(&piece[..read]);
            if String::from_utf8_lossy(&said).contains("KVM internal error") {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    let spoke = tokio::select! {
        spoke = spoke => spoke,
        () = stopped => false,
    };
    let _ = probe.kill().await;
    spoke
}

#[cfg(test)]
mod tests {
    use super::*;

    // TCG lacks nothing of it either.
    #[tokio::test]
    async fn the_probe_speaks_where_a_guest_can_start() {
        assert!(starts_a_guest("tcg").await);
        assert!(!starts_a_guest("no-such-accelerator").await);
    }
}
