//! Documents for tests of what is shown.

use protocol::beside::{ServedDisk, ServedView, TestMachine};
use protocol::epoch::{Point, PointKind};
use protocol::id::Attempt;
use protocol::keeping::KeepingStatus;
use protocol::quote::{ExpectedDowntime, Quote};
use protocol::rest::*;
use protocol::retention::Space;
use protocol::stage::{Side, Stage};

/// The instant at which the samples are looked at, ms since 1970.
pub const NOW: i64 = 1_790_000_001_200;

/// A point that was cut 1.2 s before [`NOW`].
pub fn point() -> Point {
    Point {
        attempt: Attempt { generation: 1, number: 42 },
        cut_at_ms: 1_790_000_000_000,
        sealed_at_ms: 1_790_000_000_100,
        kind: PointKind::CrashConsistent,
        changed_bytes: 3 << 20,
        freeze: None,
    }
}

/// An item between `home` and `cloud`.
pub fn item(name: &str, stage: Stage) -> ItemView {
    let side = stage.runs_at();
    let runs_at = if side == Side::Home { "home" } else { "cloud" };
    ItemView {
        item: name.parse().unwrap(),
        stage,
        stage_words: stage.words(None),
        health: Health::Ok,
        health_reason: None,
        runs_at: runs_at.parse().unwrap(),
        side,
        home: "home".parse().unwrap(),
        away: "cloud".parse().unwrap(),
        rpo_ms: Some(1200),
        rpo_limit_ms: 900_000,
        policy: "standard".parse().unwrap(),
        history: Some(keeping()),
        newest: Some(point()),
        failback: "possible".into(),
        next: None,
        generation: 1,
        job: None,
        replication: None,
        test: None,
        views: vec![],
    }
}

/// A test of `web01`.
pub fn test() -> TestMachine {
    TestMachine {
        machine: "web01-test".into(),
        site: "cloud".parse().unwrap(),
        point: point().attempt,
        cut_at_ms: point().cut_at_ms,
    }
}

/// A view of the point.
pub fn view() -> ServedView {
    let disks = vec![ServedDisk { disk: "disk0".parse().unwrap(), uri: "nbd+unix:///disk0?socket=/v".into() }];
    ServedView { number: 7, site: "cloud".parse().unwrap(), point: point().attempt, writable: true, disks }
}

/// A history of an hour.
pub fn keeping() -> KeepingStatus {
    KeepingStatus {
        item: "web01".parse().unwrap(),
        points: 3600,
        oldest_cut_at_ms: Some(1_789_996_401_200),
        journal_bytes: 2 << 30,
        budget_bytes: 5 << 30,
        space: Space::Enough,
        fault: None,
    }
}

/// The plan of an unplanned failover.
pub fn plan() -> Plan {
    Plan {
        request: Request {
            item: "web01".parse().unwrap(),
            operation: Operation::Failover {
                kind: FailoverKind::Unplanned { shut_down: ShutDownFirst::Try },
                point: None,
            },
        },
        fingerprint: "f00d".into(),
        source: "home".parse().unwrap(),
        target: "cloud".parse().unwrap(),
        stage: Stage::Protected { runs_at: Side::Home },
        stage_words: "protected".into(),
        point: Some(point()),
        point_age_ms: Some(1200),
        deletes: vec![],
        steps: vec!["shut the machine down at home".into(), "start it at cloud".into()],
        checks: vec![Check { what: "the master target at cloud is connected".into(), fault: None }],
        quote: Some(Quote {
            bytes: Some(0),
            downtime: Some(ExpectedDowntime { expected_ms: Some(5000), ..ExpectedDowntime::default() }),
            ..Quote::default()
        }),
        undo_until: "until it is committed: sockeye cancel web01".into(),
        already: false,
    }
}

/// A job with one step done and one running.
pub fn job() -> Job {
    let step = |name: &str, state, percent| Step {
        name: name.into(),
        state,
        detail: None,
        percent,
        moving: None,
        started_at_ms: Some(NOW - 3000),
        ended_at_ms: (state == StepState::Done).then_some(NOW - 1000),
    };
    Job {
        id: 7,
        item: "web01".parse().unwrap(),
        operation: plan().request.operation,
        state: JobState::Running,
        steps: vec![
            step("shut the machine down at home", StepState::Done, None),
            step("start it at cloud", StepState::Running, Some(40)),
            step("settle", StepState::Pending, None),
        ],
        started_at_ms: NOW - 3000,
        ended_at_ms: None,
        fault: None,
        next: None,
        complete_at: None,
        figures: Figures::default(),
    }
}
