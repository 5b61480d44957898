//! Items: the table of `status` and the page of one item.

use protocol::epoch::Point;
use protocol::keeping::KeptPoint;
use protocol::rest::{Answer, Explained, Explanation, Health, ItemView};
use protocol::stage::{Side, Stage};

use super::table::{facts, table};
use super::{history, words};

const HEADINGS: [&str; 9] =
    ["ITEM", "STAGE", "HEALTH", "RUNS-AT", "DIRECTION", "RPO/LIMIT", "NEWEST-POINT", "FAILBACK", "NEXT"];

/// The table of `status`.
pub fn status(items: &[ItemView], now_ms: i64) -> String {
    let rows = items.iter().map(|item| row(item, now_ms)).collect();
    let mut text = exposed(items);
    text += &table(&HEADINGS, rows, "nothing is protected yet; see: sockeye vm list, sockeye protect --help");
    for (item, test) in items.iter().filter_map(|item| Some((item, item.test.as_ref()?))) {
        text.push_str(&format!("\n{}: a test is under way: {}", item.item, words::test(test)));
    }
    for (item, capped) in items.iter().filter_map(|item| Some((item, item.replication.as_ref()?.capped?))) {
        let rate = protocol::bandwidth::rate(capped.bits_per_second);
        text.push_str(&format!("\n{}: the bandwidth cap of {}, {rate}, is what limits", item.item, capped.by));
    }
    for item in items.iter().filter(|item| item.health != Health::Ok) {
        let why = item.health_reason.as_deref().unwrap_or("no reason is given");
        text.push_str(&format!("\n{}: {}: {why}", item.item, words::health(item.health)));
    }
    text
}

/// What nobody may overlook stands above everything else (H19).
fn exposed(items: &[ItemView]) -> String {
    let exposed: Vec<&ItemView> = items.iter().filter(|item| item.stage.is_exposed()).collect();
    if exposed.is_empty() {
        return String::new();
    }
    let mut text = format!("NOT PROTECTED: {} of {}\n", exposed.len(), items.len());
    for item in exposed {
        let next = item.next.as_ref().map(|next| format!("; next: {next}")).unwrap_or_default();
        text.push_str(&format!("  {} ({}): what it writes is nowhere else{next}\n", item.item, item.stage_words));
    }
    text.push('\n');
    text
}

fn row(item: &ItemView, now_ms: i64) -> Vec<String> {
    vec![
        item.item.to_string(),
        item.stage_words.clone(),
        words::health(item.health).into(),
        item.runs_at.to_string(),
        direction(item),
        rpo(item),
        item.newest.as_ref().map(|point| newest(point, now_ms)).unwrap_or_default(),
        item.failback.clone(),
        item.next.clone().unwrap_or_default(),
    ]
}

/// One item's page.
pub fn page(item: &ItemView, now_ms: i64) -> String {
    let replication = item.replication.as_ref();
    let mut rows = vec![
        ("stage", item.stage_words.clone()),
        ("health", words::health(item.health).to_string()),
        ("because", item.health_reason.clone().unwrap_or_default()),
        ("runs at", item.runs_at.to_string()),
        ("home", item.home.to_string()),
        ("away", item.away.to_string()),
        ("replicates", direction(item)),
        ("RPO / limit", rpo(item)),
        ("newest point", item.newest.as_ref().map(|point| words::point(point, None, now_ms)).unwrap_or_default()),
        ("policy", item.policy.to_string()),
        ("history", item.history.as_ref().map(|kept| history::keeping(kept, now_ms)).unwrap_or_default()),
        ("failback", item.failback.clone()),
        ("generation", item.generation.to_string()),
        (
            "test",
            item.test
                .as_ref()
                .map(|test| format!("{}\nend it: sockeye cleanup {}", words::test(test), item.item))
                .unwrap_or_default(),
        ),
        ("views", item.views.iter().map(words::view).collect::<Vec<_>>().join("\n")),
        ("job", item.job.map(|id| format!("{id} is at work: sockeye job watch {id}")).unwrap_or_default()),
    ];
    if let Some(status) = replication {
        let moved = status.moved;
        rows.push(("epochs", format!("{} since its process server started", status.epochs)));
        rows.push(("moved", format!("{} changed, {}", words::bytes(moved.changed), words::sent(&moved))));
        let capped = status.capped.map(|capped| {
            format!("by the bandwidth cap of {}: {}", capped.by, protocol::bandwidth::rate(capped.bits_per_second))
        });
        rows.push(("limited", capped.unwrap_or_default()));
        rows.push(("pace", words::pace(&status.pace)));
        let app = status.app.newest.as_ref().map(|point| words::point(point, None, now_ms));
        let why = status.app.fault.as_ref().map(|fault| format!("not since: {fault} ({})", fault.cause));
        rows.push(("app-consistent", [app, why].into_iter().flatten().collect::<Vec<_>>().join("\n")));
        let pause = status.pauses_us.iter().max();
        rows.push((
            "longest pause",
            pause.map(|us| format!("{}.{} ms for a cut", us / 1000, us % 1000 / 100)).unwrap_or_default(),
        ));
        rows.push(("compared", status.distrust.map(|why| format!("because {why}")).unwrap_or_default()));
        rows.push((
            "hindered",
            status.fault.as_ref().map(|fault| format!("{fault} ({})", fault.cause)).unwrap_or_default(),
        ));
    }
    rows.push(("next", item.next.clone().unwrap_or_default()));
    format!("{}\n{}", item.item, facts(&rows))
}

