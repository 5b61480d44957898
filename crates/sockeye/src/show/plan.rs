//! A plan: everything that a person must see before saying yes (H5).
//!
//! ```text
//!   failover web01: home → cloud
//!     stage      protected
//!     point      1.42, crash-consistent, cut 2026-11-22 13:29:52 (1.2 s ago)
//!     deletes    nothing
//!     steps      1. …
//!     checks     ok       …
//!                REFUSED  CTL-015: …
//!     data       12.0 MiB to be sent
//!     time       2.0 s at 6.0 MiB/s, as measured
//!     downtime   1.1 s expected, 5.0 s allowed: last delta 100 ms, bringing it up 1.0 s
//!     undo       until it is committed: sockeye cancel web01
//! ```

use protocol::operation::Landing;
use protocol::rest::{Check, FailoverKind, Operation, Plan};

use super::table::facts;
use super::{quote, words};

/// The plan as text.
pub fn text(plan: &Plan, now_ms: i64) -> String {
    let head = format!("{} {}: {} → {}", doing(&plan.request.operation), plan.request.item, plan.source, plan.target);
    if plan.already {
        return format!("{head}\n{}", facts(&[("stage", plan.stage_words.clone())]));
    }
    let or_nothing = |lines: &[String]| if lines.is_empty() { "nothing".to_string() } else { lines.join("\n") };
    let steps: Vec<_> = plan.steps.iter().enumerate().map(|(n, step)| format!("{}. {step}", n + 1)).collect();
    let checks: Vec<_> = plan.checks.iter().map(check).collect();
    let point = plan.point.as_ref().map(|point| words::point(point, plan.point_age_ms, now_ms));
    let mut rows = vec![
        ("stage", plan.stage_words.clone()),
        ("how", options(&plan.request.operation)),
        ("point", point.unwrap_or_default()),
        ("deletes", or_nothing(&plan.deletes)),
        ("steps", or_nothing(&steps)),
        ("checks", or_nothing(&checks)),
    ];
    match &plan.quote {
        Some(quote) => rows.extend(quote::rows(quote)),
        None => rows.push(("data", "nothing is sent".into())),
    }
    rows.push(("undo", plan.undo_until.clone()));
    format!("{head}\n{}", facts(&rows))
}

/// The checks that refuse the plan.
pub fn refusals(plan: &Plan) -> Vec<&protocol::Fault> {
    plan.checks.iter().filter_map(|check| check.fault.as_ref()).collect()
}

/// Whether it cannot be taken back: then the item's name is asked for.
pub fn is_final(plan: &Plan) -> bool {
    let by_nature = matches!(plan.request.operation, Operation::Commit { .. } | Operation::Unprotect { .. });
    by_nature || !plan.deletes.is_empty()
}

/// What is done, with the kind of failover, which matters most.
pub fn doing(operation: &Operation) -> String {
    match operation {
        Operation::Failover { kind: FailoverKind::Planned { .. }, .. } => "planned failover of".into(),
        Operation::Failover { kind: FailoverKind::Unplanned { .. }, .. } => "unplanned failover of".into(),
        Operation::TestFailover { .. } => "test failover of".into(),
        Operation::View { .. } => "view of".into(),
        Operation::EndView { view } => format!("end of view {view} of"),
        other => other.verb().into(),
    }
}

fn options(operation: &Operation) -> String {
    let stopping = |timeout_ms: u64, then_power_off: bool| {
        let then = if then_power_off { "then its power is taken" } else { "otherwise the job fails" };
        format!("the guest may take {} to shut down, {then}", words::span(timeout_ms))
    };
    match operation {
        Operation::Protect { interval_ms, policy, networks, .. } => {
            let mapped: String =
                networks.iter().map(|(here, there)| format!("\nnetwork {here} is {there} there")).collect();
            format!("an epoch every {}, policy {policy}{mapped}", words::span(*interval_ms))
        }
        Operation::Failover { kind: FailoverKind::Planned { shut_down_timeout_ms, then_power_off, .. }, .. } => {
            stopping(*shut_down_timeout_ms, *then_power_off)
        }
        Operation::TestFailover { network: Some(network), .. } => format!("all cards on the network {network}"),
        Operation::Reprotect { landing: Some(landing), .. } => format!("first copy: {}", created(landing)),
        Operation::Reprotect { sync, shut_down, no_way_back, landing: None } => {
            format!("first copy: {sync}{}{}", old_machine(*shut_down), way_back(*no_way_back))
        }
        Operation::Failback {
            sync,
            offline,
            complete,
            shut_down,
            shut_down_timeout_ms,
            then_power_off,
            no_way_back,
            complete_at,
            landing,
            ..
        } => {
            let when = if *offline { "with the machine off" } else { "while the machine runs" };
            let wait = match complete_at {
                _ if *complete || *offline => "runs through".into(),
                Some(window) => format!("completes {}", quote::window(window)),
                None => "waits for: sockeye complete".into(),
            };
            let stopping = stopping(*shut_down_timeout_ms, *then_power_off);
            let how = landing.as_ref().map_or_else(|| sync.to_string(), created);
            format!("{how}, {when}; {wait}\n{stopping}{}{}", old_machine(*shut_down), way_back(*no_way_back))
        }
        Operation::Complete { at: Some(window) } => format!("completes {}", quote::window(window)),
        _ => String::new(),
    }
}

/// What is made where nothing of the machine is (H13).
fn created(landing: &Landing) -> String {
    let place = landing.datastore.as_ref().map(|name| format!(" on {name}")).unwrap_or_default();
    format!("the machine is created, with new disks{place}; all that its disks hold travels")
}

/// What happens to a machine that still runs at the side to replicate to (R26).
fn old_machine(shut_down: bool) -> &'static str {
    if shut_down { "\nif the machine still runs at the target, it is shut down there" } else { "" }
}

/// What is given up for want of retention space (H14).
fn way_back(given_up: bool) -> &'static str {
    if given_up {
        "\nwhat the disks at the target hold is NOT KEPT: given up half-way, they are damaged until it is run again"
    } else {
        ""
    }
}

fn check(check: &Check) -> String {
    match &check.fault {
        None => format!("ok       {}", check.what),
        Some(fault) => format!("REFUSED  {}: {fault}", check.what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::sample;
    use protocol::fault::{Fault, code};

    #[test]
    fn a_plan_shows_what_must_be_seen_before_saying_yes() {
        let mut plan = sample::plan();
        let shown = text(&plan, sample::NOW);
        for part in [
            "unplanned failover of web01: home → cloud",
            "stage     protected",
            "1.42, crash-consistent, cut ",
            "(1.2 s ago)",
            "deletes   nothing",
            "2. start it at cloud",
            "ok       the master target at cloud is connected",
            "0 B to be sent",
            "5.0 s expected",
            "sockeye cancel web01",
        ] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
        plan.checks[0].fault = Some(Fault::new(code::NO_COMPONENT, "nobody is there", "none is connected"));
        assert!(
            text(&plan, sample::NOW)
                .contains("REFUSED  the master target at cloud is connected: CTL-006: nobody is there")
        );
        assert_eq!(refusals(&plan).len(), 1);
    }

    #[test]
    fn what_deletes_or_commits_cannot_be_taken_back() {
        let mut plan = sample::plan();
        assert!(!is_final(&plan));
        plan.deletes = vec!["the machine at home".into()];
        assert!(is_final(&plan));
        plan.deletes.clear();
        plan.request.operation = Operation::Commit { keep_history: false };
        assert!(is_final(&plan));
    }
}
