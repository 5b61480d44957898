//! What every kind of job must stand: failing at each step, the server dying at every boundary, everything done twice.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use crate::sites;
use crate::sites::drive::*;
use control::Hooks;
use protocol::order::Sync;
use protocol::rest::{Job, JobState, Operation, ShutDownFirst};
use protocol::stage::{Side, Stage};

const HOME: Side = Side::Home;
const AWAY: Side = Side::Away;

/// A kind of job: where it starts, and where it ends when all goes well.
struct Kind {
    name: &'static str,
    past: Past,
    operation: Operation,
    before: Stage,
    after: Stage,
}

async fn kind(name: &'static str) -> Kind {
    let world = World::new().await;
    let (operation, after) = match name {
        "protect" => (protect(), Stage::Protected { runs_at: HOME }),
        "unplanned failover" => (unplanned(ShutDownFirst::Try), Stage::CommitPending { runs_at: AWAY }),
        "planned failover" => (planned(), Stage::CommitPending { runs_at: AWAY }),
        "commit" => (Operation::Commit { keep_history: false }, Stage::NotProtected { runs_at: HOME }),
        "reprotect" => (reprotect(Sync::Tracked, false), Stage::Protected { runs_at: AWAY }),
        "failback" => (failback(Sync::Tracked, false, true), Stage::CommitPending { runs_at: HOME }),
        "failback when protected" => (failback(Sync::Tracked, false, true), Stage::CommitPending { runs_at: HOME }),
        "failback offline" => (failback(Sync::Compare, true, false), Stage::CommitPending { runs_at: HOME }),
        "taking back" => (Operation::Cancel {}, Stage::Protected { runs_at: HOME }),
        "fold" => (Operation::Fold {}, Stage::NotProtected { runs_at: HOME }),
        "change point" => (Operation::ChangePoint { point: None }, Stage::CommitPending { runs_at: AWAY }),
        "test failover" => (test_failover(), Stage::Protected { runs_at: HOME }),
        "cleanup" => (Operation::Cleanup {}, Stage::Protected { runs_at: HOME }),
        "view" => (view(), Stage::Protected { runs_at: HOME }),
        "end view" => (Operation::EndView { view: 2 }, Stage::Protected { runs_at: HOME }),
        "unprotect beside a test" => (Operation::Unprotect { delete: true }, Stage::Unprotected),
        "unprotect" => (Operation::Unprotect { delete: true }, Stage::Unprotected),
        other => panic!("{other}"),
    };
    if name != "protect" {
        world.run(protect()).await;
        world.new_point().await;
    }
    let away =
        ["commit", "fold", "reprotect", "failback", "failback when protected", "failback offline", "taking back"];
    if away.contains(&name) {
        world.run(planned()).await;
    }
    if away.contains(&name) && name != "taking back" {
        world.run(Operation::Commit { keep_history: false }).await;
    }
    if name == "change point" {
        world.run(unplanned(ShutDownFirst::Try)).await;
    }
    if ["cleanup", "unprotect beside a test"].contains(&name) {
        world.run(test_failover()).await;
    }
    if ["end view", "unprotect beside a test"].contains(&name) {
        world.run(view()).await;
    }
    if name == "failback when protected" {
        world.run(reprotect(Sync::Tracked, false)).await;
    }
    if ["commit", "fold"].contains(&name) {
        world.run(failback(Sync::Tracked, false, true)).await;
    }
    if name == "fold" {
        world.run(Operation::Commit { keep_history: true }).await;
    }
    let before = world.stage().await;
    Kind { name, past: world.freeze().await, operation, before, after }
}

/// What of the world a job that failed must have left as it was.
fn shape(world: &World) -> BTreeMap<String, Shape> {
    world.with(|model| {
        let power = |site: &sites::model::Site| site.vm.as_ref().map(|vm| format!("{:?}", vm.power));
        let of = |site: &sites::model::Site| Shape {
            power: power(site),
            in_front: site.under.is_some(),
            test: site.test.is_some(),
            views: site.views.len(),
        };
        model.sites.iter().map(|(name, site)| (name.clone(), of(site))).collect()
    })
}

