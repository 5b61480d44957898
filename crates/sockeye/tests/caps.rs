//! Bandwidth caps on the command line: how they are set, and where it is said that they limit.

use crate::canned::Canned;
use serde_json::json;

#[tokio::test]
async fn a_cap_is_shown_before_it_is_set() {
    let server = Canned::start().await;
    let capped = json!({"bits_per_second": 50_000_000});
    let effect = json!({
        "component": "paris-process-server", "before": {}, "bandwidth": capped, "already": false, "items": ["web01", "db01"]
    });
    let route = "PUT /api/v1/components/paris-process-server/bandwidth";
    server.on("GET /api/v1/components", 200, json!([])).on(route, 200, effect);
    let line = "component set paris-process-server --bandwidth 50mbit --bandwidth-window sat-mon@22:00-06:00=none";
    let ran = server.run(line).await;
    assert_eq!((ran.code, server.posted(route).len()), (2, 1), "nobody was there to confirm: {ran:?}");
    let ran = server.run(&format!("{line} --dry-run")).await;
    assert_eq!((ran.code, server.posted(route).len()), (0, 2), "{ran:?}");
    assert!(ran.stdout.contains("50mbit; before: none") || ran.stderr.contains("50mbit; before: none"), "{ran:?}");
    let ran = server.run(&format!("{line} --yes --reason backup")).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let window = json!({
        "days": ["sat", "sun", "mon"], "from_minute": 1320, "to_minute": 360, "bits_per_second": null
    });
    let bandwidth = json!({"bits_per_second": 50_000_000, "windows": [window], "utc_offset_minutes": 0});
    let wanted = |preview| json!({"bandwidth": bandwidth, "preview": preview, "reason": "backup"});
    assert_eq!(server.posted(route)[2..], [wanted(true), wanted(false)]);
    for wrong in ["--bandwidth 50", "--bandwidth-window mon@08:00-18:00", "--bandwidth-offset 1h"] {
        let ran = server.run(&format!("component set paris-process-server {wrong}")).await;
        assert_eq!(ran.code, 2, "{wrong}: {ran:?}");
    }
}

#[tokio::test]
async fn where_a_cap_limits_that_is_said() {
    let server = Canned::start().await;
    let item = json!({
        "item": "web01", "stage": {"is": "protected", "runs_at": "home"}, "stage_words": "protected", "health": "ok", "health_reason": null,
        "runs_at": "paris", "side": "home", "home": "paris", "away": "rome", "rpo_ms": 1200, "rpo_limit_ms": 900_000, "policy": "standard",
        "newest": null, "failback": "possible", "next": null, "generation": 1, "job": null,
        "replication": {
            "item": "web01", "generation": 1, "phase": "epochs", "newest": null, "sync": null, "distrust": null,
            "first": {"expected": 0, "done": 0}, "first_moved": null, "epochs": 3, "pauses_us": [], "rpo_ms": [], "fault": null,
            "moved": {"changed": 0, "read_source": 0, "read_target": 0, "sent": 1_048_576, "blocks_compressed": 3, "blocks_plain": 1, "saved": 2_097_152},
            "capped": {"by": "component", "bits_per_second": 50_000_000}
        }
    });
    server.on("GET /api/v1/status", 200, json!([item])).on("GET /api/v1/items/web01", 200, item);
    let ran = server.run("status").await;
    assert!(ran.stdout.contains("the bandwidth cap of the process server, 50mbit, is what limits"), "{ran:?}");
    let ran = server.run("item show web01").await;
    let told = "1.0 MiB sent (2.0 MiB spared: 3 of 4 blocks were compressed)";
    assert!(ran.stdout.contains(told) && ran.stdout.contains("limited"), "{ran:?}");
}
