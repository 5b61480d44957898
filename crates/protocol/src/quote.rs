//! Quotes: what a movement is expected to cost, said before it starts, and what a move then cost.
//!
//! ```text
//!   pace · what changed · past moves ──► Quote ──► plan, `sockeye quote` ──► kept with the job
//!                                                                               │ compared with
//!                                          still ─ last delta ─ seal ─ bring up ─ start ──► Downtime
//! ```
//! # Always true
//! - A figure that is not known is absent, and a note says why, and what bounds it. Nothing is made up.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::pace::Limit;

/// What a movement is expected to cost (H18).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
pub struct Quote {
    /// Bytes of blocks that will travel, before compression.
    pub bytes: Option<u64>,
    /// Bytes that are read at each end at most, where the two have to be compared or everything is copied.
    pub read_at_most: Option<u64>,
    /// Bytes per second, as measured, or the bandwidth cap that is in force now, if that is less.
    pub rate: Option<u64>,
    /// How long the data travels, in ms; what it takes while the machine runs is not downtime.
    pub moving_ms: Option<u64>,
    /// What limits it.
    pub limit: Option<Limit>,
    /// How long the machine is expected to be down; none where no machine is stopped.
    pub downtime: Option<ExpectedDowntime>,
    /// What is not known, and what bounds it, one sentence each.
    pub notes: Vec<String>,
}

/// How long a machine is expected to be down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
pub struct ExpectedDowntime {
    /// From the machine standing still to the target going on, in ms: the sum of the two that follow, if both are known.
    pub expected_ms: Option<u64>,
    /// Sending the last delta, in ms.
    pub last_delta_ms: Option<u64>,
    /// Bringing the machine up at the target, as in the last move there, in ms.
    pub bring_up_ms: Option<u64>,
    /// What the guest takes to shut down, as in the last move from there, in ms. It comes before the rest, apart from it.
    pub shut_down_ms: Option<u64>,
    /// The most that the guest may take to shut down, in ms.
    pub shut_down_at_most_ms: Option<u64>,
    /// The most that was allowed, in ms, without the guest's shutting down.
    pub budget_ms: Option<u64>,
}

/// What a quote is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Quoted {
    /// The command that it is of.
    pub command: String,
    /// What it is expected to cost.
    pub quote: Quote,
}

/// How long each part of a planned move's downtime took, in ms, by the control server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
pub struct Downtime {
    /// From the order to the guest standing still. It comes before the rest, and is not counted with it.
    pub shut_down_ms: u64,
    /// From the machine standing still to the last change being sent.
    pub last_delta_ms: u64,
    /// Until the target had made that durable.
    pub seal_ms: u64,
    /// Until the machine stood ready at the target, paused.
    pub bring_up_ms: u64,
    /// Until its start was accepted there.
    pub start_ms: u64,
}

impl Downtime {
    /// From the machine standing still to its start being accepted.
    pub fn total_ms(&self) -> u64 {
        self.last_delta_ms + self.seal_ms + self.bring_up_ms + self.start_ms
    }
}

/// How far something is that carries data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Moving {
    /// Bytes done.
    pub done: u64,
    /// Bytes expected.
    pub expected: u64,
    /// Bytes per second so far; none while that cannot be told.
    pub rate: Option<u64>,
    /// How long the rest takes at that rate, in ms.
    pub left_ms: Option<u64>,
}

/// When *Complete* is to come by itself (H17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Window {
    /// From when on, ms since 1970.
    pub from_ms: u64,
    /// Until when it may begin, ms since 1970; after that a person is asked.
    pub until_ms: u64,
}
