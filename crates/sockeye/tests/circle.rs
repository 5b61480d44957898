//! The whole circle with real guests and small disks: out to the cloud, home again, every check held.
#![allow(clippy::unwrap_used)]

use crate::scene::play;
use demo::circle::Circle;
use serde_json::Value;

/// What the report promises to programs.
fn has_every_field(report: &Value) {
    assert_eq!(report["verified"], true, "{report}");
    let phases = report["phases"].as_array().unwrap();
    for phase in phases {
        assert!(phase["name"].is_string() && phase["seconds"].as_f64().unwrap() > 0.0, "{phase}");
        for count in ["bytes_changed", "bytes_read", "bytes_sent"] {
            let told = phase.as_object().unwrap().get(count).unwrap();
            assert!(told.is_null() || told.is_u64(), "{phase}");
        }
    }
    let copies = phases.iter().filter(|phase| phase["bytes_sent"].as_u64().is_some_and(|sent| sent > 0));
    assert!(copies.count() >= 10, "too few copies in {report}");
    let moves = report["failovers"].as_array().unwrap();
    let kinds: Vec<&str> = moves.iter().map(|one| one["kind"].as_str().unwrap()).collect();
    for kind in ["unplanned failover", "planned failover", "failback (tracked)", "failback (compare)"] {
        assert!(kinds.contains(&kind), "no {kind} in {kinds:?}");
    }
    assert!(kinds.contains(&"failback (full, offline)"), "{kinds:?}");
    for one in moves {
        let number = |name: &str| one[name].as_u64().unwrap_or_else(|| panic!("no {name} in {one}"));
        assert!(one["sync"].is_string() && number("downtime_ms") > 0, "{one}");
        assert_eq!(number("records_lost"), number("records_acknowledged").saturating_sub(number("records_found")));
        assert!(one["kind"] == "unplanned failover" || number("records_lost") == 0, "{one}");
    }
    assert!(report["rpo_ms"]["p50"].as_u64().unwrap() > 0, "{report}");
    assert!(report["rpo_ms"]["p99"].as_u64() >= report["rpo_ms"]["p50"].as_u64(), "{report}");
}

#[test]
fn the_circle_closes_and_its_report_tells_everything() {
    play(true, |scene| {
        let began = std::time::Instant::now();
        let say = |text: &str| eprintln!("{:7.1} s  {text}", began.elapsed().as_secs_f64());
        say(scene.world.why_loopback.as_deref().unwrap_or("each site is a host of its own"));
        let (report, checks) = Circle::begin(&mut scene.world, &say)?.go_round();
        checks?;
        has_every_field(&serde_json::to_value(&report)?);
        Ok(())
    });
}
