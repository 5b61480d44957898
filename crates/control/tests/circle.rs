//! The whole circle against two model sites: out to sea and home again, in every way.

#![allow(clippy::unwrap_used)]

use crate::sites::drive::*;
use protocol::difference::Pair;
use protocol::fault::code;
use protocol::order::Sync;
use protocol::rest::{Answer, Health, JobState, Operation, Request, ShutDownFirst, Start, StepState};
use protocol::stage::{MovePhase, Side, Stage};

const HOME: Side = Side::Home;
const AWAY: Side = Side::Away;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_by_disaster_and_home_by_reprotect_and_failback() {
    let world = World::new().await;
    let job = world.run(protect()).await;
    assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME });
    assert_eq!(job.figures.sync, Some(Sync::Full));
    world.new_point().await;
    assert!(!world.control().points(&item(), None).await.unwrap().is_empty());

    world.with(|model| model.burn("home"));
    let newest = world.with(|model| model.sites["cloud"].replica.as_ref().unwrap().points.last().unwrap().clone());
    let job = world.run(unplanned(ShutDownFirst::Try)).await;
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: AWAY });
    assert_eq!(job.figures.point.as_ref().unwrap().attempt, newest.0.attempt);
    assert!(job.figures.downtime_ms.is_some());
    assert_eq!(world.with(|model| model.running()), ["cloud"]);
    world.run(Operation::Commit { keep_history: false }).await;
    let view = world.view().await.unwrap();
    assert_eq!((view.stage, view.health), (Stage::NotProtected { runs_at: AWAY }, Health::Warning));
    assert!(view.stage_words.contains("NOT PROTECTED"));
    assert_eq!(view.next.as_deref(), Some("sockeye reprotect web01"));

    let refused = world.start_job(reprotect(Sync::Tracked, false)).await.unwrap_err();
    assert!(refused.is(code::NO_COMPONENT), "home burns: {refused:?}");
    world.with(|model| model.back("home"));
    world.until("home is back", |world| world.control().components().iter().all(|component| component.connected)).await;
    let job = world.run(reprotect(Sync::Tracked, false)).await;
    assert_eq!(world.stage().await, Stage::Protected { runs_at: AWAY });
    assert_eq!(job.figures.sync, Some(Sync::Compare), "the map died with the hypervisor");
    assert!(job.figures.distrust.as_ref().unwrap().contains("no change map survived"), "{:?}", job.figures);

    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    let job = world.reach(job.id, |job| job.state == JobState::Waiting).await;
    assert_eq!(job.next.as_deref(), Some("sockeye complete web01"));
    assert_eq!(world.stage().await, Stage::Moving { from: AWAY, phase: MovePhase::WaitingForComplete });
    assert_eq!(world.with(|model| model.running()), ["cloud"], "it runs on while it waits");
    let control = world.control();
    let plan = |operation| control.plan(Request { item: item(), operation });
    let complete = plan(Operation::Complete { at: None }).await.unwrap();
    assert!(complete.steps.contains(&"let web01 go on at home".to_string()), "{:?}", complete.steps);
    let cancel = plan(Operation::Cancel {}).await.unwrap();
    assert_eq!(cancel.steps.first().unwrap(), "undo: wait for Complete");
    let completed = world.start_job(Operation::Complete { at: None }).await.unwrap();
    assert_eq!(completed.id, job.id, "complete answers the waiting job");
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: HOME });
    world.run(Operation::Commit { keep_history: false }).await;
    assert_eq!(world.stage().await, Stage::NotProtected { runs_at: HOME });
    assert!(world.with(|model| model.sites["cloud"].vm.is_none()), "commit removed the machine at cloud");

    let job = world.run(reprotect(Sync::Tracked, false)).await;
    assert_eq!(job.figures.sync, Some(Sync::Tracked), "H13: only what came after the switch-off moves: {job:#?}");
    assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME });
    world.new_point().await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_loses_nothing_and_failback_starts_straight_from_it() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    let job = world.run(planned()).await;
    world.with(|model| {
        let home = model.sites["home"].vm.clone().unwrap();
        let point = model.sites["cloud"].replica.as_ref().unwrap().points.last().unwrap().clone();
        assert_eq!(home.cells, point.1, "the last changes are there");
        assert_eq!(job.figures.point.as_ref().unwrap().attempt, point.0.attempt);
    });
    assert!(job.figures.last.is_some());
    world.run(Operation::Commit { keep_history: false }).await;
    let job = world.run(failback(Sync::Tracked, false, true)).await;
    assert_eq!(job.figures.sync, Some(Sync::Tracked), "home was untouched since the final delta: {job:#?}");
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: HOME });
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(reprotect(Sync::Tracked, false)).await;
    // Round again, cut off this time: home runs on and is stopped when the link returns.
    world.new_point().await;
    world.with(|model| model.cut_off("home"));
    let lost = |world: &World| world.control().components().iter().filter(|component| !component.connected).count();
    world.until("home is lost", |world| lost(world) == 2).await;
    world.run(unplanned(ShutDownFirst::Try)).await;
    assert_eq!(world.with(|model| model.running()), ["cloud", "home"]);
    world.run(Operation::Commit { keep_history: false }).await;
    world.with(|model| model.back("home"));
    world.until("home is back", |world| world.control().components().iter().all(|component| component.connected)).await;
    let view = world.view().await.unwrap();
    assert_eq!(view.health, Health::Critical, "{view:?}");
    assert!(view.health_reason.unwrap().contains("not authorised"));
    assert_eq!(view.next.as_deref(), Some("sockeye reprotect web01 --shut-down"));
    let refused = world.start_job(reprotect(Sync::Tracked, false)).await.unwrap_err();
    assert!(refused.is(code::MACHINE_RUNS_AT_HOME), "{refused:?}");
    let job = world.run(reprotect(Sync::Tracked, true)).await;
    assert_eq!(job.figures.sync, Some(Sync::Tracked), "both maps survived, nothing is scanned: {job:#?}");
    assert_eq!(world.with(|model| model.running()), ["cloud"]);
    // And home with everything off, as a full copy.
    world.run(failback(Sync::Tracked, false, true)).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(reprotect(Sync::Compare, false)).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    let job = world.run(failback(Sync::Full, true, false)).await;
    assert_eq!(job.figures.sync, Some(Sync::Full));
    assert!(!job.steps.iter().any(|step| step.name.contains("wait for Complete")), "offline runs through");
    world.run(Operation::Commit { keep_history: false }).await;
    assert_eq!(world.stage().await, Stage::NotProtected { runs_at: HOME });
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_planned_is_what_is_done_and_a_changed_world_is_refused() {
    let world = World::new().await;
    let control = world.control();
    let request = Request { item: item(), operation: protect() };
    let plan = control.plan(request.clone()).await.unwrap();
    assert!(plan.checks.iter().all(|check| check.fault.is_none()), "{:#?}", plan.checks);
    assert_eq!((plan.source.as_str(), plan.target.as_str()), ("home", "cloud"));
    assert_eq!(world.stage().await, Stage::Unprotected, "a plan changes nothing");
    let start = |fingerprint: &str, key: Option<&str>| Start {
        request: request.clone(),
        fingerprint: Some(fingerprint.into()),
        reason: Some("a test".into()),
        idempotency_key: key.map(Into::into),
    };
    assert!(control.start(start("other", None)).await.unwrap_err().is(code::WORLD_CHANGED));
    let job = control.start(start(&plan.fingerprint, Some("once"))).await.unwrap();
    let again = control.start(start(&plan.fingerprint, Some("once"))).await.unwrap();
    assert_eq!(again.id, job.id, "the same key gets the same job");
    let job = world.end_of(job.id).await;
    let names: Vec<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, plan.steps, "the plan is what is executed");
    assert!(job.steps.iter().all(|step| step.state == StepState::Done));
    let already = control.plan(request.clone()).await.unwrap();
    assert!(already.already);
    let job = world.run(protect()).await;
    assert!(job.steps.is_empty(), "it is so already");
    let audit = control.audit().await.unwrap();
    assert!(audit.iter().any(|entry| entry.reason.as_deref() == Some("a test")), "{audit:?}");

    let refused = world.start_job(Operation::Commit { keep_history: false }).await.unwrap_err();
    assert!(refused.is(code::STAGE_REFUSES) && refused.remedy.contains("sockeye failover web01"), "{refused:?}");
    let explained = control.explain(&item()).await.unwrap();
    let those = |answer| {
        let of = explained.operations.iter().filter(move |operation| operation.answer == answer);
        of.map(|operation| operation.verb.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(those(Answer::Already), ["protect", "cleanup", "failback", "reprotect"]);
    let allowed = ["failover --planned", "failover --unplanned", "failover --test", "view", "verify", "unprotect"];
    assert_eq!(those(Answer::Allowed), allowed);
    let refused = explained.operations.iter().find(|operation| operation.verb == "commit").unwrap();
    assert_eq!(refused.guards[0].remedy, "first: sockeye failover web01");
    let nobody = Request { item: "nobody".parse().unwrap(), operation: Operation::Commit { keep_history: false } };
    assert!(control.plan(nobody).await.unwrap_err().is(code::UNKNOWN_ITEM));
    let wrong = Operation::Failover {
        kind: protocol::rest::FailoverKind::Unplanned { shut_down: ShutDownFirst::Skip },
        point: Some("1.99999".parse().unwrap()),
    };
    let refused = world.start_job(wrong).await.unwrap_err();
    assert!(refused.is(code::UNKNOWN_POINT), "{refused:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_over_twice_boots_one_machine_and_others_are_told_that_it_is_busy() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    world.with(|model| model.hold = Some("close"));
    let first = world.start_job(planned()).await.unwrap();
    let second = world.start_job(planned()).await.unwrap();
    assert_eq!(first.id, second.id);
    let refused = world.start_job(reprotect(Sync::Tracked, false)).await.unwrap_err();
    assert!(refused.is(code::BUSY) && refused.remedy.contains(&format!("job watch {}", first.id)), "{refused:?}");
    let job = world.reach(first.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    assert!(job.steps.iter().any(|step| step.detail.as_deref() == Some("held by the test")), "{job:#?}");
    world.with(|model| model.hold = None);
    world.end_of(first.id).await;
    let third = world.run(planned()).await;
    assert!(third.steps.is_empty(), "it is so already");
    assert_eq!(world.with(|model| model.history.iter().filter(|line| line.contains("raise")).count()), 1);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_an_older_point_starts_from_it_and_comes_home_tracked() {
    let world = World::new().await;
    world.run(protect()).await;
    for _ in 0..3 {
        world.new_point().await;
    }
    let points = world.control().points(&item(), None).await.unwrap();
    let old = points[points.len() - 3].point.clone();
    let newest = points[points.len() - 1].point.attempt;
    let pair = Pair { from: old.attempt, to: newest };
    let told = world.control().difference(&item(), pair, None).await.unwrap();
    assert_eq!((told.from.attempt, told.to.attempt), (old.attempt, newest));
    assert!(told.disks[0].bytes > 0, "it worked between the two");
    let nowhere = "nowhere".parse().unwrap();
    assert!(world.control().difference(&item(), pair, Some(&nowhere)).await.unwrap_err().is(code::UNKNOWN_SITE));
    let kind = protocol::rest::FailoverKind::Unplanned { shut_down: ShutDownFirst::Require };
    let job = world.run(Operation::Failover { kind, point: Some(old.attempt) }).await;
    assert_eq!(job.figures.point.unwrap().attempt, old.attempt);
    world.run(Operation::Commit { keep_history: false }).await;
    let job = world.run(reprotect(Sync::Tracked, false)).await;
    assert_eq!(job.figures.sync, Some(Sync::Tracked), "all three sets of changes are known");
    world.run(failback(Sync::Tracked, false, true)).await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_not_committed_can_be_taken_back() {
    for (there, back) in [(planned(), "planned"), (unplanned(ShutDownFirst::Try), "unplanned")] {
        let world = World::new().await;
        world.run(protect()).await;
        world.new_point().await;
        world.run(there).await;
        assert_eq!(world.stage().await, Stage::CommitPending { runs_at: AWAY });
        let plan = world.control().plan(Request { item: item(), operation: Operation::Cancel {} }).await.unwrap();
        assert_eq!((plan.source.as_str(), plan.target.as_str()), ("cloud", "home"), "{back}");
        assert!(plan.deletes[0].contains("kept there as a recovery point"));
        world.run(Operation::Cancel {}).await;
        assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME }, "{back}");
        assert_eq!(world.with(|model| model.running()), ["home"]);
        world.new_point().await;
        let refused = world.start_job(Operation::Cancel {}).await.unwrap_err();
        assert!(refused.is(code::STAGE_REFUSES) || refused.is(code::NOT_CANCELLABLE), "{refused:?}");
        world.run(planned()).await;
        world.assert_sane();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failback_can_be_taken_back_before_commit() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(failback(Sync::Tracked, false, true)).await;
    world.run(Operation::Cancel {}).await;
    assert_eq!(world.stage().await, Stage::Protected { runs_at: AWAY });
    assert_eq!(world.with(|model| model.running()), ["cloud"]);
    world.new_point().await;
    world.run(failback(Sync::Tracked, false, true)).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_forgotten_leaves_its_machine_running() {
    let world = World::new().await;
    world.run(protect()).await;
    let job = world.run(Operation::Unprotect { delete: true }).await;
    assert_eq!(job.state, JobState::Done);
    assert!(world.view().await.is_none());
    assert!(world.with(|model| model.sites["cloud"].replica.is_none()));
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.run(protect()).await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_point_is_changed_any_number_of_times_and_it_still_comes_home_tracked() {
    let world = World::new().await;
    world.run(protect()).await;
    for _ in 0..3 {
        world.new_point().await;
    }
    world.run(unplanned(ShutDownFirst::Require)).await;
    let points = world.control().points(&item(), None).await.unwrap();
    let generation = world.view().await.unwrap().generation;
    let change = |point| Operation::ChangePoint { point: Some(point) };
    let plan =
        world.control().plan(Request { item: item(), operation: change(points[1].point.attempt) }).await.unwrap();
    assert!(plan.deletes[0].contains("everything it wrote since the failover"), "{:?}", plan.deletes);
    assert_eq!((plan.source.as_str(), plan.target.as_str()), ("cloud", "cloud"));
    for (changed, old) in [1, 0, 2].into_iter().enumerate() {
        world.new_point_free_rest().await;
        let job = world.run(change(points[old].point.attempt)).await;
        assert_eq!(job.figures.point.unwrap().attempt, points[old].point.attempt);
        assert!(job.figures.downtime_ms.is_some());
        let view = world.view().await.unwrap();
        assert_eq!(view.stage, Stage::CommitPending { runs_at: AWAY });
        assert_eq!(view.generation, generation + 1 + changed as u64, "disks of another content are another generation");
        assert_eq!(world.with(|model| model.running()), ["cloud"]);
    }
    world.run(Operation::Commit { keep_history: false }).await;
    let refused = world.start_job(change(points[0].point.attempt)).await.unwrap_err();
    assert!(refused.is(code::STAGE_REFUSES), "{refused:?}");
    let job = world.run(reprotect(Sync::Tracked, false)).await;
    assert_eq!(job.figures.sync, Some(Sync::Tracked), "all three sets of changes are known");
    world.run(failback(Sync::Tracked, false, true)).await;
    let planned = world.start_job(change(points[0].point.attempt)).await.unwrap_err();
    assert!(planned.is(code::STAGE_REFUSES) && planned.cause.contains("planned"), "{planned:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_whose_point_was_changed_can_be_taken_back() {
    let world = World::new().await;
    world.run(protect()).await;
    for _ in 0..2 {
        world.new_point().await;
    }
    world.run(unplanned(ShutDownFirst::Require)).await;
    let points = world.control().points(&item(), None).await.unwrap();
    world.run(Operation::ChangePoint { point: Some(points[0].point.attempt) }).await;
    world.run(Operation::Cancel {}).await;
    assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME });
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.new_point().await;
    world.assert_sane();
}
