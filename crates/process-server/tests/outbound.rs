//! A master target that nobody can dial: it dials the process server, and everything else is as ever.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use crate::sites::{MASTER_TARGET, NAME, Sites};
use component::link::Link;
use protocol::fault::code;
use protocol::replication::Peer;
use protocol::session::Message;

/// A link to the process server on which somebody of that name offers to take the item's epochs.
async fn offer(sites: &Sites, name: &str) -> Link {
    let peer = Peer { name: "home-process-server".into(), address: sites.wire.address.clone() };
    let mut link = sites.dialler(name).dial(&peer).await.unwrap();
    link.outgoing.say(Message::Offer { item: NAME.parse().unwrap() }).await.unwrap();
    link
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epochs_flow_to_a_master_target_that_only_dials_out() {
    let mut sites = Sites::outbound_only(41).await;
    sites.let_it_dial();
    sites.replicate().await;
    sites.must_become_equal("after the first copy").await;
    for round in 0..5 {
        sites.scribble(40);
        // Cut in the middle of something or between two epochs: the target dials again.
        tokio::time::sleep(Duration::from_millis(sites.dice.below(60))).await;
        sites.wire.cut();
        sites.must_become_equal(&format!("after the line was cut in round {round}")).await;
    }
    sites.stop_master_target().await;
    sites.scribble(40);
    sites.start_master_target().await;
    sites.must_become_equal("after the master target was started again").await;
    sites.stop_process_server().await;
    sites.scribble(40);
    sites.start_process_server().await;
    let status = sites.must_become_equal("after the process server was started again").await;
    assert_eq!(status.distrust, None, "every base was proven, but everything was compared");
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_is_given_an_item_s_epochs() {
    let mut sites = Sites::outbound_only(42).await;
    sites.replicate().await;
    // Certified, but not the one that control named: it hears no hello, and is dropped.
    let mut stranger = offer(&sites, "another-master-target").await;
    let said = tokio::time::timeout(Duration::from_secs(20), stranger.incoming.next()).await.unwrap();
    assert!(matches!(said, Ok(None) | Err(_)), "{said:?}");
    // The right one hears hello.
    let mut link = offer(&sites, MASTER_TARGET).await;
    let hello = tokio::time::timeout(Duration::from_secs(20), link.incoming.message("hello")).await.unwrap();
    assert!(matches!(&hello, Ok(Message::Hello { item, .. }) if item.as_str() == NAME), "{hello:?}");
    drop(link);
    // Until one comes, what is missing is said.
    sites.says(code::LINK).await;
    sites.let_it_dial();
    sites.must_become_equal("after the right one dialled").await;
    sites.end().await;
}
