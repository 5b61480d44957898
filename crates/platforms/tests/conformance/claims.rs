//! The claims.

use std::time::Duration;

use platforms::{Start, Stopped};
use protocol::extent::BLOCK;
use protocol::fault::code;
use protocol::machine::DiskFormat::{Qcow2, Raw};
use protocol::machine::Power;
use protocol::position::{Distrust, union};
use protocol::{Attempt, Changes, Lineage};

use crate::bench::{Bench, SCRATCH};
use crate::rig::{Maps, NAME, Rig, SIZE, assert_reads, at, held, known, read};

pub use crate::changes::overlays_go_with_the_description_that_named_them;
pub use crate::folds::{
    a_fold_given_up_at_any_instant_is_finished_by_the_next,
    a_folded_machine_runs_on_its_own_disks_and_knows_every_change,
    a_machine_killed_before_its_fold_starts_from_what_it_stood_on,
};

pub use crate::overlays::{
    a_start_given_up_at_any_instant_is_finished_by_the_next, an_overlay_survives_a_kill_with_a_superset,
    an_overlay_takes_the_writes_and_is_tracked,
};

pub use crate::networks::a_machine_keeps_its_network_cards_and_starts_with_them_connected_to_nothing;

const MIB: u64 = 1 << 20;

pub async fn a_machine_is_defined_found_and_deleted_and_its_own_disks_stay(bench: &dyn Bench) {
    let platform = bench.platform();
    assert!(platform.inventory().await.unwrap().is_empty());
    assert!(platform.machine(NAME).await.unwrap().is_none());
    assert!(platform.start(NAME, Start::default()).await.unwrap_err().is(code::MACHINE_ABSENT));
    assert!(platform.power_off(NAME).await.unwrap_err().is(code::MACHINE_ABSENT));
    let mut rig = Rig::own(bench, &[Raw]).await;
    assert_eq!(rig.power().await, Power::Off);
    assert_eq!(platform.shut_down(NAME, Duration::ZERO).await.unwrap(), Stopped::WasOff);
    assert!(platform.capture(NAME, rig.lineage).await.is_err());
    rig.start().await;
    rig.start().await;
    let mut found = platform.inventory().await.unwrap();
    assert_eq!(found.len(), 1);
    found[0].spec.native.clear();
    assert_eq!((found[0].power, &found[0].spec), (Power::Running, &rig.spec));
    assert!(platform.define(&rig.spec).await.unwrap_err().is(code::MACHINE_RUNNING));
    assert!(platform.delete(NAME).await.unwrap_err().is(code::MACHINE_RUNNING));
    assert!(platform.settle(NAME, rig.lineage).await.unwrap_err().is(code::MACHINE_RUNNING));
    let before = platform.stamps(NAME).await.unwrap();
    rig.write(0, 0, BLOCK, 7).await;
    platform.power_off(NAME).await.unwrap();
    assert!(platform.start(NAME, Start::default()).await.is_err(), "its disks are still held");
    let settled = platform.settle(NAME, rig.lineage).await.unwrap();
    assert_ne!(settled.stamps, before);
    assert_eq!(settled.stamps, platform.stamps(NAME).await.unwrap());
    platform.define(&rig.spec).await.unwrap();
    platform.delete(NAME).await.unwrap();
    platform.delete(NAME).await.unwrap();
    assert!(platform.inventory().await.unwrap().is_empty());
    assert_eq!(bench.read_own(&rig.spec.disks[0].source).await, rig.model[&rig.spec.disks[0].key]);
}

