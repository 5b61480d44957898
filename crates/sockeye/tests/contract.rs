//! The contract of the command line: exit codes, confirmation, dry runs, JSON.

use std::process::Stdio;
use std::time::Duration;

use crate::canned;
use crate::canned::{Canned, problem};
use crate::typed;
use crate::typed::run;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

fn plan() -> Value {
    json!({
        "request": {"item": "web01", "operation": {"operation": "commit"}},
        "fingerprint": "f00d",
        "source": "home", "target": "cloud",
        "stage": {"is": "commit_pending", "runs_at": "away"}, "stage_words": "commit pending",
        "point": null, "point_age_ms": null,
        "deletes": ["the machine at home"], "steps": ["end the failover"],
        "checks": [{"what": "the machine runs at cloud", "fault": null}],
        "quote": null, "undo_until": "never: fail over again", "already": false
    })
}

fn job(state: &str) -> Value {
    let over = !["running", "waiting", "compensating"].contains(&state);
    json!({
        "id": 7, "item": "web01", "operation": {"operation": "commit"}, "state": state,
        "steps": [{"name": "end the failover", "state": if over { "done" } else { "running" }, "detail": null,
                   "percent": 40, "started_at_ms": 1000, "ended_at_ms": if over { json!(3000) } else { Value::Null }}],
        "started_at_ms": 1000, "ended_at_ms": if over { json!(3000) } else { Value::Null },
        "fault": if state == "failed" { problem("CTL-012") } else { Value::Null },
        "next": if state == "waiting" { json!("sockeye complete web01") } else { Value::Null },
        "figures": {"sync": null, "distrust": null, "first": null, "last": null, "downtime_ms": 2300, "point": null, "unreplicated_bytes": null}
    })
}

fn item(health: &str) -> Value {
    json!({
        "item": "web01", "stage": {"is": "protected", "runs_at": "home"}, "stage_words": "protected", "health": health,
        "health_reason": if health == "ok" { Value::Null } else { json!("the link is down") },
        "runs_at": "paris", "side": "home", "home": "paris", "away": "rome", "rpo_ms": 1200, "rpo_limit_ms": 900_000,
        "policy": "standard",
        "newest": null, "failback": "possible", "next": null, "generation": 1, "job": null, "replication": null
    })
}

/// A server that takes a commit and lets its job end in these states.
async fn commits(states: &[&str]) -> Canned {
    let server = Canned::start().await;
    server.on("POST /api/v1/plans", 200, plan()).on("POST /api/v1/jobs", 201, job("running"));
    for state in states {
        server.on("GET /api/v1/jobs/7", 200, job(state));
    }
    server
}

#[tokio::test]
async fn what_is_not_understood_ends_with_2() {
    for line in [
        "",
        "fly web01",
        "failover web01",
        "failover web01 --planned --unplanned",
        "protect web01 --from home",
        "status ../etc",
        "failback web01 --sync magic",
        "protect web01 --from a --to b --interval 0s",
        "status --server ftp://nowhere",
        "token add --expires soon",
        "init --site cloud --data-dir here",
        "join http://127.0.0.1:7410 --site home",
        "join ftp://nowhere --token t --site home --foreground",
    ] {
        let ran = run(line, &[], "").await;
        assert_eq!(ran.code, 2, "{line}: {ran:?}");
        assert!(!ran.stderr.is_empty(), "{line} says nothing");
    }
}

#[tokio::test]
async fn help_is_given_for_every_verb_without_a_server() {
    for verb in [
        "status",
        "item",
        "points",
        "quote",
        "job",
        "component",
        "vm",
        "vm define",
        "explain",
        "events",
        "audit",
        "protect",
        "unprotect",
        "failover",
        "commit",
        "fold",
        "verify",
        "reprotect",
        "reverse",
        "failback",
        "complete",
        "cancel",
        "token",
        "token add",
        "init",
        "join",
        "login",
        "up",
        "server",
        "process-server",
        "master-target",
    ] {
        let ran = run(&format!("{verb} --help"), &[], "").await;
        assert_eq!((ran.code, ran.stdout.contains("Usage:")), (0, true), "{verb}: {ran:?}");
    }
    let ran = run("failover --help", &[], "").await;
    for option in [
        "--planned",
        "--unplanned",
        "--shut-down",
        "--point",
        "--then",
        "--dry-run",
        "--yes",
        "--detach",
        "--reason",
        "--output",
    ] {
        assert!(ran.stdout.contains(option), "{option} is not explained");
    }
}

