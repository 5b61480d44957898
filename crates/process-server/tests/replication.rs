//! Process server and master target over a real TCP session: the replica becomes the machine, whatever the line does, and
//! a sender that may not write, or writes onto something else than it believes, is refused.
//!
//! ```text
//!   simulated machine ─► process server ══ wire (cut, held, lying) ══► master target ─► replica (files)
//!            ▲                    └────── a control that decides nothing ──────┘             │
//!            └───────────────────────────── must be equal ──────────────────────────────────┘
//! ```
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use crate::sites::sender::Sender;
use crate::sites::{GENERATION, NAME, SIZES, Sites, TOKEN, disks, key};
use protocol::epoch::EpochTotals;
use protocol::fault::code;
use protocol::{Attempt, BLOCK};

fn at(number: u64) -> Attempt {
    Attempt { generation: GENERATION, number }
}

async fn a_moment(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replica_becomes_the_machine_epoch_by_epoch() {
    let mut sites = Sites::replicating(11).await;
    let first = sites.must_become_equal("after the first copy").await;
    for round in 0..10 {
        for _ in 0..4 {
            sites.scribble(3);
            a_moment(20).await;
        }
        sites.must_become_equal(&format!("after round {round}")).await;
    }
    let last = sites.must_become_equal("at the end").await;
    assert!(last.epochs >= first.epochs + 11, "only {} epochs were sealed", last.epochs);
    assert_eq!(last.moved.read_target, 0, "every base was proven, but something was compared");
    assert!(sites.points().await.len() as u64 >= last.epochs, "a sealed epoch is not a point");
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_cut_and_held_costs_time_and_nothing_else() {
    let mut sites = Sites::replicating(12).await;
    for round in 0..6 {
        for _ in 0..5 {
            sites.scribble(6);
            a_moment(sites.dice.below(30)).await;
            // In every other round something is under way for certain when the line breaks.
            if round % 2 == 0 {
                sites.wire.hold(true);
                sites.wire.has_caught_something().await;
            }
            a_moment(sites.dice.below(60)).await;
            sites.wire.cut();
            sites.wire.hold(false);
        }
        sites.must_become_equal(&format!("after the line was cut in round {round}")).await;
    }
    let status = sites.must_become_equal("at the end").await;
    assert_eq!(status.distrust, None, "every base was proven, but everything was compared");
    sites.end().await;
}

/// Blocks travel in stretches of up to 256 KiB; the words around all of them are less than a block here.
const ON_ITS_WAY: u64 = 5 * BLOCK;

/// What had arrived of a first copy does not travel again when the line comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_copy_that_is_cut_half_way_goes_on_from_there() {
    let mut sites = Sites::prepared(16).await;
    // Over one, so that the line knows what arrived: with several, what came in one may wait for what is held in another.
    sites.connections = 1;
    let content: u64 = SIZES.iter().sum();
    sites.wire.hold_at(content / 2);
    sites.replicate().await;
    while !sites.wire.is_held() {
        a_moment(5).await;
    }
    // The receiver takes over what has reached it.
    a_moment(500).await;
    let arrived = sites.wire.passed();
    assert!(arrived >= content / 2 && arrived < content, "{arrived} of {content} bytes arrived");
    sites.wire.cut();
    sites.wire.hold(false);
    let status = sites.must_become_equal("after the line was cut half-way").await;
    let again = sites.wire.passed().saturating_sub(content);
    eprintln!("{arrived} bytes had arrived when the line was cut, {again} more than the content travelled in all");
    // The stretch that was on its way, and the words around all of them: the same however much had arrived (under 1 % of it
    // from 32 MiB on).
    assert!(again < ON_ITS_WAY, "{again} bytes travelled again of {arrived} that had arrived");
    assert_eq!(status.moved.read_target, 0);
    sites.end().await;
}

/// Nor does what had arrived of any other epoch when the sender dies, whose cut dies with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_had_arrived_of_an_epoch_does_not_travel_again_when_its_sender_is_started_again() {
    let mut sites = Sites::prepared(19).await;
    sites.connections = 1;
    sites.replicate().await;
    sites.must_become_equal("after the first copy").await;
    let content: u64 = SIZES.iter().sum();
    let before = sites.wire.passed();
    sites.wire.hold_at(before + content / 2);
    for (place, size) in SIZES.into_iter().enumerate() {
        let bytes = sites.dice.noise(size);
        sites.home.write(NAME, &key(place), 0, &bytes).unwrap();
    }
    while !sites.wire.is_held() {
        a_moment(5).await;
    }
    a_moment(500).await;
    let arrived = sites.wire.passed() - before;
    assert!(arrived >= content / 2 && arrived < content, "{arrived} of {content} bytes arrived");
    sites.stop_process_server().await;
    sites.wire.cut();
    sites.wire.hold(false);
    sites.start_process_server().await;
    let status = sites.must_become_equal("after the sender was started again").await;
    let again = (sites.wire.passed() - before).saturating_sub(content);
    eprintln!("{arrived} bytes had arrived when the sender ended, {again} more than the content travelled in all");
    assert!(again < ON_ITS_WAY, "{again} bytes travelled again of {arrived} that had arrived");
    let compared = status.first_moved.unwrap();
    assert!(compared.read_target > content / 3, "what had arrived was not looked at: {compared:?}");
    // All of it is hashed, and what differs is read once more.
    let most = content + compared.changed + BLOCK;
    assert!(compared.read_source <= most, "more was read than had changed: {compared:?}");
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_server_that_starts_while_control_is_away_goes_on() {
    let mut sites = Sites::replicating(21).await;
    sites.must_become_equal("after the first copy").await;
    sites.stop_process_server().await;
    sites.control.vanish();
    sites.scribble(50);
    assert_ne!(sites.replica(0), sites.home.content(NAME, &key(0)).unwrap());
    // It has its list, and proves itself with the certificate that it was given before.
    sites.launch_process_server();
    sites.becomes_equal().await;
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_renewed_in_time_and_one_that_cannot_be_ends_nothing() {
    let mut sites = Sites::prepared(25).await;
    sites.control.registers_for(100);
    sites.replicate().await;
    for _ in 0..3 {
        sites.renewed().await;
    }
    sites.must_become_equal("while certificates are renewed").await;
    sites.control.registers_for(0);
    a_moment(300).await;
    sites.scribble(20);
    sites.wire.cut();
    sites.must_become_equal("after control took no registration any more").await;
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_on_the_way_is_noticed_and_sent_again() {
    let sites = Sites::replicating(13).await;
    sites.must_become_equal("after the first copy").await;
    for round in 0..4 {
        sites.wire.lie_once();
        // Until some of it was in the middle of a long enough run of bytes.
        for value in 1.. {
            let bytes = vec![value * 2 + round; 1 << 20];
            sites.home.write(NAME, &key(0), u64::from(round) * 8 * BLOCK, &bytes).unwrap();
            sites.must_become_equal(&format!("after a bit was flipped on the way in round {round}")).await;
            if !sites.wire.is_about_to_lie() {
                break;
            }
            assert!(value < 50, "the wire never got to lie");
        }
    }
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_is_lost_gives_its_changes_to_the_next_and_nothing_is_compared() {
    let mut sites = Sites::replicating(14).await;
    sites.must_become_equal("after the first copy").await;
    for _ in 0..3 {
        for _ in 0..150 {
            sites.scribble(1);
            sites.home.break_cut(NAME).unwrap();
            a_moment(1).await;
        }
        sites.must_become_equal("after cuts were lost").await;
    }
    let status = sites.must_become_equal("at the end").await;
    assert!(sites.faults().contains(code::CAPTURE_LOST.code), "no open cut was lost: {:?}", sites.faults());
    assert_eq!(status.distrust, None, "what a lost cut carried was forgotten: everything had to be compared");
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn movers_that_are_started_again_go_on_where_they_were() {
    let mut sites = Sites::replicating(15).await;
    sites.must_become_equal("after the first copy").await;
    for round in 0..2 {
        sites.scribble(4);
        sites.stop_process_server().await;
        sites.scribble(4);
        sites.start_process_server().await;
        let status = sites.must_become_equal(&format!("after the process server's restart {round}")).await;
        let moved = status.first_moved.unwrap();
        assert!(moved.changed < SIZES[0], "the first epoch after a restart was a whole copy: {moved:?}");
        assert_eq!(status.distrust, None, "the first epoch after a restart was a compare");

        sites.scribble(4);
        sites.stop_master_target().await;
        sites.scribble(4);
        sites.start_master_target().await;
        sites.must_become_equal(&format!("after the master target's restart {round}")).await;
    }
    sites.end().await;
}

/// The change maps are lost, as they are when a host dies: the machine's disks are read, the replica's are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compare_with_a_replica_that_keeps_hashes_reads_nothing_there() {
    let sites = Sites::replicating(17).await;
    sites.must_become_equal("after the first copy").await;
    let content: u64 = SIZES.iter().sum();
    let verified = sites.verified().await;
    assert_eq!((verified.disk_bytes, verified.damage_count), (content, 0), "{verified:?}");
    for (round, written) in [0, 4096].into_iter().enumerate() {
        if written > 0 {
            sites.home.write(NAME, &key(0), 4096, &vec![9; written]).unwrap();
        }
        let before = sites.must_become_equal(&format!("before round {round}")).await.moved;
        sites.home.lose_maps(NAME).unwrap();
        let after = sites.must_become_equal(&format!("after the maps were lost in round {round}")).await.moved;
        assert!(after.read_source - before.read_source > content / 4, "nothing was compared: {before:?} {after:?}");
        // The block that was written in part is hashed as it was and as it is.
        let most = if written == 0 { 0 } else { 2 * BLOCK };
        let read = after.read_target - before.read_target;
        assert!(read <= most, "{read} bytes were read at the replica");
    }
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_byte_that_decays_in_the_replica_is_found_and_named_while_epochs_arrive() {
    let mut sites = Sites::replicating(18).await;
    sites.must_become_equal("after the first copy").await;
    assert_eq!(sites.verified().await.damage_count, 0);
    sites.decay(1, 3 * BLOCK + 17);
    let found = sites.verified().await;
    let [damage] = &found.damage[..] else { panic!("{found:?}") };
    assert_eq!((&damage.disk, damage.extents[0].offset, damage.bytes), (&key(1), 3 * BLOCK, BLOCK), "{damage:?}");
    assert!(damage.newest && damage.why.contains("not hold what was written"), "{damage:?}");
    // As it was again: nothing else is wrong with it.
    sites.decay(1, 3 * BLOCK + 17);
    for _ in 0..3 {
        sites.scribble(4);
        sites.must_become_equal("after the scrub").await;
    }
    assert_eq!(sites.verified().await.damage_count, 0);
    sites.end().await;
}

/// A replica with one point, whose first block of either disk is ones.
async fn one_point(sites: &Sites) -> Sender {
    let mut sender = Sender::dial(sites, TOKEN, GENERATION).await.unwrap();
    sender.open(sites.lineage, at(1), None, disks()).await.unwrap();
    sender.block(0, 0, 1).await;
    sender.block(1, 0, 1).await;
    let totals = sender.totals;
    assert_eq!(sender.seal(at(1), totals).await.unwrap().attempt, at(1));
    sender
}

/// The replica is as [`one_point`] left it.
async fn must_be_untouched(sites: &Sites) {
    assert_eq!(sites.points().await.iter().map(|point| point.attempt).collect::<Vec<_>>(), [at(1)]);
    for place in 0..2 {
        let bytes = sites.replica(place);
        let (first, rest) = bytes.split_at(BLOCK as usize);
        let as_it_was = first.iter().all(|byte| *byte == 1) && rest.iter().all(|byte| *byte == 0);
        assert!(as_it_was, "something of a refused epoch stands on disk {place}");
    }
}

/// After all that, an honest epoch is taken.
async fn must_go_on(sites: Sites) {
    let mut sender = Sender::dial(&sites, TOKEN, GENERATION).await.unwrap();
    sender.open(sites.lineage, at(9), Some(at(1)), disks()).await.unwrap();
    // What an epoch that was refused had written before is gone on with: it is sent again.
    sender.block(0, 0, 1).await;
    sender.block(0, 3, 7).await;
    let totals = sender.totals;
    sender.seal(at(9), totals).await.unwrap();
    assert_eq!(sites.replica(0)[3 * BLOCK as usize], 7);
    sites.end().await;
}

#[tokio::test]
async fn a_sender_without_the_secret_is_refused() {
    let sites = Sites::prepared(21).await;
    drop(one_point(&sites).await);
    for token in ["", "another", &TOKEN[1..]] {
        let refused = Sender::dial(&sites, token, GENERATION).await;
        let Err(fault) = refused else { panic!("a stranger was admitted with {token:?}") };
        assert!(fault.is(code::NOT_AUTHORISED), "{fault:?}");
    }
    must_be_untouched(&sites).await;
    must_go_on(sites).await;
}

#[tokio::test]
async fn an_older_generation_is_refused_even_with_the_secret() {
    let sites = Sites::prepared(22).await;
    drop(one_point(&sites).await);
    for generation in 0..GENERATION {
        let refused = Sender::dial(&sites, TOKEN, generation).await;
        let Err(fault) = refused else { panic!("generation {generation} was admitted after {GENERATION}") };
        assert!(fault.is(code::STALE_GENERATION), "{fault:?}");
    }
    assert!(Sender::dial(&sites, TOKEN, GENERATION + 1).await.is_err(), "nobody granted it yet");
    must_be_untouched(&sites).await;
    must_go_on(sites).await;
}

#[tokio::test]
async fn an_epoch_on_another_base_is_refused_and_leaves_no_trace() {
    let sites = Sites::prepared(23).await;
    drop(one_point(&sites).await);
    for base in [None, Some(at(0)), Some(at(2)), Some(Attempt { generation: GENERATION - 1, number: 1 })] {
        let mut sender = Sender::dial(&sites, TOKEN, GENERATION).await.unwrap();
        let refused = sender.open(sites.lineage, at(3), base, disks()).await;
        let Err(fault) = refused else { panic!("an epoch on {base:?} was opened") };
        assert!(fault.is(code::BASE_MISMATCH), "{fault:?}");
    }
    must_be_untouched(&sites).await;
    must_go_on(sites).await;
}

#[tokio::test]
async fn an_epoch_that_is_not_whole_never_becomes_a_point() {
    let sites = Sites::prepared(24).await;
    let mut sender = one_point(&sites).await;
    // One frame more was counted than came.
    sender.open(sites.lineage, at(2), Some(at(1)), disks()).await.unwrap();
    sender.block(0, 0, 5).await;
    let mut totals: EpochTotals = sender.totals;
    totals.count(BLOCK, 0, 5);
    let Err(fault) = sender.seal(at(2), totals).await else { panic!("an incomplete epoch was sealed") };
    assert!(fault.is(code::TOTALS), "{fault:?}");
    must_be_untouched(&sites).await;
    // A frame in the middle is missing.
    let mut sender = Sender::dial(&sites, TOKEN, GENERATION).await.unwrap();
    sender.open(sites.lineage, at(3), Some(at(1)), disks()).await.unwrap();
    sender.block(0, 0, 5).await;
    sender.lose_one();
    sender.block(0, 2, 5).await;
    let totals = sender.totals;
    let Err(fault) = sender.seal(at(3), totals).await else { panic!("an epoch with a gap was sealed") };
    assert!(fault.is(code::PROTOCOL), "{fault:?}");
    must_go_on(sites).await;
}
