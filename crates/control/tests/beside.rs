//! Tests of a failover and views: they stand beside the item, and nothing that is done with it waits for them.

#![allow(clippy::unwrap_used)]

use crate::sites::drive::*;
use protocol::extent::Extent;
use protocol::fault::code;
use protocol::order::Sync;
use protocol::rest::{JobState, MachineView, Operation, Request, ShutDownFirst, Step, StepState};
use protocol::stage::{Side, Stage};
use protocol::verified::Damage;
use std::time::Duration;

const HOME: Side = Side::Home;
const AWAY: Side = Side::Away;

async fn protected() -> World {
    let world = World::new().await;
    world.run(protect()).await;
    world.new_point().await;
    world
}

const COMMIT: Operation = Operation::Commit { keep_history: false };

async fn world_points(world: &World, site: Option<&protocol::SiteName>) -> Vec<protocol::Attempt> {
    let points = world.control().points(&item(), site).await.unwrap();
    points.iter().map(|kept| kept.point.attempt).collect()
}

fn tested(world: &World, site: &str) -> bool {
    world.with(|model| model.sites[site].test.is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_runs_under_its_own_name_while_replication_goes_on_and_cleanup_leaves_nothing() {
    let world = protected().await;
    let request = Request { item: item(), operation: test_failover() };
    let plan = world.control().plan(request).await.unwrap();
    assert_eq!((plan.source.as_str(), plan.target.as_str()), ("home", "cloud"));
    assert!(plan.point.is_some() && plan.deletes.is_empty() && !plan.already);
    assert!(plan.checks.iter().any(|check| check.what.contains("web01-test reaches nobody")), "{:?}", plan.checks);
    assert_eq!(plan.steps, ["bring web01-test up at cloud, connected to nothing"]);
    let job = world.run(test_failover()).await;
    assert_eq!(job.next.as_deref(), Some("sockeye cleanup web01"));
    let view = world.view().await.unwrap();
    let test = view.test.unwrap();
    assert_eq!((test.machine.as_str(), test.site.as_str()), ("web01-test", "cloud"));
    assert_eq!(Some(test.point), job.figures.point.map(|point| point.attempt));
    assert_eq!((view.stage, view.job), (Stage::Protected { runs_at: HOME }, None), "a test is no stage");
    world.new_point().await;

    assert!(world.run(test_failover()).await.steps.is_empty(), "it is so already");
    let newest = world.control().points(&item(), None).await.unwrap().pop().unwrap().point.attempt;
    let refused = world.start_job(Operation::TestFailover { point: Some(newest), network: None }).await.unwrap_err();
    assert!(refused.is(code::TEST_PENDING) && refused.remedy.contains("sockeye cleanup web01"), "{refused:?}");
    // What a site lists is not offered for protection.
    let site = "cloud".parse().unwrap();
    let listed = |machine: &MachineView| machine.test_of == Some(item()) && machine.machine.spec.name == "web01-test";
    for look in 0.. {
        if world.control().machines(Some(&site)).await.unwrap().iter().any(listed) {
            break;
        }
        assert!(look < 1000, "the test is never listed as one");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let operation = Operation::Protect {
        machine: "web01-test".into(),
        from: "cloud".parse().unwrap(),
        to: "home".parse().unwrap(),
        interval_ms: 1000,
        policy: protocol::PolicyName::standard(),
        networks: Default::default(),
        addresses: vec![],
    };
    let plan = world.control().plan(Request { item: "web01-test".parse().unwrap(), operation }).await.unwrap();
    assert!(plan.checks.iter().any(|check| check.fault.as_ref().is_some_and(|fault| fault.is(code::TEST_MACHINE))));

    world.run(Operation::Cleanup {}).await;
    assert!(!tested(&world, "cloud") && world.view().await.unwrap().test.is_none());
    assert!(world.run(Operation::Cleanup {}).await.steps.is_empty(), "it is so already");
    world.new_point().await;
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_test_stays_through_the_whole_circle_and_keeps_nothing_waiting() {
    let world = protected().await;
    world.run(test_failover()).await;
    world.run(unplanned(ShutDownFirst::Require)).await;
    assert_eq!(world.with(|model| model.running()), ["cloud"], "both run there, under two names");
    world.run(Operation::Cancel {}).await;
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(reprotect(Sync::Tracked, false)).await;
    world.run(failback(Sync::Tracked, false, true)).await;
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(reprotect(Sync::Tracked, false)).await;
    assert!(tested(&world, "cloud"));
    world.run(Operation::Cleanup {}).await;
    assert!(!tested(&world, "cloud"));
    world.assert_sane();
}

/// *Cancel, by stage*: where nothing but a test is there to be cancelled, cancel is cleanup; a move goes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_ends_a_test_where_nothing_else_is_to_be_cancelled() {
    let world = protected().await;
    let refused = world.start_job(Operation::Cancel {}).await.unwrap_err();
    assert!(refused.is(code::NOT_CANCELLABLE) && refused.message.starts_with("web01"), "{refused:?}");
    world.run(test_failover()).await;
    world.run(planned()).await;
    world.run(Operation::Cancel {}).await;
    assert!(tested(&world, "cloud"), "the failover was cancelled, not the test");
    let plan = world.control().plan(Request { item: item(), operation: Operation::Cancel {} }).await.unwrap();
    assert_eq!(plan.request.operation, Operation::Cleanup {});
    world.run(Operation::Cancel {}).await;
    assert!(!tested(&world, "cloud"));
    assert_eq!(world.stage().await, Stage::Protected { runs_at: HOME });
    for operation in [planned(), COMMIT] {
        world.run(operation).await;
    }
    let refused = world.start_job(Operation::Cancel {}).await.unwrap_err();
    let way = "fail over again, towards home: sockeye failback web01";
    assert!(refused.is(code::NOT_CANCELLABLE) && refused.remedy == way, "{refused:?}");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_that_hangs_while_it_is_started_keeps_no_failover_waiting() {
    let world = protected().await;
    world.with(|model| model.hold = Some("raise-test"));
    let job = world.start_job(test_failover()).await.unwrap();
    world.reach(job.id, |job| job.steps.iter().any(|step| step.percent == Some(7))).await;
    let refused = world.start_job(Operation::Cleanup {}).await.unwrap_err();
    assert!(refused.is(code::BUSY), "it is not there yet, nor is it not there: {refused:?}");
    let refused = world.start_job(Operation::Unprotect { delete: true }).await.unwrap_err();
    assert!(refused.is(code::BUSY), "{refused:?}");
    world.run(planned()).await;
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: AWAY });
    world.control().cancel_job(job.id).await.unwrap();
    assert_eq!(world.end_of(job.id).await.state, JobState::Cancelled);
    world.with(|model| model.hold = None);
    assert!(!tested(&world, "cloud"));
    assert_eq!(world.stage().await, Stage::CommitPending { runs_at: AWAY }, "the failover is not touched");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_are_served_many_at_once_and_ended_one_by_one() {
    let world = protected().await;
    let first = world.run(view()).await;
    let point = first.figures.point.clone().unwrap().attempt;
    let site = Some("cloud".parse().unwrap());
    let second = world.run(Operation::View { point: Some(point), site, writable: false }).await;
    let listed = world.view().await.unwrap().views;
    assert_eq!(listed.iter().map(|view| view.number).collect::<Vec<_>>(), [first.id, second.id]);
    assert_eq!(listed.iter().map(|view| view.writable).collect::<Vec<_>>(), [true, false]);
    assert_eq!(second.figures.served.as_ref(), Some(&listed[1]));
    assert!(listed[1].disks[0].uri.contains(&format!("view{}", second.id)));
    assert_eq!(second.next, Some(format!("sockeye view web01 --end {}", second.id)));
    let plan = |operation| {
        let control = world.control();
        async move { control.plan(Request { item: item(), operation }).await.unwrap() }
    };
    assert!(plan(Operation::EndView { view: first.id }).await.deletes[0].contains("everything written to it"));
    assert!(plan(Operation::EndView { view: second.id }).await.deletes.is_empty());
    assert!(plan(Operation::EndView { view: 77 }).await.already);
    world.run(Operation::EndView { view: first.id }).await;
    assert_eq!(world.with(|model| model.sites["cloud"].views.keys().copied().collect::<Vec<_>>()), [second.id]);
    let nowhere = Operation::View { point: None, site: Some("nowhere".parse().unwrap()), writable: false };
    assert!(world.start_job(nowhere).await.unwrap_err().is(code::UNKNOWN_SITE));
    let gone = Operation::View { point: Some("1.9999".parse().unwrap()), site: None, writable: false };
    assert!(world.start_job(gone).await.unwrap_err().is(code::UNKNOWN_POINT));
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_of_the_history_at_home_keeps_it_from_being_folded_away() {
    let world = protected().await;
    for operation in [planned(), COMMIT, reprotect(Sync::Tracked, false), failback(Sync::Tracked, false, true)] {
        world.run(operation).await;
    }
    let viewed = world.run(view()).await;
    assert_eq!(viewed.figures.served.unwrap().site.as_str(), "home", "it stands on one of the points kept there");
    let job = world.run(COMMIT).await;
    let told = |step: &Step| step.detail.as_ref().is_some_and(|told| told.contains("later: sockeye fold web01"));
    assert!(job.steps.iter().any(|step| step.state == StepState::Skipped && told(step)), "{:?}", job.steps);
    let refused = world.start_job(Operation::Fold {}).await.unwrap_err();
    let first = format!("sockeye view web01 --end {}", viewed.id);
    assert!(refused.is(code::NOT_FOLDED) && refused.remedy.contains(&first), "{refused:?}");
    world.run(Operation::EndView { view: viewed.id }).await;
    world.run(Operation::Fold {}).await;
    assert_eq!(world.stage().await, Stage::NotProtected { runs_at: HOME });
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_a_move_is_committed_the_points_are_those_that_the_machine_can_be_changed_to() {
    let world = protected().await;
    let keep_history = Operation::Commit { keep_history: true };
    let (home, cloud) = ("home".parse().unwrap(), "cloud".parse().unwrap());
    let points_at = |site| world_points(&world, site);
    let (from_home, from_cloud) = (Some(&home), Some(&cloud));
    world.run(planned()).await;
    assert_eq!(points_at(None).await, points_at(from_cloud).await, "nothing is kept at home");
    for operation in [COMMIT, reprotect(Sync::Tracked, false)] {
        world.run(operation).await;
    }
    // Points arrive meanwhile.
    let grows = |before: Vec<protocol::Attempt>, after: Vec<protocol::Attempt>| {
        after.starts_with(&before) && !before.is_empty()
    };
    assert!(grows(points_at(None).await, points_at(from_home).await), "home receives");
    world.run(failback(Sync::Tracked, false, true)).await;
    assert_eq!(points_at(None).await, points_at(from_home).await);
    for operation in [keep_history, reprotect(Sync::Tracked, false)] {
        world.run(operation).await;
    }
    assert!(grows(points_at(None).await, points_at(from_cloud).await), "the cloud receives");
    world.run(unplanned(ShutDownFirst::Require)).await;
    assert_eq!(points_at(None).await, points_at(from_cloud).await);
    assert_ne!(points_at(from_home).await, points_at(from_cloud).await, "both keep some, not the same");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_forgotten_takes_its_test_and_its_views_with_it() {
    for delete in [false, true] {
        let world = protected().await;
        world.run(test_failover()).await;
        world.run(view()).await;
        let request = Request { item: item(), operation: Operation::Unprotect { delete } };
        let deletes = world.control().plan(request).await.unwrap().deletes;
        assert!(deletes[0].contains("test machine web01-test at cloud"), "{deletes:?}");
        assert!(deletes[1].contains("view 3 of point"), "{deletes:?}");
        world.run(Operation::Unprotect { delete }).await;
        let left = world.with(|model| (model.sites["cloud"].test.is_some(), model.sites["cloud"].views.len()));
        assert_eq!(left, (false, 0));
        world.assert_sane();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifying_reads_beside_everything_else_and_what_is_damaged_fails_with_a_remedy() {
    let world = protected().await;
    let verify = || Operation::Verify { site: None };
    let job = world.run(verify()).await;
    assert_eq!(job.steps[0].name, "read the replica at cloud and its journal, all of it");
    assert_eq!(job.figures.verified.unwrap().disk_bytes, 65536);
    let damage = |newest| {
        let map = [Extent::new(65536, 65536)].into_iter().collect();
        Damage::of("disk0".parse().unwrap(), &map, "the disk does not hold what was written to it".into(), newest)
    };
    for (newest, remedy) in [(true, "sockeye unprotect web01 --delete"), (false, "the newest state is whole")] {
        world.with(|model| model.sites.get_mut("cloud").unwrap().damage = vec![damage(newest), damage(false)]);
        let job = world.start_job(verify()).await.unwrap();
        let job = world.end_of(job.id).await;
        let fault = job.fault.unwrap();
        assert!(job.state == JobState::Failed && fault.is(code::REPLICA_DAMAGED), "{fault:?}");
        assert!(
            fault.cause.starts_with("disk0: the disk does not") && fault.cause.ends_with("and 1 more"),
            "{fault:?}"
        );
        assert!(fault.remedy.contains(remedy), "{fault:?}");
        assert_eq!(job.figures.verified.unwrap().damage.len(), 2, "what was found is told all the same");
    }
    // One that takes long keeps no failover waiting, and can be cancelled.
    world.with(|model| model.hold = Some("verify"));
    let job = world.start_job(verify()).await.unwrap();
    world.run(planned()).await;
    world.control().cancel_job(job.id).await.unwrap();
    world.with(|model| model.hold = None);
    assert_eq!(world.end_of(job.id).await.state, JobState::Cancelled);
    let nowhere = Operation::Verify { site: Some("nowhere".parse().unwrap()) };
    assert!(world.start_job(nowhere).await.unwrap_err().is(code::UNKNOWN_SITE));
    world.assert_sane();
}