pub async fn a_cut_reads_as_the_disks_were_and_names_exactly_what_changed(bench: &dyn Bench) {
    let mut rig = Rig::own(bench, &[Raw, Qcow2]).await;
    rig.start().await;
    rig.write(0, 0, MIB / 2, 1).await;
    rig.write(1, 3 * MIB, MIB / 2, 2).await;
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), []);
    let first = capture.cut(at(1)).await.unwrap();
    assert_eq!((first.since, &first.changes), (None, &Changes::Unknown(Distrust::MapAbsent)));
    let then = rig.model.clone();
    rig.take_written();
    // Part of a block, blocks that were never written, the last block, the same block twice.
    rig.write(0, 5000, 512, 3).await;
    rig.write(0, SIZE - BLOCK, BLOCK, 3).await;
    rig.write(1, 3 * MIB + BLOCK, BLOCK + 512, 4).await;
    rig.write(1, 3 * MIB + BLOCK, 512, 5).await;
    assert_reads(&first, &then).await;
    assert_eq!(rig.power().await, Power::Running);
    capture.acknowledged(at(1)).await.unwrap();
    assert_eq!(capture.held().await.unwrap(), held(&[(at(1), true)]));

    let expected = rig.take_written();
    let second = capture.cut(at(2)).await.unwrap();
    let then = rig.model.clone();
    rig.write(0, 0, MIB, 6).await;
    rig.write(1, 0, MIB, 6).await;
    assert_eq!((second.since, known(&second.changes)), (Some(at(1)), expected));
    assert!(second.at_ms >= first.at_ms);
    assert_reads(&second, &then).await;
    capture.acknowledged(at(2)).await.unwrap();

    let expected = rig.take_written();
    let third = capture.cut(at(3)).await.unwrap();
    assert_eq!((third.since, known(&third.changes)), (Some(at(2)), expected));
    assert!(read(&second.disks[0]).await.is_err(), "an ended cut cannot be read");
    assert_reads(&third, &rig.model).await;
}

pub async fn a_failed_cut_leaves_its_changes_to_the_next(bench: &dyn Bench) {
    let mut rig = Rig::own(bench, &[Raw, Qcow2]).await;
    rig.start().await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    rig.write(0, 0, BLOCK, 1).await;
    capture.failed().await.unwrap();
    assert_eq!(capture.held().await.unwrap(), [], "a first cut's map counts from nothing durable");
    capture.cut(at(2)).await.unwrap();
    capture.acknowledged(at(2)).await.unwrap();
    rig.take_written();

    for (attempt, offset) in [(3, 0), (4, MIB)] {
        rig.write(0, offset, BLOCK, 3).await;
        rig.write(1, offset, BLOCK, 3).await;
        let cut = capture.cut(at(attempt)).await.unwrap();
        assert_eq!(cut.since, Some(at(2)));
        rig.write(1, offset + 4 * BLOCK, BLOCK, 4).await;
        capture.failed().await.unwrap();
        capture.failed().await.unwrap();
        assert_eq!(capture.held().await.unwrap(), held(&[(at(2), true)]));
        rig.write(0, offset + 4 * BLOCK, BLOCK, 5).await;
    }
    let cut = capture.cut(at(5)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(2)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

pub async fn only_an_acknowledgement_forgets(bench: &dyn Bench) {
    let mut rig = Rig::own(bench, &[Qcow2]).await;
    rig.start().await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.write(0, 0, BLOCK, 1).await;
    let cut = capture.cut(at(2)).await.unwrap();
    assert!(capture.cut(at(3)).await.is_err(), "a cut is open");
    assert_reads(&cut, &rig.model).await;
    capture.release().await.unwrap();
    capture.release().await.unwrap();
    assert_eq!(capture.held().await.unwrap(), held(&[(at(1), false), (at(2), true)]));
    assert!(capture.cut(at(3)).await.is_err(), "the fate of the last cut is open");
    assert!(capture.acknowledged(at(7)).await.is_err(), "nothing counts from 1.7");
    assert_eq!(capture.held().await.unwrap().len(), 2);
    capture.acknowledged(at(2)).await.unwrap();
    capture.acknowledged(at(2)).await.unwrap();
    capture.failed().await.unwrap();
    assert_eq!(capture.held().await.unwrap(), held(&[(at(2), true)]));
    assert!(capture.cut(at(2)).await.is_err(), "an attempt is not used twice");
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(2)), Maps::new()));
}

