//! Operations: what a person can ask to be done with an item, with every choice that can be made.
//!
//! ```text
//!   CLI, portal ── Request { item, operation } ──► plan ──► job
//! ```
//! An operation says all that is wanted: the same one, planned twice on the same item, comes to the same steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::guest::CardAddresses;
use crate::id::{Attempt, PolicyName, SiteName};
use crate::order::Sync;
use crate::quote::Window;

/// An operation on one item, as a person asks for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "operation")]
pub enum Operation {
    /// Begin to replicate a machine.
    Protect {
        /// The machine's name at its site; the item gets the same name.
        machine: String,
        /// The site it runs at.
        from: SiteName,
        /// The site it is to be replicated to.
        to: SiteName,
        /// Time between epochs, in ms.
        interval_ms: u64,
        /// The limits that it is kept to.
        #[serde(default = "PolicyName::standard")]
        policy: PolicyName,
        /// What the networks that it is connected with at its site are called at the other one; the same where nothing is said.
        #[serde(default)]
        networks: BTreeMap<String, String>,
        /// Which addresses its guest has away, in a test, and at home if not its own (R19).
        #[serde(default)]
        addresses: Vec<CardAddresses>,
    },
    /// Stop replicating and forget the item; its machine runs on.
    Unprotect {
        /// Whether the replica and its history are deleted too.
        delete: bool,
    },
    /// Move the machine to the side where it does not run.
    Failover {
        /// Planned, or without the side it runs at.
        kind: FailoverKind,
        /// The point to start from; the newest if none is given. Only for an unplanned failover.
        point: Option<Attempt>,
    },
    /// After an unplanned failover, before it is committed: throw away what the machine wrote since, and start it from another
    /// recovery point.
    ChangePoint {
        /// The point to start from; the newest if none is given.
        point: Option<Attempt>,
    },
    /// Start a copy of the machine from a recovery point, on no network of production, while everything else goes on.
    TestFailover {
        /// The point to start from; the newest if none is given.
        point: Option<Attempt>,
        /// The network that all its cards are connected with; nothing if none is given.
        #[serde(default)]
        network: Option<String>,
    },
    /// End the test failover: its machine and everything it wrote are thrown away.
    Cleanup {},
    /// Serve the disks of a recovery point over NBD.
    View {
        /// The point; the newest if none is given.
        point: Option<Attempt>,
        /// The site that keeps it; the one that receives if none is given.
        site: Option<SiteName>,
        /// Whether it can be written; what is written is thrown away with it.
        writable: bool,
    },
    /// Serve a recovery point no longer.
    EndView {
        /// The number of the view.
        view: i64,
    },
    /// Read a replica and its journal and compare them with what is known of them. Changes nothing.
    Verify {
        /// The site that keeps it; the one that receives if none is given.
        site: Option<SiteName>,
    },
    /// End a failover or failback: it can no longer be cancelled. At home the machine's overlay is folded after it, so
    /// that its owner has the original disks back.
    Commit {
        /// Whether the machine stays on its overlay at home, and the history beside its disks with it.
        #[serde(default)]
        keep_history: bool,
    },
    /// Write the overlay of the machine, which runs on, into the disks that it came from. Ends the history kept beside them.
    Fold {},
    /// Begin to replicate a failed-over machine to the side it came from (after a failback: reverse replicate).
    Reprotect {
        /// How the first epoch is chosen.
        sync: Sync,
        /// Whether a machine that still runs at the other side is shut down (R26).
        shut_down: bool,
        /// Whether what the other side's disks hold is overwritten without being kept, for want of retention space: given up
        /// half-way, they are damaged (H14).
        #[serde(default)]
        no_way_back: bool,
        /// Where it is created, when nothing of it is there (H13).
        #[serde(default)]
        landing: Option<Landing>,
    },
    /// Bring the machine home: reprotect as far as that is not done yet (H16), wait for *Complete*, move.
    Failback {
        /// How the first epoch is chosen.
        sync: Sync,
        /// Whether the machine is off while data is copied (H7).
        offline: bool,
        /// Whether *Complete* is given at once, so that the job runs through.
        complete: bool,
        /// Whether a machine that still runs at the other side is shut down (R26).
        shut_down: bool,
        /// How long the guest may take to shut down, in ms.
        shut_down_timeout_ms: u64,
        /// Whether its power is taken after that time.
        then_power_off: bool,
        /// Whether what the disks at home hold is overwritten without being kept, as for `reprotect` (H14).
        #[serde(default)]
        no_way_back: bool,
        /// How long the machine may be down, in ms, without its shutting down: it is not stopped before the rest fits that.
        #[serde(default = "max_downtime_ms")]
        max_downtime_ms: u64,
        /// When *Complete* comes by itself (H17).
        #[serde(default)]
        complete_at: Option<Window>,
        /// Where it is created, as for `reprotect` (H13).
        #[serde(default)]
        landing: Option<Landing>,
    },
    /// *Complete failover* (H10): the answer that a waiting job waits for; a person's goes ahead whatever the downtime.
    Complete {
        /// When it is to come by itself, instead of now (H17).
        #[serde(default)]
        at: Option<Window>,
    },
    /// Give up what is under way, as far as the stage allows.
    Cancel {},
}

