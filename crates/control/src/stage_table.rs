//! The protection table: every stage, every event, one answer. [`decide`] is its only door.
//!
//! ```text
//!   decide(stage, event) ──► Move(stage) · AlreadyThere · Refused(fault with the shortest way on)
//! ```
//!
//! Events are either *verbs*, which people ask for, or *news*, which jobs bring. A row speaks of a stage's shape and of
//! the side where the machine runs, so that both directions share it; what is not in the table is refused. The operations that the
//! API and the command line offer, `sockeye explain` and `docs/protection-states.md` come from here.
//!
//! A test failover, a resynchronization and health are not stages: an item has them beside its stage, whichever that is.

mod ways;

use protocol::fault::Fault;
use protocol::stage::{MovePhase, Side, Stage};
use serde::{Deserialize, Serialize};

pub use ways::{Way, way_to};

/// What can happen to an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Verb: begin to replicate.
    Protect,
    /// Verb: stop replicating and forget.
    Unprotect,
    /// Verb: move to the other side.
    Failover,
    /// Verb: start the moved machine from another recovery point.
    ChangePoint,
    /// Verb: end a move.
    Commit,
    /// Verb: give the machine its own disks back.
    Fold,
    /// Verb: replicate to the side that the machine came from.
    Reprotect,
    /// Verb: bring home.
    Failback,
    /// Verb: *Complete failover*.
    Complete,
    /// Verb: give up what is under way.
    Cancel,
    /// News: the first recovery point of a direction is durable.
    FirstPoint,
    /// News: phase 1 of a failback has converged.
    Converged,
    /// News: the machine goes on at its new side.
    Started,
    /// News: what was begun is undone, and recovery points arrive as before.
    UndoneProtected,
    /// News: what was begun is undone, and nothing is replicated.
    UndoneUnprotected,
    /// News: the copy at the other side is half written and could not be rolled back (H14).
    HalfWritten,
}

impl Event {
    /// Every event, verbs first.
    pub const ALL: [Event; 16] = [
        Event::Protect,
        Event::Failover,
        Event::Failback,
        Event::Complete,
        Event::ChangePoint,
        Event::Commit,
        Event::Fold,
        Event::Reprotect,
        Event::Cancel,
        Event::Unprotect,
        Event::FirstPoint,
        Event::Converged,
        Event::Started,
        Event::UndoneProtected,
        Event::UndoneUnprotected,
        Event::HalfWritten,
    ];

    /// The events that people ask for.
    pub fn verbs() -> impl Iterator<Item = Event> {
        Event::ALL.into_iter().filter(|event| event.is_verb())
    }

    /// Whether people ask for it.
    pub fn is_verb(self) -> bool {
        !matches!(
            self,
            Event::FirstPoint
                | Event::Converged
                | Event::Started
                | Event::UndoneProtected
                | Event::UndoneUnprotected
                | Event::HalfWritten
        )
    }

    /// The verb of the command line, or the news in words.
    pub fn words(self) -> &'static str {
        match self {
            Event::Protect => "protect",
            Event::Unprotect => "unprotect",
            Event::Failover => "failover",
            Event::ChangePoint => "change-point",
            Event::Commit => "commit",
            Event::Fold => "fold",
            Event::Reprotect => "reprotect",
            Event::Failback => "failback",
            Event::Complete => "complete",
            Event::Cancel => "cancel",
            Event::FirstPoint => "(first point durable)",
            Event::Converged => "(phase 1 converged)",
            Event::Started => "(started at the other side)",
            Event::UndoneProtected => "(undone, still replicated)",
            Event::UndoneUnprotected => "(undone, not replicated)",
            Event::HalfWritten => "(half written)",
        }
    }
}

/// The answer to an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The item goes to this stage.
    Move(Stage),
    /// It is so already; nothing is to be done.
    AlreadyThere,
    /// Not from this stage (`CTL-002`).
    Refused(Fault),
}

/// A stage without its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Unprotected,
    Seeding,
    Protected,
    Moving(MovePhase),
    CommitPending,
    NotProtected,
    Reprotecting,
    Damaged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// To this shape, on the same side.
    Stay(Shape),
    /// To this shape, on the other side.
    Cross(Shape),
    /// Nothing to do.
    Already,
}