#[tokio::test]
async fn nobody_to_ask_and_no_yes_starts_nothing() {
    let server = commits(&["done"]).await;
    let ran = server.run("commit web01").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stdout.contains("the machine at home"), "the plan is shown: {ran:?}");
    assert!(ran.stderr.contains("error CLI-003") && ran.stderr.contains("--yes"), "{ran:?}");
    assert!(server.posted("POST /api/v1/jobs").is_empty());
}

#[tokio::test]
async fn a_dry_run_shows_the_plan_and_starts_nothing() {
    let server = commits(&["done"]).await;
    let ran = server.run("commit web01 --dry-run --yes").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for part in ["commit web01: home → cloud", "commit pending", "the machine runs at cloud", "never: fail over again"]
    {
        assert!(ran.stdout.contains(part), "{part} in {ran:?}");
    }
    let ran = server.run("commit web01 --dry-run --output json").await;
    assert_eq!((ran.code, ran.json()), (0, plan()));
    assert!(server.posted("POST /api/v1/jobs").is_empty());
}

#[tokio::test]
async fn what_is_started_is_what_was_shown() {
    let server = commits(&["running", "done"]).await;
    let ran = server.run("commit web01 --yes --reason drill").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.stdout.contains("running    end the failover, 40%") && ran.stdout.contains("done after 2.0 s"),
        "{ran:?}"
    );
    let posted = server.posted("POST /api/v1/jobs");
    assert_eq!(posted.len(), 1);
    assert_eq!(posted[0]["fingerprint"], "f00d");
    assert_eq!(posted[0]["reason"], "drill");
    assert!(posted[0]["idempotency_key"].as_str().is_some_and(|key| key.len() >= 16));
    let operation = json!({"operation": "commit", "keep_history": false});
    assert_eq!(posted[0]["request"], json!({"item": "web01", "operation": operation}));
}

#[tokio::test]
async fn json_is_exactly_one_document_on_stdout() {
    let server = commits(&["running", "done"]).await;
    let ran = server.run("commit web01 --yes --output json").await;
    assert_eq!((ran.code, ran.json()), (0, job("done")));
    assert!(ran.stderr.contains("end the failover"), "progress goes to stderr: {ran:?}");
    let ran = server.run("commit web01 --yes --detach --output json").await;
    assert_eq!((ran.code, ran.json()), (0, job("running")));
    // The circle's own stage is written as the server gave it.
    server.on("GET /api/v1/status", 200, json!([item("ok")]));
    assert_eq!(server.run("status --output json").await.json(), json!([item("ok")]));
    // A refusal is a document too.
    let ran = server.run("item show web02 --output json").await;
    assert_eq!((ran.code, ran.json()["code"].clone()), (3, json!("CTL-001")));
}

#[tokio::test]
async fn the_job_decides_the_exit_code() {
    for (state, code) in [("done", 0), ("failed", 1), ("cancelled", 1), ("waiting", 4)] {
        let ran = commits(&["running", state]).await.run("commit web01 --yes").await;
        assert_eq!(ran.code, code, "{state}: {ran:?}");
        assert_eq!(ran.stdout.contains("next: sockeye complete web01"), state == "waiting", "{ran:?}");
        assert_eq!(ran.stderr.contains("error CTL-012"), state == "failed", "{ran:?}");
    }
    let ran = commits(&["waiting"]).await.run("job watch 7").await;
    assert_eq!(ran.code, 4, "{ran:?}");
}

