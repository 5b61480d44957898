//! What of a machine goes along, which networks it finds, and where it may land when nothing of it is at home.

#![allow(clippy::unwrap_used)]

use protocol::fault::{Entry, code};
use protocol::machine::{Connection, NetworkCard, Pool, SiteFacts};
use protocol::operation::Landing;
use protocol::order::Sync;
use protocol::rest::{FailoverKind, Operation, Plan, Request, ShutDownFirst};

use crate::sites::drive::{World, failback, item, planned, protect};

fn card(network: &str) -> NetworkCard {
    NetworkCard { mac: "52:54:00:00:00:01".into(), connection: Connection::Network(network.into()) }
}

fn pool(name: &str, free: u64, refuses: Option<&str>) -> Pool {
    let folder = Some(format!("/pools/{name}"));
    Pool { name: name.into(), folder, size: 1 << 40, free, refuses: refuses.map(String::from) }
}

fn tells(world: &World, networks: &[&str], pools: Vec<Pool>) {
    let networks = networks.iter().map(|name| (*name).into()).collect();
    world.with(|model| model.facts = Some(SiteFacts { networks, pools }));
}

async fn told(world: &World, site: &str, so: impl Fn(&SiteFacts) -> bool) {
    let is = |world: &World| {
        let sites = world.control().sites();
        sites.iter().any(|view| view.name.as_str() == site && view.facts.as_ref().is_some_and(&so))
    };
    world.until("the site told what it has", is).await;
}

async fn plan(world: &World, operation: Operation) -> Plan {
    world.control().plan(Request { item: item(), operation }).await.unwrap()
}

fn refuses(plan: &Plan, with: &Entry) -> bool {
    plan.checks.iter().any(|check| check.fault.as_ref().is_some_and(|fault| fault.is(with)))
}

fn into(network: &str) -> Operation {
    let mut protect = protect();
    if let Operation::Protect { networks, .. } = &mut protect {
        networks.insert("lan".into(), network.into());
    }
    protect
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_owner_changed_goes_along_and_comes_home_and_cards_find_the_network_in_the_place_of_theirs() {
    let world = World::new().await;
    world.with(|model| model.home_spec.cards = vec![card("lan")]);
    tells(&world, &["dmz"], vec![]);
    told(&world, "cloud", |facts| facts.networks == ["dmz"]).await;
    let mut refused = plan(&world, protect()).await;
    for _ in 0..500 {
        if refuses(&refused, code::NO_NETWORK) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        refused = plan(&world, protect()).await;
    }
    assert!(refuses(&refused, code::NO_NETWORK), "{:?}", refused.checks);
    assert!(refuses(&plan(&world, into("wan")).await, code::NO_NETWORK));
    world.run(into("dmz")).await;

    world.with(|model| model.home_spec.memory_mib = 128);
    let home = "home".parse().unwrap();
    let mut seen = 0;
    while seen != 128 {
        seen = world.control().machines(Some(&home)).await.unwrap()[0].machine.spec.memory_mib;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    world.run(planned()).await;
    let raised = world.with(|model| model.raised.clone().unwrap());
    assert_eq!((raised.memory_mib, raised.cards), (128, vec![card("dmz")]));
    world.run(Operation::Commit { keep_history: false }).await;
    world.run(failback(Sync::Tracked, false, true)).await;
    let raised = world.with(|model| model.raised.clone().unwrap());
    assert_eq!(raised.memory_mib, 128, "home has what its owner gave it");
    // Where the network is gone meanwhile the machine comes up all the same.
    assert_eq!(raised.cards[0].connection, Connection::Nothing);
    world.assert_sane();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_gone_stops_a_planned_failover_and_no_unplanned_one() {
    let world = World::new().await;
    world.with(|model| model.home_spec.cards = vec![card("lan")]);
    world.run(protect()).await;
    tells(&world, &["other"], vec![]);
    told(&world, "cloud", |facts| facts.networks == ["other"]).await;
    let unplanned =
        || Operation::Failover { kind: FailoverKind::Unplanned { shut_down: ShutDownFirst::Try }, point: None };
    let mut both = (plan(&world, planned()).await, plan(&world, unplanned()).await);
    for _ in 0..500 {
        if refuses(&both.0, code::NO_NETWORK) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        both = (plan(&world, planned()).await, plan(&world, unplanned()).await);
    }
    assert!(refuses(&both.0, code::NO_NETWORK), "{:?}", both.0.checks);
    let said = both.1.checks.iter().find(|check| check.what.contains("CONNECTED TO NOTHING")).unwrap();
    assert!(said.fault.is_none() && both.1.checks.iter().all(|check| check.fault.is_none()), "{:?}", both.1.checks);
    world.run(unplanned()).await;
    assert_eq!(world.with(|model| model.raised.clone().unwrap().cards[0].connection.clone()), Connection::Nothing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_landing_is_refused_where_there_is_no_room_or_something_is_there_and_home_without_the_machine_needs_one() {
    let world = World::new().await;
    world.run(protect()).await;
    let landing = |datastore: Option<&str>, site: Option<&str>| {
        let landing = Landing { site: site.map(|site| site.parse().unwrap()), datastore: datastore.map(String::from) };
        Operation::Reprotect { sync: Sync::Full, shut_down: false, no_way_back: false, landing: Some(landing) }
    };
    world.run(planned()).await;
    world.run(Operation::Commit { keep_history: false }).await;
    assert!(refuses(&plan(&world, landing(None, None)).await, code::MACHINE_EXISTS), "the original is there");
    assert!(refuses(&plan(&world, landing(None, Some("cloud"))).await, code::BAD_REQUEST), "it runs there");
    assert!(refuses(&plan(&world, landing(None, Some("moon"))).await, code::NO_COMPONENT));

    world.with(|model| model.site("home").vm = None);
    let home = "home".parse().unwrap();
    while !world.control().machines(Some(&home)).await.unwrap().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(refuses(&plan(&world, failback(Sync::Tracked, false, true)).await, code::NO_ORIGINAL));
    assert!(refuses(&plan(&world, landing(None, None)).await, code::NO_DATASTORE), "nobody told of any");
    tells(
        &world,
        &[],
        vec![pool("full", 1, None), pool("locked", 1 << 30, Some("it is not active")), pool("good", 1 << 30, None)],
    );
    told(&world, "home", |facts| facts.pools.len() == 3).await;
    for named in ["full", "locked", "nowhere"] {
        let refused = plan(&world, landing(Some(named), None)).await;
        assert!(refuses(&refused, code::NO_DATASTORE), "{named}: {:?}", refused.checks);
    }
    for named in [Some("good"), None] {
        let fine = plan(&world, landing(named, None)).await;
        assert!(fine.checks.iter().all(|check| check.fault.is_none()), "{:?}", fine.checks);
        assert!(fine.checks.iter().any(|check| check.what.contains("disks are made on good")), "{:?}", fine.checks);
    }
}
