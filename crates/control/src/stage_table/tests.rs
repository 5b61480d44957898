//! The table explored: every stage and event, every way, and all that can become of two sides and a test.
use std::collections::{BTreeSet, VecDeque};

use protocol::fault::code;

use super::*;

/// What an item goes through, from its beginning, whatever happens in whatever order.
fn reached() -> BTreeSet<Stage> {
    let mut seen = BTreeSet::from([Stage::Unprotected]);
    let mut queue = VecDeque::from([Stage::Unprotected]);
    while let Some(here) = queue.pop_front() {
        for event in Event::ALL {
            if let Decision::Move(next) = decide(here, event)
                && seen.insert(next)
            {
                queue.push_back(next);
            }
        }
    }
    seen
}

#[test]
fn the_stages_are_those_that_can_be_reached_and_no_others_are_spoken_of() {
    assert_eq!(reached(), stages().into_iter().collect());
    assert_eq!(stages().len(), reached().len(), "none is listed twice");
    for row in TABLE {
        for side in [Home, Away].into_iter().filter(|side| row.only.is_none_or(|only| only == *side)) {
            let from = stage(row.from, side);
            assert!(reached().contains(&from), "a row speaks of {from:?}, where nothing gets");
        }
    }
}

/// The words of the contract (design section 8), each said of some stage, and no other words of any.
#[test]
fn stages_are_shown_in_the_words_of_the_contract() {
    let said: BTreeSet<String> = stages().into_iter().map(|stage| stage.words(Some(42))).collect();
    let contract = [
        "unprotected",
        "initial replication 42%",
        "protected",
        "failing over",
        "commit pending",
        "failed over, NOT PROTECTED",
        "reprotecting 42%",
        "protected (reverse)",
        "failing back: synchronizing 42%",
        "failing back: waiting for Complete",
        "failing back: completing",
        "home, NOT PROTECTED",
        "damaged",
    ];
    assert_eq!(said, contract.map(String::from).into());
    assert_eq!(Stage::Seeding.words(None), "initial replication");
}

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
                    let due = if event == E::Cancel { code::NOT_CANCELLABLE } else { code::STAGE_REFUSES };
                    assert!(fault.is(due) && !fault.remedy.is_empty());
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
            let may_cross =
                event == E::Started || (event == E::UndoneUnprotected && matches!(stage, Stage::CommitPending { .. }));
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

/// News comes only while a job is at work, so a stage at rest has to have a verb that leads on, and one where a job works news
/// by which it ends, well or not.
#[test]
fn no_stage_is_without_a_way_on() {
    for from in stages() {
        let goes = |event: Event| matches!(decide(from, event), Decision::Move(next) if next != from);
        let verbs: Vec<Event> = Event::verbs().filter(|verb| *verb != E::Unprotect && goes(*verb)).collect();
        let at_work = matches!(from, Stage::Seeding | Stage::Moving { .. } | Stage::Reprotecting { .. });
        if at_work {
            let well = [E::FirstPoint, E::Converged, E::Started].into_iter().any(goes) || !verbs.is_empty();
            assert!(well && (goes(E::UndoneUnprotected) || goes(E::UndoneProtected)), "{from:?} is a dead end");
        } else {
            assert!(!verbs.is_empty() || goes(E::UndoneUnprotected), "{from:?} is a dead end");
        }
        let failover = way_to(from, E::Failover);
        assert!(failover.is_some(), "{from:?} is a dead end");
    }
}

/// A way that is named is gone: each piece is allowed where it stands, and at its end the event is.
#[test]
fn every_way_that_is_named_leads_there() {
    for from in stages() {
        for event in Event::verbs() {
            let Some(way) = way_to(from, event) else { continue };
            let mut here = from;
            for part in &way {
                let verb = match part {
                    Way::Wait(until) => {
                        assert_ne!(here, *until);
                        here = *until;
                        continue;
                    }
                    Way::Verb(verb) => *verb,
                };
                let Decision::Move(next) = decide(here, verb) else {
                    panic!("{from:?} × {event:?}: {verb:?} is not possible at {here:?}: {way:?}")
                };
                assert!(verb != E::Cancel || matches!(here, Stage::CommitPending { .. } | Stage::Moving { .. }));
                here = match (verb, here) {
                    (E::Cancel, Stage::CommitPending { runs_at }) => Stage::Protected { runs_at: runs_at.other() },
                    (E::Cancel, _) => Stage::NotProtected { runs_at: here.runs_at() },
                    _ => well(next),
                };
            }
            assert!(matches!(decide(here, event), Decision::Move(_)), "{from:?} × {event:?}: {way:?} ends at {here:?}");
        }
    }
}