pub async fn a_successor_sweeps_up_and_loses_nothing(bench: &dyn Bench) {
    let mut rig = Rig::own(bench, &[Raw, Qcow2]).await;
    rig.start().await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.write(0, 0, BLOCK, 1).await;
    let orphan = capture.cut(at(2)).await.unwrap();
    rig.write(1, 0, BLOCK, 2).await;
    drop(capture);

    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), held(&[(at(1), false), (at(2), true)]));
    assert!(read(&orphan.disks[0]).await.is_err(), "the orphaned cut was swept away");
    assert_eq!(rig.power().await, Power::Running);
    capture.failed().await.unwrap();
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    drop(capture);

    // This time the target had it.
    let mut capture = rig.capture().await;
    rig.write(0, MIB, BLOCK, 3).await;
    capture.acknowledged(at(3)).await.unwrap();
    let cut = capture.cut(at(4)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(3)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

pub async fn a_cut_given_up_at_any_instant_loses_nothing(bench: &dyn Bench) {
    let mut rig = Rig::own(bench, &[Raw, Qcow2]).await;
    rig.start().await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    for number in 0..12 {
        rig.write(0, number * BLOCK, BLOCK, 1).await;
        let patience = Duration::from_micros(300 * number * number);
        let _ = tokio::time::timeout(patience, capture.cut(at(2 + number))).await;
        if number % 2 == 0 {
            drop(capture);
            capture = rig.capture().await;
        }
        rig.write(1, number * BLOCK, BLOCK, 2).await;
        capture.failed().await.unwrap();
        assert_eq!(rig.power().await, Power::Running);
    }
    let cut = capture.cut(at(100)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

pub async fn a_full_scratch_costs_the_cut_and_nothing_else(bench: &dyn Bench) {
    let mut rig = Rig::own(bench, &[Raw]).await;
    rig.start().await;
    rig.write(0, 0, 5 * MIB, 1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    rig.write(0, 6 * MIB, BLOCK, 2).await;
    let cut = capture.cut(at(2)).await.unwrap();
    for offset in (0..3 * SCRATCH).step_by(BLOCK as usize) {
        rig.write(0, offset, BLOCK, 3).await;
    }
    assert!(read(&cut.disks[0]).await.is_err(), "what was overwritten without being saved cannot be read");
    assert_eq!(rig.power().await, Power::Running);
    capture.failed().await.unwrap();
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

pub async fn a_guest_whose_power_was_taken_is_held_and_never_wakes(bench: &dyn Bench) {
    let platform = bench.platform();
    let mut rig = Rig::own(bench, &[Raw]).await;
    rig.start().await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.write(0, 0, BLOCK, 1).await;
    // In the middle of a cut: whoever made it may not even notice.
    let cut = capture.cut(at(2)).await.unwrap();
    assert_eq!(platform.power_off(NAME).await.unwrap(), Stopped::PoweredOff);
    assert_eq!(platform.power_off(NAME).await.unwrap(), Stopped::PoweredOff);
    assert_eq!(platform.shut_down(NAME, Duration::ZERO).await.unwrap(), Stopped::PoweredOff);
    assert_eq!(rig.power().await, Power::Held);
    if bench.keeps_cuts() {
        assert_reads(&cut, &rig.model).await;
    } else {
        assert!(read(&cut.disks[0]).await.is_err(), "what cannot be told any more is not told");
    }
    capture.failed().await.unwrap();
    assert!(platform.resume(NAME).await.is_err());
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!(cut.paused, Duration::ZERO);
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(at(3)).await.unwrap();
    assert_eq!(rig.power().await, Power::Held);
    drop(capture);
    let settled = platform.settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, known(&settled.changes)), (Some(at(3)), Maps::new()));
    assert_eq!(rig.power().await, Power::Off);
}

pub async fn the_last_changes_are_exact_whatever_the_format(bench: &dyn Bench) {
    let platform = bench.platform();
    for format in [Raw, Qcow2] {
        let again = bench.tracked(format) == Qcow2;
        let mut rig = Rig::own(bench, &[format, format]).await;
        rig.start().await;
        let mut capture = rig.capture().await;
        capture.cut(at(1)).await.unwrap();
        capture.acknowledged(at(1)).await.unwrap();
        rig.write(0, 2 * MIB, 3 * BLOCK, 1).await;
        // An epoch in flight: its fate is unknown, so its map and the newer one count.
        capture.cut(at(2)).await.unwrap();
        rig.write(1, 5 * MIB, BLOCK, 2).await;
        platform.power_off(NAME).await.unwrap();
        // The capture is still open, as that of a stopped process server would be.
        let settled = platform.settle(NAME, rig.lineage).await.unwrap();
        let written = rig.take_written();
        assert_eq!((settled.since, known(&settled.changes)), (Some(at(1)), written.clone()));
        drop(capture);

        let repeated = platform.settle(NAME, rig.lineage).await.unwrap();
        assert_eq!(repeated.stamps, settled.stamps, "settling does not touch the disks");
        if again {
            assert_eq!((repeated.since, known(&repeated.changes)), (Some(at(1)), written.clone()));
            let stranger = platform.settle(NAME, Lineage::fresh()).await.unwrap();
            assert_eq!((stranger.since, stranger.changes), (None, Changes::Unknown(Distrust::MapAbsent)));
        } else {
            assert_eq!((repeated.since, repeated.changes), (None, Changes::Unknown(Distrust::MapAbsent)));
        }
        for disk in &rig.spec.disks {
            assert!(bench.read_own(&disk.source).await == rig.model[&disk.key]);
        }
        if again {
            // A later run goes on where this one ended.
            rig.start_tracked(3).await;
            rig.write(1, 0, BLOCK, 3).await;
            let mut capture = rig.capture().await;
            assert_eq!(capture.held().await.unwrap(), held(&[(at(1), false), (at(2), true)]));
            capture.failed().await.unwrap();
            let cut = capture.cut(Attempt { generation: 3, number: 1 }).await.unwrap();
            assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), union(&written, &rig.take_written())));
            drop(capture);
            platform.power_off(NAME).await.unwrap();
        }
        platform.settle(NAME, rig.lineage).await.unwrap();
        platform.delete(NAME).await.unwrap();
    }
}