struct Row {
    from: Shape,
    /// The side where the machine runs, where it matters.
    only: Option<Side>,
    event: Event,
    answer: Answer,
}

const fn row(from: Shape, event: Event, answer: Answer) -> Row {
    Row { from, only: None, event, answer }
}

const fn at(side: Side, from: Shape, event: Event, answer: Answer) -> Row {
    Row { from, only: Some(side), event, answer }
}

use Answer::{Already, Cross, Stay};
use Event as E;
use MovePhase::{Completing, Synchronizing, WaitingForComplete};
use Shape as S;
use Side::{Away, Home};

const TABLE: &[Row] = &[
    row(S::Unprotected, E::Protect, Stay(S::Seeding)),
    row(S::Unprotected, E::Unprotect, Already),
    row(S::Unprotected, E::UndoneUnprotected, Already),
    //
    row(S::Seeding, E::Protect, Already),
    row(S::Seeding, E::FirstPoint, Stay(S::Protected)),
    row(S::Seeding, E::Cancel, Stay(S::Seeding)),
    row(S::Seeding, E::UndoneUnprotected, Stay(S::Unprotected)),
    //
    at(Home, S::Protected, E::Protect, Already),
    row(S::Protected, E::Failover, Stay(S::Moving(Completing))),
    at(Away, S::Protected, E::Failback, Stay(S::Moving(Synchronizing))),
    at(Home, S::Protected, E::Failback, Already),
    row(S::Protected, E::Reprotect, Already),
    row(S::Protected, E::Unprotect, Stay(S::Unprotected)),
    row(S::Protected, E::FirstPoint, Already),
    row(S::Protected, E::UndoneProtected, Already),
    row(S::Protected, E::UndoneUnprotected, Stay(S::NotProtected)),
    //
    at(Away, S::Moving(Synchronizing), E::Converged, Stay(S::Moving(WaitingForComplete))),
    at(Away, S::Moving(Synchronizing), E::Failback, Already),
    at(Away, S::Moving(Synchronizing), E::Cancel, Stay(S::Moving(Synchronizing))),
    at(Away, S::Moving(Synchronizing), E::UndoneProtected, Stay(S::Protected)),
    at(Away, S::Moving(Synchronizing), E::UndoneUnprotected, Stay(S::NotProtected)),
    at(Away, S::Moving(Synchronizing), E::HalfWritten, Stay(S::Damaged)),
    //
    at(Away, S::Moving(WaitingForComplete), E::Complete, Stay(S::Moving(Completing))),
    at(Away, S::Moving(WaitingForComplete), E::Converged, Already),
    at(Away, S::Moving(WaitingForComplete), E::Failback, Already),
    at(Away, S::Moving(WaitingForComplete), E::Cancel, Stay(S::Moving(WaitingForComplete))),
    at(Away, S::Moving(WaitingForComplete), E::UndoneProtected, Stay(S::Protected)),
    at(Away, S::Moving(WaitingForComplete), E::UndoneUnprotected, Stay(S::NotProtected)),
    at(Away, S::Moving(WaitingForComplete), E::HalfWritten, Stay(S::Damaged)),
    //
    row(S::Moving(Completing), E::Started, Cross(S::CommitPending)),
    row(S::Moving(Completing), E::Failover, Already),
    at(Away, S::Moving(Completing), E::Failback, Already),
    row(S::Moving(Completing), E::Complete, Already),
    row(S::Moving(Completing), E::Cancel, Stay(S::Moving(Completing))),
    row(S::Moving(Completing), E::UndoneProtected, Stay(S::Protected)),
    row(S::Moving(Completing), E::UndoneUnprotected, Stay(S::NotProtected)),
    row(S::Moving(Completing), E::HalfWritten, Stay(S::Damaged)),
    //
    row(S::CommitPending, E::ChangePoint, Stay(S::CommitPending)),
    row(S::CommitPending, E::Commit, Stay(S::NotProtected)),
    row(S::CommitPending, E::Failover, Already),
    at(Home, S::CommitPending, E::Failback, Already),
    row(S::CommitPending, E::Complete, Already),
    row(S::CommitPending, E::Started, Already),
    row(S::CommitPending, E::Cancel, Stay(S::CommitPending)),
    row(S::CommitPending, E::UndoneUnprotected, Cross(S::NotProtected)),
    //
    row(S::NotProtected, E::Commit, Already),
    at(Home, S::NotProtected, E::Fold, Stay(S::NotProtected)),
    row(S::NotProtected, E::Reprotect, Stay(S::Reprotecting)),
    at(Away, S::NotProtected, E::Failback, Stay(S::Moving(Synchronizing))),
    at(Home, S::NotProtected, E::Failback, Already),
    row(S::NotProtected, E::Unprotect, Stay(S::Unprotected)),
    row(S::NotProtected, E::UndoneUnprotected, Already),
    //
    row(S::Reprotecting, E::FirstPoint, Stay(S::Protected)),
    row(S::Reprotecting, E::Reprotect, Already),
    row(S::Reprotecting, E::Cancel, Stay(S::Reprotecting)),
    row(S::Reprotecting, E::UndoneUnprotected, Stay(S::NotProtected)),
    row(S::Reprotecting, E::HalfWritten, Stay(S::Damaged)),
    //
    row(S::Damaged, E::Reprotect, Stay(S::Reprotecting)),
    at(Away, S::Damaged, E::Failback, Stay(S::Moving(Synchronizing))),
    row(S::Damaged, E::Unprotect, Stay(S::Unprotected)),
    row(S::Damaged, E::UndoneProtected, Already),
    row(S::Damaged, E::UndoneUnprotected, Already),
    row(S::Damaged, E::HalfWritten, Already),
];

