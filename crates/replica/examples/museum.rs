//! Writes the journals that the museum shows: `cargo run -p replica --example museum -- DIRECTORY`.
//!
//! For a new format only: what is in `crates/replica/tests/museum` stays as an older version wrote it.

#![allow(clippy::unwrap_used)]

#[path = "../tests/museum/exhibit.rs"]
mod exhibit;

use std::path::Path;

use bytes::Bytes;
use exhibit::{Deed, EXHIBITS, Fill, Put, SIZES};
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, EpochHeader, PointKind, Retention};
use replica::{Content, Did, DiskHome, DiskRecord, Epoch, Payload, Place, Replica, Spec, Write, open_inside};

fn main() {
    let directory = std::env::args().nth(1).expect("usage: museum DIRECTORY");
    for (name, deeds) in EXHIBITS {
        make(&Path::new(&directory).join(name), deeds);
    }
}

fn at(number: u64) -> Attempt {
    Attempt { generation: 1, number }
}

fn make(directory: &Path, deeds: &[Deed]) {
    let place = Place { directory: directory.join("replica"), retention: directory.join("journal") };
    let size = |disk: usize| SIZES[disk] as u64;
    let record = |n| DiskRecord { key: format!("disk{n}").parse().unwrap(), size: size(n), home: DiskHome::Inside };
    let lineage = "0123456789abcdef0123456789abcdef".parse().unwrap();
    let disks = vec![record(0), record(1)];
    let spec = Spec { item: "museum".parse().unwrap(), lineage, disks, content: Content::Empty };
    let replica = Replica::create(&place, &spec, &open_inside).unwrap();
    let files = [0, 1].map(|disk| place.directory.join(format!("disk{disk}.raw")));
    for deed in deeds {
        match deed {
            Deed::Epoch(number, batches) => drop(written(&replica, *number, batches).seal(number * 1000).unwrap()),
            Deed::RolledBack(number, batches) => written(&replica, *number, batches).roll_back().unwrap(),
            Deed::Unfinished(number, batches) => {
                let (last, before) = batches.split_last().unwrap();
                let mut epoch = written(&replica, *number, before);
                let disks = files.each_ref().map(|file| std::fs::read(file).unwrap());
                epoch.apply(&writes(last)).unwrap();
                drop(epoch);
                files.iter().zip(disks).for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
            }
            Deed::Keep(number) => {
                replica.keep(at(*number), number * 1000, number * 1000, PointKind::Unreplicated).map(drop).unwrap();
            }
            Deed::Pin(number) => replica.pin(at(*number)).unwrap(),
            Deed::Thin(number) => assert!(replica.thin(at(*number)).unwrap()),
            Deed::PruneBefore(number) => replica.prune_before(at(*number)).unwrap(),
            Deed::Index => {
                let all = Retention { all_for_seconds: u64::MAX, then: vec![], app_consistent: None, budget: None };
                assert_eq!(replica.tend(&all, 0, &[]).unwrap().did, Did::Indexed);
            }
        }
    }
    drop(replica);
    std::fs::remove_file(place.directory.join("lock")).unwrap();
}

fn written(replica: &Replica, number: u64, batches: &[&[Put]]) -> Epoch {
    let header = EpochHeader {
        lineage: replica.manifest().lineage,
        attempt: at(number),
        base: replica.newest().map(|point| point.attempt),
        basis: Basis::Tracked,
        cut_at_ms: number * 1000 - 500,
        disks: replica.disks().iter().map(|r| DiskSize { disk: r.key.clone(), size: r.size }).collect(),
        kind: if number == 2 { PointKind::AppConsistent } else { PointKind::CrashConsistent },
        freeze: None,
        expected_bytes: 0,
    };
    let mut epoch = replica.begin(&header).unwrap();
    for batch in batches {
        epoch.apply(&writes(batch)).unwrap();
    }
    epoch
}

fn writes(batch: &[Put]) -> Vec<Write> {
    let write = |(disk, offset, length, fill): &Put| {
        let payload = match fill {
            Fill::Zeroes => Payload::Zero(*length as u64),
            fill => Payload::Data(Bytes::from(fill.bytes(*length))),
        };
        Write { disk: *disk, offset: *offset as u64, payload }
    };
    batch.iter().map(write).collect()
}
