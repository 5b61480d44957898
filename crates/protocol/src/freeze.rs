//! Whether the applications in a guest were ready for a cut, and what its agent did for that.
//!
//! ```text
//!   policy, or a person ─► Quiesce ─► freeze ─► cut ─► thaw ─► Freeze, kept with the recovery point
//! ```
//! The guest's agent lets the applications come to rest (by hooks of the guest's owner), writes out what the file systems hold
//! in memory and freezes them; what the disks then hold needs no repair. A point for which that was asked says what came of
//! it, for as long as it is kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::epoch::PointKind;
use crate::fault::Fault;

/// How long the reason of a failure may be that is kept with a point, in characters: a hook may say a lot.
const LONGEST_CAUSE: usize = 400;

/// Asks that a cut be application-consistent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quiesce {
    /// How long the agent may take until everything is frozen, hooks included. Then the cut is made without.
    pub within: Duration,
}

/// What came of the wish that a point be application-consistent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// The guest's file systems stood still at the cut.
    Done {
        /// How many they were.
        file_systems: u32,
        /// How long the agent took until they stood still, hooks included, in ms.
        freeze_ms: u64,
        /// For how long nothing could be written to them, in ms; what of it was before the agent told is not in it.
        frozen_ms: u64,
    },
    /// They did not: the point is what a power cut would have left.
    Failed {
        /// The fault's code.
        code: String,
        /// Why, in the agent's words where it said any.
        cause: String,
    },
}

impl Freeze {
    /// What came of it when it failed.
    pub fn failed(fault: &Fault) -> Freeze {
        Freeze::Failed { code: fault.code.clone(), cause: fault.cause.chars().take(LONGEST_CAUSE).collect() }
    }

    /// The kind of point that it makes.
    pub fn kind(&self) -> PointKind {
        match self {
            Freeze::Done { .. } => PointKind::AppConsistent,
            Freeze::Failed { .. } => PointKind::CrashConsistent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Point;
    use crate::fault::code;

    #[test]
    fn a_point_of_an_older_version_is_read_and_one_without_a_wish_is_written_as_it_was() {
        let old = r#"{"attempt":"1.2","cut_at_ms":1,"sealed_at_ms":2,"kind":"app_consistent","changed_bytes":3}"#;
        let point: Point = serde_json::from_str(old).unwrap();
        assert_eq!((point.kind, &point.freeze), (PointKind::AppConsistent, &None));
        assert_eq!(serde_json::to_string(&point).unwrap(), old);
        let freeze = Some(Freeze::Done { file_systems: 2, freeze_ms: 30, frozen_ms: 12 });
        let new = serde_json::to_string(&Point { freeze, ..point }).unwrap();
        assert!(new.contains(r#""freeze":{"done":{"file_systems":2,"freeze_ms":30,"frozen_ms":12}}"#), "{new}");
    }

    #[test]
    fn a_hook_that_says_a_lot_does_not_fill_the_log() {
        let fault = Fault::new(code::GUEST_NOT_FROZEN, "it did not freeze", "ä".repeat(10_000));
        let freeze = Freeze::failed(&fault);
        assert_eq!(freeze.kind(), PointKind::CrashConsistent);
        assert!(serde_json::to_string(&freeze).unwrap().len() < 1000);
    }
}
