//! Claims about machines on overlays over views.

use std::time::Duration;

use platforms::Start;
use protocol::Attempt;
use protocol::extent::BLOCK;
use protocol::fault::code;
use protocol::machine::{DiskSource, Power};
use protocol::position::union;

use crate::bench::{Bench, view};
use crate::rig::{Maps, NAME, Rig, SIZE, assert_reads, covers, held, known};

const MIB: u64 = 1 << 20;

fn pattern() -> Vec<u8> {
    (0..SIZE).map(|at| (at / BLOCK) as u8 | 1).collect()
}

pub async fn an_overlay_takes_the_writes_and_is_tracked(bench: &dyn Bench) {
    let platform = bench.platform();
    let view = view(bench.dir(), pattern()).await;
    let source = |name: &str| DiskSource::OverlayOnView { overlay: name.into(), view: view.uri.to_string() };
    let mut rig = Rig::of(bench, vec![source("a.qcow2"), source("b.qcow2")], pattern()).await;
    rig.start_tracked(2).await;
    let mark = Attempt::start_of(2);
    rig.write(0, 100 * BLOCK + 512, 512, 0xee).await;
    rig.write(1, 0, 2 * BLOCK, 0xdd).await;
    let mut capture = rig.capture().await;
    let cut = capture.cut(mark.next()).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(mark), rig.take_written()));
    rig.model.values().for_each(|content| assert_eq!(content.len() as u64, SIZE));
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(mark.next()).await.unwrap();
    rig.write(0, 0, BLOCK, 0xcc).await;
    drop(capture);
    platform.power_off(NAME).await.unwrap();
    for _ in 0..2 {
        let settled = platform.settle(NAME, rig.lineage).await.unwrap();
        assert_eq!((settled.since, known(&settled.changes)), (Some(mark.next()), rig.written.clone()));
        assert!(settled.stamps.is_empty(), "no disk of it is the platform's own");
    }
    // Throwing the machine away throws its writes away.
    platform.delete(NAME).await.unwrap();
    platform.define(&rig.spec).await.unwrap();
    rig.model.values_mut().for_each(|content| *content = pattern());
    rig.start_tracked(4).await;
    let mut capture = rig.capture().await;
    let cut = capture.cut(Attempt { generation: 4, number: 1 }).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(Attempt::start_of(4)), Maps::new()));
    assert_reads(&cut, &rig.model).await;
}

pub async fn a_start_given_up_at_any_instant_is_finished_by_the_next(bench: &dyn Bench) {
    let platform = bench.platform();
    let view = view(bench.dir(), pattern()).await;
    let source = DiskSource::OverlayOnView { overlay: "a.qcow2".into(), view: view.uri.to_string() };
    let mut rig = Rig::of(bench, vec![source], pattern()).await;
    for generation in 2..14 {
        let mark = Attempt::start_of(generation);
        let how = Start { paused: true, track: Some((rig.lineage, mark)) };
        let most = Duration::from_millis(15 * generation);
        let _ = tokio::time::timeout(most, platform.start(NAME, how.clone())).await;
        while let Err(fault) = platform.start(NAME, how.clone()).await {
            // The QEMU whose launch was given up may have the disks for a moment yet.
            assert!(fault.is(code::DISK_IN_USE), "{fault}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(rig.power().await, Power::Paused);
        let mut capture = rig.capture().await;
        assert_eq!(capture.held().await.unwrap(), held(&[(mark, true)]), "given up after {most:?}");
        platform.resume(NAME).await.unwrap();
        rig.write(0, MIB, BLOCK, 1).await;
        let cut = capture.cut(mark.next()).await.unwrap();
        assert_eq!((cut.since, known(&cut.changes)), (Some(mark), rig.take_written()));
        drop(capture);
        platform.power_off(NAME).await.unwrap();
        platform.settle(NAME, rig.lineage).await.unwrap();
        platform.delete(NAME).await.unwrap();
        platform.define(&rig.spec).await.unwrap();
    }
}

pub async fn an_overlay_survives_a_kill_with_a_superset(bench: &dyn Bench) {
    let platform = bench.platform();
    let view = view(bench.dir(), pattern()).await;
    let source = |name: &str| DiskSource::OverlayOnView { overlay: name.into(), view: view.uri.to_string() };
    let mut rig = Rig::of(bench, vec![source("a.qcow2"), source("b.qcow2")], pattern()).await;
    rig.start_tracked(2).await;
    let mark = Attempt::start_of(2);
    // Nobody flushes this one, but an epoch carries it away: it must be in the overlay all the same.
    rig.write(0, 0, BLOCK, 0xee).await;
    let mut capture = rig.capture().await;
    capture.cut(mark.next()).await.unwrap();
    capture.acknowledged(mark.next()).await.unwrap();
    rig.write(1, MIB, BLOCK, 0xee).await;
    bench.flush(NAME, 1).await;
    drop(capture);
    bench.kill(NAME).await;
    assert_eq!(rig.power().await, Power::Off);
    let all = rig.take_written();
    let settled = platform.settle(NAME, rig.lineage).await.unwrap();
    assert_eq!(settled.since, Some(mark));
    assert!(covers(&known(&settled.changes), &all), "{settled:?}");

    rig.start_tracked(2).await;
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), held(&[(mark, true)]));
    rig.write(0, 4 * MIB, BLOCK, 0xbb).await;
    let all = union(&all, &rig.take_written());
    let next = Attempt { generation: 2, number: 10 };
    let cut = capture.cut(next).await.unwrap();
    assert_eq!(cut.since, Some(mark));
    assert!(covers(&known(&cut.changes), &all));
    assert_reads(&cut, &rig.model).await;
    capture.failed().await.unwrap();
    let cut = capture.cut(next.next()).await.unwrap();
    assert!(covers(&known(&cut.changes), &all), "what is carried stays until it is acknowledged");
    capture.acknowledged(next.next()).await.unwrap();
    rig.write(0, 5 * MIB, BLOCK, 0xaa).await;
    let cut = capture.cut(next.next().next()).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(next.next()), rig.take_written()));
}
