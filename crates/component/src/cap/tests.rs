//! Caps on a clock that stands still until everybody waits.

use protocol::bandwidth::{CapWindow, Day};

use super::*;

/// Monday, 2026-11-23, 00:00 UTC.
const MONDAY: u64 = 1_795_392_000_000;
const MINUTE: Duration = Duration::from_secs(60);

fn flat(bits_per_second: u64) -> Bandwidth {
    Bandwidth { bits_per_second: Some(bits_per_second), ..Bandwidth::default() }
}

/// A cap that begins at that minute of Monday.
fn cap_at(minute: u64, bandwidth: Bandwidth) -> Arc<Cap> {
    let begun = Instant::now();
    let clock = move || MONDAY + minute * 60_000 + begun.elapsed().as_millis() as u64;
    Arc::new(Cap::with_clock(bandwidth, Box::new(clock)))
}

/// How much one who always has something to send can send in a while.
async fn sent(cap: &Cap, within: Duration) -> usize {
    let mut sent = 0;
    let sends = async {
        loop {
            cap.take(PORTION).await;
            sent += PORTION;
        }
    };
    assert!(tokio::time::timeout(within, sends).await.is_err());
    sent
}

fn about(bytes: usize, wanted: f64) {
    assert!((bytes as f64 - wanted).abs() <= wanted * 0.02 + 2.0 * PORTION as f64, "{bytes} instead of {wanted}");
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_is_what_the_cap_allows_and_no_burst_follows_a_pause() {
    let cap = cap_at(0, flat(8_000_000));
    assert_eq!(cap.felt(), None);
    about(sent(&cap, MINUTE).await, 60e6);
    assert_eq!(cap.felt(), Some(8_000_000));
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(cap.felt(), None, "nobody has waited for a while");
    // 20 ms of it, and what is sent in the second.
    about(sent(&cap, Duration::from_secs(1)).await, 1.02e6);
}

#[tokio::test(start_paused = true)]
async fn a_stream_and_no_bursts() {
    let cap = cap_at(0, flat(1_000_000));
    sent(&cap, MINUTE).await;
    cap.take(PORTION).await;
    for _ in 0..50 {
        let before = Instant::now();
        cap.take(PORTION).await;
        let waited = before.elapsed();
        assert!((130..=133).contains(&waited.as_millis()), "{waited:?} for 16 KiB at 1 Mbit/s");
    }
}

#[tokio::test(start_paused = true)]
async fn many_share_a_cap_evenly() {
    let cap = cap_at(0, flat(80_000_000));
    let several = futures::future::join_all((0..5).map(|_| sent(&cap, MINUTE))).await;
    assert!(several.iter().max().unwrap() - several.iter().min().unwrap() <= 2 * PORTION, "{several:?}");
    about(several.iter().sum(), 600e6);
}

#[tokio::test(start_paused = true)]
async fn the_hour_changes_the_cap_also_for_those_who_wait() {
    // 64 kbit until midnight: 2 s for each portion.
    let night =
        CapWindow { days: vec![Day::Mon], from_minute: 23 * 60, to_minute: 24 * 60, bits_per_second: Some(64_000) };
    let cap = cap_at(22 * 60 + 55, Bandwidth { windows: vec![night], ..flat(8_000_000) });
    about(sent(&cap, 5 * MINUTE).await, 300e6);
    about(sent(&cap, 59 * MINUTE).await, 59.0 * 60.0 * 8000.0);
    // A debt of ten hours at that rate.
    cap.owe(10 * 3600 * 8000);
    let before = Instant::now();
    cap.take(PORTION).await;
    // A minute of the slow cap pays little; what is left is paid at the fast one.
    assert!(before.elapsed() < 6 * MINUTE, "{:?}", before.elapsed());
    about(sent(&cap, MINUTE).await, 60e6);
}

#[tokio::test(start_paused = true)]
async fn a_cap_that_is_changed_or_lifted_is_felt_at_once() {
    let cap = cap_at(0, flat(64_000));
    cap.owe(1 << 20);
    let waits = tokio::spawn({
        let cap = cap.clone();
        async move {
            let before = Instant::now();
            cap.take(PORTION).await;
            before.elapsed()
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    cap.set(flat(64_000));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waits.is_finished());
    cap.set(Bandwidth::default());
    assert_eq!(waits.await.unwrap(), Duration::from_secs(2));
    assert_eq!(cap.felt(), None, "there is none any more");
    cap.set(flat(8_000_000));
    about(sent(&cap, MINUTE).await, 60e6 - (1 << 20) as f64);
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_has_taken_nothing_and_holds_nobody_up() {
    let cap = cap_at(0, flat(1_000_000));
    sent(&cap, MINUTE).await;
    for _ in 0..100 {
        let given_up = tokio::time::timeout(Duration::from_millis(1), cap.take(PORTION)).await;
        drop(given_up);
    }
    let before = Instant::now();
    for _ in 0..10 {
        cap.take(PORTION).await;
    }
    assert!(before.elapsed() < Duration::from_millis(1400), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_tighter_of_two_caps_limits_and_who_is_in_a_hurry_is_under_none() {
    let shared = Arc::new(Cap::new(flat(64_000)));
    let throttle = Arc::new(Throttle::new(flat(8_000_000), shared.clone()));
    assert_eq!(throttle.limit(), None);
    for _ in 0..10 {
        throttle.pass(PORTION).await;
    }
    assert_eq!(throttle.limit(), Some(Limit::Shared(64_000)));
    let waits = tokio::spawn({
        let throttle = throttle.clone();
        async move { throttle.pass(PORTION).await }
    });
    tokio::task::yield_now().await;
    let before = Instant::now();
    let hurry = throttle.hurry();
    waits.await.unwrap();
    for _ in 0..1000 {
        throttle.pass(PORTION).await;
        throttle.note(PORTION);
    }
    assert_eq!((before.elapsed(), throttle.limit()), (Duration::ZERO, None));
    drop(hurry);
    shared.set(Bandwidth::default());
    throttle.set(flat(1_000_000));
    for _ in 0..10 {
        throttle.pass(PORTION).await;
    }
    assert_eq!(throttle.limit(), Some(Limit::Own(1_000_000)));
    assert!((900..1400).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_word_does_not_wait_but_is_counted() {
    let throttle = Throttle::new(flat(8_000_000), Arc::new(Cap::new(Bandwidth::default())));
    let before = Instant::now();
    for _ in 0..100 {
        throttle.note(10_000);
    }
    assert_eq!(before.elapsed(), Duration::ZERO);
    throttle.pass(1).await;
    assert!((950..1050).contains(&before.elapsed().as_millis()), "{:?}", before.elapsed());
}
