//! Policies, what another one costs, and how a history stands.

use protocol::keeping::{KeepingStatus, Policy, PolicyEffect};
use protocol::leaf::LeafSize;
use protocol::retention::{Retention, Space, Spacing};

use super::table::table;
use super::words;

/// The table of policies.
pub fn policies(policies: &[Policy]) -> String {
    let rows = policies.iter().map(|policy| {
        let (limit, retention) = (words::span(policy.rpo_limit_ms), &policy.retention);
        let bandwidth = policy.bandwidth.to_string();
        let app = app_every(policy);
        vec![policy.name.to_string(), limit, app, retention_points(retention), budget(retention), bandwidth]
    });
    table(
        &["POLICY", "RPO LIMIT", "APP-CONSISTENT", "KEEPS", "BUDGET", "BANDWIDTH"],
        rows.collect(),
        "there is no policy",
    )
}

/// One policy in one line.
pub fn policy(policy: &Policy) -> String {
    let limit = words::span(policy.rpo_limit_ms);
    let bandwidth = match policy.bandwidth.is_free() {
        true => String::new(),
        false => format!("; bandwidth of each item: {}", policy.bandwidth),
    };
    let app = app_every(policy);
    let kept = retention(&policy.retention);
    let leaves = match policy.leaf_bytes {
        usual if usual == LeafSize::default() => String::new(),
        size => format!("; a kept hash for each {size}"),
    };
    format!("policy {}: RPO limit {limit}; app-consistent {app}; keeps {kept}{leaves}{bandwidth}", policy.name)
}

/// How often a point is app-consistent.
fn app_every(policy: &Policy) -> String {
    match policy.app_interval_ms {
        0 => "never".into(),
        ms => format!("every {}", words::span(ms)),
    }
}

fn retention(retention: &Retention) -> String {
    format!("{}; at most {}", retention_points(retention), budget(retention))
}

fn retention_points(retention: &Retention) -> String {
    let mut text = format!("all points for {}", words::span(retention.all_for_seconds.saturating_mul(1000)));
    for spacing in &retention.then {
        text.push_str(&format!(", then {}", spaced(spacing)));
    }
    if let Some(spacing) = &retention.app_consistent {
        text.push_str(&format!("; app-consistent ones {}", spaced(spacing)));
    }
    text
}

fn spaced(spacing: &Spacing) -> String {
    let span = |seconds: u64| words::span(seconds.saturating_mul(1000));
    format!("one every {} for {}", span(spacing.one_every_seconds), span(spacing.until_seconds))
}

fn budget(retention: &Retention) -> String {
    retention.budget.map_or_else(
        || "what the retention volume has".into(),
        |budget| format!("{} (warning from {} % on)", words::bytes(budget.bytes), budget.alarm_percent),
    )
}

/// What a policy means for its items.
pub fn effect(effect: &PolicyEffect) -> String {
    let mut text = policy(&effect.policy);
    for item in &effect.items {
        let what = match (item.points, item.go) {
            (Some(points), Some(go)) => format!("{points} recovery points, {go} of them go at once"),
            _ => "its site does not answer: how many recovery points go is not known".into(),
        };
        text.push_str(&format!("\n  {}: {what}", item.item));
    }
    if effect.items.is_empty() {
        text.push_str("\n  no item has it yet; give it to one: sockeye policy apply NAME ITEM");
    }
    text
}

/// How a history stands, in one line.
pub fn keeping(keeping: &KeepingStatus, now_ms: i64) -> String {
    let oldest =
        keeping.oldest_cut_at_ms.map(|at| format!(", oldest {}", words::ago_u(now_ms, at))).unwrap_or_default();
    let space = match keeping.space {
        Space::Enough => "",
        Space::Alarm => ", FILLS",
        Space::Exceeded => ", FULL: points go before their time",
    };
    let (journal, budget) = (words::bytes(keeping.journal_bytes), words::bytes(keeping.budget_bytes));
    format!("{} points{oldest}; {journal} of {budget}{space}", keeping.points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::sample;
    use protocol::keeping::ItemEffect;
    use protocol::retention::Budget;

    #[test]
    fn a_policy_says_what_it_keeps_and_what_that_costs() {
        let mut policy = Policy::standard();
        policy.retention.budget = Some(Budget { bytes: 5 << 30, alarm_percent: 80 });
        let text = "policy standard: RPO limit 15 min; app-consistent every 1 h; keeps all points for 1 h, then one every 1 min for 1 d; \
                    app-consistent ones one every 1 h for 1 d; at most 5.0 GiB (warning from 80 % on)";
        assert_eq!(super::policy(&policy), text);
        policy.bandwidth.bits_per_second = Some(20_000_000);
        assert_eq!(super::policy(&policy), format!("{text}; bandwidth of each item: 20mbit"));
        let item = |name: &str, points, go| ItemEffect { item: name.parse().unwrap(), points, go };
        let items = vec![item("web01", Some(90), Some(30)), item("db01", None, None)];
        let shown = effect(&PolicyEffect { policy, already: false, items });
        assert!(shown.contains("web01: 90 recovery points, 30 of them go at once"), "{shown}");
        assert!(shown.contains("db01: its site does not answer"), "{shown}");
    }

    #[test]
    fn a_history_that_runs_out_of_space_cannot_be_overlooked() {
        let mut status = sample::keeping();
        assert_eq!(keeping(&status, sample::NOW), "3600 points, oldest 1 h ago; 2.0 GiB of 5.0 GiB");
        status.space = Space::Exceeded;
        assert!(keeping(&status, sample::NOW).contains("FULL"));
    }
}
