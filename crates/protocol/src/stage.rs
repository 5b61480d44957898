//! Stages: where an item is in its protected life. (What a job does now is a *step*; how well it goes is *health*.)
//!
//! A stage carries the data that it needs inside its variant and nothing stands beside it, so an impossible state cannot
//! be written down. Both directions use the same variants with the sides exchanged: a failback is a failover whose
//! machine runs away from home. The transitions are one table in `control`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The two sites of an item: the one it was protected at, and the one it is replicated to first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Where the machine was when it was protected.
    Home,
    /// The disaster recovery site.
    Away,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Home => Side::Away,
            Side::Away => Side::Home,
        }
    }
}

/// How far a move from one side to the other has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MovePhase {
    /// Phase 1: the machine runs on while the target is brought up to date.
    Synchronizing,
    /// Phase 1 has converged; a person says *Complete*.
    WaitingForComplete,
    /// The machine is being stopped, its last changes sent, and it is started at the other side.
    Completing,
}

/// Where an item is in its protected life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Stage {
    /// Known, but neither replicated nor failed over (protection was cancelled or taken away).
    Unprotected,
    /// The first copy is on its way; there is no recovery point yet.
    Seeding,
    /// Recovery points arrive at the other side.
    Protected {
        /// Where the machine runs.
        runs_at: Side,
    },
    /// On its way to the other side: a failover from home, a failback from away.
    Moving {
        /// Where it came from.
        from: Side,
        /// How far it has come.
        phase: MovePhase,
    },
    /// Started at the new side; can still be cancelled.
    CommitPending {
        /// Where the machine runs now.
        runs_at: Side,
    },
    /// Committed; nothing is replicated (H19).
    NotProtected {
        /// Where the machine runs.
        runs_at: Side,
    },
    /// The other side is being brought up to date after a commit.
    Reprotecting {
        /// Where the machine runs.
        runs_at: Side,
    },
    /// The disks at the other side are half written and must not be started (H14).
    Damaged {
        /// Where the machine runs (or ran last): the side that is whole.
        runs_at: Side,
    },
}

impl Stage {
    /// Where the machine runs, or is running last while it moves.
    pub fn runs_at(self) -> Side {
        match self {
            Stage::Unprotected | Stage::Seeding => Side::Home,
            Stage::Protected { runs_at }
            | Stage::CommitPending { runs_at }
            | Stage::NotProtected { runs_at }
            | Stage::Reprotecting { runs_at }
            | Stage::Damaged { runs_at } => runs_at,
            Stage::Moving { from, .. } => from,
        }
    }

    /// Whether recovery points are arriving or about to arrive at the other side.
    pub fn is_protected(self) -> bool {
        matches!(self, Stage::Protected { .. } | Stage::Moving { .. })
    }

    /// Whether nothing of what the machine writes arrives at the other side, nor is about to by itself (H19).
    pub fn is_exposed(self) -> bool {
        matches!(
            self,
            Stage::Unprotected | Stage::CommitPending { .. } | Stage::NotProtected { .. } | Stage::Damaged { .. }
        )
    }

    /// The words in which operators see the stage (design section 8). `percent` is shown while a copy is under way.
    pub fn words(self, percent: Option<u8>) -> String {
        let with_percent = |words: &str| percent.map_or_else(|| words.to_string(), |n| format!("{words} {n}%"));
        match self {
            Stage::Unprotected => "unprotected".into(),
            Stage::Seeding => with_percent("initial replication"),
            Stage::Protected { runs_at: Side::Home } => "protected".into(),
            Stage::Protected { runs_at: Side::Away } => "protected (reverse)".into(),
            Stage::Moving { from: Side::Home, .. } => "failing over".into(),
            Stage::Moving { from: Side::Away, phase } => match phase {
                MovePhase::Synchronizing => with_percent("failing back: synchronizing"),
                MovePhase::WaitingForComplete => "failing back: waiting for Complete".into(),
                MovePhase::Completing => "failing back: completing".into(),
            },
            Stage::CommitPending { .. } => "commit pending".into(),
            Stage::NotProtected { runs_at: Side::Away } => "failed over, NOT PROTECTED".into(),
            Stage::NotProtected { runs_at: Side::Home } => "home, NOT PROTECTED".into(),
            Stage::Reprotecting { .. } => with_percent("reprotecting"),
            Stage::Damaged { .. } => "damaged".into(),
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words(None))
    }
}
