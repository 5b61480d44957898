//! Claims about folding: a machine on overlays gets its own disks back while it runs.

use std::time::Duration;

use protocol::Attempt;
use protocol::extent::BLOCK;
use protocol::fault::code;
use protocol::machine::DiskFormat::{Qcow2, Raw};
use protocol::machine::{DiskSource, DiskSpec, Power};

use crate::bench::{Bench, View, view};
use crate::rig::{NAME, Rig, SIZE, assert_reads, covers, held, known};

/// A machine on overlays over a view, and the disks of its own that hold what the view does, one of each format.
async fn on_overlays<'a>(bench: &'a dyn Bench) -> (Rig<'a>, Vec<DiskSpec>, View) {
    let platform = bench.platform();
    let mut home = Rig::own(bench, &[Raw, Qcow2]).await;
    home.start_tracked(1).await;
    for place in 0..2 {
        for block in [0, 1, 7, 64, 100] {
            home.write(place, block * BLOCK, BLOCK, block as u8 + 1).await;
        }
    }
    platform.power_off(NAME).await.unwrap();
    platform.settle(NAME, home.lineage).await.unwrap();
    let content = bench.read_own(&home.spec.disks[0].source).await;
    assert!(content == bench.read_own(&home.spec.disks[1].source).await);
    let own = home.spec.disks.clone();
    let view = view(bench.dir(), content.clone()).await;
    let source = |name: &str| DiskSource::OverlayOnView { overlay: name.into(), view: view.uri.to_string() };
    let lineage = home.lineage;
    // One in the machine's own folder, one where a master target keeps them.
    let elsewhere = bench.dir().join("raised").join("b.qcow2").display().to_string();
    let mut rig = Rig::of(bench, vec![source("a.qcow2"), source(&elsewhere)], content).await;
    rig.lineage = lineage;
    (rig, own, view)
}

/// The machine stands on its own disks, runs, and says exactly what it wrote since `since`.
async fn assert_folded(rig: &mut Rig<'_>, own: &[DiskSpec], since: Attempt, exactly: bool) {
    let platform = rig.bench.platform();
    let machine = platform.machine(NAME).await.unwrap().unwrap();
    assert_eq!((machine.power, machine.spec.disks.as_slice()), (Power::Running, own));
    rig.write(0, 9 * BLOCK, 512, 0x99).await;
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), held(&[(since, true)]));
    let cut = capture.cut(since.next()).await.unwrap();
    let (told, written) = (known(&cut.changes), rig.take_written());
    assert!(covers(&told, &written) && (!exactly || told == written), "{told:?} is told, {written:?} was written");
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(since.next()).await.unwrap();
    drop(capture);
    platform.power_off(NAME).await.unwrap();
    platform.settle(NAME, rig.lineage).await.unwrap();
    for disk in own {
        assert!(rig.bench.read_own(&disk.source).await == rig.model[&disk.key], "{} is not what was written", disk.key);
    }
}

pub async fn a_folded_machine_runs_on_its_own_disks_and_knows_every_change(bench: &dyn Bench) {
    let platform = bench.platform();
    let (mut rig, own, view) = on_overlays(bench).await;
    rig.start_tracked(2).await;
    rig.write(0, 3 * BLOCK + 512, 1024, 0xa1).await;
    rig.write(1, 64 * BLOCK, 2 * BLOCK, 0xa2).await;
    assert!(platform.fold(NAME, rig.lineage).await.is_err(), "it stands on a view yet");
    let capture = rig.capture().await;
    assert!(platform.stand_on(NAME, &own).await.unwrap_err().is(code::CAPTURED));
    drop(capture);
    for _ in 0..2 {
        platform.stand_on(NAME, &own).await.unwrap();
    }
    drop(view);
    rig.write(0, 7 * BLOCK, BLOCK, 0xa3).await;
    for _ in 0..2 {
        platform.fold(NAME, rig.lineage).await.unwrap();
    }
    rig.write(1, SIZE - BLOCK, BLOCK, 0xa4).await;
    assert_folded(&mut rig, &own, Attempt::start_of(2), true).await;
}

pub async fn a_machine_killed_before_its_fold_starts_from_what_it_stood_on(bench: &dyn Bench) {
    let platform = bench.platform();
    let (mut rig, own, view) = on_overlays(bench).await;
    rig.start_tracked(2).await;
    rig.write(0, 3 * BLOCK, BLOCK, 0xb1).await;
    platform.stand_on(NAME, &own).await.unwrap();
    drop(view);
    rig.write(1, 5 * BLOCK, BLOCK, 0xb2).await;
    for place in 0..2 {
        bench.flush(NAME, place).await;
    }
    bench.kill(NAME).await;
    assert!(platform.fold(NAME, rig.lineage).await.is_err(), "it does not run");
    rig.start_tracked(2).await;
    platform.fold(NAME, rig.lineage).await.unwrap();
    // What the overlays held when QEMU died is a superset of what was written.
    assert_folded(&mut rig, &own, Attempt::start_of(2), false).await;
}

pub async fn a_fold_given_up_at_any_instant_is_finished_by_the_next(bench: &dyn Bench) {
    let platform = bench.platform();
    let (mut rig, own, _view) = on_overlays(bench).await;
    rig.start_tracked(2).await;
    rig.write(0, 0, 40 * BLOCK, 0xc1).await;
    rig.write(1, 30 * BLOCK, 20 * BLOCK, 0xc2).await;
    for most in [0, 1, 2, 4, 8, 16, 32, 64, 10_000] {
        if let Ok(done) = tokio::time::timeout(Duration::from_millis(most), platform.stand_on(NAME, &own)).await {
            done.unwrap();
        }
    }
    for most in [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 64, 80, 100, 20_000] {
        if let Ok(done) = tokio::time::timeout(Duration::from_millis(most), platform.fold(NAME, rig.lineage)).await {
            done.unwrap();
        }
    }
    assert_folded(&mut rig, &own, Attempt::start_of(2), true).await;
}
