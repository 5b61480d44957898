//! What the same bytes cost without a replica, as fio measures it: W and R of the bound.

use std::path::Path;
use std::process::Command;

use protocol::BLOCK;
use serde_json::Value;

use crate::ingest::{EPOCH, RUN};

pub fn is_there() -> bool {
    Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Bytes per second of a run over `file`, in blocks of 64 KiB; writes are synced where the replica seals.
pub fn rate(file: &Path, write: bool, random: bool, warm: bool) -> f64 {
    let pattern = format!("--rw={}{}", if random { "rand" } else { "" }, if write { "write" } else { "read" });
    let mut fio = Command::new("fio");
    fio.args(["--name=plain", "--ioengine=psync", "--bs=64k", "--output-format=json", &pattern]);
    fio.arg(format!("--filename={}", file.display())).arg(format!("--io_size={RUN}"));
    fio.arg(format!("--size={}", file.metadata().unwrap().len())).arg(format!("--invalidate={}", u8::from(!warm)));
    if write {
        // The last sync is of the run's time as well.
        fio.arg(format!("--fdatasync={}", EPOCH / BLOCK)).arg("--end_fsync=1");
    }
    let output = fio.output().unwrap();
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let side = &report["jobs"][0][if write { "write" } else { "read" }];
    let (bytes, milliseconds) = (side["io_bytes"].as_f64().unwrap(), side["runtime"].as_f64().unwrap());
    assert_eq!(bytes as u64, RUN, "fio moved another number of bytes");
    bytes / milliseconds.max(1.0) * 1000.0
}
