//! What can go wrong with a replica, and what a person is told about it.

use std::io;

use protocol::fault::{Entry, code};
use protocol::{Attempt, Fault, ItemId, Lineage};

/// Why an operation on a replica was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// There is no replica at the place.
    #[error("there is no replica in {0}")]
    Absent(String),
    /// Something of a replica is at the place already.
    #[error("{0} exists already")]
    Exists(String),
    /// A disk or a file of the journal could not be read or written.
    #[error("{what}")]
    Io {
        /// Which file or disk, and what was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The retention volume or the replica's volume is full. Nothing of the refused batch was applied.
    #[error("{what}")]
    NoSpace {
        /// Which file or disk, and what was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what was once written to it.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// Which file.
        what: String,
        /// What is wrong in it.
        why: String,
    },
    /// A sync failed earlier (it is never repeated): nothing is believed until the replica is opened anew.
    #[error("the replica stopped after a failure: {0}")]
    Failed(String),
    /// The replica was closed.
    #[error("the replica is closed")]
    Closed,
    /// Somebody else is at work on the replica or its disks.
    #[error("the replica is in use: {0}")]
    Busy(String),
    /// An epoch does not build on the newest point.
    #[error("the epoch builds on {}, the newest point is {}", name(.base), name(.newest))]
    Base {
        /// What the epoch builds on.
        base: Option<Attempt>,
        /// The newest point of the replica.
        newest: Option<Attempt>,
    },
    /// An epoch belongs to another history.
    #[error("the epoch continues lineage {theirs}, the replica's is {ours}")]
    Lineage {
        /// The epoch's.
        theirs: Lineage,
        /// The replica's.
        ours: Lineage,
    },
    /// An attempt's number was used before (attempts are never reused).
    #[error("attempt {attempt} comes too late: {newest} was the newest of its generation")]
    AttemptUsed {
        /// The refused attempt.
        attempt: Attempt,
        /// The newest attempt of the generation that was ever begun or sealed.
        newest: Attempt,
    },
    /// An epoch could not be written in full; it can only be rolled back.
    #[error("a batch of the epoch failed; it can only be rolled back")]
    EpochBroken,
    /// A resumed epoch was to be sealed before all that it inherited was compared or sent again.
    #[error("the epoch went on from an earlier one, and not all of that was compared or sent again")]
    Unproven,
    /// The point is not kept, or never was.
    #[error("point {0} is not kept")]
    PointGone(Attempt),
    /// The disks hold part of a first copy: there is no state that could be kept.
    #[error("the disks hold an unfinished first copy")]
    Inconsistent,
    /// Disks or sizes differ from what the replica keeps.
    #[error("{0}")]
    Disks(String),
    /// A write or read outside of its disk.
    #[error("{0}")]
    OutOfBounds(String),
}

fn name(attempt: &Option<Attempt>) -> String {
    attempt.map_or_else(|| "no point".to_string(), |attempt| attempt.to_string())
}

impl ReplicaError {
    /// The error as people see it, for `item`.
    pub fn fault(&self, item: &ItemId) -> Fault {
        let entry = self.entry();
        Fault::new(entry, format!("replica of {item}: {}", entry.title), self.cause())
    }

    /// The error with what the system said.
    pub(crate) fn cause(&self) -> String {
        match self {
            ReplicaError::Io { source, .. } | ReplicaError::NoSpace { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    /// Whether what was read is lost: damaged, or the medium does not give it back. Other errors may pass.
    pub(crate) fn is_unreadable(&self) -> bool {
        const EIO: i32 = 5;
        match self {
            ReplicaError::Damaged { .. } => true,
            ReplicaError::Io { source, .. } => source.raw_os_error() == Some(EIO),
            _ => false,
        }
    }

    fn entry(&self) -> &'static Entry {
        match self {
            ReplicaError::Absent(_) => code::REPLICA_ABSENT,
            ReplicaError::Exists(_) => code::REPLICA_EXISTS,
            ReplicaError::Io { .. } | ReplicaError::Failed(_) | ReplicaError::EpochBroken => code::REPLICA_IO,
            ReplicaError::NoSpace { .. } => code::NO_SPACE,
            ReplicaError::Damaged { .. } => code::JOURNAL_DAMAGED,
            ReplicaError::Closed => code::REPLICA_CLOSED,
            ReplicaError::Busy(_) => code::REPLICA_BUSY,
            ReplicaError::Base { .. } | ReplicaError::Lineage { .. } | ReplicaError::AttemptUsed { .. } => {
                code::BASE_MISMATCH
            }
            ReplicaError::PointGone(_) => code::POINT_GONE,
            ReplicaError::Inconsistent => code::DAMAGED,
            ReplicaError::Disks(_) => code::DISK_MISMATCH,
            ReplicaError::OutOfBounds(_) | ReplicaError::Unproven => code::PROTOCOL,
        }
    }

    /// An I/O error while doing `what`; a full volume is told apart from a failing one.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> ReplicaError {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let what = what.into();
        match source.kind() {
            StorageFull | QuotaExceeded => ReplicaError::NoSpace { what, source },
            _ => ReplicaError::Io { what, source },
        }
    }

    pub(crate) fn damaged(what: impl Into<String>, why: impl Into<String>) -> ReplicaError {
        ReplicaError::Damaged { what: what.into(), why: why.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_volume_is_not_taken_for_a_broken_one() {
        let full = ReplicaError::io("writing x", io::Error::from(io::ErrorKind::StorageFull));
        let broken = ReplicaError::io("writing x", io::Error::other("bad sector"));
        let item: ItemId = "web01".parse().unwrap();
        assert!(full.fault(&item).is(code::NO_SPACE));
        assert!(broken.fault(&item).is(code::REPLICA_IO));
        assert!(broken.fault(&item).cause.contains("bad sector"));
    }
}