fn shape(stage: Stage) -> (Shape, Side) {
    match stage {
        Stage::Unprotected => (S::Unprotected, Home),
        Stage::Seeding => (S::Seeding, Home),
        Stage::Protected { runs_at } => (S::Protected, runs_at),
        Stage::Moving { from, phase } => (S::Moving(phase), from),
        Stage::CommitPending { runs_at } => (S::CommitPending, runs_at),
        Stage::NotProtected { runs_at } => (S::NotProtected, runs_at),
        Stage::Reprotecting { runs_at } => (S::Reprotecting, runs_at),
        Stage::Damaged { runs_at } => (S::Damaged, runs_at),
    }
}

fn stage(shape: Shape, side: Side) -> Stage {
    match shape {
        S::Unprotected => Stage::Unprotected,
        S::Seeding => Stage::Seeding,
        S::Protected => Stage::Protected { runs_at: side },
        S::Moving(phase) => Stage::Moving { from: side, phase },
        S::CommitPending => Stage::CommitPending { runs_at: side },
        S::NotProtected => Stage::NotProtected { runs_at: side },
        S::Reprotecting => Stage::Reprotecting { runs_at: side },
        S::Damaged => Stage::Damaged { runs_at: side },
    }
}

/// Every stage that an item can be in, in the order of its life: phase 1 with its wait for *Complete* exists on the way home only.
pub fn stages() -> Vec<Stage> {
    let mut all = vec![Stage::Unprotected, Stage::Seeding];
    for side in [Home, Away] {
        let phases = [Synchronizing, WaitingForComplete].into_iter().filter(|_| side == Away).map(S::Moving);
        all.push(stage(S::Protected, side));
        all.extend(phases.chain([S::Moving(Completing)]).map(|shape| stage(shape, side)));
        all.extend([S::CommitPending, S::NotProtected, S::Reprotecting, S::Damaged].map(|shape| stage(shape, side)));
    }
    all
}

fn look_up(stage_now: Stage, event: Event) -> Option<Answer> {
    let (from, side) = shape(stage_now);
    TABLE
        .iter()
        .find(|row| row.from == from && row.event == event && row.only.is_none_or(|only| only == side))
        .map(|row| row.answer)
}

fn target(stage_now: Stage, answer: Answer) -> Stage {
    let (_, side) = shape(stage_now);
    match answer {
        Stay(to) => stage(to, side),
        Cross(to) => stage(to, side.other()),
        Already => stage_now,
    }
}

/// The one door: what `event` does to an item in `stage`. A refusal names the shortest way to where it would be allowed.
pub fn decide(stage: Stage, event: Event) -> Decision {
    match look_up(stage, event) {
        Some(Already) => Decision::AlreadyThere,
        Some(answer) => Decision::Move(target(stage, answer)),
        None => Decision::Refused(ways::refusal(stage, event)),
    }
}

#[cfg(test)]
mod tests;
