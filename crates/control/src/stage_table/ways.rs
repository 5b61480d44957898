//! Ways: the shortest way from a stage to where an event is allowed.
//!
//! ```text
//!   commit pending ── commit ──► NOT PROTECTED ── reprotect ──► reprotecting ··(wait)··► protected ── failover: allowed
//! ```
//! A way goes on, it does not go back: *cancel* is one only where somebody has to decide about what waits for him.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};

use protocol::fault::{Fault, code};
use protocol::stage::{MovePhase, Side, Stage};

use super::Answer::{Already, Cross, Stay};
use super::{Event as E, Event, look_up, target};

/// One piece of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A verb.
    Verb(Event),
    /// The job at work brings the item there by itself.
    Wait(Stage),
}

impl Way {
    /// As an operator does it.
    pub fn command(self) -> String {
        match self {
            Way::Verb(verb) => format!("sockeye {} ITEM", verb.words()),
            Way::Wait(until) => format!("wait until it is: {until}"),
        }
    }

    /// As short as can be.
    pub fn words(self) -> &'static str {
        match self {
            Way::Verb(verb) => verb.words(),
            Way::Wait(_) => "(wait)",
        }
    }
}

/// What is to be said where the table has no answer.
pub(super) fn refusal(stage: Stage, event: Event) -> Fault {
    if event == E::Cancel {
        return nothing_to_cancel(stage);
    }
    let message = format!("{} is not possible now", event.words());
    let fault = Fault::new(code::STAGE_REFUSES, message, format!("the item is: {stage}"));
    match way_to(stage, event) {
        Some(way) if !way.is_empty() => {
            let commands: Vec<String> = way.iter().map(|part| part.command()).collect();
            fault.with_remedy(format!("first: {}", commands.join(", then: ")))
        }
        // An item stays one: what was asked for is had by another name.
        None if event == E::Protect => fault.with_remedy("protect it again: sockeye reprotect ITEM"),
        _ => fault,
    }
}

/// What is committed is not taken back: the way back is the other direction.
fn nothing_to_cancel(stage: Stage) -> Fault {
    let fault = |cause: &str| Fault::new(code::NOT_CANCELLABLE, "there is nothing to be cancelled", cause);
    match stage {
        Stage::NotProtected { runs_at: Side::Away } => {
            fault("the failover is committed").with_remedy("fail over again, towards home: sockeye failback ITEM")
        }
        Stage::NotProtected { runs_at: Side::Home } => {
            fault("nothing is under way; a failback, if one was, is committed")
                .with_remedy("fail over again: sockeye reprotect ITEM, then: sockeye failover ITEM")
        }
        Stage::Damaged { .. } => {
            fault("what was under way has ended, and left the disks of the other side half written")
                .with_remedy("repair them: sockeye reprotect ITEM")
        }
        _ => fault("nothing is under way").with_remedy("see how it stands: sockeye status ITEM"),
    }
}

/// What leads to a stage where `event` is allowed, the fewest pieces first; none when there is no way, or none is needed to
/// say: nobody goes somewhere in order to cancel.
pub fn way_to(from: Stage, event: Event) -> Option<Vec<Way>> {
    if event == E::Cancel {
        return None;
    }
    let mut ways: BTreeMap<Stage, Vec<Way>> = BTreeMap::from([(from, vec![])]);
    let mut queue = VecDeque::from([from]);
    while let Some(here) = queue.pop_front() {
        let way = ways.get(&here).cloned().unwrap_or_default();
        if matches!(look_up(here, event), Some(Stay(_) | Cross(_))) {
            return Some(way);
        }
        for (part, there) in leads_to(here) {
            if let Entry::Vacant(place) = ways.entry(there) {
                place.insert(way.iter().copied().chain([part]).collect());
                queue.push_back(there);
            }
        }
    }
    None
}

/// Where waiting leads, and where each verb does when all goes well. `unprotect` is left out: forgetting an item is never a
/// way to something.
fn leads_to(from: Stage) -> Vec<(Way, Stage)> {
    let rest = rest_after(from);
    if rest != from {
        return vec![(Way::Wait(rest), rest)];
    }
    let mut ends = Vec::new();
    for verb in Event::verbs().filter(|verb| *verb != E::Unprotect) {
        let Some(answer) = look_up(from, verb) else { continue };
        match (verb, answer) {
            (_, Already) => {}
            (E::Cancel, _) => ends.extend(taken_back(from).map(|end| (Way::Verb(verb), end))),
            _ => ends.push((Way::Verb(verb), rest_after(target(from, answer)))),
        }
    }
    ends
}

/// Where *cancel* ends for what waits for a person. Whether a failback began from a running reprotection is not in the stage:
/// it is taken for one that did not, from where every way holds for both.
fn taken_back(from: Stage) -> Option<Stage> {
    match from {
        // The machine goes back, and the side that it leaves becomes its replica again.
        Stage::CommitPending { runs_at } => Some(Stage::Protected { runs_at: runs_at.other() }),
        Stage::Moving { from, phase: MovePhase::WaitingForComplete } => Some(Stage::NotProtected { runs_at: from }),
        _ => None,
    }
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
