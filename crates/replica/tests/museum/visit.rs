//! An exhibit in memory: its files can be damaged, and it is opened and read as an operator's replica would be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use protocol::Attempt;
use protocol::fault::code;
use replica::{Disk, Replica, ReplicaError, Stores, Volume};

use crate::museum::exhibit::{EXHIBITS, SIZES, contents};
use crate::simulated::{Machine, SimulatedDisk, SimulatedVolume};

/// Files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The files of a replica, and what its points must hold.
#[derive(Clone)]
pub struct Exhibit {
    /// Manifest and disks.
    pub replica: Files,
    /// Log, segments, runs.
    pub journal: Files,
    points: Arc<BTreeMap<u64, [Vec<u8>; 2]>>,
}

/// What an opening came to. What a point held was right wherever it was not refused.
#[derive(Debug, PartialEq)]
pub enum Seen {
    /// Refused with this code.
    Refused(&'static str),
    /// Opened; these points are refused as damaged (RPL-004) when they are read, all others are right.
    Opened { refused: Vec<u64> },
}

impl Exhibit {
    /// The exhibit of that name, as it was committed.
    pub fn load(format: &str, name: &str) -> Exhibit {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/museum").join(format).join(name);
        let files = |folder: &str| {
            let files = std::fs::read_dir(directory.join(folder)).unwrap().map(|entry| entry.unwrap());
            files.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
        };
        let deeds = EXHIBITS.iter().find(|(exhibit, _)| *exhibit == name).unwrap().1;
        Exhibit { replica: files("replica"), journal: files("journal"), points: Arc::new(contents(deeds)) }
    }

    /// The full name of the file of the journal whose name has this in it.
    pub fn file(&self, part: &str) -> String {
        self.journal.keys().find(|name| name.contains(part)).unwrap().clone()
    }

    /// The bytes of that file.
    pub fn bytes(&mut self, part: &str) -> &mut Vec<u8> {
        let name = self.file(part);
        self.journal.get_mut(&name).unwrap()
    }

    /// Opens it and reads every point, twice: the second time it was opened before.
    pub fn visit(&self) -> Seen {
        let machine = Machine::new(7);
        let volume = |files: &Files| {
            let volume = SimulatedVolume::new(&machine);
            for (name, bytes) in files {
                volume.create(name).unwrap();
                volume.write_at(name, 0, bytes).unwrap();
                volume.sync(name).unwrap();
            }
            volume.sync_directory().unwrap();
            volume
        };
        let disks =
            [0, 1].map(|disk| SimulatedDisk::new(&machine, self.replica[&format!("disk{disk}.raw")].clone(), false));
        let (directory, retention) = (volume(&self.replica), volume(&self.journal));
        let open = || {
            let stores = Stores { directory: directory.clone(), retention: retention.clone(), path: "museum".into() };
            Replica::open_on(stores, &|record, _| {
                Ok(disks[record.key.as_str()[4..].parse::<usize>().unwrap()].clone() as Arc<dyn Disk>)
            })
        };
        let first = self.read(open());
        assert_eq!(first, self.read(open()), "another thing is seen the second time");
        first
    }

    fn read(&self, opened: Result<Replica, ReplicaError>) -> Seen {
        let replica = match opened {
            Ok(replica) => replica,
            Err(error) => {
                let fault = error.fault(&"museum".parse().unwrap());
                let known = [code::JOURNAL_DAMAGED, code::DISK_MISMATCH, code::REPLICA_ABSENT];
                let entry = known.into_iter().find(|entry| fault.is(entry)).unwrap_or_else(|| panic!("{error:?}"));
                return Seen::Refused(entry.code);
            }
        };
        let listed: Vec<u64> = replica.points().iter().map(|point| point.attempt.number).collect();
        assert!(listed.iter().eq(self.points.keys()), "the points are {listed:?}");
        let mut refused = Vec::new();
        for (number, wanted) in self.points.iter() {
            match read_point(&replica, *number) {
                Ok(found) => assert!(found == *wanted, "point {number} holds something else"),
                Err(ReplicaError::Damaged { .. }) => refused.push(*number),
                Err(other) => panic!("point {number}: {other:?}"),
            }
        }
        let newest = self.points.keys().last();
        assert!(newest.is_none_or(|newest| !refused.contains(newest)), "the newest point needs no journal");
        Seen::Opened { refused }
    }
}

fn read_point(replica: &Replica, number: u64) -> Result<[Vec<u8>; 2], ReplicaError> {
    let view = replica.view(Attempt { generation: 1, number })?;
    let mut found = SIZES.map(|size| vec![0x55; size]);
    for (disk, bytes) in found.iter_mut().enumerate() {
        view.read(disk, 0, bytes)?;
    }
    Ok(found)
}
