//! Application-consistent points on the command line: how one is asked for, how the latest is chosen, and how it is refused.

use crate::canned::{Canned, problem};
use serde_json::{Value, json};

fn point(number: u64, kind: &str, freeze: Value) -> Value {
    json!({
        "attempt": format!("1.{number}"), "cut_at_ms": 1000 * number, "sealed_at_ms": 1000 * number, "kind": kind,
        "changed_bytes": 4096, "freeze": freeze, "pinned": false
    })
}

#[tokio::test]
async fn one_is_asked_for_and_refused_where_the_guest_has_no_agent() {
    let server = Canned::start().await;
    let route = "POST /api/v1/items/web01/points";
    let done = json!({"done": {"file_systems": 2, "freeze_ms": 30, "frozen_ms": 12}});
    server.on(route, 409, problem("PLT-015")).on(route, 200, point(7, "app_consistent", done));
    let ran = server.run("point add web01 --app --yes").await;
    assert_eq!(ran.code, 3, "{ran:?}");
    for part in ["PLT-015", "it does not go", "the facts", "do this"] {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
    let ran = server.run("point add web01 --app --yes --reason release").await;
    assert!(ran.code == 0 && ran.stdout.contains("1.7, app-consistent"), "{ran:?}");
    let wanted = |reason: Value| json!({"app": true, "reason": reason});
    assert_eq!(server.posted(route), [wanted(Value::Null), wanted("release".into())]);
}

#[tokio::test]
async fn the_latest_one_is_looked_up_or_there_is_none() {
    let server = Canned::start().await;
    let failed = json!({"failed": {"code": "PLT-016", "cause": "the hook ended with 3"}});
    let done = json!({"done": {"file_systems": 1, "freeze_ms": 30, "frozen_ms": 12}});
    let none = json!([point(1, "crash_consistent", failed), point(2, "crash_consistent", Value::Null)]);
    let all = json!([
        point(3, "app_consistent", done.clone()),
        point(4, "app_consistent", done),
        point(5, "crash_consistent", Value::Null)
    ]);
    let (points, plans) = ("GET /api/v1/items/web01/points", "POST /api/v1/plans");
    server.on(points, 200, none.clone()).on(points, 200, none).on(points, 200, all).on(plans, 409, problem("CTL-002"));
    let shown = server.run("points web01").await;
    assert!(shown.stdout.contains("not frozen, PLT-016: the hook ended with 3"), "{shown:?}");
    let line = "failover web01 --unplanned --shut-down skip --point latest-app --yes";
    let ran = server.run(line).await;
    assert!(ran.code == 3 && ran.stderr.contains("CTL-009") && ran.stderr.contains("point add web01 --app"), "{ran:?}");
    assert!(server.posted(plans).is_empty(), "nothing was asked for");
    server.run(line).await;
    assert_eq!(server.posted(plans)[0]["operation"]["point"], json!("1.4"));
}
