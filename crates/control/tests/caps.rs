//! Bandwidth caps: who is told of them, in both directions, and what is refused.

#![allow(clippy::unwrap_used)]

use control::{Control, Hooks};
use protocol::bandwidth::{Bandwidth, CapWindow, Day};
use protocol::fault::code;
use protocol::keeping::{ApplyPolicy, Policy, SetPolicy};
use protocol::order::{ExchangeRequest, Wishes};
use protocol::pace::Limit;
use protocol::rest::SetBandwidth;

use crate::sites;
use crate::sites::drive::{World, item, protect};

fn flat(bits_per_second: u64) -> Bandwidth {
    Bandwidth { bits_per_second: Some(bits_per_second), ..Bandwidth::default() }
}

fn set(bandwidth: Bandwidth, preview: bool) -> SetBandwidth {
    SetBandwidth { bandwidth, preview, reason: Some("the backup runs".into()) }
}

/// What the component of that name is told.
async fn told(control: &Control, name: &str) -> Wishes {
    control.exchange(name, ExchangeRequest::default()).await.unwrap().wishes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cap_of_a_policy_is_told_to_whoever_sends_in_both_directions() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    assert_eq!(told(&control, "home-process-server").await.replications[0].bandwidth, Bandwidth::default());
    let policy = Policy { name: "slow".parse().unwrap(), bandwidth: flat(5_000_000), ..Policy::standard() };
    control.set_policy(SetPolicy { policy: policy.clone(), preview: false, reason: None }).await.unwrap();
    let apply = ApplyPolicy { policy: policy.name.clone(), preview: false, reason: None };
    control.apply_policy(&item(), apply).await.unwrap();
    assert_eq!(told(&control, "home-process-server").await.replications[0].bandwidth, flat(5_000_000));
    assert_eq!(told(&control, "cloud-master-target").await.keepings[0].manifest.bandwidth, flat(5_000_000));
    world.run(sites::drive::planned()).await;
    world.run(protocol::rest::Operation::Commit { keep_history: false }).await;
    world.run(sites::drive::reprotect(protocol::order::Sync::Tracked, false)).await;
    assert_eq!(
        told(&control, "cloud-process-server").await.replications[0].bandwidth,
        flat(5_000_000),
        "on the way home"
    );
    // A changed policy is felt by what is under way.
    let faster = Policy { bandwidth: flat(9_000_000), ..policy.clone() };
    control.set_policy(SetPolicy { policy: faster, preview: false, reason: None }).await.unwrap();
    assert_eq!(told(&control, "cloud-process-server").await.replications[0].bandwidth, flat(9_000_000));
    let crawl = Policy { bandwidth: flat(1000), ..policy };
    let refused = control.set_policy(SetPolicy { policy: crawl, preview: false, reason: None }).await.unwrap_err();
    assert!(refused.is(code::BAD_REQUEST) && refused.cause.contains("64kbit"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_server_is_told_its_own_cap_also_by_the_next_control_server() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    let name = "home-process-server";
    let effect = control.set_bandwidth(name, set(flat(2_000_000), true)).await.unwrap();
    assert_eq!((effect.items.as_slice(), effect.already), (&[item()][..], false));
    assert_eq!(told(&control, name).await.bandwidth, Bandwidth::default(), "only looked at");
    control.set_bandwidth(name, set(flat(2_000_000), false)).await.unwrap();
    assert_eq!(told(&control, name).await.bandwidth, flat(2_000_000));
    assert_eq!(told(&control, "cloud-process-server").await.bandwidth, Bandwidth::default());
    assert!(control.set_bandwidth(name, set(flat(2_000_000), false)).await.unwrap().already);
    world.reopen(Hooks::default()).await;
    let control = world.control();
    assert_eq!(told(&control, name).await.bandwidth, flat(2_000_000));
    let shown = control.components().into_iter().find(|component| component.name == name).unwrap();
    assert_eq!(shown.bandwidth, flat(2_000_000));
    let audit = control.audit().await.unwrap();
    let noted = audit.iter().find(|entry| entry.what == "bandwidth of home-process-server set to 2mbit").unwrap();
    assert_eq!(noted.reason.as_deref(), Some("the backup runs"));

    for (who, bandwidth, why) in [
        ("cloud-master-target", flat(2_000_000), "only process servers"),
        ("nobody", flat(2_000_000), "there is no component nobody"),
        (name, flat(1), "makes no sense"),
    ] {
        let refused = control.set_bandwidth(who, set(bandwidth, false)).await.unwrap_err();
        assert!(refused.is(code::BAD_REQUEST) && refused.message.contains(why), "{refused:?}");
    }
    let day = |from_minute| CapWindow { days: vec![Day::Mon], from_minute, to_minute: 700, bits_per_second: None };
    let both = Bandwidth { windows: vec![day(600), day(650)], ..Bandwidth::default() };
    let refused = control.set_bandwidth(name, set(both, false)).await.unwrap_err();
    assert!(refused.cause.contains("mon@10:00-11:40=none and mon@10:50-11:40=none overlap"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quote_says_when_a_cap_is_what_limits() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    world.new_point().await;
    let quote = async || control.quotes(&item()).await.unwrap().remove(0).quote;
    let free = quote().await;
    assert!(free.rate > Some(10_000_000) && free.limit != Some(Limit::Cap), "{free:?}");
    control.set_bandwidth("cloud-process-server", set(flat(8_000_000), false)).await.unwrap();
    assert_eq!(quote().await, free, "nothing is sent from there");
    control.set_bandwidth("home-process-server", set(flat(80_000_000), false)).await.unwrap();
    let capped = quote().await;
    assert_eq!((capped.rate, capped.limit), (Some(10_000_000), Some(Limit::Cap)), "{capped:?}");
    assert_eq!((capped.bytes, capped.moving_ms, capped.downtime), (free.bytes, free.moving_ms, free.downtime));
    assert!(capped.notes.iter().any(|note| note == "the last delta itself is sent under no cap"), "{:?}", capped.notes);
}
