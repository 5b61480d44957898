//! What a process server says of its pace is what its epochs did, and an interval that becomes another one is gone by at
//! once.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use crate::sites::{NAME, PATIENCE, PROCESS_SERVER, SIZES, Sites};
use protocol::order::{Order, Outcome, ReplicationStatus};
use protocol::pace::TELLING;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_are_those_of_the_epochs_that_were_sealed() {
    let mut sites = Sites::replicating(41).await;
    let first = sites.must_become_equal("after the first copy").await;
    let content: u64 = SIZES.iter().sum();
    let pace = first.pace;
    assert!(content >= TELLING && pace.carried >= TELLING && pace.carried <= content, "{pace:?} of {content}");
    let parts = pace.reading_us + pace.sending_us;
    assert!(pace.carrying_us >= parts && pace.taking_us > 0, "the parts lie within the whole: {pace:?}");
    assert!(pace.rate().is_some() && pace.limit().is_some(), "{pace:?}");
    // A quiet guest changes nothing, which is measured too.
    let told = |status: &ReplicationStatus| status.pace.last_us.is_some();
    let quiet = sites.control.status(PROCESS_SERVER, "three deltas", told).await;
    assert_eq!((quiet.pace.change_rate(), quiet.pace.last_bytes), (Some(0), Some(0)), "{:?}", quiet.pace);
    assert_eq!(quiet.pace.carried, pace.carried, "small epochs say nothing of how fast bytes go");
    let wrote = |status: &ReplicationStatus| status.pace.changed > 0 && status.pace.last_bytes > Some(0);
    let (mut busy, begun) = (quiet, Instant::now());
    // Again and again: a delta is among the last three for a tenth of a second only.
    while !wrote(&busy) {
        assert!(begun.elapsed() < PATIENCE, "never a delta with something in it: {:?}", busy.pace);
        sites.scribble(20);
        tokio::time::sleep(Duration::from_millis(20)).await;
        busy = sites.control.status(PROCESS_SERVER, "any", |_| true).await;
    }
    assert!(busy.pace.change_rate() > Some(0), "{:?}", busy.pace);
    assert!(busy.pace.changed >= busy.pace.last_bytes.unwrap(), "{:?}", busy.pace);
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_is_due_in_an_hour_comes_at_once_when_it_is_wanted_sooner() {
    let mut sites = Sites::replicating(42).await;
    let before = sites.must_become_equal("after the first copy").await.epochs;
    sites.control.replicate(PROCESS_SERVER, vec![sites.wish(3_600_000)]);
    // It takes the list over, ends the epoch that it is at, and waits.
    let mut seen = before;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let epochs = sites.control.status(PROCESS_SERVER, "any", |_| true).await.epochs;
        if epochs == seen {
            break;
        }
        seen = epochs;
    }
    sites.scribble(5);
    sites.control.replicate(PROCESS_SERVER, vec![sites.wish(30)]);
    sites.must_become_equal("after the interval became short again").await;
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_machine_changed_is_told_to_whoever_asks() {
    let sites = Sites::replicating(43).await;
    sites.must_become_equal("after the first copy").await;
    let (machine, lineage) = (NAME.to_string(), sites.lineage);
    let order = Order::TellChanged { machine, lineage };
    match sites.control.order(PROCESS_SERVER, order).await.unwrap() {
        Outcome::Changed { bytes: Some(bytes) } => assert_eq!(bytes, 0, "what is durable counts no more"),
        other => panic!("{other:?}"),
    }
    sites.end().await;
}
