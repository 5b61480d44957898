//! Cancelling, components that vanish, orders that fail: the job ends, and the world has a way on.

#![allow(clippy::unwrap_used)]

use control::{Control, Hooks};
use protocol::fault::code;
use protocol::machine::Power;
use protocol::order::Sync;

use crate::sites::drive::*;
use protocol::rest::{Health, ItemView, JobState, Operation, Request, ShutDownFirst, StepState};
use protocol::stage::{Side, Stage};
use std::time::Duration;

const HOME: Side = Side::Home;
const AWAY: Side = Side::Away;

fn all_connected(world: &World) -> bool {
    world.control().components().iter().all(|component| component.connected)
}

fn lost(world: &World) -> usize {
    world.control().components().iter().filter(|component| !component.connected).count()
}

/// Starts an operation whose order `word` never ends, cancels it, and expects the world as it was.
async fn cancelled_at(world: &World, operation: Operation, word: &'static str) {
    let stage = world.stage().await;
    let running = world.with(|model| model.running());
    world.with(|model| model.hold = Some(word));
    let job = world.start_job(operation.clone()).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    let asked = world.start_job(Operation::Cancel {}).await.unwrap();
    assert_eq!(asked.id, job.id);
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Cancelled, "{word}: {job:#?}");
    assert!(job.fault.as_ref().unwrap().is(code::CANCELLED));
    assert_eq!(world.stage().await, stage, "{word}");
    assert_eq!(world.with(|model| model.running()), running, "{word}");
    world.with(|model| model.hold = None);
    if matches!(stage, Stage::Protected { .. }) {
        world.new_point().await;
    }
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_cancelled_wherever_it_stands_before_the_point_of_no_return() {
    let world = World::new().await;
    cancelled_at(&world, protect(), "prepare").await;
    assert!(world.view().await.is_none(), "nothing is left of it");
    world.run(protect()).await;
    world.new_point().await;
    for word in ["shut-down", "final", "close", "raise"] {
        cancelled_at(&world, planned(), word).await;
    }
    for word in ["shut-down", "close", "raise"] {
        cancelled_at(&world, unplanned(ShutDownFirst::Require), word).await;
    }
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    for word in ["settle", "take-over", "standpoint"] {
        cancelled_at(&world, reprotect(Sync::Tracked, false), word).await;
    }
    for word in ["take-over", "shut-down", "final", "raise"] {
        cancelled_at(&world, failback(Sync::Tracked, false, true), word).await;
    }
    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    world.reach(job.id, |job| job.state == JobState::Waiting).await;
    world.control().cancel_job(job.id).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Cancelled);
    assert_eq!(world.stage().await, Stage::NotProtected { runs_at: AWAY });
    let again = world.control().retry_job(job.id).await.unwrap();
    world.reach(again.id, |job| job.state == JobState::Waiting).await;
    world.start_job(Operation::Complete { at: None }).await.unwrap();
    assert_eq!(world.end_of(again.id).await.state, JobState::Done);
    let refused = world.control().cancel_job(again.id).await.unwrap_err();
    assert!(refused.is(code::NOT_CANCELLABLE), "{refused:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_the_point_of_no_return_nothing_is_cancelled() {
    let world = World::new().await;
    world.run(protect()).await;
    world.with(|model| model.hold = Some("release"));
    let job = world.start_job(planned()).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    let refused = world.start_job(Operation::Cancel {}).await.unwrap_err();
    assert!(refused.is(code::NOT_CANCELLABLE), "{refused:?}");
    // The component that was to release it is restarted: it is waited for.
    world.with(|model| model.site("cloud").master_target = false);
    let job = world
        .reach(job.id, |job| {
            job.steps.iter().any(|step| step.detail.as_deref() == Some("waiting for component cloud-master-target"))
        })
        .await;
    world.with(|model| {
        model.site("cloud").master_target = true;
        model.hold = None;
    });
    assert_eq!(world.end_of(job.id).await.state, JobState::Done);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_order_to_start_does_not_reach_a_site_that_lost_its_authority_meanwhile() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    // The machine was stopped for a planned failover, then its site vanishes.
    world.with(|model| model.hold = Some("final"));
    let job = world.start_job(planned()).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    world.with(|model| {
        model.burn("home");
        model.hold = None;
    });
    world
        .reach(job.id, |job| {
            job.steps.iter().any(|step| step.detail.as_deref() == Some("waiting for component home-process-server"))
        })
        .await;
    world.control().cancel_job(job.id).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Cancelled, "it does not wait for a site that is gone: {job:#?}");
    assert!(job.steps.iter().any(|step| step.detail.as_ref().is_some_and(|detail| detail.contains("when it is back"))));
    world.run(unplanned(ShutDownFirst::Try)).await;
    world.with(|model| model.back("home"));
    world.until("home is back", all_connected).await;
    world.new_point_free_rest().await;
    assert_eq!(world.with(|model| model.running()), ["cloud"], "the order to start home again was taken back");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_comes_back_carries_out_what_was_left_for_it_before_anything_new() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    // Reprotect has taken home over when home's master target vanishes.
    world.with(|model| model.hold = Some("standpoint"));
    let job = world.start_job(reprotect(Sync::Tracked, false)).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    world.with(|model| {
        model.site("home").master_target = false;
    });
    world.until("it is lost", |world| lost(world) == 1).await;
    world.control().cancel_job(job.id).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert_eq!(world.stage().await, Stage::NotProtected { runs_at: AWAY });
    assert!(world.with(|model| model.sites["home"].vm.is_none()), "home is not given back yet");
    world.with(|model| {
        model.site("home").master_target = true;
        model.hold = None;
    });
    world.until("home is given back", |world| world.with(|model| model.sites["home"].vm.is_some())).await;
    world.until("all are back", all_connected).await;
    let job = world.run(reprotect(Sync::Tracked, false)).await;
    assert_eq!(job.figures.sync, Some(Sync::Tracked));
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_cannot_be_given_back_are_damaged_and_a_rerun_repairs_them() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.with(|model| model.hold = Some("standpoint"));
    let job = world.start_job(reprotect(Sync::Tracked, false)).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    world.with(|model| model.fail = Some("give-back"));
    world.control().cancel_job(job.id).await.unwrap();
    world.end_of(job.id).await;
    assert_eq!(world.stage().await, Stage::Damaged { runs_at: AWAY });
    let view = world.view().await.unwrap();
    assert_eq!(view.health, Health::Critical);
    assert_eq!(view.next.as_deref(), Some("sockeye reprotect web01"));
    world.with(|model| (model.fail, model.hold) = (None, None));
    // What half written disks are worth is the master target's to say; the model's lost its machine to the replica.
    world.with(|model| {
        let site = model.site("home");
        site.vm = site.replica.as_ref().and_then(|replica| replica.before.as_ref()).and_then(|before| before.0.clone());
        site.vm.as_mut().unwrap().map = None;
        site.vm.as_mut().unwrap().stamp += 7;
    });
    let job = world.run(reprotect(Sync::Tracked, false)).await;
    assert_eq!(job.figures.sync, Some(Sync::Compare), "{job:#?}");
    assert_eq!(world.stage().await, Stage::Protected { runs_at: AWAY });
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failback_whose_way_back_was_given_up_leaves_damaged_disks_when_it_is_cancelled_and_is_run_again() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.with(|model| model.hold = Some("standpoint"));
    let failback = |no_way_back| Operation::Failback {
        sync: Sync::Full,
        offline: false,
        complete: true,
        shut_down: false,
        shut_down_timeout_ms: 5000,
        then_power_off: true,
        no_way_back,
        max_downtime_ms: 5000,
        complete_at: None,
        landing: None,
    };
    let job = world.start_job(failback(true)).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    assert!(job.steps.iter().any(|step| step.name.contains("WITHOUT keeping")), "{job:#?}");
    world.control().cancel_job(job.id).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Cancelled);
    assert_eq!(world.stage().await, Stage::Damaged { runs_at: AWAY });
    let refused = world.start_job(planned()).await.unwrap_err();
    assert!(refused.remedy.contains("sockeye"), "{refused:?}");
    world.with(|model| model.hold = None);
    world.run(failback(false)).await;
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: HOME });
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_cannot_go_on_at_its_new_side_can_be_taken_back() {
    let world = World::new().await;
    world.run(protect()).await;
    world.with(|model| model.fail = Some("release"));
    let job = world.start_job(planned()).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.fault.unwrap().is(code::HYPERVISOR));
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: AWAY }, "the authority has moved");
    world.with(|model| model.fail = None);
    world.run(Operation::Cancel {}).await;
    assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME });
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_somebody_elses_is_not_dropped_by_the_undo() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(Operation::Unprotect { delete: false }).await;
    let job = world.start_job(protect()).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.fault.unwrap().is(code::REPLICA_EXISTS));
    assert!(world.with(|model| model.sites["cloud"].replica.is_some()), "the old replica is kept");
    assert!(world.view().await.is_none());
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commit_does_not_wait_for_a_site_that_is_gone_and_reprotect_sees_to_it() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(failback(Sync::Tracked, false, true)).await;
    world.with(|model| model.burn("cloud"));
    world.until("cloud is lost", |world| lost(world) == 2).await;
    world.run(Operation::Commit { keep_history: false }).await;
    assert_eq!(world.stage().await, Stage::NotProtected { runs_at: HOME });
    world.with(|model| model.back("cloud"));
    world.until("cloud is back", all_connected).await;
    world.run(reprotect(Sync::Tracked, false)).await;
    world.new_point().await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_tokens_lists_and_items_and_a_second_server_is_refused() {
    let world = World::new().await;
    world.run(protect()).await;
    let second = Control::open(world.folder.path()).await.unwrap_err();
    assert!(second.message.contains("in use"), "{second:?}");
    let admin = std::fs::read_to_string(world.folder.path().join("admin.token")).unwrap();
    world.reopen(Hooks::default()).await;
    assert!(world.control().principal(&admin).await.unwrap().is_some());
    let view = world.view().await.unwrap();
    assert_eq!(view.stage, Stage::Protected { runs_at: HOME });
    assert!(view.newest.is_some(), "what was last seen is remembered");
    world.new_point().await;
    world.until("all are back", all_connected).await;
    world.run(planned()).await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgetting_an_item_deletes_the_machine_that_still_stands_on_its_replica() {
    let world = World::new().await;
    world.run(protect()).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(failback(Sync::Tracked, false, true)).await;
    // Commit cannot absorb: the machine at cloud stays for now.
    world.with(|model| model.fail = Some("absorb"));
    world.run(Operation::Commit { keep_history: false }).await;
    world.with(|model| model.fail = None);
    assert!(world.with(|model| model.sites["cloud"].vm.is_some()));
    let plan = Request { item: item(), operation: Operation::Unprotect { delete: true } };
    let plan = world.control().plan(plan).await.unwrap();
    assert_eq!(plan.deletes.len(), 2, "{:?}", plan.deletes);
    world.with(|model| model.fail = Some("drop"));
    let job = world.start_job(Operation::Unprotect { delete: true }).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Failed);
    assert!(world.view().await.is_some(), "what is still there is not forgotten");
    world.with(|model| model.fail = None);
    world.run(Operation::Unprotect { delete: true }).await;
    let cloud = world.with(|model| model.sites["cloud"].clone());
    assert!(cloud.vm.is_none() && cloud.replica.is_none());
    assert!(world.view().await.is_none());
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_hear_of_items_and_of_every_step() {
    let world = World::new().await;
    let mut events = world.control().events();
    world.run(protect()).await;
    world.new_point().await;
    let (mut done, mut stages) = (0, vec![]);
    while let Ok(event) = events.try_recv() {
        match event {
            control::Event::Job(job) => {
                done = done.max(job.steps.iter().filter(|step| step.state == StepState::Done).count());
            }
            control::Event::Item(view) => stages.push(view.stage),
        }
    }
    assert_eq!(done, 4, "every step was told as done");
    assert!(stages.contains(&Stage::Seeding) && stages.contains(&Stage::Protected { runs_at: HOME }), "{stages:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_says_what_is_wrong_and_ends_with_a_command() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    world.until("it is well", |_| true).await;
    let view = world.view().await.unwrap();
    assert_eq!((view.health, view.health_reason.as_deref()), (Health::Ok, None), "{view:?}");
    assert_eq!(view.failback, "possible after a failover");
    power(&world, Power::Held);
    let view = health_becomes(&world, Health::Warning).await;
    assert_eq!(view.health_reason.as_deref(), Some("web01 does not run at home (it is shut down)"));
    power(&world, Power::Running);
    health_becomes(&world, Health::Ok).await;
    world.with(|model| model.site("home").process_server = false);
    world.until("it is lost", |world| lost(world) == 1).await;
    let view = world.view().await.unwrap();
    assert_eq!(view.health, Health::Warning);
    assert_eq!(view.health_reason.as_deref(), Some("home-process-server is not connected"));
    world.with(|model| model.site("home").master_target = false);
    world.until("it is lost", |world| lost(world) == 2).await;
    let view = world.view().await.unwrap();
    assert!(view.failback.starts_with("not possible"), "R24: {}", view.failback);
}

fn power(world: &World, power: Power) {
    world.with(|model| model.site("home").vm.as_mut().unwrap().power = power);
}

async fn health_becomes(world: &World, health: Health) -> ItemView {
    for _ in 0..1000 {
        let view = world.view().await.unwrap();
        if view.health == health {
            return view;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("health never became {health:?}");
}