#[derive(Debug, PartialEq)]
struct Shape {
    power: Option<String>,
    in_front: bool,
    test: bool,
    views: usize,
}

async fn run(world: &World, kind: &Kind) -> Job {
    let job = world.start_job(kind.operation.clone()).await.unwrap();
    world.end_of(job.id).await
}

/// Whether the job's first step ends something that no undo brings back: what is left is then ended by a repetition.
fn ends_something(kind: &Kind) -> bool {
    ["commit", "fold", "cleanup", "end view", "unprotect beside a test"].contains(&kind.name)
}

/// Whether the authority had moved (or the item was forgotten) before the job failed.
fn went_past_return(kind: &Kind, job: &Job, stage: Stage) -> bool {
    let authorised = |step: &protocol::rest::Step| {
        step.name.starts_with("authorise") && step.state != protocol::rest::StepState::Pending
    };
    if kind.name == "taking back" && job.steps.iter().any(authorised) {
        return true;
    }
    // It ends in the stage that it began in: what tells is that nothing was undone.
    if kind.name == "change point" {
        let undone = job.steps.iter().any(|step| step.state == protocol::rest::StepState::Undone);
        return job.steps.iter().any(authorised) && !undone;
    }
    let passed = |step: &protocol::rest::Step| {
        ["authorise", "commit", "forget", "delete", "remove"].iter().any(|word| step.name.starts_with(word))
            && step.state != protocol::rest::StepState::Pending
    };
    job.steps.iter().any(passed) && stage != kind.before
}

async fn fails_at_each_step(name: &'static str) {
    let kind = kind(name).await;
    let mut steps = 1;
    let mut index = 0;
    while index < steps {
        for after in [false, true] {
            let hooks = Hooks {
                fail_before: (!after).then_some(index),
                fail_after: after.then_some(index),
                ..Hooks::default()
            };
            let world = World::from(&kind.past, hooks).await;
            let before = shape(&world);
            let generation = world.view().await.map(|view| view.generation);
            let job = run(&world, &kind).await;
            steps = job.steps.len();
            let what = format!("{} failing {} step {index}", kind.name, if after { "after" } else { "before" });
            assert_eq!(job.state, JobState::Failed, "{what}: {job:#?}");
            let stage = world.stage().await;
            if went_past_return(&kind, &job, stage) {
                assert!(world.with(|model| model.running().len()) <= 1, "{what}");
            } else {
                assert_eq!(stage, kind.before, "{what}: {job:#?}");
                assert!(
                    ends_something(&kind) || shape(&world) == before,
                    "{what}: {:?} is not {before:?}",
                    shape(&world)
                );
                assert_eq!(world.view().await.map(|view| view.generation), generation, "{what}");
            }
            // And the same works when nothing fails any more.
            world.reopen(Hooks::default()).await;
            world.until_connected().await;
            if stage == kind.before {
                let job = run(&world, &kind).await;
                assert_eq!(job.state, JobState::Done, "{what}, again: {job:#?}");
                assert_eq!(world.stage().await, kind.after, "{what}, again");
            }
            world.assert_sane();
        }
        index += 1;
    }
    let beside = ["test failover", "cleanup", "view", "end view"].contains(&kind.name);
    assert!(if beside { steps == 1 } else { steps > 1 }, "{steps} steps");
}

