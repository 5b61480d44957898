//! Which addresses a guest is given, when and by whom; and that nothing of it keeps a machine from moving.

#![allow(clippy::unwrap_used)]

use protocol::fault::{Entry, Fault, code};
use protocol::guest::{GuestCard, GuestNetwork, GuestWish, Place, SetItemNetwork};
use protocol::machine::{Connection, NetworkCard, SiteFacts};
use protocol::order::Sync;
use protocol::rest::{FailoverKind, Job, JobState, Operation, Plan, Request, ShutDownFirst};

use crate::sites::drive::{World, failback, item, planned, protect};

const MAC: &str = "52:54:00:00:00:01";
const AWAY: &str = "away:52:54:00:00:00:01=10.2.0.5/24,gateway=10.2.0.1";
const HOME: &str = "home:52:54:00:00:00:01=10.1.0.5/24";
const TEST: &str = "test:52:54:00:00:00:01=10.9.0.5/24";

fn at_home() -> GuestNetwork {
    let card = GuestCard { name: "eth0".into(), mac: MAC.into(), addresses: vec!["10.1.0.5/24".into()] };
    GuestNetwork { at_ms: 1, cards: vec![card] }
}

fn with(addresses: &[&str]) -> Operation {
    let mut protect = protect();
    if let Operation::Protect { addresses: given, .. } = &mut protect {
        given.extend(addresses.iter().map(|text| text.parse().unwrap()));
    }
    protect
}