/// The table of recovery points, newest first.
pub fn points(points: &[KeptPoint], now_ms: i64) -> String {
    let rows = points.iter().rev().map(|KeptPoint { point, pinned }| {
        vec![
            point.attempt.to_string(),
            words::instant_u(point.cut_at_ms),
            words::ago_u(now_ms, point.cut_at_ms),
            words::kind(point.kind).into(),
            words::bytes(point.changed_bytes),
            if *pinned { "pinned".into() } else { String::new() },
            point.freeze.as_ref().map(words::freeze).unwrap_or_default(),
        ]
    });
    let headings = ["POINT", "CUT-AT", "AGE", "KIND", "CHANGED", "KEPT", "GUEST-AGENT"];
    table(&headings, rows.collect(), "there is no recovery point yet")
}

/// What is allowed on an item, and why not the rest.
pub fn explanation(explanation: &Explanation) -> String {
    let mut text = format!("{} is: {}", explanation.item, explanation.stage_words);
    for Explained { verb, answer, guards } in &explanation.operations {
        let word = match answer {
            Answer::Allowed => "allowed",
            Answer::Already => "so already",
            Answer::Refused => "refused",
        };
        text.push_str(&format!("\n  {verb:<20} {word}"));
        for fault in guards {
            text.push_str(&format!("\n  {:<20}   {fault}", ""));
            for part in [&fault.cause, &fault.remedy].into_iter().filter(|part| !part.is_empty()) {
                text.push_str(&format!("\n  {:<20}     {part}", ""));
            }
        }
    }
    if let Some(next) = &explanation.next {
        text.push_str(&format!("\nnext: {next}"));
    }
    text
}

/// What someone who watches must see at once; the RPO, which always changes, is left out.
pub fn digest(item: &ItemView) -> (String, Health, Option<String>, String, Option<i64>) {
    (item.stage_words.clone(), item.health, item.health_reason.clone(), item.runs_at.to_string(), item.job)
}

/// Where data flows, if it flows.
fn direction(item: &ItemView) -> String {
    let (from, to) = match item.side {
        Side::Home => (&item.home, &item.away),
        Side::Away => (&item.away, &item.home),
    };
    match item.stage {
        Stage::Unprotected | Stage::NotProtected { .. } | Stage::CommitPending { .. } | Stage::Damaged { .. } => {
            String::new()
        }
        Stage::Seeding | Stage::Protected { .. } | Stage::Moving { .. } | Stage::Reprotecting { .. } => {
            format!("{from} → {to}")
        }
    }
}

fn rpo(item: &ItemView) -> String {
    match item.rpo_ms {
        Some(rpo) => format!("{} / {}", words::span(rpo), words::span(item.rpo_limit_ms)),
        None => format!("- / {}", words::span(item.rpo_limit_ms)),
    }
}

fn newest(point: &Point, now_ms: i64) -> String {
    format!("{} ({})", point.attempt, words::ago_u(now_ms, point.cut_at_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::sample;
    use protocol::{Freeze, PointKind};

    #[test]
    fn status_shows_every_column_of_the_contract() {
        let mut item = sample::item("web01", Stage::Protected { runs_at: Side::Home });
        let text = status(std::slice::from_ref(&item), sample::NOW);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        let headings: Vec<_> = lines[0].split_whitespace().collect();
        assert_eq!(headings, HEADINGS);
        for part in ["web01", "protected", "ok", "home → cloud", "1.2 s / 15 min", "1.42 (1.2 s ago)", "possible"] {
            assert!(lines[1].contains(part), "{part} in {text}");
        }
        item.health = Health::Critical;
        item.health_reason = Some("the link is down".into());
        assert!(status(&[item], sample::NOW).ends_with("web01: CRITICAL: the link is down"));
    }

    #[test]
    fn what_stands_beside_an_item_is_shown_with_it() {
        let mut item = sample::item("web01", Stage::Protected { runs_at: Side::Home });
        item.test = Some(sample::test());
        item.views = vec![sample::view()];
        let told = "web01-test runs at cloud from point 1.42, cut ";
        assert!(status(std::slice::from_ref(&item), sample::NOW).contains(&format!("a test is under way: {told}")));
        let page = page(&item, sample::NOW);
        for part in [told, "sockeye cleanup web01", "7: point 1.42 at cloud, writable", "nbd+unix:///disk0?socket=/v"] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
    }

    #[test]
    fn a_point_says_what_the_guests_agent_did_for_it() {
        let done = Freeze::Done { file_systems: 2, freeze_ms: 31, frozen_ms: 1250 };
        let failed = Freeze::Failed { code: "PLT-016".into(), cause: "the hook ended with 3".into() };
        let kept = [(done, PointKind::AppConsistent), (failed, PointKind::CrashConsistent)].map(|(freeze, kind)| {
            KeptPoint { point: Point { kind, freeze: Some(freeze), ..sample::point() }, pinned: false }
        });
        let text = points(&kept, sample::NOW);
        for part in ["app-consistent", "2 frozen in 31 ms, for 1.2 s", "not frozen, PLT-016: the hook ended with 3"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_machine_that_is_not_replicated_has_no_direction() {
        let item = sample::item("web01", Stage::NotProtected { runs_at: Side::Away });
        assert_eq!(direction(&item), "");
        assert_eq!(direction(&sample::item("web01", Stage::Reprotecting { runs_at: Side::Away })), "cloud → home");
    }
}
