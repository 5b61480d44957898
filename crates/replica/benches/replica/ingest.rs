//! Sustained ingest through the replica, as the master target does it, against fio with the same syncs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, BLOCK, EpochHeader, Lineage, PointKind};
use replica::{Content, DiskHome, DiskRecord, FileDisk, Folder, Payload, Replica, Spec, Stores, Write};
use serde_json::{Value, json};

use crate::timed::{Spent, TimedDisk, Wrapped};
use crate::{GOAL, median, noise, number, plain};

/// Bytes of the disk, of one run, of one epoch, and of one batch: the master target's.
const DISK: u64 = 1 << 30;
pub const RUN: u64 = 256 << 20;
pub const EPOCH: u64 = 64 << 20;
const BATCH: u64 = 8 << 20;
const ROUNDS: u64 = 5;

/// A replica whose disk and journal are timed.
struct Subject {
    replica: Replica,
    spent: Arc<Spent>,
    lineage: Lineage,
    number: u64,
    /// What is sent: an epoch of noise.
    pool: Bytes,
}

/// All patterns, and the table.
pub fn measure(place: &Path) -> Value {
    let mut pool = vec![0; EPOCH as usize];
    noise(&mut pool, 88_172_645_463_325_252);
    let beside = place.join("plain.raw");
    fill(&beside, &pool);
    let mut subject = Subject::new(place, &pool);
    println!(
        "   {:<22}{:>8}{:>8}{:>9}{:>9}{:>8}{:>10}   where the time goes",
        "", "W", "R", "replica", "of W", "bound", "of bound"
    );
    let mut rows = Vec::new();
    for (random, warm) in [(true, false), (true, true), (false, false), (false, true)] {
        let rounds: Vec<Value> = (0..ROUNDS).map(|round| subject.round(&beside, place, random, warm, round)).collect();
        let middle = |name: &str| median(rounds.iter().map(|round| number(round, name)).collect());
        let name =
            format!("{}, cache {}", if random { "random" } else { "sequential" }, if warm { "warm" } else { "cold" });
        let parts = rounds[0]["parts"].as_object().unwrap().keys();
        let parts: serde_json::Map<String, Value> = parts
            .map(|part| {
                (part.clone(), json!(median(rounds.iter().map(|round| number(&round["parts"], part)).collect())))
            })
            .collect();
        let said: Vec<String> =
            parts.iter().map(|(part, share)| format!("{part} {:.0} %", share.as_f64().unwrap() * 100.0)).collect();
        println!(
            "   {name:<22}{:>8.0}{:>8.0}{:>9.0}{:>9.3}{:>8.3}{:>10.2}   {}",
            middle("w") / 1e6,
            middle("r") / 1e6,
            middle("replica") / 1e6,
            middle("of_w"),
            middle("bound"),
            middle("of_bound"),
            said.join(", "),
        );
        rows.push(json!({
            "pattern": name, "w": middle("w"), "r": middle("r"), "replica": middle("replica"), "of_w": middle("of_w"),
            "bound": middle("bound"), "of_bound": middle("of_bound"), "reached": middle("of_bound") >= GOAL,
            "parts": parts, "rounds": rounds,
        }));
    }
    Value::Array(rows)
}

fn fill(file: &Path, pool: &[u8]) {
    let disk = File::create(file).unwrap();
    for at in (0..DISK).step_by(pool.len()) {
        disk.write_all_at(pool, at).unwrap();
    }
    disk.sync_all().unwrap();
}

