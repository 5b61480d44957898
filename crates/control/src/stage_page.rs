//! The page `docs/protection-states.md`, from the table.

use std::collections::BTreeSet;

use protocol::stage::{MovePhase, Side, Stage};

use crate::stage_table::{Decision, Event, decide, stages, way_to};

/// The page with the diagram and the whole table.
pub fn protection_states_page() -> String {
    let mut page = String::from(
        "# Protection states\n\n\
         Made from the table in `control::stage_table`; a test compares. Rewrite with `SOCKEYE_REWRITE=1 cargo nextest run -p control`.\n\n\
         An item is always in one of these stages. Words in the diagram are verbs of the command line; words in parentheses are news that\n\
         a job brings. `home` and `away` say where the machine runs.\n\n```mermaid\nstateDiagram-v2\n",
    );
    for stage in stages() {
        page.push_str(&format!("    {}: {}\n", id(stage), label(stage)));
    }
    page.push_str(&format!("    [*] --> {}\n", id(Stage::Unprotected)));
    for from in stages() {
        for event in Event::ALL {
            if let Decision::Move(to) = decide(from, event)
                && to != from
            {
                page.push_str(&format!("    {} --> {}: {}\n", id(from), id(to), event.words()));
            }
        }
    }
    page.push_str("```\n\n## What each verb does\n\n`→` goes to a stage, `=` is so already, `↺` leaves the stage while a job does it, `first …` names the shortest way on; `(wait)`: the job at\nwork brings it there by itself.\n\n");
    let verbs: Vec<Event> = Event::verbs().collect();
    page.push_str("| stage |");
    verbs.iter().for_each(|verb| page.push_str(&format!(" {} |", verb.words())));
    page.push_str("\n|---|");
    verbs.iter().for_each(|_| page.push_str("---|"));
    page.push('\n');
    for stage in stages() {
        page.push_str(&format!("| {} |", label(stage)));
        for verb in &verbs {
            page.push_str(&format!(" {} |", answer(stage, *verb)));
        }
        page.push('\n');
    }
    page.push_str("\n## What news does\n\n| stage | news | becomes |\n|---|---|---|\n");
    for stage in stages() {
        for event in Event::ALL.into_iter().filter(|event| !event.is_verb()) {
            if let Decision::Move(to) = decide(stage, event) {
                page.push_str(&format!("| {} | {} | {} |\n", label(stage), event.words(), label(to)));
            }
        }
    }
    page
}

fn answer(stage: Stage, verb: Event) -> String {
    match decide(stage, verb) {
        Decision::Move(to) if to == stage => "↺".into(),
        Decision::Move(to) => format!("→ {}", label(to)),
        Decision::AlreadyThere => "=".into(),
        Decision::Refused(_) => match way_to(stage, verb) {
            Some(way) if !way.is_empty() => {
                let words: Vec<&str> = way.iter().map(|part| part.words()).collect();
                format!("first {}", words.join(", "))
            }
            _ => String::new(),
        },
    }
}

fn label(stage: Stage) -> String {
    let side = match stage.runs_at() {
        Side::Home => "home",
        Side::Away => "away",
    };
    match stage {
        Stage::Unprotected | Stage::Seeding => stage.words(None),
        Stage::Moving { phase, .. } => {
            let phase = match phase {
                MovePhase::Synchronizing => "synchronizing",
                MovePhase::WaitingForComplete => "waiting for Complete",
                MovePhase::Completing => "completing",
            };
            format!("moving from {side}, {phase}")
        }
        Stage::Protected { .. } => format!("protected, runs {side}"),
        Stage::CommitPending { .. } => format!("commit pending, runs {side}"),
        Stage::NotProtected { .. } => format!("NOT PROTECTED, runs {side}"),
        Stage::Reprotecting { .. } => format!("reprotecting, runs {side}"),
        Stage::Damaged { .. } => format!("damaged, runs {side}"),
    }
}

fn id(stage: Stage) -> String {
    let words: BTreeSet<char> = [',', ' '].into();
    label(stage).chars().filter(|letter| !words.contains(letter)).collect()
}
