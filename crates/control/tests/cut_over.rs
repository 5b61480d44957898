//! Cut-over in bounded downtime: what is left must fit before a machine is stopped, *Complete* comes when it was told to,
//! and what a move is expected to cost is said before it starts, as far as it is known.

#![allow(clippy::unwrap_used)]

use crate::sites::drive::*;
use crate::sites::model::{CELLS, now_ms, quiet};
use control::Hooks;
use protocol::fault::code;
use protocol::machine::Power;
use protocol::order::Sync;
use protocol::pace::{Limit, Pace};
use protocol::quote::{Quote, Quoted, Window};
use protocol::rest::{FailoverKind, Job, JobState, Operation, Request, ShutDownFirst};
use protocol::stage::{MovePhase, Side, Stage};

const HOME: Side = Side::Home;
const AWAY: Side = Side::Away;
const HOUR: u64 = 3_600_000;

/// A guest that writes twice what the link carries.
fn outrun() -> Pace {
    Pace { changed: 200 << 20, last_bytes: Some(900 << 20), last_us: Some(9_000_000), ..quiet() }
}

/// What the running step tells.
fn detail(job: &Job) -> &str {
    let running = job.steps.iter().find(|step| step.state == protocol::rest::StepState::Running);
    running.and_then(|step| step.detail.as_deref()).unwrap_or_default()
}

async fn waits(world: &World, id: i64, words: &str) -> Job {
    world.reach(id, |job| job.state == JobState::Waiting && detail(job).contains(words)).await
}

async fn quotes(world: &World) -> Vec<Quoted> {
    world.control().quotes(&item()).await.unwrap()
}

async fn plan(world: &World, operation: Operation) -> protocol::rest::Plan {
    world.control().plan(Request { item: item(), operation }).await.unwrap()
}

fn complete() -> Operation {
    Operation::Complete { at: None }
}

fn complete_at(from_ms: u64, until_ms: u64) -> Operation {
    Operation::Complete { at: Some(Window { from_ms, until_ms }) }
}