async fn world(guest: Option<GuestNetwork>) -> World {
    let world = World::new().await;
    world.with(|model| {
        let connection = Connection::Network("lan".into());
        model.home_spec.cards = vec![NetworkCard { mac: MAC.into(), connection }];
        model.facts = Some(SiteFacts { networks: vec!["lan".into(), "lab".into()], pools: vec![] });
        model.guest = guest;
    });
    let told = |world: &World| {
        let sites = world.control().sites();
        sites.iter().filter(|view| view.facts.is_some()).count() == 2
    };
    world.until("the sites told what they have", told).await;
    for _ in 0..500 {
        if !plan(&world, with(&[TEST])).await.checks.iter().any(|check| check.fault.is_some()) {
            return world;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the machine's card is never told");
}

async fn plan(world: &World, operation: Operation) -> Plan {
    world.control().plan(Request { item: item(), operation }).await.unwrap()
}

fn refuses(plan: &Plan, with: &Entry) -> bool {
    plan.checks.iter().any(|check| check.fault.as_ref().is_some_and(|fault| fault.is(with)))
}

fn says(plan: &Plan, words: &str) -> bool {
    plan.checks.iter().any(|check| check.fault.is_none() && check.what.contains(words))
}

fn given(world: &World) -> Vec<(String, GuestWish)> {
    world.with(|model| std::mem::take(&mut model.given))
}

fn wish(addresses: &str) -> GuestWish {
    GuestWish::Addresses(vec![addresses.parse().unwrap()])
}

async fn done(world: &World, operation: Operation) -> Job {
    let job = world.run(operation).await;
    assert_eq!(job.state, JobState::Done, "{job:?}");
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_with_an_agent_gets_what_is_given_away_and_its_own_back_at_home() {
    let world = world(Some(at_home())).await;
    let shown = plan(&world, with(&[AWAY])).await;
    assert!(says(&shown, "has at home: eth0 (52:54:00:00:00:01): 10.1.0.5/24"), "{:?}", shown.checks);
    done(&world, with(&[AWAY])).await;
    assert_eq!(world.control().item_network(&item()).await.unwrap().at_home, Some(at_home()));
    assert!(given(&world).is_empty(), "nothing is given before it moves");

    let moved = done(&world, planned()).await;
    assert_eq!(given(&world), [("web01".to_string(), wish(AWAY))]);
    assert!(moved.figures.guest == ["it has them"] && moved.figures.warnings.is_empty(), "{:?}", moved.figures);
    assert!(world.with(|model| model.raised.clone().unwrap().seed.is_none()), "it has an agent");
    assert!(world.control().item_network(&item()).await.unwrap().changed);

    done(&world, Operation::Commit { keep_history: false }).await;
    let back = done(&world, failback(Sync::Tracked, false, true)).await;
    assert_eq!(given(&world), [("web01".to_string(), GuestWish::Restore)]);
    assert!(back.figures.guest.iter().any(|line| line.contains("what it had at home before")), "{:?}", back.figures);
    assert!(!world.control().item_network(&item()).await.unwrap().changed);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_guest_says_the_move_is_done_and_warns_with_code_and_remedy() {
    let world = world(Some(at_home())).await;
    done(&world, with(&[AWAY])).await;
    let refusal = Fault::new(code::GUEST_RUNS_NOTHING, "the guest runs no program for us", "guest-exec is disabled");
    world.with(|model| model.guest_refuses = Some(refusal));
    let unplanned = FailoverKind::Unplanned { shut_down: ShutDownFirst::Try };
    let moved = done(&world, Operation::Failover { kind: unplanned, point: None }).await;
    let [warning] = &moved.figures.warnings[..] else { panic!("{:?}", moved.figures) };
    assert!(
        warning.is(code::GUEST_RUNS_NOTHING) && warning.remedy.contains("sockeye network apply web01"),
        "{warning:?}"
    );
    let audit = world.control().audit().await.unwrap();
    assert!(audit.iter().any(|entry| entry.what.contains("warning") && entry.what.contains("PLT-018")), "{audit:?}");

    // Its owner lets it run them, and has it done.
    given(&world);
    world.with(|model| model.guest_refuses = None);
    assert_eq!(world.control().apply_item_network(&item()).await.unwrap().told, ["it has them"]);
    assert_eq!(given(&world), [("web01".to_string(), wish(AWAY))]);

    // Home again it has other addresses than before: that is a warning, too.
    done(&world, Operation::Commit { keep_history: false }).await;
    world.with(|model| model.guest.as_mut().unwrap().cards[0].addresses = vec!["10.1.0.77/24".into()]);
    let back = done(&world, failback(Sync::Compare, false, true)).await;
    assert!(back.figures.warnings.iter().any(|fault| fault.is(code::ADDRESSES_DIFFER)), "{:?}", back.figures);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_without_an_agent_reads_a_seed_and_only_with_addresses_for_home_too() {
    let world = world(None).await;
    let refused = plan(&world, with(&[AWAY])).await;
    assert!(refuses(&refused, code::NO_ADDRESSES_HOME), "{:?}", refused.checks);
    done(&world, with(&[AWAY, HOME])).await;
    done(&world, planned()).await;
    let seed = world.with(|model| model.raised.clone().unwrap().seed.unwrap());
    assert!(seed.instance.starts_with("sockeye-web01-away-") && seed.cards == [AWAY.parse().unwrap()], "{seed:?}");
    assert!(given(&world).is_empty(), "nobody is there to be told");
    done(&world, Operation::Commit { keep_history: false }).await;
    done(&world, failback(Sync::Tracked, false, true)).await;
    let home = world.with(|model| model.raised.clone().unwrap().seed.unwrap());
    assert!(home.instance != seed.instance && home.cards == [HOME.parse().unwrap()], "{home:?}");
    assert_eq!(given(&world), [("web01".to_string(), GuestWish::NoSeed)], "its owner's machine has none");
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_that_cannot_be_are_refused_and_those_that_can_be_are_changed_later() {
    let world = world(Some(at_home())).await;
    let stranger = "away:52:54:00:00:00:99=10.2.0.5/24";
    for wrong in [&[stranger][..], &[AWAY, AWAY]] {
        let refused = plan(&world, with(wrong)).await;
        assert!(refuses(&refused, code::BAD_ADDRESSES), "{:?}", refused.checks);
    }
    done(&world, protect()).await;
    let set = async |given: &[&str], preview| {
        let given = given.iter().map(|text| text.parse().unwrap()).collect();
        world.control().set_item_network(&item(), SetItemNetwork { given, preview, reason: None }).await
    };
    assert!(set(&[stranger], false).await.unwrap_err().is(code::BAD_ADDRESSES));
    assert_eq!(set(&[AWAY], true).await.unwrap().given.len(), 1);
    assert!(world.control().item_network(&item()).await.unwrap().given.is_empty(), "it was only shown");
    assert_eq!(set(&[AWAY], false).await.unwrap().at_home, Some(at_home()), "asked when they were given");
    done(&world, planned()).await;
    assert_eq!(given(&world), [("web01".to_string(), wish(AWAY))]);
    // Taken away while they are in force: it has its own back at the next move, and not before.
    assert!(set(&[], false).await.unwrap().changed);
    done(&world, Operation::Commit { keep_history: false }).await;
    done(&world, failback(Sync::Tracked, false, true)).await;
    assert_eq!(given(&world), [("web01".to_string(), GuestWish::Restore)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_stands_on_no_network_of_production_and_has_addresses_only_if_some_are_given_for_it() {
    let world = world(Some(at_home())).await;
    done(&world, with(&[AWAY])).await;
    let test = |network: Option<&str>| Operation::TestFailover { point: None, network: network.map(String::from) };
    for (network, entry) in [("lan", code::NETWORK_OF_PRODUCTION), ("nowhere", code::NO_NETWORK)] {
        let refused = plan(&world, test(Some(network))).await;
        assert!(refuses(&refused, entry), "{network}: {:?}", refused.checks);
    }
    assert!(says(&plan(&world, test(None)).await, "connected to nothing"));
    done(&world, test(None)).await;
    assert!(given(&world).is_empty(), "those of away are not for a test");
    done(&world, Operation::Cleanup {}).await;
    for look in 0.. {
        assert!(look < 1000, "its machine is listed for ever");
        if !refuses(&plan(&world, test(None)).await, code::MACHINE_EXISTS) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }

    let set =
        SetItemNetwork { given: vec![AWAY.parse().unwrap(), TEST.parse().unwrap()], preview: false, reason: None };
    assert_eq!(world.control().set_item_network(&item(), set).await.unwrap().given[1].place, Place::Test);
    done(&world, test(Some("lab"))).await;
    assert_eq!(given(&world), [("web01-test".to_string(), wish(TEST))]);
    assert!(!world.control().item_network(&item()).await.unwrap().changed, "the machine itself is as it was");
}
