//! Policies and pins: who is kept to what, what the sites are told, and what is refused.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use control::{Control, Hooks};
use protocol::fault::code;
use protocol::keeping::{AddPoint, ApplyPolicy, Keeping, KeepingStatus, PinPoint, Policy, SetPolicy};
use protocol::leaf::LeafSize;
use protocol::order::ExchangeRequest;
use protocol::rest::{Health, Operation};
use protocol::retention::{Retention, Space};
use protocol::stage::{Side, Stage};
use protocol::{Bandwidth, PolicyName};

use crate::sites;
use crate::sites::drive::{World, item, protect};

fn short() -> Policy {
    let retention = Retention { all_for_seconds: 60, then: vec![], app_consistent: None, budget: None };
    Policy {
        name: "short".parse().unwrap(),
        rpo_limit_ms: 5000,
        retention,
        bandwidth: Bandwidth::default(),
        app_interval_ms: 0,
        leaf_bytes: LeafSize::default(),
    }
}

fn set(policy: Policy, preview: bool) -> SetPolicy {
    SetPolicy { policy, preview, reason: Some("because".into()) }
}

fn apply(policy: &str, preview: bool) -> ApplyPolicy {
    ApplyPolicy { policy: policy.parse().unwrap(), preview, reason: None }
}

/// What the master target `name` is to keep, as it is told itself.
async fn told(control: &Control, name: &str) -> Vec<Keeping> {
    control.exchange(name, ExchangeRequest::default()).await.unwrap().wishes.keepings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sites_are_told_what_to_keep_and_hear_of_every_change() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    let standard = control.item(&item()).await.unwrap();
    assert_eq!((standard.policy, standard.rpo_limit_ms), (PolicyName::standard(), 15 * 60 * 1000), "R12");
    for name in ["home-master-target", "cloud-master-target"] {
        let keepings = told(&control, name).await;
        assert_eq!(keepings.len(), 1, "{name}: {keepings:?}");
        assert_eq!((&keepings[0].item, &keepings[0].retention), (&item(), &Retention::default()));
        let manifest = &keepings[0].manifest;
        assert_eq!(
            (manifest.generation, manifest.stage),
            (1, Stage::Protected { runs_at: Side::Home }),
            "{manifest:?}"
        );
        assert_eq!(
            (&*manifest.machine.name, manifest.home.as_str(), manifest.away.as_str()),
            ("web01", "home", "cloud")
        );
    }
    assert!(told(&control, "home-process-server").await.is_empty());

    let effect = control.set_policy(set(short(), false)).await.unwrap();
    assert!(effect.items.is_empty() && !effect.already, "{effect:?}");
    // Points arrive meanwhile.
    let points = async || control.points(&item(), None).await.unwrap().len() as u64;
    let before = points().await;
    let preview = control.apply_policy(&item(), apply("short", true)).await.unwrap();
    let seen = preview.items[0].points.unwrap();
    assert!((before..=points().await).contains(&seen) && preview.items[0].go.is_some(), "{preview:?}");
    assert_eq!(told(&control, "cloud-master-target").await[0].retention, Retention::default(), "only looked at");
    control.apply_policy(&item(), apply("short", false)).await.unwrap();
    assert_eq!(told(&control, "cloud-master-target").await[0].retention, short().retention);
    let view = control.item(&item()).await.unwrap();
    assert_eq!((view.policy, view.rpo_limit_ms), ("short".parse().unwrap(), 5000));
    assert!(control.apply_policy(&item(), apply("short", false)).await.unwrap().already);

    // A changed policy is changed for whoever has it, and is still so after a restart.
    let longer = Retention { all_for_seconds: 90, ..short().retention };
    control.set_policy(set(Policy { retention: longer.clone(), ..short() }, false)).await.unwrap();
    world.reopen(Hooks::default()).await;
    let control = world.control();
    assert_eq!(told(&control, "home-master-target").await[0].retention, longer);
    let names: Vec<String> = control.policies().await.unwrap().iter().map(|policy| policy.name.to_string()).collect();
    assert_eq!(names, ["short", "standard"]);
    let audit = control.audit().await.unwrap();
    let set = audit.iter().find(|entry| entry.what == "policy short set").unwrap();
    assert_eq!(set.reason.as_deref(), Some("because"));
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_without_sense_or_of_an_unknown_name_or_in_use_is_refused_and_nothing_changes() {
    let world = World::new().await;
    let control = world.control();
    let mut senseless = short();
    senseless.retention.then = vec![protocol::retention::Spacing { one_every_seconds: 0, until_seconds: 90 }];
    assert!(control.set_policy(set(senseless, false)).await.unwrap_err().is(code::BAD_REQUEST));
    let instant = Policy { rpo_limit_ms: 0, ..short() };
    assert!(control.set_policy(set(instant, false)).await.unwrap_err().is(code::BAD_REQUEST));
    let restless = Policy { app_interval_ms: 9999, ..short() };
    assert!(control.set_policy(set(restless, false)).await.unwrap_err().is(code::BAD_REQUEST));
    assert_eq!(control.policies().await.unwrap(), [Policy::standard()]);

    let Operation::Protect { machine, from, to, interval_ms, networks, addresses, .. } = protect() else {
        unreachable!()
    };
    let policy = "nightly".parse().unwrap();
    let refused = world
        .start_job(Operation::Protect { machine, from, to, interval_ms, policy, networks, addresses })
        .await
        .unwrap_err();
    assert!(refused.is(code::UNKNOWN_POLICY), "{refused:?}");
    world.run(protect()).await;
    assert!(control.apply_policy(&item(), apply("nightly", false)).await.unwrap_err().is(code::UNKNOWN_POLICY));
    assert!(control.apply_policy(&"web99".parse().unwrap(), apply("standard", false)).await.is_err());

    control.set_policy(set(short(), false)).await.unwrap();
    control.apply_policy(&item(), apply("short", false)).await.unwrap();
    let in_use = control.remove_policy(&"short".parse().unwrap(), None).await.unwrap_err();
    assert!(in_use.is(code::POLICY_IN_USE) && in_use.cause.contains(item().as_str()), "{in_use:?}");
    control.apply_policy(&item(), apply("standard", false)).await.unwrap();
    control.remove_policy(&"short".parse().unwrap(), None).await.unwrap();
    assert!(control.remove_policy(&PolicyName::standard(), None).await.unwrap_err().is(code::POLICY_IN_USE));
    assert!(control.remove_policy(&"short".parse().unwrap(), None).await.unwrap_err().is(code::UNKNOWN_POLICY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_is_pinned_listed_as_pinned_and_unpinned() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    world.new_point().await;
    let pinned = |points: Vec<protocol::keeping::KeptPoint>| -> Vec<_> {
        points.into_iter().filter(|kept| kept.pinned).map(|kept| kept.point.attempt).collect()
    };
    let first = control.points(&item(), None).await.unwrap()[0].point.attempt;
    let wanted = |pinned| PinPoint { pinned, reason: Some("an audit".into()) };
    control.pin(&item(), first, wanted(true), None).await.unwrap();
    assert_eq!(pinned(control.points(&item(), None).await.unwrap()), [first]);
    let added = control.add_point(&item(), AddPoint::default()).await.unwrap();
    assert_eq!(pinned(control.points(&item(), None).await.unwrap()), [first, added.attempt]);
    control.pin(&item(), first, wanted(false), None).await.unwrap();
    assert_eq!(pinned(control.points(&item(), None).await.unwrap()), [added.attempt]);
    // One that must be app-consistent comes from the process server, and is pinned like any other; or from nobody.
    let app = || AddPoint { app: true, reason: None };
    let added = control.add_point(&item(), app()).await.unwrap();
    assert_eq!(added.kind, protocol::PointKind::AppConsistent);
    assert!(pinned(control.points(&item(), None).await.unwrap()).contains(&added.attempt));
    world.with(|model| model.no_agent = true);
    assert!(control.add_point(&item(), app()).await.unwrap_err().is(code::NO_GUEST_AGENT));
    let nowhere = protocol::Attempt { generation: 9, number: 9 };
    assert!(control.pin(&item(), nowhere, wanted(true), None).await.unwrap_err().is(code::POINT_GONE));
    let audit = control.audit().await.unwrap();
    assert!(audit.iter().any(|entry| entry.what.contains("pinned at cloud") && entry.reason.is_some()), "{audit:?}");
    world.run(sites::drive::unplanned(protocol::rest::ShutDownFirst::Try)).await;
    assert!(control.add_point(&item(), AddPoint::default()).await.unwrap_err().is(code::STAGE_REFUSES));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_that_runs_out_of_space_is_seen_and_a_volume_that_is_full_is_critical() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    let status = |space, fault| KeepingStatus {
        item: item(),
        points: 7,
        oldest_cut_at_ms: Some(1),
        journal_bytes: 900 << 20,
        budget_bytes: 1000 << 20,
        space,
        fault,
    };
    let full = protocol::Fault::new(code::NO_SPACE, "the volume is full", "no space left on device");
    for (space, fault, health, words) in [
        (Space::Enough, None, Health::Ok, None),
        (Space::Alarm, None, Health::Warning, Some("900 of 1000 MiB")),
        (Space::Exceeded, None, Health::Warning, Some("before their time")),
        (Space::Exceeded, Some(full), Health::Critical, Some("the volume is full")),
    ] {
        world.with(|model| model.keepings = vec![status(space, fault.clone())]);
        let mut tries = 0;
        loop {
            let view = control.item(&item()).await.unwrap();
            let says = |words: &str| view.health_reason.as_deref().is_some_and(|reason| reason.contains(words));
            if view.health == health && words.is_none_or(says) && view.history == Some(status(space, fault.clone())) {
                break;
            }
            tries += 1;
            assert!(tries < 500, "{space:?}: {:?}, {:?}", view.health, view.health_reason);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