async fn away(world: &World) {
    world.run(protect()).await;
    world.new_point().await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_not_stopped_before_the_rest_fits() {
    let world = World::new().await;
    world.run(protect()).await;
    world.with(|model| model.pace = Pace { last_us: Some(90_000_000), ..quiet() });
    let job = world.start_job(planned()).await.unwrap();
    world.reach(job.id, |job| detail(job).contains("of 5.0 s allowed")).await;
    assert_eq!(world.with(|model| model.running()), ["home"]);
    assert!(world.with(|model| model.intervals.contains(&200)), "epochs follow each other closely");
    world.with(|model| model.pace = quiet());
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(job.steps[1].detail.as_ref().unwrap().contains("expected downtime 40 ms of 5.0 s allowed"), "{job:#?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_writes_faster_than_the_link_carries_is_left_to_a_person() {
    let world = World::new().await;
    world.run(protect()).await;
    world.with(|model| model.pace = outrun());
    let job = world.start_job(planned()).await.unwrap();
    let figures = "200.0 MiB/s change and 100.0 MiB/s can be carried";
    let waiting = waits(&world, job.id, figures).await;
    assert_eq!(waiting.next.as_deref(), Some("sockeye complete web01"));
    assert_eq!(world.view().await.unwrap().next.as_deref(), Some("sockeye complete web01"));
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.until("epochs at the item's own interval", |world| world.with(|model| model.interval_ms) == 1000).await;
    // What would happen is shown, and nothing of it is so already.
    let shown = plan(&world, complete()).await;
    assert!(!shown.already && shown.steps.contains(&"shut web01 down at home".to_string()), "{shown:#?}");
    let quote = shown.quote.unwrap();
    assert_eq!((quote.limit, quote.downtime.unwrap().last_delta_ms), (Some(Limit::Churn), Some(18_000)));
    world.start_job(Operation::Cancel {}).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Cancelled);
    assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME });
    // Another time somebody goes ahead.
    let job = world.start_job(planned()).await.unwrap();
    waits(&world, job.id, figures).await;
    world.start_job(complete()).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(job.steps[1].detail.as_ref().unwrap().contains("a person said Complete; it cannot converge"), "{job:#?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failback_that_runs_through_waits_for_a_person_and_goes_on_when_the_guest_calms_down() {
    let world = World::new().await;
    away(&world).await;
    world.with(|model| model.pace = outrun());
    let job = world.start_job(failback(Sync::Tracked, false, true)).await.unwrap();
    waits(&world, job.id, "it cannot converge").await;
    assert_eq!(world.stage().await, Stage::Moving { from: AWAY, phase: MovePhase::Synchronizing });
    // The wait outlives the server.
    world.reopen(Hooks::default()).await;
    waits(&world, job.id, "it cannot converge").await;
    assert_eq!(world.with(|model| model.running()), ["cloud"]);
    world.with(|model| model.pace = quiet());
    assert_eq!(world.end_of(job.id).await.state, JobState::Done);
    assert_eq!(world.with(|model| model.running()), ["home"]);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_says_complete_goes_ahead_whatever_is_expected() {
    let world = World::new().await;
    away(&world).await;
    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    waits(&world, job.id, "expected downtime").await;
    assert_eq!(world.stage().await, Stage::Moving { from: AWAY, phase: MovePhase::WaitingForComplete });
    world.with(|model| model.pace = outrun());
    waits(&world, job.id, "it cannot converge").await;
    world.start_job(complete()).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(job.complete_at.is_none());
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_comes_at_its_time_also_when_the_server_was_started_again() {
    let world = World::new().await;
    away(&world).await;
    let window = Window { from_ms: now_ms() + HOUR, until_ms: now_ms() + 2 * HOUR };
    let mut operation = failback(Sync::Tracked, false, false);
    if let Operation::Failback { complete_at, .. } = &mut operation {
        *complete_at = Some(window);
    }
    let job = world.start_job(operation.clone()).await.unwrap();
    let sleeps = |job: &Job| detail(job).starts_with("Complete comes by itself from 2");
    let sleeping = world.reach(job.id, sleeps).await;
    assert_eq!((sleeping.state, sleeping.complete_at), (JobState::Running, Some(window)), "no person is waited for");
    world.reopen(Hooks::default()).await;
    let sleeping = world.reach(job.id, sleeps).await;
    assert_eq!(sleeping.complete_at, Some(window));
    assert_eq!(world.with(|model| model.running()), ["cloud"]);
    // It can be called off until then,
    world.start_job(Operation::Cancel {}).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Cancelled);
    // given another time, also by whoever waits already,
    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    waits(&world, job.id, "sockeye complete web01").await;
    let later = world.start_job(complete_at(now_ms() + HOUR, now_ms() + HOUR)).await.unwrap();
    assert_eq!(later.id, job.id);
    world.reach(job.id, sleeps).await;
    let soon = now_ms() + 2000;
    world.start_job(complete_at(soon, soon + HOUR)).await.unwrap();
    let job = world.end_of(job.id).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert!(now_ms() >= soon, "not before its time");
    let wait = job.steps.iter().find(|step| step.name == "wait for Complete").unwrap();
    assert!(wait.detail.as_ref().unwrap().starts_with("at its time; expected downtime"), "{wait:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_may_complete_before_the_time_comes() {
    let world = World::new().await;
    away(&world).await;
    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    waits(&world, job.id, "sockeye complete web01").await;
    world.start_job(complete_at(now_ms() + HOUR, now_ms() + HOUR)).await.unwrap();
    world.reach(job.id, |job| job.state == JobState::Running).await;
    world.start_job(complete()).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Done);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_at_which_it_does_not_fit_or_that_passed_is_left_to_a_person() {
    let world = World::new().await;
    away(&world).await;
    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    waits(&world, job.id, "sockeye complete web01").await;
    world.with(|model| model.pace = outrun());
    let soon = now_ms() + 2000;
    world.start_job(complete_at(soon, soon + HOUR)).await.unwrap();
    let job = waits(&world, job.id, "Complete did not come at its time: it cannot converge").await;
    assert_eq!((job.complete_at, job.next.as_deref()), (None, Some("sockeye complete web01")));
    // The server is away when the next one passes.
    world.with(|model| model.pace = quiet());
    let soon = now_ms() + 2000;
    world.start_job(complete_at(soon, soon)).await.unwrap();
    world.stop().await;
    while now_ms() <= soon {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    world.open(Hooks::default()).await;
    waits(&world, job.id, "Complete did not come at its time, which ended").await;
    assert_eq!(world.with(|model| model.running()), ["cloud"]);
    world.start_job(complete()).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Done);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_that_cannot_be_is_refused() {
    let world = World::new().await;
    away(&world).await;
    let asked = |from_ms, until_ms, run_through| {
        let mut operation = failback(Sync::Tracked, false, run_through);
        if let Operation::Failback { complete_at, .. } = &mut operation {
            *complete_at = Some(Window { from_ms, until_ms });
        }
        operation
    };
    let now = now_ms();
    for (operation, words) in [
        (asked(now - HOUR, now + HOUR, false), "it is 2"),
        (asked(now + 2 * HOUR, now + HOUR, false), "it would end before that"),
        (asked(now + HOUR, now + HOUR, true), "it was asked to run through"),
    ] {
        let refused = world.start_job(operation).await.unwrap_err();
        assert!(refused.is(code::BAD_REQUEST) && refused.cause.contains(words), "{refused:?}");
    }
    let job = world.start_job(failback(Sync::Tracked, false, false)).await.unwrap();
    waits(&world, job.id, "sockeye complete web01").await;
    let refused = world.start_job(complete_at(now - HOUR, now)).await.unwrap_err();
    assert!(refused.is(code::BAD_REQUEST) && refused.cause.contains("it is 2"), "{refused:?}");
    let shown = plan(&world, complete_at(now - HOUR, now)).await;
    assert!(shown.checks.iter().any(|check| check.fault.is_some()), "{shown:#?}");
    world.start_job(complete()).await.unwrap();
    world.end_of(job.id).await;
    // A move that does not wait for Complete cannot be given a time.
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(reprotect(Sync::Tracked, false)).await;
    world.with(|model| model.pace = outrun());
    let job = world.start_job(planned()).await.unwrap();
    waits(&world, job.id, "it cannot converge").await;
    let refused = world.start_job(complete_at(now_ms() + HOUR, now_ms() + HOUR)).await.unwrap_err();
    assert!(refused.is(code::BUSY), "{refused:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_keeps_what_was_expected_and_what_it_took_and_the_next_one_is_quoted_by_it() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    let before = quotes(&world).await;
    assert_eq!(before[0].command, "sockeye failover web01 --planned");
    let downtime = before[0].quote.downtime.clone().unwrap();
    assert_eq!((downtime.last_delta_ms, downtime.bring_up_ms, downtime.expected_ms), (Some(40), None, None));
    assert!(before[0].quote.notes.iter().any(|note| note.contains("bringing it up at cloud was never measured")));
    let job = world.run(planned()).await;
    assert_eq!(job.figures.quote.as_ref().unwrap().bytes, Some(1 << 20));
    let took = job.figures.downtime.unwrap();
    assert_eq!(job.figures.downtime_ms, Some(took.total_ms()), "{took:?}");
    world.run(Operation::Cancel {}).await;
    let after = quotes(&world).await.remove(0).quote.downtime.unwrap();
    assert_eq!(after.bring_up_ms, Some(took.bring_up_ms + took.start_ms));
    assert_eq!(after.expected_ms, after.bring_up_ms.map(|ms| ms + 40));
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_home_is_quoted_before_anything_is_replicated() {
    let world = World::new().await;
    away(&world).await;
    let of = |quoted: &[Quoted], sync: &str| -> Quote {
        let found = quoted.iter().find(|one| one.command == format!("sockeye failback web01 --sync {sync}"));
        found.unwrap_or_else(|| panic!("{quoted:#?}")).quote.clone()
    };
    let quoted = quotes(&world).await;
    let tracked = of(&quoted, "tracked");
    let map = world.with(|model| model.sites["cloud"].vm.as_ref().unwrap().map.as_ref().unwrap().bytes());
    assert!(tracked.bytes.is_some_and(|bytes| bytes <= map && bytes > 0), "{tracked:?}, the map holds {map}");
    // Nothing was sent from the cloud: no rate is made up.
    assert_eq!((tracked.rate, tracked.moving_ms), (None, None), "{tracked:?}");
    assert!(tracked.notes.iter().any(|note| note.contains("nothing large was sent from cloud yet")), "{tracked:?}");
    let compare = of(&quoted, "compare");
    assert_eq!((compare.bytes, compare.read_at_most, compare.moving_ms), (None, Some(CELLS as u64), None));
    assert_eq!(of(&quoted, "full").read_at_most, Some(CELLS as u64));
    let shown = plan(&world, failback(Sync::Compare, false, false)).await.quote.unwrap();
    assert_eq!((shown.notes, shown.read_at_most), (compare.notes, compare.read_at_most), "the plan says the same");
    // A rate that was measured once is remembered when nothing is replicated any more.
    world.run(reprotect(Sync::Tracked, false)).await;
    world.new_point().await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    let tracked = quotes(&world).await.remove(0);
    assert_eq!(tracked.command, "sockeye reverse web01 --sync tracked");
    assert_eq!((tracked.quote.rate, tracked.quote.moving_ms.is_some()), (Some(100 << 20), true), "{tracked:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_with_a_machine_that_is_off_is_said_to_be_unknown() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    world.with(|model| model.burn("home"));
    world.run(unplanned(ShutDownFirst::Try)).await;
    world.run(Operation::Commit { keep_history: false }).await;
    let quote = quotes(&world).await.remove(0).quote;
    assert_eq!((quote.bytes, quote.moving_ms, quote.read_at_most), (None, None, Some(CELLS as u64)), "{quote:?}");
    let unknown = "what home wrote on its own is not known before its disks are looked at";
    assert!(quote.notes.iter().any(|note| note == unknown), "{quote:?}");
    assert!(
        quote.notes.iter().any(|note| note.starts_with("where it has to be compared, each side reads")),
        "{quote:?}"
    );
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_does_not_run_is_not_waited_for() {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    world.with(|model| model.site("home").vm.as_mut().unwrap().power = Power::Held);
    world.until("it is known to stand still", |world| power_at_home(world) == Some(Power::Held)).await;
    let kind = FailoverKind::Planned { shut_down_timeout_ms: 5000, then_power_off: true, max_downtime_ms: 1 };
    let job = world.run(Operation::Failover { kind, point: None }).await;
    assert!(job.steps[1].detail.as_ref().unwrap().contains("nothing changes"), "{job:#?}");
    world.assert_sane();
}

/// How the machine at home stands, as control was last told.
fn power_at_home(world: &World) -> Option<Power> {
    let control = world.control();
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async {
            let home = "home".parse().unwrap();
            let machines = control.machines(Some(&home)).await.ok()?;
            machines.first().map(|found| found.machine.power)
        })
    })
}
