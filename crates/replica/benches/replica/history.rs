//! What a long history costs: opening a view of its oldest point, reading through it, memory. One process for each length.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, BLOCK, EpochHeader, Lineage, PointKind, Retention};
use replica::{Content, Did, DiskHome, DiskRecord, Folder, Payload, Place, Replica, Spec, Stores, Write, open_inside};
use serde_json::{Value, json};

use crate::timed::Wrapped;
use crate::{noise, number};

pub const DISK: u64 = 256 << 20;
const LENGTHS: [u64; 3] = [10, 1_000, 86_400];
const UNIT: u64 = 4096;
const READ: usize = 1 << 20;
/// Reading through a view ends after so long.
const PATIENCE: Duration = Duration::from_secs(4);

/// All lengths, and the table.
pub fn all(place: &Path) -> Value {
    println!(
        "   {:>8}{:>12}{:>12}{:>16}{:>14}{:>14}{:>10}{:>22}",
        "points", "open", "view", "first 64 KiB", "view MB/s", "file MB/s", "ratio", "memory open/read MiB"
    );
    let mut rows = Vec::new();
    for points in LENGTHS {
        let directory = place.join(format!("history-{points}"));
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.arg("--history").arg(points.to_string()).arg(&directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let row: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |name: &str| number(&row, name);
        println!(
            "   {points:>8}{:>9.1} ms{:>9.3} ms{:>13.2} ms{:>14.0}{:>14.0}{:>10.3}{:>22}",
            of("open_ms"),
            of("view_ms"),
            of("first_read_ms"),
            of("view_rate") / 1e6,
            of("file_rate") / 1e6,
            of("view_rate") / of("file_rate"),
            format!("{:.0} / {:.0}", of("open_rss") / 1e6, of("read_rss") / 1e6),
        );
        rows.push(row);
        std::fs::remove_dir_all(&directory).unwrap();
    }
    Value::Array(rows)
}

/// One length, in a process of its own; prints JSON.
pub fn measure(points: u64, directory: &Path) {
    let place = Place { directory: directory.join("replica"), retention: directory.join("retention") };
    make(&place, points);
    let file = place.directory.join("disk0.raw");
    let begun = rss();
    let start = Instant::now();
    let replica = Replica::open(&place, &open_inside).unwrap();
    let open_ms = milliseconds(start);
    let open_rss = rss().saturating_sub(begun);
    let oldest = replica.points()[0].attempt;
    let start = Instant::now();
    let view = replica.view(oldest).unwrap();
    let view_ms = milliseconds(start);
    let mut buffer = vec![0; READ];
    let start = Instant::now();
    view.read(0, DISK / 2, &mut buffer[..BLOCK as usize]).unwrap();
    let first_read_ms = milliseconds(start);
    // Once to fill the page cache: both sides are then read from it.
    let plain = File::open(&file).unwrap();
    let read_plain = |buffer: &mut [u8], at| plain.read_exact_at(buffer, at).unwrap();
    rate(&mut buffer, read_plain);
    let file_rate = rate(&mut buffer, read_plain);
    let view_rate = rate(&mut buffer, |buffer, at| view.read(0, at, buffer).unwrap());
    println!(
        "{}",
        json!({
            "points": points, "open_ms": open_ms, "view_ms": view_ms, "first_read_ms": first_read_ms, "file_rate": file_rate,
            "view_rate": view_rate, "open_rss": open_rss, "read_rss": rss().saturating_sub(begun),
        })
    );
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Bytes per second of reading the disk from its start.
fn rate(buffer: &mut [u8], read: impl Fn(&mut [u8], u64)) -> f64 {
    let start = Instant::now();
    let mut at = 0;
    while at < DISK && start.elapsed() < PATIENCE {
        read(buffer, at);
        at += READ as u64;
    }
    at as f64 / start.elapsed().as_secs_f64()
}

/// Resident bytes of this process.
fn rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Makes a replica with so many points, without waiting for any sync.
fn make(place: &Place, points: u64) {
    std::fs::create_dir_all(&place.directory).unwrap();
    let mut content = vec![0; DISK as usize];
    noise(&mut content, 7);
    std::fs::write(place.directory.join("disk0.raw"), &content).unwrap();
    drop(content);
    let lineage = Lineage::fresh();
    let disk = DiskRecord { key: "disk0".parse().unwrap(), size: DISK, home: DiskHome::Inside };
    let spec = Spec { item: "bench".parse().unwrap(), lineage, disks: vec![disk], content: Content::Existing };
    let journal = Wrapped { volume: Folder::create(&place.retention).unwrap(), spent: Arc::default(), syncs: false };
    let stores = Stores {
        directory: Arc::new(Folder::open(&place.directory).unwrap()),
        retention: Arc::new(journal),
        path: place.directory.clone(),
    };
    let replica = Replica::create_on(stores, &spec, &open_inside).unwrap();
    let mut block = vec![0; UNIT as usize];
    let mut base = None;
    for number in 1..=points {
        noise(&mut block, number);
        let roll = u64::from_le_bytes(*block.first_chunk().unwrap());
        let attempt = Attempt { generation: 1, number };
        let header = EpochHeader {
            lineage,
            attempt,
            base,
            basis: Basis::Tracked,
            cut_at_ms: number * 1000,
            disks: vec![DiskSize { disk: "disk0".parse().unwrap(), size: DISK }],
            kind: PointKind::CrashConsistent,
            freeze: None,
            expected_bytes: UNIT,
        };
        let mut epoch = replica.begin(&header).unwrap();
        let payload = Payload::Data(Bytes::copy_from_slice(&block));
        epoch.apply(&[Write { disk: 0, offset: roll % (DISK / UNIT) * UNIT, payload }]).unwrap();
        epoch.seal(number * 1000).unwrap();
        base = Some(attempt);
    }
    // What is done aside while points come in: the indexes over many epochs.
    let all = Retention { all_for_seconds: u64::MAX, then: vec![], app_consistent: None, budget: None };
    while replica.tend(&all, points * 1000, &[]).unwrap().did != Did::Nothing {}
    replica.close();
}