/// Where a machine comes home to when nothing of it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Landing {
    /// The site that becomes its home; the one that was if none is given.
    #[serde(default)]
    pub site: Option<SiteName>,
    /// The datastore where its disks are made; the first that takes them if none is given.
    #[serde(default)]
    pub datastore: Option<String>,
}

impl Operation {
    /// A planned failover, as it is where nothing more is said.
    pub fn planned() -> Operation {
        let kind = FailoverKind::Planned {
            shut_down_timeout_ms: SHUT_DOWN_MS,
            then_power_off: false,
            max_downtime_ms: MAX_DOWNTIME_MS,
        };
        Operation::Failover { kind, point: None }
    }

    /// The same for an unplanned one.
    pub fn unplanned() -> Operation {
        Operation::Failover { kind: FailoverKind::Unplanned { shut_down: ShutDownFirst::Try }, point: None }
    }

    /// The same for a reprotect.
    pub fn reprotect(sync: Sync) -> Operation {
        Operation::Reprotect { sync, shut_down: false, no_way_back: false, landing: None }
    }

    /// The same for a failback.
    pub fn failback(sync: Sync) -> Operation {
        Operation::Failback {
            sync,
            offline: false,
            complete: false,
            shut_down: false,
            shut_down_timeout_ms: SHUT_DOWN_MS,
            then_power_off: false,
            no_way_back: false,
            max_downtime_ms: MAX_DOWNTIME_MS,
            complete_at: None,
            landing: None,
        }
    }
}

/// How long a guest may take to shut down where nobody says, in ms.
pub const SHUT_DOWN_MS: u64 = 300_000;

/// How long a machine may be down where nobody says, in ms.
pub const MAX_DOWNTIME_MS: u64 = 5000;

fn max_downtime_ms() -> u64 {
    MAX_DOWNTIME_MS
}

impl Operation {
    /// The verb, as on the command line.
    pub fn verb(&self) -> &'static str {
        match self {
            Operation::Protect { .. } => "protect",
            Operation::Unprotect { .. } => "unprotect",
            Operation::Failover { .. } => "failover",
            Operation::ChangePoint { .. } => "change-point",
            Operation::TestFailover { .. } => "test failover",
            Operation::Cleanup {} => "cleanup",
            Operation::View { .. } => "view",
            Operation::EndView { .. } => "end view",
            Operation::Verify { .. } => "verify",
            Operation::Commit { .. } => "commit",
            Operation::Fold {} => "fold",
            Operation::Reprotect { .. } => "reprotect",
            Operation::Failback { .. } => "failback",
            Operation::Complete { .. } => "complete",
            Operation::Cancel {} => "cancel",
        }
    }
}

/// How a failover treats the side where the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum FailoverKind {
    /// The machine is shut down, its last changes are sent, nothing is lost (H1).
    Planned {
        /// How long the guest may take to shut down, in ms.
        shut_down_timeout_ms: u64,
        /// Whether its power is taken after that time.
        then_power_off: bool,
        /// How long the machine may be down, as for a failback.
        #[serde(default = "max_downtime_ms")]
        max_downtime_ms: u64,
    },
    /// The machine is started from a recovery point.
    Unplanned {
        /// Whether the old machine is shut down first.
        shut_down: ShutDownFirst,
    },
}

/// Whether an unplanned failover shuts the old machine down first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ShutDownFirst {
    /// If its site answers.
    Try,
    /// Fail if that is not possible.
    Require,
    /// Not at all.
    Skip,
}