pub async fn a_guest_that_does_not_listen_is_said_to_run_on(bench: &dyn Bench) {
    let rig = Rig::own(bench, &[Raw]).await;
    rig.start().await;
    bench.make_deaf(NAME);
    let fault = bench.platform().shut_down(NAME, Duration::from_millis(300)).await.unwrap_err();
    assert!(fault.is(code::GUEST_IGNORES_SHUTDOWN), "{fault}");
    assert_eq!(rig.power().await, Power::Running);
}

pub async fn a_tracked_start_counts_from_the_first_write(bench: &dyn Bench) {
    let platform = bench.platform();
    let mut rig = Rig::own(bench, &[Raw, Qcow2]).await;
    let mark = Attempt::start_of(3);
    platform.start(NAME, Start { paused: true, track: Some((rig.lineage, mark)) }).await.unwrap();
    assert_eq!(rig.power().await, Power::Paused);
    platform.resume(NAME).await.unwrap();
    platform.resume(NAME).await.unwrap();
    assert_eq!(rig.power().await, Power::Running);
    assert_eq!(platform.changed(NAME, rig.lineage).await.unwrap(), Some(0));
    rig.write(0, 0, BLOCK, 1).await;
    rig.write(1, MIB, BLOCK, 1).await;
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), held(&[(mark, true)]));
    assert_eq!(platform.changed(NAME, rig.lineage).await.unwrap(), Some(2 * BLOCK), "asked while it is captured");
    assert_eq!(platform.changed(NAME, Lineage::fresh()).await.unwrap(), None);
    let cut = capture.cut(mark.next()).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(mark), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(mark.next()).await.unwrap();
    assert_eq!(platform.changed(NAME, rig.lineage).await.unwrap(), Some(0), "what is durable counts no more");
}

