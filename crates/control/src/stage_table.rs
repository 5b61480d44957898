//! The protection table: every stage, every event, one answer. [`decide`] is its only door.
//!
//! ```text
//!   decide(stage, event) ──► Move(stage) · AlreadyThere · Refused(fault with the shortest way on)
//! ```
//!
//! Events are either *verbs*, which people ask for, or *news*, which jobs bring. A row speaks of a stage's shape and of
//! the side where the machine runs, so that both directions share it; what is not in the table is refused. The operations that the
//! API and the command line offer, `sockeye explain` and `docs/protection-states.md` come from here.

use std::collections::{BTreeMap, VecDeque};

use protocol::fault::{Fault, code};
use protocol::stage::{MovePhase, Side, Stage};
use serde::{Deserialize, Serialize};

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
    row(S::Moving(Synchronizing), E::Converged, Stay(S::Moving(WaitingForComplete))),
    at(Away, S::Moving(Synchronizing), E::Failback, Already),
    row(S::Moving(Synchronizing), E::Cancel, Stay(S::Moving(Synchronizing))),
    row(S::Moving(Synchronizing), E::UndoneProtected, Stay(S::Protected)),
    row(S::Moving(Synchronizing), E::UndoneUnprotected, Stay(S::NotProtected)),
    row(S::Moving(Synchronizing), E::HalfWritten, Stay(S::Damaged)),
    //
    row(S::Moving(WaitingForComplete), E::Complete, Stay(S::Moving(Completing))),
    row(S::Moving(WaitingForComplete), E::Converged, Already),
    at(Away, S::Moving(WaitingForComplete), E::Failback, Already),
    row(S::Moving(WaitingForComplete), E::Cancel, Stay(S::Moving(WaitingForComplete))),
    row(S::Moving(WaitingForComplete), E::UndoneProtected, Stay(S::Protected)),
    row(S::Moving(WaitingForComplete), E::UndoneUnprotected, Stay(S::NotProtected)),
    row(S::Moving(WaitingForComplete), E::HalfWritten, Stay(S::Damaged)),
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

/// Every stage that exists, in the order of an item's life.
pub fn stages() -> Vec<Stage> {
    let mut all = vec![Stage::Unprotected, Stage::Seeding];
    for side in [Home, Away] {
        all.extend(
            [
                S::Protected,
                S::Moving(Synchronizing),
                S::Moving(WaitingForComplete),
                S::Moving(Completing),
                S::CommitPending,
                S::NotProtected,
                S::Reprotecting,
                S::Damaged,
            ]
            .map(|shape| stage(shape, side)),
        );
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
        None => Decision::Refused(refusal(stage, event)),
    }
}

fn refusal(stage: Stage, event: Event) -> Fault {
    let fault = Fault::new(
        code::STAGE_REFUSES,
        format!("{} is not possible now", event.words()),
        format!("the item is: {stage}"),
    );
    match way_to(stage, event) {
        Some(way) if !way.is_empty() => {
            let commands: Vec<String> = way.iter().map(|verb| format!("sockeye {} ITEM", verb.words())).collect();
            fault.with_remedy(format!("first: {}", commands.join(", then: ")))
        }
        _ => fault,
    }
}

/// The verbs that lead to a stage where `event` is allowed, the fewest first; none when there is no way.
pub fn way_to(from: Stage, event: Event) -> Option<Vec<Event>> {
    let mut ways: BTreeMap<Stage, Vec<Event>> = BTreeMap::from([(from, vec![])]);
    let mut queue = VecDeque::from([from]);
    while let Some(here) = queue.pop_front() {
        let way = ways.get(&here).cloned().unwrap_or_default();
        if matches!(look_up(here, event), Some(Stay(_) | Cross(_))) {
            return Some(way);
        }
        for (verb, there) in verb_leads_to(here) {
            if let std::collections::btree_map::Entry::Vacant(place) = ways.entry(there) {
                place.insert(way.iter().copied().chain([verb]).collect());
                queue.push_back(there);
            }
        }
    }
    None
}

