//! How fast blocks travel: caps that are changed while an epoch is on its way, and what is compressed.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use crate::sites::{NAME, SIZES, Sites, key};
use protocol::order::{Moved, Outcome, ReplicationStatus};
use protocol::replication::{CapOf, Capped};
use protocol::{BLOCK, Bandwidth, PointKind};

/// What [`changed`] makes takes nine minutes at that: whoever has it within a test's patience was let go of.
const SLOW: u64 = 64_000;

fn flat(bits_per_second: u64) -> Bandwidth {
    Bandwidth { bits_per_second: Some(bits_per_second), ..Bandwidth::default() }
}

fn felt(by: CapOf) -> impl Fn(&ReplicationStatus) -> bool {
    move |status| status.capped == Some(Capped { by, bits_per_second: SLOW })
}

/// The guest writes the first disk anew, which does not shrink.
fn changed(sites: &mut Sites) {
    let noise = sites.dice.noise(SIZES[0]);
    sites.home.write(NAME, &key(0), 0, &noise).unwrap();
}

/// The guest has disks that shrink to a hundredth.
fn shrinkable(sites: &Sites) {
    for (place, size) in SIZES.into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size).map(|n| 1 + (n / 1000 % 250) as u8).collect();
        sites.home.write(NAME, &key(place), 0, &bytes).unwrap();
    }
}

fn blocks() -> u64 {
    SIZES.iter().map(|size| size.div_ceil(BLOCK)).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_is_throttled_and_let_go_of_again_in_the_same_session() {
    let mut sites = Sites::replicating(51).await;
    sites.must_become_equal("after the first copy").await;
    let connections = sites.wire.dialled();
    for by in [CapOf::Policy, CapOf::Component] {
        let set = |sites: &mut Sites, bandwidth: Bandwidth| match by {
            CapOf::Policy => {
                sites.bandwidth = bandwidth;
                sites.tell();
            }
            CapOf::Component => sites.cap_all(bandwidth),
        };
        set(&mut sites, flat(SLOW));
        sites.is_told().await;
        changed(&mut sites);
        sites.status("said that a cap limits it", felt(by)).await;
        assert_ne!(sites.replica(0), sites.home.content(NAME, &key(0)).unwrap(), "{by:?}: all of it had arrived");
        set(&mut sites, Bandwidth::default());
        let status = sites.must_become_equal("after the cap was lifted").await;
        assert_eq!((status.capped, status.fault), (None, None));
    }
    assert_eq!(sites.wire.dialled(), connections, "a new session was made");
    sites.end().await;
}

/// A machine stands still for it: what was under way and the last changes go as fast as they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_epoch_and_what_is_before_it_are_under_no_cap() {
    let mut sites = Sites::replicating(52).await;
    sites.must_become_equal("after the first copy").await;
    sites.cap_all(flat(SLOW));
    sites.bandwidth = flat(SLOW);
    sites.tell();
    sites.is_told().await;
    changed(&mut sites);
    sites.status("said that a cap limits it", felt(CapOf::Policy)).await;
    let outcome = sites.last_epoch().await;
    let Outcome::Final { point, .. } = outcome else { panic!("{outcome:?}") };
    assert_eq!(point.kind, PointKind::Final);
    for place in 0..SIZES.len() {
        assert!(sites.replica(place) == sites.home.content(NAME, &key(place)).unwrap(), "disk {place} differs");
    }
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_shrinks_travels_smaller_while_the_line_is_what_limits() {
    let mut sites = Sites::prepared(53).await;
    shrinkable(&sites);
    sites.bandwidth = flat(5_000_000);
    sites.replicate().await;
    let status = sites.must_become_equal("after a first copy over a slow line").await;
    let (content, first) = (SIZES.iter().sum::<u64>(), status.first_moved.unwrap());
    let Moved { sent, saved, blocks_compressed, blocks_plain, .. } = first;
    assert_eq!(blocks_compressed + blocks_plain, blocks(), "{first:?}");
    assert!(sent < content / 2 && blocks_compressed > blocks() / 2, "{first:?}");
    assert!(sent + saved > content, "{first:?}");
    assert!(sites.wire.passed() < content, "{} bytes went over the line", sites.wire.passed());
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_shrink_travels_as_it_is() {
    let mut sites = Sites::prepared(54).await;
    sites.bandwidth = flat(50_000_000);
    sites.replicate().await;
    let first = sites.must_become_equal("after a first copy over a slow line").await.first_moved.unwrap();
    assert_eq!((first.blocks_compressed, first.saved, first.blocks_plain), (0, 0, blocks()), "{first:?}");
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_waits_for_blocks_gets_them_as_they_are() {
    let sites = Sites::replicating(55).await;
    let before = sites.must_become_equal("after the first copy").await.moved;
    for value in 1..20 {
        // One block of each epoch: nothing waits for the line.
        sites.home.write(NAME, &key(0), 0, &[value; BLOCK as usize]).unwrap();
        sites.must_become_equal("after a block was written").await;
    }
    let moved = sites.must_become_equal("at the end").await.moved;
    assert_eq!(moved.blocks_compressed, before.blocks_compressed, "{moved:?}");
    assert!(moved.blocks_plain >= before.blocks_plain + 19, "{moved:?}");
    sites.end().await;
}
