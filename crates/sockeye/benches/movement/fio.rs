//! fio, the writer that everybody knows.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What it is to write.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// `write` or `randwrite`.
    pub pattern: &'static str,
    /// Bytes of a request.
    pub block: u64,
    /// Bytes a second; none for as fast as it goes.
    pub rate: Option<u64>,
    /// The first so many bytes of the disk are written.
    pub region: u64,
}

/// What it wrote.
#[derive(Debug, Clone, Copy)]
pub struct Wrote {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes a second.
    pub rate: f64,
    /// 99 of 100 requests took at most so long, in ms.
    pub p99_ms: f64,
}

/// Whether it is installed, and can write through NBD.
pub fn is_there() -> Result<()> {
    let listed = Command::new("fio").arg("--enghelp").output();
    let listed = listed.ok().filter(|listed| String::from_utf8_lossy(&listed.stdout).contains("nbd"));
    listed.map(drop).context("fio with its nbd engine is not installed; cargo xtask setup installs it")
}

/// Writes for so many seconds, or without them the whole region once.
pub fn write(uri: &str, job: Job, seconds: Option<u64>) -> Result<Wrote> {
    let mut command = Command::new("fio");
    command.args(["--name=churn", "--ioengine=nbd", "--iodepth=8", "--randrepeat=0", "--output-format=json"]);
    command.arg(format!("--uri={uri}")).arg(format!("--rw={}", job.pattern));
    command.arg(format!("--bs={}", job.block)).arg(format!("--size={}", job.region));
    if let Some(rate) = job.rate {
        command.arg(format!("--rate={rate}"));
    }
    if let Some(seconds) = seconds {
        command.arg("--time_based").arg(format!("--runtime={seconds}"));
    }
    let told = command.output().context("fio cannot be run")?;
    ensure!(told.status.success(), "fio: {}", String::from_utf8_lossy(&told.stderr));
    // Notes may stand before the report.
    let report = told.stdout.iter().position(|byte| *byte == b'{').map_or(&[][..], |from| &told.stdout[from..]);
    let told: Value = serde_json::from_slice(report).context("fio's report")?;
    let wrote = &told["jobs"][0]["write"];
    let number = |value: &Value| value.as_f64().context("fio's report lacks a figure");
    Ok(Wrote {
        bytes: number(&wrote["io_bytes"])? as u64,
        rate: number(&wrote["bw_bytes"])?,
        p99_ms: number(&wrote["clat_ns"]["percentile"]["99.000000"])? / 1e6,
    })
}