async fn survives_a_crash_at_every_boundary(name: &'static str) {
    let kind = kind(name).await;
    // The two longer ways home are made of the steps of the others: every third boundary is enough for them.
    let stride = if ["failback offline", "failback when protected"].contains(&name) { 3 } else { 1 };
    let mut tick = 0;
    loop {
        let world = World::from(&kind.past, Hooks { crash_at: Some(tick), ..Hooks::default() }).await;
        let job = world.start_job(kind.operation.clone()).await.unwrap();
        let died = loop {
            if world.control().died() {
                break true;
            }
            if world.control().job(job.id).await.unwrap().state.ended() {
                break world.control().died();
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        };
        if !died {
            assert!(tick > 8, "{}: only {tick} boundaries", kind.name);
            return;
        }
        world.reopen(Hooks::default()).await;
        let job = world.end_of(job.id).await;
        assert_eq!(job.state, JobState::Done, "{} died at {tick}: {job:#?}", kind.name);
        assert_eq!(world.stage().await, kind.after, "{} died at {tick}", kind.name);
        world.assert_sane();
        tick += stride;
    }
}

async fn survives_a_crash_while_undoing(name: &'static str, failing: usize) {
    let kind = kind(name).await;
    let mut tick = 0;
    loop {
        let hooks = Hooks { crash_at: Some(tick), fail_after: Some(failing), ..Hooks::default() };
        let world = World::from(&kind.past, hooks).await;
        let before = shape(&world);
        let job = world.start_job(kind.operation.clone()).await.unwrap();
        let died = loop {
            if world.control().died() {
                break true;
            }
            if world.control().job(job.id).await.unwrap().state.ended() {
                break world.control().died();
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        };
        if !died {
            return;
        }
        world.reopen(Hooks { fail_after: Some(failing), ..Hooks::default() }).await;
        let job = world.end_of(job.id).await;
        assert_eq!(job.state, JobState::Failed, "{} died at {tick}: {job:#?}", kind.name);
        assert_eq!(world.stage().await, kind.before, "{} died at {tick}", kind.name);
        assert_eq!(shape(&world), before, "{} died at {tick}", kind.name);
        world.assert_sane();
        tick += 1;
    }
}

async fn does_everything_twice(name: &'static str) {
    let kind = kind(name).await;
    let world = World::from(&kind.past, Hooks { twice: true, ..Hooks::default() }).await;
    let job = run(&world, &kind).await;
    assert_eq!(job.state, JobState::Done, "{}: {job:#?}", kind.name);
    assert_eq!(world.stage().await, kind.after, "{}", kind.name);
    world.assert_sane();
    let steps = job.steps.len();
    for failing in 0..steps {
        let hooks = Hooks { twice: true, fail_after: Some(failing), ..Hooks::default() };
        let world = World::from(&kind.past, hooks).await;
        let before = shape(&world);
        let job = run(&world, &kind).await;
        assert_eq!(job.state, JobState::Failed, "{}: {job:#?}", kind.name);
        let stage = world.stage().await;
        if !went_past_return(&kind, &job, stage) {
            assert_eq!(stage, kind.before, "{} undone twice from step {failing}", kind.name);
            assert!(ends_something(&kind) || shape(&world) == before, "{} undone twice from step {failing}", kind.name);
        }
        world.assert_sane();
    }
}

macro_rules! stands {
    ($($module:ident = $name:literal;)*) => {$(
        mod $module {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn fails_at_each_step_and_leaves_the_world_as_it_was() {
                super::fails_at_each_step($name).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn goes_on_after_the_server_died_at_any_boundary() {
                super::survives_a_crash_at_every_boundary($name).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn may_do_and_undo_every_step_twice() {
                super::does_everything_twice($name).await;
            }
        }
    )*};
}

stands! {
    protecting = "protect";
    failing_over_unplanned = "unplanned failover";
    failing_over_planned = "planned failover";
    committing = "commit";
    folding = "fold";
    reprotecting = "reprotect";
    failing_back = "failback";
    failing_back_when_protected = "failback when protected";
    failing_back_offline = "failback offline";
    taking_back = "taking back";
    unprotecting = "unprotect";
    changing_the_point = "change point";
    testing = "test failover";
    cleaning_up = "cleanup";
    viewing = "view";
    ending_a_view = "end view";
    unprotecting_beside_a_test = "unprotect beside a test";
}

// The step before the point of no return: everything there is to undo is undone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_goes_on_after_the_server_died_in_it() {
    survives_a_crash_while_undoing("planned failover", 6).await;
    survives_a_crash_while_undoing("reprotect", 4).await;
    survives_a_crash_while_undoing("protect", 2).await;
}