#[tokio::test]
async fn a_refusal_ends_with_3_and_says_why_and_what_now() {
    let server = Canned::start().await;
    server.on("POST /api/v1/plans", 409, problem("CTL-002"));
    let ran = server.run("failback web01 --yes").await;
    assert_eq!(ran.code, 3, "{ran:?}");
    let error =
        "error CTL-002: it does not go\n  because: the facts\n  next:    do this\n  more:    sockeye explain CTL-002\n";
    assert_eq!(ran.stderr, error);

    let mut refused = plan();
    refused["checks"][0]["fault"] = problem("CTL-006");
    let server = Canned::start().await;
    server.on("POST /api/v1/plans", 200, refused);
    for line in ["commit web01 --yes", "commit web01 --dry-run"] {
        let ran = server.run(line).await;
        assert_eq!(ran.code, 3, "{ran:?}");
        assert!(ran.stdout.contains("REFUSED") && ran.stderr.contains("error CTL-006"), "{ran:?}");
    }
    assert!(server.posted("POST /api/v1/jobs").is_empty());
}

#[tokio::test]
async fn what_is_so_already_is_a_success_that_starts_nothing() {
    let mut already = plan();
    already["already"] = json!(true);
    let server = Canned::start().await;
    let mut busy = item("ok");
    busy["job"] = json!(7);
    server.on("POST /api/v1/plans", 200, already);
    server.on("GET /api/v1/items/web01", 200, item("ok")).on("GET /api/v1/items/web01", 200, busy);
    let ran = server.run("commit web01").await;
    assert_eq!((ran.code, ran.stdout.contains("nothing to do")), (0, true), "{ran:?}");
    // Once more while a job that does just this is at work: it is followed.
    server.on("GET /api/v1/jobs/7", 200, job("running")).on("GET /api/v1/jobs/7", 200, job("failed"));
    let ran = server.run("commit web01").await;
    assert_eq!((ran.code, ran.stdout.contains("job 7")), (1, true), "{ran:?}");
    assert!(server.posted("POST /api/v1/jobs").is_empty());
}

#[tokio::test]
async fn a_world_that_changed_is_planned_again() {
    let server = Canned::start().await;
    server.on("POST /api/v1/plans", 200, plan());
    server.on("POST /api/v1/jobs", 409, problem("CTL-018")).on("POST /api/v1/jobs", 201, job("done"));
    let ran = server.run("commit web01 --yes").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(server.posted("POST /api/v1/plans").len(), 2);

    let server = Canned::start().await;
    server.on("POST /api/v1/plans", 200, plan()).on("POST /api/v1/jobs", 409, problem("CTL-018"));
    assert_eq!(server.run("commit web01 --yes").await.code, 3, "not for ever");
}

#[tokio::test]
async fn no_server_and_no_sign_in_end_with_5() {
    // Nothing listens on a port that was just given back.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let gone = format!("http://127.0.0.1:{port}");
    let ran = run("status", &[("SOCKEYE_SERVER", &gone)], "").await;
    assert_eq!((ran.code, ran.stderr.contains("error CLI-001")), (5, true), "{ran:?}");
    let ran = run("status", &[], "").await;
    assert_eq!((ran.code, ran.stderr.contains("sockeye login")), (5, true), "{ran:?}");
    let server = Canned::start().await;
    let ran =
        run("status", &[("SOCKEYE_SERVER", &format!("http://{}", server.address)), ("SOCKEYE_TOKEN", "wrong")], "")
            .await;
    assert_eq!((ran.code, ran.stderr.contains("error CTL-014")), (5, true), "{ran:?}");
}

#[tokio::test]
async fn a_server_that_is_lost_while_a_job_is_followed_ends_with_5_and_says_how_to_go_on() {
    let server = commits(&["running"]).await;
    let address = format!("http://{}", server.address);
    let environment = [("SOCKEYE_SERVER", address.as_str()), ("SOCKEYE_TOKEN", canned::TOKEN)];
    let following = run("commit web01 --yes --patience 500ms", &environment, "");
    let killing = async {
        while server.posted("GET /api/v1/jobs/7").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What stands before a server that is gone answers so: it counts as not reached.
        server.on("GET /api/v1/jobs/7", 503, json!("restarting")).on("GET /api/v1/jobs/7", 503, json!("restarting"));
    };
    let (ran, ()) = tokio::join!(following, killing);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.stderr.contains("sockeye job watch 7") && ran.stdout.contains("trying again"), "{ran:?}");
}

