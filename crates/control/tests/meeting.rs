//! Who dials whom: what the movers of both sites are told, and what is refused where neither can be dialled.

#![allow(clippy::unwrap_used)]

use control::Control;
use protocol::fault::code;
use protocol::order::{ExchangeRequest, Registration, Role, Wishes};
use protocol::replication::{Peer, Target};
use protocol::rest::Register;

use crate::sites::drive::{World, item, protect};

/// The component registers afresh, and says that it is dialled there.
async fn moves(control: &Control, site: &str, role: Role, address: Option<&str>) {
    let registration = Registration {
        name: format!("{site}-{role}").replace(' ', "-"),
        site: site.parse().unwrap(),
        role,
        address: address.map(str::to_string),
        version: "0".into(),
        platform: "model".into(),
    };
    let certificate_request = identity::Request::make().unwrap().pem;
    control.register(Register { registration, certificate_request }).await.unwrap();
}

async fn told(control: &Control, name: &str) -> Wishes {
    control.exchange(name, ExchangeRequest::default()).await.unwrap().wishes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_can_be_dialled_is_and_where_both_can_the_process_server_dials() {
    let world = World::new().await;
    let control = world.control();
    world.run(protect()).await;
    let (source, target) = ("home-process-server", "cloud-master-target");
    let peer = |name: &str, address: &str| Peer { name: name.into(), address: address.into() };

    moves(&control, "home", Role::ProcessServer, Some("home:2")).await;
    let replications = told(&control, source).await.replications;
    assert_eq!(replications[0].target, Target::Dial(peer(target, "cloud:1")));
    assert_eq!(told(&control, target).await.keepings[0].sender, None);

    moves(&control, "cloud", Role::MasterTarget, None).await;
    let replications = told(&control, source).await.replications;
    assert_eq!(replications[0].target, Target::Await(target.into()));
    assert_eq!(told(&control, target).await.keepings[0].sender, Some(peer(source, "home:2")));
    let other = told(&control, "home-master-target").await.keepings;
    assert_eq!(other[0].sender, None, "nothing comes to where the machine runs");

    // It was started again elsewhere.
    moves(&control, "home", Role::ProcessServer, Some("home:3")).await;
    assert_eq!(told(&control, target).await.keepings[0].sender, Some(peer(source, "home:3")));
    moves(&control, "cloud", Role::MasterTarget, Some("cloud:4")).await;
    assert_eq!(told(&control, source).await.replications[0].target, Target::Dial(peer(target, "cloud:4")));
    assert_eq!(told(&control, target).await.keepings[0].sender, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_movers_that_only_dial_out_are_found_before_anything_begins_in_either_direction() {
    let world = World::new().await;
    let control = world.control();
    for (lonely, friendly) in [("cloud", "home"), ("home", "cloud")] {
        moves(&control, lonely, Role::MasterTarget, None).await;
        moves(&control, friendly, Role::MasterTarget, Some(&format!("{friendly}:1"))).await;
        let fault = world.start_job(protect()).await.unwrap_err();
        assert!(fault.is(code::NO_ADDRESS), "{lonely} cannot be dialled: {fault:?}");
        assert!(control.item(&item()).await.is_err(), "nothing has begun");
    }
    moves(&control, "cloud", Role::ProcessServer, Some("cloud:2")).await;
    world.run(protect()).await;
}
