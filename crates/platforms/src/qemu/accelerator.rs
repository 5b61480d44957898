//! Which accelerator runs guests here: KVM where a guest really starts under it, else QEMU's translator (TCG).
//!
//! An openable `/dev/kvm` is no proof: seen on a nested host whose KVM offers less than any 64-bit processor has, so that
//! the firmware ran and every kernel died at once. So a probe machine must start with all features of QEMU's oldest 64-bit processor
//! granted (`enforce`), and its firmware must speak.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// How long the probe's firmware may take to say its first word.
const PATIENCE: Duration = Duration::from_secs(5);

static KVM_RUNS: OnceCell<bool> = OnceCell::const_new();

/// The accelerator, `kvm` or `tcg`; found out once per process.
pub(crate) async fn best() -> &'static str {
    if *KVM_RUNS.get_or_init(kvm_runs).await { "kvm" } else { "tcg" }
}

async fn kvm_runs() -> bool {
    if !std::path::Path::new("/dev/kvm").exists() {
        return false;
    }
    let probe = Command::new("qemu-system-x86_64")
        .args(["-accel", "kvm", "-cpu", "qemu64,enforce", "-m", "32", "-nodefaults", "-display", "none"])
        .args(["-chardev", "stdio,id=words", "-device", "isa-debugcon,iobase=0x402,chardev=words"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut probe) = probe else { return false };
    let mut first = [0; 7];
    let spoke = match probe.stdout.take() {
        Some(mut words) => {
            tokio::time::timeout(PATIENCE, words.read_exact(&mut first)).await.is_ok_and(|read| read.is_ok())
        }
        None => false,
    };
    let _ = probe.kill().await;
    tracing::debug!(spoke, "probed KVM");
    spoke && first == *b"SeaBIOS"
}