/// How a job goes that goes well.
fn well(mut stage: Stage) -> Stage {
    for news in [E::FirstPoint, E::Converged, E::Started] {
        if let Decision::Move(next) = decide(stage, news) {
            stage = next;
        }
    }
    stage
}

#[test]
fn a_refusal_names_the_shortest_way_on() {
    let way = |stage, event| way_to(stage, event).unwrap().into_iter().map(Way::words).collect::<Vec<_>>();
    let (home, away) = (Stage::NotProtected { runs_at: Home }, Stage::NotProtected { runs_at: Away });
    assert_eq!(way(Stage::CommitPending { runs_at: Away }, E::Failback), ["commit"]);
    assert_eq!(way(away, E::Failover), ["reprotect"]);
    assert_eq!(way(Stage::Protected { runs_at: Home }, E::Commit), ["failover"]);
    assert_eq!(way(Stage::Reprotecting { runs_at: Away }, E::Failback), ["(wait)"]);
    assert_eq!(way(Stage::Moving { from: Home, phase: Completing }, E::Failback), ["(wait)", "commit"]);
    assert_eq!(way(away, E::Fold), ["failback", "complete", "commit"]);
    let Decision::Refused(fault) = decide(home, E::Failover) else { panic!() };
    assert_eq!(fault.remedy, "first: sockeye reprotect ITEM");
    let Decision::Refused(fault) = decide(Stage::Seeding, E::Failover) else { panic!() };
    assert_eq!(fault.remedy, "first: wait until it is: protected");
}

/// *Cancel, by stage*, exactly as in the contract: what is under way or waits for commit is undone, and what is committed is
/// refused with the way back.
#[test]
fn cancel_by_stage() {
    for from in stages() {
        let allowed = matches!(
            from,
            Stage::Seeding | Stage::Moving { .. } | Stage::CommitPending { .. } | Stage::Reprotecting { .. }
        );
        match decide(from, E::Cancel) {
            Decision::Move(there) => assert!(allowed && there == from, "{from:?}: a job undoes itself"),
            Decision::Refused(fault) => {
                assert!(!allowed && fault.is(code::NOT_CANCELLABLE), "{from:?}");
                let committed = matches!(from, Stage::NotProtected { .. });
                assert_eq!(fault.remedy.starts_with("fail over again"), committed, "{from:?}: {fault:?}");
            }
            Decision::AlreadyThere => panic!("{from:?}"),
        }
    }
}

/// Both ways home (H16): straight from a committed failover, and after a finished reprotect; the same stages from there on.
#[test]
fn there_are_two_ways_home_and_they_meet() {
    let straight = decide(Stage::NotProtected { runs_at: Away }, E::Failback);
    let after_reprotect = decide(Stage::Protected { runs_at: Away }, E::Failback);
    let synchronizing = Stage::Moving { from: Away, phase: Synchronizing };
    assert_eq!((&straight, &after_reprotect), (&Decision::Move(synchronizing), &Decision::Move(synchronizing)));
    let goes = |from, event, to| assert_eq!(decide(from, event), Decision::Move(to));
    let waiting = Stage::Moving { from: Away, phase: WaitingForComplete };
    let completing = Stage::Moving { from: Away, phase: Completing };
    goes(synchronizing, E::Converged, waiting);
    goes(waiting, E::Complete, completing);
    goes(completing, E::Started, Stage::CommitPending { runs_at: Home });
    goes(Stage::CommitPending { runs_at: Home }, E::Commit, Stage::NotProtected { runs_at: Home });
    goes(Stage::NotProtected { runs_at: Home }, E::Reprotect, Stage::Reprotecting { runs_at: Home });
    goes(Stage::Reprotecting { runs_at: Home }, E::FirstPoint, Stage::Protected { runs_at: Home });
}
