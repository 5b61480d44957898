//! Long lines: 20 ms and 100 ms each way, 1, 4 and 32 connections, dialled from either end. Everything becomes equal, epochs
//! go on where they were when the line is cut, and an idle session says little.
//!
//! The line delays bytes and does not throttle them (`sites::wire`): what is seen is how often one end waits for the other.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::{Duration, Instant};

use crate::sites::{SIZES, Sites};

/// More than an epoch without changes says, and less than a session that asks and answers all the time.
const IDLE_EPOCH: u64 = 16 << 10;

async fn over_a_line_of(delay: Duration) {
    for outbound_only in [false, true] {
        for connections in [1, 4, 32] {
            let what = format!("{} ms, {connections} connections, outbound {outbound_only}", delay.as_millis());
            one(delay, connections, outbound_only, &what).await;
        }
    }
}

async fn one(delay: Duration, connections: u8, outbound_only: bool, what: &str) {
    let mut sites = match outbound_only {
        true => Sites::outbound_only(u64::from(connections)).await,
        false => Sites::prepared(u64::from(connections)).await,
    };
    sites.wire.lengthen(delay);
    sites.connections = connections;
    if outbound_only {
        // It dials as often as it was told when it was started.
        sites.stop_master_target().await;
        sites.start_master_target().await;
        sites.let_it_dial();
    }
    let began = Instant::now();
    sites.replicate().await;
    sites.must_become_equal(&format!("after the first copy ({what})")).await;
    eprintln!(
        "{what}: {} KiB and the next epoch in {} ms",
        SIZES.iter().sum::<u64>() >> 10,
        began.elapsed().as_millis()
    );
    assert!(sites.wire.dialled() >= u64::from(connections), "{what}: {} connections", sites.wire.dialled());
    for round in 0..2 {
        sites.scribble(20);
        // In the middle of something, or between two epochs.
        tokio::time::sleep(Duration::from_millis(sites.dice.below(6 * delay.as_millis() as u64))).await;
        sites.wire.cut();
        sites.must_become_equal(&format!("after the line was cut in round {round} ({what})")).await;
    }
    let before = (sites.must_become_equal("when nothing is written").await.epochs, sites.wire.passed());
    let dialled = sites.wire.dialled();
    let mut status = sites.seals().await;
    for _ in 0..3 {
        status = sites.seals().await;
    }
    let (epochs, passed) = (status.epochs - before.0, sites.wire.passed() - before.1);
    assert!(epochs >= 4, "{what}: {epochs} epochs");
    assert!(
        passed <= (epochs + 2) * IDLE_EPOCH,
        "{what}: {passed} bytes were said in {epochs} epochs without a change"
    );
    // A master target that dials has one more link up, for the next session; nothing of it may come and go.
    assert_eq!(sites.wire.dialled(), dialled, "{what}: it was dialled again though nothing was cut");
    assert_eq!(status.distrust, None, "{what}: every base was proven, but everything was compared");
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_20_ms_everything_becomes_equal() {
    over_a_line_of(Duration::from_millis(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_100_ms_everything_becomes_equal() {
    over_a_line_of(Duration::from_millis(100)).await;
}