pub async fn a_lost_map_is_never_begun_again_from_the_same_mark(bench: &dyn Bench) {
    let platform = bench.platform();
    let mut rig = Rig::own(bench, &[Raw]).await;
    rig.start_tracked(3).await;
    rig.write(0, 0, BLOCK, 1).await;
    if bench.tracked(Raw) == Raw {
        platform.power_off(NAME).await.unwrap();
        platform.settle(NAME, rig.lineage).await.unwrap();
    } else {
        bench.kill(NAME).await;
    }
    rig.start_tracked(3).await;
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), [], "a map since 3.0 would lack the first run's write");
    assert_eq!(capture.cut(Attempt { generation: 3, number: 1 }).await.unwrap().since, None);
    drop(capture);
    platform.power_off(NAME).await.unwrap();
    platform.settle(NAME, rig.lineage).await.unwrap();
    // Neither by being defined anew.
    platform.delete(NAME).await.unwrap();
    platform.define(&rig.spec).await.unwrap();
    rig.start_tracked(3).await;
    assert_eq!(rig.capture().await.held().await.unwrap(), []);
}

pub async fn a_kill_leaves_the_platforms_own_disks_unknown(bench: &dyn Bench) {
    let platform = bench.platform();
    for format in [Raw, Qcow2] {
        let is_kept = bench.tracked(format) == Qcow2;
        let why = if is_kept { Distrust::MapInconsistent } else { Distrust::MapAbsent };
        let mut rig = Rig::own(bench, &[format]).await;
        rig.start_tracked(1).await;
        platform.power_off(NAME).await.unwrap();
        platform.settle(NAME, rig.lineage).await.unwrap();
        // The map, if the format kept it, is now in the image and will be in use.
        rig.start_tracked(1).await;
        rig.write(0, 0, BLOCK, 1).await;
        bench.kill(NAME).await;
        assert_eq!(rig.power().await, Power::Off);
        assert_eq!(platform.power_off(NAME).await.unwrap(), Stopped::WasOff);
        let settled = platform.settle(NAME, rig.lineage).await.unwrap();
        assert_eq!((settled.since, settled.changes), (None, Changes::Unknown(why)));
        rig.start_tracked(1).await;
        let mut capture = rig.capture().await;
        assert_eq!(capture.held().await.unwrap(), []);
        capture.cut(at(9)).await.unwrap();
        capture.acknowledged(at(9)).await.unwrap();
        rig.take_written();
        rig.write(0, MIB, BLOCK, 1).await;
        let cut = capture.cut(at(10)).await.unwrap();
        assert_eq!((cut.since, known(&cut.changes)), (Some(at(9)), rig.take_written()));
        drop(capture);
        platform.power_off(NAME).await.unwrap();
        platform.settle(NAME, rig.lineage).await.unwrap();
        platform.delete(NAME).await.unwrap();
    }
}

pub async fn a_paused_machine_is_cut_and_stays_paused(bench: &dyn Bench) {
    let platform = bench.platform();
    let rig = Rig::own(bench, &[Raw]).await;
    platform.start(NAME, Start { paused: true, track: None }).await.unwrap();
    let mut capture = rig.capture().await;
    let cut = capture.cut(at(1)).await.unwrap();
    assert_eq!(cut.paused, Duration::ZERO);
    assert_reads(&cut, &rig.model).await;
    capture.failed().await.unwrap();
    assert_eq!(rig.power().await, Power::Paused);
    assert_eq!(platform.power_off(NAME).await.unwrap(), Stopped::PoweredOff);
    assert_eq!(rig.power().await, Power::Held);
    assert!(platform.resume(NAME).await.is_err(), "its power was taken");
    drop(capture);
    platform.settle(NAME, rig.lineage).await.unwrap();
    rig.start().await;
    assert_eq!(rig.power().await, Power::Running);
}

pub async fn a_generation_without_disks_of_the_old_one_starts_anew(bench: &dyn Bench) {
    let platform = bench.platform();
    let mut rig = Rig::own(bench, &[Raw]).await;
    rig.start_tracked(1).await;
    rig.write(0, 0, BLOCK, 1).await;
    bench.kill(NAME).await;
    // Somebody brought the disk to a known state and says so with a new generation.
    rig.take_written();
    rig.start_tracked(3).await;
    rig.write(0, MIB, BLOCK, 1).await;
    platform.power_off(NAME).await.unwrap();
    let settled = platform.settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, known(&settled.changes)), (Some(Attempt::start_of(3)), rig.take_written()));
}
