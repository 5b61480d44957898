//! Application-consistent points: by the policy's interval, on demand, and what is said and kept when the guest's agent does not do it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use platforms::simulated::SimulatedAgent;
use protocol::epoch::PointKind;
use protocol::fault::code;
use protocol::order::{Order, Outcome, Replication};
use protocol::{Fault, Freeze};

use crate::sites::{NAME, PROCESS_SERVER, Sites};

async fn on_demand(sites: &Sites) -> Result<Outcome, Fault> {
    sites.order_source(Order::AppPoint { item: NAME.parse().unwrap() }).await
}

fn wish(sites: &Sites, app_interval_ms: u64) -> Vec<Replication> {
    vec![Replication { app_interval_ms, ..sites.wish(30) }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_s_interval_makes_them_also_while_control_is_away_and_says_when_it_cannot() {
    let mut sites = Sites::prepared(71).await;
    sites.home.set_agent(NAME, SimulatedAgent::HookFails).unwrap();
    sites.control.replicate(PROCESS_SERVER, wish(&sites, 1500));
    sites.start_process_server().await;
    let failing = sites.status("the hook's failure", |status| status.app.fault.is_some() && status.epochs > 2).await;
    assert!(failing.app.fault.unwrap().is(code::GUEST_NOT_FROZEN) && failing.fault.is_none(), "replication goes on");
    let kept = sites.points().await;
    let first = kept.iter().find(|point| point.freeze.is_some()).unwrap();
    let Some(Freeze::Failed { code, cause }) = &first.freeze else { panic!("{first:?}") };
    assert!(code == "PLT-016" && cause.contains("hook") && first.kind == PointKind::CrashConsistent, "{first:?}");
    assert!(kept.iter().any(|point| point.freeze.is_none()), "every epoch asks: {kept:?}");

    sites.home.set_agent(NAME, SimulatedAgent::Ready).unwrap();
    let one = sites.status("one by the interval", |status| status.app.newest.is_some()).await.app;
    assert_eq!((one.newest.as_ref().map(|point| point.kind), &one.fault), (Some(PointKind::AppConsistent), &None));
    let one = one.newest.unwrap();
    assert!(sites.points().await.contains(&one), "the target keeps what the agent did");

    // By the list on its own disk: a process server that is started again makes one, and so on.
    sites.control.vanish();
    sites.stop_process_server().await;
    sites.launch_process_server();
    let before = sites.home.freezes(NAME).unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while sites.home.freezes(NAME).unwrap() < before + 2 {
        assert!(tokio::time::Instant::now() < deadline, "none is made while control is away");
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_on_demand_is_made_whatever_the_policy_says_or_refused_with_the_reason() {
    let sites = Sites::replicating(72).await;
    sites.must_become_equal("before").await;
    assert!(on_demand(&sites).await.unwrap_err().is(code::NO_GUEST_AGENT));
    sites.home.set_agent(NAME, SimulatedAgent::Hung).unwrap();
    assert!(on_demand(&sites).await.unwrap_err().is(code::GUEST_NOT_FROZEN));
    sites.home.set_agent(NAME, SimulatedAgent::Ready).unwrap();
    let Ok(Outcome::Added { point }) = on_demand(&sites).await else { panic!("none was made") };
    assert_eq!(point.kind, PointKind::AppConsistent);
    assert!(matches!(point.freeze, Some(Freeze::Done { file_systems: 1, .. })), "{point:?}");
    assert!(sites.points().await.contains(&point));
    let fewer = sites.points().await.iter().filter(|point| point.freeze.is_some()).count();
    assert_eq!(fewer, 3, "nobody else asked");
    sites.home.set_agent(NAME, SimulatedAgent::Absent).unwrap();
    sites.must_become_equal("after").await;
    // A planned move is as it was: its last point is final, and nobody asks the guest.
    let Outcome::Final { point, .. } = sites.last_epoch().await else { panic!("no final point") };
    assert_eq!((point.kind, point.freeze), (PointKind::Final, None));
    sites.end().await;
}