#[tokio::test]
async fn a_server_that_comes_back_is_followed_on() {
    let server = commits(&["running"]).await;
    for (status, document) in [(503, json!("restarting")), (503, json!("restarting")), (200, job("done"))] {
        server.on("GET /api/v1/jobs/7", status, document);
    }
    let ran = server.run("commit web01 --yes").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.contains("the server answers again"), "{ran:?}");
}

#[tokio::test]
async fn check_fails_when_an_item_is_not_healthy() {
    for (health, code) in [("ok", 0), ("warning", 1), ("critical", 1)] {
        let server = Canned::start().await;
        server.on("GET /api/v1/status", 200, json!([item(health)]));
        assert_eq!(server.run("status --check").await.code, code, "{health}");
        let ran = server.run("status").await;
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.starts_with("ITEM") && ran.stdout.contains("paris → rome"), "{ran:?}");
    }
}

#[tokio::test]
async fn complete_waits_until_the_waiting_job_goes_on() {
    let server = Canned::start().await;
    let mut complete = plan();
    complete["request"]["operation"]["operation"] = json!("complete");
    complete["deletes"] = json!([]);
    server.on("POST /api/v1/plans", 200, complete).on("POST /api/v1/jobs", 200, job("waiting"));
    for state in ["waiting", "running", "done"] {
        server.on("GET /api/v1/jobs/7", 200, job(state));
    }
    let ran = server.run("complete web01 --yes").await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[tokio::test]
async fn what_it_would_cost_is_shown_before_anything_is_asked() {
    let quote = json!({
        "bytes": 12 << 20, "read_at_most": null, "rate": 6 << 20, "moving_ms": 2000, "limit": "wire",
        "downtime": {"expected_ms": null, "last_delta_ms": 100, "bring_up_ms": null, "shut_down_ms": null,
                     "shut_down_at_most_ms": 300_000, "budget_ms": 5000},
        "notes": ["bringing it up at cloud was never measured"]
    });
    let server = Canned::start().await;
    let quoted = json!([{"command": "sockeye failover web01 --planned", "quote": quote}]);
    server.on("GET /api/v1/items/web01/quote", 200, quoted.clone());
    let ran = server.run("quote web01").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let parts = [
        "12.0 MiB to be sent",
        "2.0 s at 6.0 MiB/s, as measured",
        "the wire",
        "not known beforehand, 5.0 s allowed: last delta 100 ms",
        "bringing it up at cloud was never measured",
    ];
    for part in parts {
        assert!(ran.stdout.contains(part), "{part} in {ran:?}");
    }
    assert_eq!(server.run("quote web01 --output json").await.json(), quoted);
    // The same stands in the plan that is confirmed.
    let mut planned = plan();
    planned["quote"] = quote;
    server.on("POST /api/v1/plans", 200, planned);
    let ran = server.run("failover web01 --planned --dry-run").await;
    for part in parts {
        assert!(ran.stdout.contains(part), "{part} in {ran:?}");
    }
    let posted = &server.posted("POST /api/v1/plans")[0]["operation"];
    assert_eq!((&posted["kind"]["max_downtime_ms"], &posted["kind"]["kind"]), (&json!(5000), &json!("planned")));
}

#[tokio::test]
async fn a_time_for_complete_is_sent_as_a_window_and_the_sleeping_job_is_followed() {
    let server = Canned::start().await;
    let mut complete = plan();
    complete["request"]["operation"] =
        json!({"operation": "complete", "at": {"from_ms": 4_102_444_800_000u64, "until_ms": 4_102_448_400_000u64}});
    complete["deletes"] = json!([]);
    let mut sleeping = job("running");
    sleeping["complete_at"] = complete["request"]["operation"]["at"].clone();
    server.on("POST /api/v1/plans", 200, complete.clone()).on("POST /api/v1/jobs", 200, sleeping.clone());
    server.on("GET /api/v1/jobs/7", 200, sleeping).on("GET /api/v1/jobs/7", 200, job("done"));
    let ran = server.run("complete web01 --at 2100-01-01T00:00:00Z --yes").await;
    assert_eq!((ran.code, ran.stdout.contains("completes by itself between 2")), (0, true), "{ran:?}");
    assert_eq!(server.posted("POST /api/v1/plans")[0], complete["request"]);
    for wrong in ["complete web01 --at yesterday", "failback web01 --complete-at 22:00 --offline"] {
        assert_eq!(server.run(wrong).await.code, 2, "{wrong}");
    }
}

#[tokio::test]
async fn whoever_cancels_is_content_when_it_is_cancelled() {
    let server = Canned::start().await;
    server.on("POST /api/v1/jobs/7/cancel", 200, job("compensating"));
    for state in ["running", "compensating", "cancelled"] {
        server.on("GET /api/v1/jobs/7", 200, job(state));
    }
    let ran = server.run("job cancel 7").await;
    assert_eq!((ran.code, server.posted("POST /api/v1/jobs/7/cancel").len()), (2, 0), "nobody was asked: {ran:?}");
    let ran = server.run("job cancel 7 --yes").await;
    assert_eq!((ran.code, server.posted("POST /api/v1/jobs/7/cancel").len()), (0, 1), "{ran:?}");
}

#[tokio::test]
async fn login_proves_the_token_before_it_remembers_it() {
    let server = Canned::start().await;
    server.on("GET /api/v1/status", 200, json!([]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profiles.toml");
    let environment = [("SOCKEYE_CONFIG", file.to_str().unwrap())];
    let line = format!("login http://{}", server.address);

    let ran = run(&line, &environment, "wrong\n").await;
    assert_eq!((ran.code, file.exists()), (5, false), "{ran:?}");
    let ran = run(&line, &environment, &format!("{}\n", canned::TOKEN)).await;
    assert_eq!((ran.code, file.exists()), (0, true), "{ran:?}");
    assert!(!ran.stdout.contains(canned::TOKEN), "the token is not shown: {ran:?}");
    let ran = run("status", &environment, "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[tokio::test]
async fn a_code_is_explained_without_a_server() {
    for code in ["CTL-002", "rpl-014", "CLI-001"] {
        let ran = run(&format!("explain {code}"), &[], "").await;
        assert_eq!((ran.code, ran.stdout.contains("next")), (0, true), "{ran:?}");
        assert!(run(&format!("explain {code} --output json"), &[], "").await.json()["remedy"].is_string());
    }
    let server = Canned::start().await;
    let verbs = json!([
        {"verb": "failover --test", "answer": "allowed", "guards": []},
        {"verb": "protect", "answer": "already", "guards": []},
        {"verb": "commit", "answer": "refused", "guards": [problem("CTL-002")]},
    ]);
    server.on(
        "GET /api/v1/items/web01/explain",
        200,
        json!({"item": "web01", "stage_words": "protected", "operations": verbs, "next": "sockeye commit web01"}),
    );
    let ran = server.run("explain web01").await;
    let due = "web01 is: protected
  failover --test      allowed
  protect              so already
  commit               refused
                         CTL-002: it does not go
                           the facts
                           do this
next: sockeye commit web01
";
    assert_eq!(ran.stdout, due);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_a_fault_not_a_panic() {
    for nonsense in [json!(null), json!({"items": 3}), json!([{"item": "web01"}]), json!("<html>")] {
        let server = Canned::start().await;
        server.on("GET /api/v1/status", 200, nonsense.clone()).on("GET /api/v1/jobs", 200, nonsense.clone());
        for line in ["status", "job list"] {
            let ran = server.run(line).await;
            assert_eq!((ran.code, ran.stderr.contains("error CLI-002")), (1, true), "{line} {nonsense}: {ran:?}");
        }
    }
}

#[tokio::test]
async fn ctrl_c_leaves_the_job_running_and_says_how_to_follow_it() {
    let server = commits(&["running"]).await;
    let address = format!("http://{}", server.address);
    let line = "commit web01 --yes --output json";
    let mut command = typed::command(line, &[("SOCKEYE_SERVER", &address), ("SOCKEYE_TOKEN", canned::TOKEN)]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while server.posted("GET /api/v1/jobs/7").len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), Signal::INT).unwrap();
    let ran = typed::ended(line, child).await;
    assert_eq!((ran.code, ran.json()["state"].clone()), (130, json!("running")), "{ran:?}");
    assert!(ran.stderr.contains("sockeye job watch 7") && ran.stderr.contains("sockeye job cancel 7"), "{ran:?}");
    assert!(server.posted("POST /api/v1/jobs/7/cancel").is_empty());
}
