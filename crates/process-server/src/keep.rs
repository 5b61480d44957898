//! What a process server keeps on its own disk: what it was told to replicate and how fast, and the attempt numbers it used.
//!
//! Attempt numbers must never be used twice, also when a cut was given up before its target heard of it, so the number
//! is written down before the cut is made. A host crash may lose the last such write, and that is harmless: it also
//! ends the hypervisor, and with it every cut that could have carried the number.
//!
//! With it is written what the machine's map counts from, which only grows: a map is forgotten when the target has what it
//! holds. One that counts from an earlier cut than an earlier one did came back with a copy of the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use protocol::fault::code;
use protocol::order::Replication;
use protocol::{Attempt, Bandwidth, Fault, ItemId, Lineage};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Kept {
    replications: Vec<Replication>,
    attempts: BTreeMap<ItemId, Attempt>,
    /// The newest cut that each item's change map was seen to count from.
    #[serde(default)]
    counted: BTreeMap<ItemId, (Lineage, Attempt)>,
    /// For all replications together.
    #[serde(default)]
    bandwidth: Bandwidth,
}

/// The process server's own records.
pub(crate) struct Keep {
    file: PathBuf,
    kept: Mutex<Kept>,
}

impl Keep {
    pub(crate) fn open(directory: &Path) -> Result<Keep, Fault> {
        let file = directory.join("process-server.json");
        let failed = |error: std::io::Error| {
            Fault::new(code::REPLICA_IO, format!("{} cannot be used", file.display()), error.to_string())
        };
        std::fs::create_dir_all(directory).map_err(failed)?;
        let kept = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => return Err(failed(error)),
        };
        Ok(Keep { file, kept: Mutex::new(kept) })
    }

    pub(crate) fn replications(&self) -> Vec<Replication> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).replications.clone()
    }

    pub(crate) fn bandwidth(&self) -> Bandwidth {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).bandwidth.clone()
    }

    pub(crate) fn set_wishes(&self, replications: &[Replication], bandwidth: &Bandwidth) -> std::io::Result<()> {
        self.change(|kept| {
            kept.replications = replications.to_vec();
            kept.bandwidth = bandwidth.clone();
        })
    }

    /// An attempt of `generation` that was never used, newer than every one in `seen`; it is of a machine whose map counts
    /// from `since`.
    pub(crate) fn next_attempt(
        &self,
        item: &ItemId,
        generation: u64,
        seen: impl IntoIterator<Item = Attempt>,
        since: Option<(Lineage, Attempt)>,
    ) -> std::io::Result<Attempt> {
        let mut next = Attempt::start_of(generation);
        self.change(|kept| {
            let used = kept.attempts.get(item).copied();
            let highest = seen.into_iter().chain(used).filter(|attempt| attempt.generation == generation).max();
            next = highest.unwrap_or(Attempt::start_of(generation)).next();
            kept.attempts.insert(item.clone(), next);
            if let Some((lineage, since)) = since {
                let newest = kept.counted.get(item).filter(|(of, _)| *of == lineage).map(|(_, newest)| *newest);
                kept.counted.insert(item.clone(), (lineage, newest.map_or(since, |newest| newest.max(since))));
            }
        })?;
        Ok(next)
    }

    /// Whether a change map of the machine may count from `since`. (What counts from the start of a generation is the
    /// platform's to vouch for: after a crash an overlay tells everything since then, again.)
    pub(crate) fn may_count(&self, item: &ItemId, lineage: Lineage, since: Attempt) -> bool {
        #[cfg(feature = "sabotage")]
        if protocol::sabotage::is("older-map-believed") {
            return true;
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = kept.counted.get(item).filter(|(of, _)| *of == lineage);
        since == Attempt::start_of(since.generation) || newest.is_none_or(|(_, newest)| since >= *newest)
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) -> std::io::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut kept);
        let fresh = self.file.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(&*kept)?)?;
        std::fs::rename(&fresh, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_never_given_twice_even_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let item: ItemId = "web01".parse().unwrap();
        let first = Keep::open(directory.path()).unwrap().next_attempt(&item, 1, [], None).unwrap();
        let second = Keep::open(directory.path()).unwrap().next_attempt(&item, 1, [], None).unwrap();
        assert!(first < second);
        let sealed = Attempt { generation: 1, number: 40 };
        let third = Keep::open(directory.path()).unwrap().next_attempt(&item, 1, [sealed], None).unwrap();
        assert_eq!(third, sealed.next());
        assert_eq!(Keep::open(directory.path()).unwrap().next_attempt(&item, 2, [sealed], None).unwrap().number, 1);
    }

    #[test]
    fn a_map_that_counts_from_an_earlier_cut_than_it_did_came_back_with_a_copy() {
        let directory = tempfile::tempdir().unwrap();
        let item: ItemId = "web01".parse().unwrap();
        let (mine, other) = (Lineage::fresh(), Lineage::fresh());
        let at = |generation, number| Attempt { generation, number };
        let keep = Keep::open(directory.path()).unwrap();
        assert!(keep.may_count(&item, mine, at(1, 3)), "nothing is known of it");
        for since in [at(1, 5), at(1, 3)] {
            keep.next_attempt(&item, 1, [], Some((mine, since))).unwrap();
        }
        let keep = Keep::open(directory.path()).unwrap();
        assert!(!keep.may_count(&item, mine, at(1, 4)));
        for honest in [at(1, 5), at(1, 6), at(3, 1), at(1, 0)] {
            assert!(keep.may_count(&item, mine, honest), "{honest}");
        }
        assert!(keep.may_count(&item, other, at(1, 4)), "another history");
        keep.next_attempt(&item, 1, [], Some((other, at(1, 1)))).unwrap();
        assert!(keep.may_count(&item, other, at(1, 1)));
    }

    #[test]
    fn what_was_wished_is_still_so_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let keep = Keep::open(directory.path()).unwrap();
        assert_eq!(keep.bandwidth(), Bandwidth::default());
        let slow = Bandwidth { bits_per_second: Some(64_000), ..Bandwidth::default() };
        keep.set_wishes(&[], &slow).unwrap();
        assert_eq!(Keep::open(directory.path()).unwrap().bandwidth(), slow);
    }

    #[test]
    fn a_damaged_record_is_refused_not_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("process-server.json"), b"{").unwrap();
        assert_eq!(Keep::open(directory.path()).err().unwrap().code, "RPL-005");
    }
}