/// Where each verb ends when all goes well. `unprotect` is left out: forgetting an item is never a way to something.
fn verb_leads_to(from: Stage) -> Vec<(Event, Stage)> {
    let mut ends = Vec::new();
    for verb in Event::verbs().filter(|verb| *verb != E::Unprotect) {
        let Some(answer) = look_up(from, verb) else { continue };
        if answer == Already {
            continue;
        }
        if verb == E::Cancel {
            ends.extend(
                [E::UndoneProtected, E::UndoneUnprotected]
                    .into_iter()
                    .filter_map(|news| look_up(from, news).map(|answer| (verb, target(from, answer)))),
            );
            continue;
        }
        ends.push((verb, rest_after(target(from, answer))));
    }
    ends
}

/// Follows the news of a job that goes well until the item is at rest or waits for a person.
fn rest_after(mut stage: Stage) -> Stage {
    loop {
        let news = [E::FirstPoint, E::Converged, E::Started].into_iter().find_map(|news| match look_up(stage, news) {
            Some(answer @ (Stay(_) | Cross(_))) => Some(target(stage, answer)),
            _ => None,
        });
        match news {
            Some(next) => stage = next,
            None => return stage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_answers_every_event_with_exactly_one_row() {
        for stage in stages() {
            for event in Event::ALL {
                let (from, side) = shape(stage);
                let rows = TABLE
                    .iter()
                    .filter(|row| row.from == from && row.event == event && row.only.is_none_or(|only| only == side))
                    .count();
                match decide(stage, event) {
                    Decision::Refused(fault) => {
                        assert_eq!(rows, 0, "{stage:?} × {event:?}");
                        assert!(fault.is(code::STAGE_REFUSES) && !fault.remedy.is_empty());
                    }
                    Decision::Move(_) | Decision::AlreadyThere => assert_eq!(rows, 1, "{stage:?} × {event:?}"),
                }
            }
        }
    }

    #[test]
    fn the_machine_changes_sides_only_when_started_elsewhere_or_taken_back() {
        for stage in stages() {
            for event in Event::ALL {
                let Decision::Move(next) = decide(stage, event) else { continue };
                if next == Stage::Unprotected {
                    continue;
                }
                let crossed = next.runs_at() != stage.runs_at();
                let may_cross = event == E::Started
                    || (event == E::UndoneUnprotected && matches!(stage, Stage::CommitPending { .. }));
                assert_eq!(crossed, may_cross, "{stage:?} × {event:?} → {next:?}");
            }
        }
    }

    #[test]
    fn repeating_an_event_never_moves_further() {
        for stage in stages() {
            for event in Event::ALL {
                if let Decision::Move(next) = decide(stage, event) {
                    let again = decide(next, event);
                    let same = match again {
                        Decision::Move(there) => there == next,
                        Decision::AlreadyThere => true,
                        // A first point or a commit that is told twice is told to a stage that has gone on: a job never does.
                        Decision::Refused(_) => false,
                    };
                    assert!(same || !matches!(again, Decision::Move(_)), "{stage:?} × {event:?} twice: {again:?}");
                }
            }
        }
    }

    #[test]
    fn every_stage_has_a_way_to_protected_at_home() {
        for from in stages() {
            let (mut seen, mut queue) = (vec![from], vec![from]);
            while let Some(here) = queue.pop() {
                for event in Event::ALL {
                    if event == E::Unprotect || event == E::HalfWritten {
                        continue;
                    }
                    if let Decision::Move(next) = decide(here, event)
                        && !seen.contains(&next)
                    {
                        seen.push(next);
                        queue.push(next);
                    }
                }
            }
            assert!(seen.contains(&Stage::Protected { runs_at: Home }), "{from:?} is a dead end");
        }
    }

    #[test]
    fn a_refusal_names_the_shortest_way_on() {
        let way = |stage, event| way_to(stage, event).unwrap();
        assert_eq!(way(Stage::CommitPending { runs_at: Away }, E::Failback), [E::Commit]);
        assert_eq!(way(Stage::NotProtected { runs_at: Away }, E::Failover), [E::Reprotect]);
        assert_eq!(way(Stage::Protected { runs_at: Home }, E::Commit), [E::Failover]);
        let Decision::Refused(fault) = decide(Stage::NotProtected { runs_at: Home }, E::Failover) else { panic!() };
        assert_eq!(fault.remedy, "first: sockeye reprotect ITEM");
    }
}