/// Puts the file's bytes into the page cache, or out of it.
fn cache(file: &Path, warm: bool) {
    let file = File::open(file).unwrap();
    if warm {
        std::io::copy(&mut &file, &mut std::io::sink()).unwrap();
    } else {
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
}

impl Subject {
    fn new(place: &Path, pool: &[u8]) -> Subject {
        let (directory, retention) = (place.join("replica"), place.join("retention"));
        std::fs::create_dir(&directory).unwrap();
        fill(&directory.join("disk0.raw"), pool);
        let spent = Arc::new(Spent::default());
        let journal = Wrapped { volume: Folder::create(&retention).unwrap(), spent: spent.clone(), syncs: true };
        let stores = Stores {
            directory: Arc::new(Folder::open(&directory).unwrap()),
            retention: Arc::new(journal),
            path: directory,
        };
        let lineage = Lineage::fresh();
        let disk = DiskRecord { key: "disk0".parse().unwrap(), size: DISK, home: DiskHome::Inside };
        let spec = Spec { item: "bench".parse().unwrap(), lineage, disks: vec![disk], content: Content::Existing };
        let open = |record: &DiskRecord, path: &Path| {
            let file = FileDisk::open(&path.join(record.file_name()))?;
            Ok(Arc::new(TimedDisk(Arc::new(file), spent.clone())) as Arc<dyn replica::Disk>)
        };
        let replica = Replica::create_on(stores, &spec, &open).unwrap();
        Subject { replica, spent, lineage, number: 0, pool: Bytes::copy_from_slice(pool) }
    }

    /// The three measurements, one after the other.
    fn round(&mut self, beside: &Path, place: &Path, random: bool, warm: bool, round: u64) -> Value {
        cache(beside, warm);
        let w = plain::rate(beside, true, random, true);
        cache(beside, warm);
        let r = plain::rate(beside, false, random, warm);
        let offsets = offsets(random, round);
        cache(&place.join("replica/disk0.raw"), warm);
        self.spent.take();
        let start = Instant::now();
        for epoch in offsets.chunks((EPOCH / BLOCK) as usize) {
            self.epoch(epoch);
        }
        let elapsed = start.elapsed();
        let mut parts: serde_json::Map<String, Value> = serde_json::Map::new();
        let mut rest = 1.0;
        for (part, nanoseconds) in self.spent.take() {
            let share = nanoseconds as f64 / elapsed.as_nanos() as f64;
            parts.insert(part.into(), json!(share));
            rest -= share;
        }
        parts.insert("rest".into(), json!(rest));
        // Outside the measurement: the journal's space is wanted again.
        self.replica.prune_before(self.replica.newest().unwrap().attempt).unwrap();
        let replica = RUN as f64 / elapsed.as_secs_f64();
        let bound = 1.0 / (2.0 + w / r);
        json!({ "w": w, "r": r, "replica": replica, "of_w": replica / w, "bound": bound, "of_bound": replica / w / bound, "parts": parts })
    }

    fn epoch(&mut self, offsets: &[u64]) {
        let base = self.replica.newest().map(|point| point.attempt);
        self.number += 1;
        let header = EpochHeader {
            lineage: self.lineage,
            attempt: Attempt { generation: 1, number: self.number },
            base,
            basis: Basis::Tracked,
            cut_at_ms: 0,
            disks: vec![DiskSize { disk: "disk0".parse().unwrap(), size: DISK }],
            kind: PointKind::CrashConsistent,
            freeze: None,
            expected_bytes: EPOCH,
        };
        let mut epoch = self.replica.begin(&header).unwrap();
        let writes: Vec<Write> = (0u64..)
            .zip(offsets)
            .map(|(n, offset)| {
                let from = (n * BLOCK) as usize;
                Write { disk: 0, offset: *offset, payload: Payload::Data(self.pool.slice(from..from + BLOCK as usize)) }
            })
            .collect();
        // One batch is read while the one before is written, as the master target does it.
        let (ahead, (ready, prepared)) = (epoch.ahead(), sync_channel(0));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for batch in writes.chunks((BATCH / BLOCK) as usize) {
                    ready.send(ahead.prepare(batch.to_vec()).unwrap()).unwrap();
                }
            });
            for batch in prepared {
                epoch.apply_prepared(batch).unwrap();
            }
        });
        epoch.seal(0).unwrap();
    }
}

/// The blocks of a run: none twice, as an epoch has none twice.
fn offsets(random: bool, round: u64) -> Vec<u64> {
    let blocks = DISK / BLOCK;
    let mut offsets: Vec<u64> = (0..blocks).map(|block| block * BLOCK).collect();
    if random {
        let mut seed = 0x9e37_79b9_7f4a_7c15 ^ (round + 1);
        for at in (1..offsets.len()).rev() {
            let mut roll = [0; 8];
            noise(&mut roll, seed);
            seed = u64::from_le_bytes(roll);
            offsets.swap(at, (seed % (at as u64 + 1)) as usize);
        }
    }
    offsets.truncate((RUN / BLOCK) as usize);
    offsets
}
