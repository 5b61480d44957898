//! At a terminal: questions are asked, answers are heard, progress is drawn.

#![allow(clippy::unwrap_used)]

use crate::typed;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::canned;
use crate::canned::Canned;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

/// A program at a terminal of its own.
struct Terminal {
    keyboard: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: tokio::process::Child,
}

impl Terminal {
    fn start(line: &str, environment: &[(&str, &str)]) -> Terminal {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        let path = ptsname(&near, Vec::new()).unwrap().into_string().unwrap();
        let far: OwnedFd = File::options().read(true).write(true).open(path).unwrap().into();
        let mut command = typed::command(line, environment);
        command
            .env("TERM", "xterm")
            .stdin(far.try_clone().unwrap())
            .stdout(far.try_clone().unwrap())
            .stderr(Stdio::from(far));
        let child = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(near);
        let (mut screen, seen) = (keyboard.try_clone().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = seen.clone();
        // Ends with an error when the last program at the terminal has ended.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                kept.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Terminal { keyboard, seen, child }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    async fn shows(&self, part: &str) {
        for _ in 0..1000 {
            if self.text().contains(part) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{part:?} is not shown: {}", self.text());
    }

    fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
    }

    async fn ends(&mut self) -> i32 {
        tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await.unwrap().unwrap().code().unwrap()
    }
}

fn plan(operation: &str) -> Value {
    json!({
        "request": {"item": "web01", "operation": {"operation": operation}}, "fingerprint": "f00d", "source": "home", "target": "cloud",
        "stage": {"is": "commit_pending", "runs_at": "away"}, "stage_words": "commit pending", "point": null, "point_age_ms": null,
        "deletes": [], "steps": [], "checks": [], "quote": null, "undo_until": "never", "already": false
    })
}

fn job(state: &str) -> Value {
    json!({
        "id": 7, "item": "web01", "operation": {"operation": "commit"}, "state": state,
        "steps": [{"name": "end the failover", "state": "running", "detail": null, "percent": 40, "started_at_ms": 1000, "ended_at_ms": null}],
        "started_at_ms": 1000, "ended_at_ms": null, "fault": null, "next": null,
        "figures": {"sync": null, "distrust": null, "first": null, "last": null, "downtime_ms": null, "point": null, "unreplicated_bytes": null}
    })
}

async fn server(operation: &str) -> Canned {
    let server = Canned::start().await;
    server.on("POST /api/v1/plans", 200, plan(operation)).on("POST /api/v1/jobs", 200, job("running"));
    server.on("GET /api/v1/jobs/7", 200, job("running")).on("GET /api/v1/jobs/7", 200, job("done"));
    server
}

async fn answered(operation: &str, question: &str, answer: &str) -> (i32, usize, String) {
    let server = server(operation).await;
    let address = format!("http://{}", server.address);
    let environment = [("SOCKEYE_SERVER", address.as_str()), ("SOCKEYE_TOKEN", canned::TOKEN)];
    let mut terminal = Terminal::start(&format!("{operation} web01"), &environment);
    terminal.shows(question).await;
    assert!(server.posted("POST /api/v1/jobs").is_empty(), "started before it was confirmed");
    terminal.types(answer);
    let code = terminal.ends().await;
    (code, server.posted("POST /api/v1/jobs").len(), terminal.text())
}

#[tokio::test]
async fn a_terminal_asks_and_only_yes_starts() {
    let (code, started, text) = answered("complete", "[y/N]", "y\n").await;
    assert_eq!((code, started), (0, 1), "{text}");
    assert!(text.contains("complete web01: home → cloud") && text.contains("end the failover"), "{text}");
    for no in ["\n", "n\n", "web01\n"] {
        let (code, started, text) = answered("complete", "[y/N]", no).await;
        assert_eq!((code, started), (2, 0), "{no:?} {text}");
    }
}

#[tokio::test]
async fn what_cannot_be_undone_asks_for_the_items_name() {
    let question = "Type web01 to go on";
    assert_eq!(answered("commit", question, "web01\n").await.1, 1);
    for no in ["y\n", "yes\n", "web02\n"] {
        let (code, started, text) = answered("commit", question, no).await;
        assert_eq!((code, started), (2, 0), "{no:?} {text}");
    }
}

#[tokio::test]
async fn a_token_is_not_shown_while_it_is_typed() {
    let server = Canned::start().await;
    server.on("GET /api/v1/status", 200, json!([]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profiles.toml");
    let line = format!("login http://{}", server.address);
    let mut terminal = Terminal::start(&line, &[("SOCKEYE_CONFIG", file.to_str().unwrap())]);
    terminal.shows("Token:").await;
    terminal.types(&format!("{}\n", canned::TOKEN));
    assert_eq!(terminal.ends().await, 0, "{}", terminal.text());
    assert!(!terminal.text().contains(canned::TOKEN), "{}", terminal.text());
}
