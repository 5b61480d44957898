//! Outcomes: what a component tells of an order that it carried out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::beside::ServedDisk;
use crate::difference::Difference;
use crate::epoch::Point;
use crate::guest::GuestNetwork;
use crate::id::{Attempt, DiskKey};
use crate::machine::Settled;
use crate::order::Moved;
use crate::position::{Distrust, Position};
use crate::verified::Verified;

/// What an order came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// It is done; there is nothing to tell.
    Nothing,
    /// The machine stands still.
    Stopped {
        /// Whether the guest did it by itself.
        by_guest: bool,
        /// When it was found to stand still, ms since 1970.
        at_ms: u64,
    },
    /// The last epoch is durable at the target.
    Final {
        /// Its point.
        point: Point,
        /// Bytes that had changed, were read here and were sent.
        moved: Moved,
        /// What identifies each disk now; to be compared when the copy is taken over.
        stamps: BTreeMap<DiskKey, String>,
        /// How long the target took to make it durable after all of it was sent, in ms.
        #[serde(default)]
        seal_ms: u64,
    },
    /// Where the machine's disks stand.
    Settled {
        /// The maps that were left.
        settled: Settled,
        /// Whether the guest had to be stopped for it (R26).
        was_running: bool,
    },
    /// What the machine's change map holds.
    Changed {
        /// Bytes that changed since the cut that it counts from; none where no map is held, or none that can be believed.
        bytes: Option<u64>,
    },
    /// The copy is a replica now.
    Taken {
        /// The point that keeps its state; none for a copy that was damaged, which the first epoch repairs.
        kept: Option<Point>,
        /// Why its changes are not known, if so: the first epoch will be a compare.
        distrust: Option<Distrust>,
        /// How many bytes its own map says have changed, if known.
        changed_bytes: Option<u64>,
    },
    /// The replica takes no epochs.
    Closed {
        /// Its newest point.
        newest: Option<Point>,
    },
    /// The machine stands ready, paused.
    Raised {
        /// The point that it stands on.
        point: Point,
    },
    /// The point is served.
    Serves {
        /// The point.
        point: Point,
        /// Where each disk is found.
        disks: Vec<ServedDisk>,
    },
    /// The replica holds the state of the attempt.
    Absorbed {
        /// The point.
        point: Point,
    },
    /// Where the raised machine's disks stood at its start.
    Stands {
        /// The position without the machine's own writes.
        position: Position,
    },
    /// The machine runs on its own disks.
    Folded {
        /// Where those stood when its generation began, without its own writes since.
        position: Position,
        /// The folders that pinned points were written to, at the master target's host.
        #[serde(default)]
        exported: Vec<String>,
    },
    /// The points that are kept.
    Points {
        /// Oldest first.
        points: Vec<Point>,
        /// Those of them that are pinned.
        pins: Vec<Attempt>,
    },
    /// A point was taken; `AddPoint` has pinned it too.
    Added {
        /// The point.
        point: Point,
    },
    /// What the two points differ in.
    Differ {
        /// By disk.
        difference: Difference,
    },
    /// What a scrub found.
    Verified {
        /// What was read, and what of it is damaged.
        verified: Verified,
    },
    /// Which addresses the guest has.
    Guest {
        /// As its agent tells.
        network: GuestNetwork,
    },
    /// The guest has its addresses.
    GuestSet {
        /// What it was told to do said, a line each.
        told: Vec<String>,
    },
}
