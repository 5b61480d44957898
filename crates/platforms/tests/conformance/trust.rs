//! Disks that somebody else had in hand while the machine was off: their maps are consistent and wrong, and not believed.

use std::path::PathBuf;

use platforms::Stopped;
use protocol::extent::{BLOCK, BlockMap};
use protocol::machine::DiskFormat::{Qcow2, Raw};
use protocol::machine::{DiskSource, Power};
use protocol::position::Distrust;
use protocol::{Attempt, Changes};

use crate::bench::{self, Bench, QemuBench, qmp, run, view};
use crate::rig::{NAME, Rig, SIZE, assert_reads, at, known};

const MIB: u64 = 1 << 20;

fn image(bench: &QemuBench, place: usize) -> PathBuf {
    bench.dir().join(format!("home{place}.img"))
}

/// Gives the machine's disks content that its maps since 1.1 do not name, one write that they do, and switches it off.
async fn at_rest<'a>(bench: &'a QemuBench) -> Rig<'a> {
    let mut rig = Rig::own(bench, &[Qcow2, Qcow2]).await;
    rig.start_tracked(1).await;
    rig.write(0, 0, MIB, 1).await;
    rig.write(1, 0, MIB, 2).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    drop(capture);
    switch_off(&rig).await;
    for place in 0..2 {
        std::fs::copy(image(bench, place), image(bench, place).with_extension("copy")).unwrap();
    }
    rig.start_tracked(1).await;
    rig.write(0, 4 * MIB, BLOCK, 3).await;
    let mut capture = rig.capture().await;
    capture.cut(at(2)).await.unwrap();
    capture.acknowledged(at(2)).await.unwrap();
    drop(capture);
    rig.take_written();
    rig.write(0, 5 * MIB, BLOCK, 4).await;
    switch_off(&rig).await;
    rig
}

/// Gives what it told about its maps: they are honest so far.
async fn switch_off(rig: &Rig<'_>) -> Changes {
    assert_eq!(rig.bench.platform().power_off(NAME).await.unwrap(), Stopped::PoweredOff);
    let settled = rig.bench.platform().settle(NAME, rig.lineage).await.unwrap();
    settled.changes
}

/// Neither at rest nor when it runs again is anything claimed about the machine's changes; its cut reads as the disks are
/// now; and what is written from then on is tracked.
async fn must_be_compared(mut rig: Rig<'_>, why: Distrust) {
    let settled = rig.bench.platform().settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, settled.changes), (None, Changes::Unknown(why)), "at rest");
    for disk in rig.spec.disks.clone() {
        rig.model.insert(disk.key, rig.bench.read_own(&disk.source).await);
    }
    rig.take_written();
    rig.start_tracked(1).await;
    rig.write(1, 6 * MIB, BLOCK, 5).await;
    let mut capture = rig.capture().await;
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, &cut.changes), (None, &Changes::Unknown(why)), "when it ran again");
    assert_reads(&cut, &rig.model).await;
    // Given up: the next one is no wiser.
    capture.failed().await.unwrap();
    let cut = capture.cut(at(4)).await.unwrap();
    assert_eq!((cut.since, &cut.changes), (None, &Changes::Unknown(why)), "after a cut that was given up");
    capture.acknowledged(at(4)).await.unwrap();
    rig.take_written();
    rig.write(0, 7 * MIB, BLOCK, 6).await;
    let cut = capture.cut(at(5)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(4)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(at(5)).await.unwrap();
    drop(capture);
    // The doubt ends with it: a clean stop is believed again.
    rig.write(0, 0, BLOCK, 7).await;
    switch_off(&rig).await;
    let settled = rig.bench.platform().settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, known(&settled.changes)), (Some(at(5)), rig.take_written()));
}

#[tokio::test]
async fn disks_that_nobody_touched_are_believed() {
    let bench = bench::qemu().await;
    let mut rig = at_rest(&bench).await;
    let settled = bench.platform().settle(NAME, rig.lineage).await.unwrap();
    let written = rig.take_written();
    assert_eq!((settled.since, known(&settled.changes)), (Some(at(2)), written.clone()));
    rig.start_tracked(1).await;
    let cut = rig.capture().await.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(2)), written));
}

#[tokio::test]
async fn a_disk_that_a_program_wrote_past_its_map_is_not_believed() {
    let bench = bench::qemu().await;
    let rig = at_rest(&bench).await;
    // In the middle of the image's data, as a rescue system that mounts it by offset would.
    let told = run("qemu-img", &["map", "--output=json", &image(&bench, 0).to_string_lossy()]).await;
    let map: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let data = map.as_array().unwrap().iter().find(|piece| piece["data"] == true).unwrap();
    let file = std::fs::File::options().write(true).open(image(&bench, 0)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], data["offset"].as_u64().unwrap()).unwrap();
    drop(file);
    assert_eq!(bench.read_own(&rig.spec.disks[0].source).await[0], 9, "the write went somewhere else");
    must_be_compared(rig, Distrust::DiskTouched).await;
}

#[tokio::test]
async fn a_disk_that_a_program_wrote_through_its_format_is_not_believed() {
    let bench = bench::qemu().await;
    let rig = at_rest(&bench).await;
    run("qemu-io", &["-c", &format!("write -P 9 {MIB} {BLOCK}"), &image(&bench, 1).to_string_lossy()]).await;
    must_be_compared(rig, Distrust::DiskTouched).await;
}

#[tokio::test]
async fn a_disk_restored_from_a_copy_is_not_believed_whatever_its_times_say() {
    for how in [&["cp"][..], &["cp", "-p"], &["mv"]] {
        let bench = bench::qemu().await;
        let rig = at_rest(&bench).await;
        let (copy, disk) = (image(&bench, 0).with_extension("copy"), image(&bench, 0));
        if how == ["cp", "-p"] {
            // A copy that was kept with its times, put back with them.
            run("touch", &["-r", &disk.to_string_lossy(), &copy.to_string_lossy()]).await;
        }
        let arguments: Vec<String> = how[1..].iter().map(ToString::to_string).collect();
        let arguments = arguments.into_iter().chain([copy, disk].map(|path| path.to_string_lossy().into_owned()));
        let arguments: Vec<String> = arguments.collect();
        run(how[0], &arguments.iter().map(String::as_str).collect::<Vec<_>>()).await;
        must_be_compared(rig, Distrust::DiskTouched).await;
    }
}

#[tokio::test]
async fn disks_whose_images_were_exchanged_are_not_believed() {
    let bench = bench::qemu().await;
    let rig = at_rest(&bench).await;
    let (one, other, aside) = (image(&bench, 0), image(&bench, 1), bench.dir().join("aside"));
    for (from, to) in [(&one, &aside), (&other, &one), (&aside, &other)] {
        std::fs::rename(from, to).unwrap();
    }
    must_be_compared(rig, Distrust::DiskTouched).await;
    // Or in the machine's description.
    let bench = bench::qemu().await;
    let mut rig = at_rest(&bench).await;
    let sources: Vec<DiskSource> = rig.spec.disks.iter().rev().map(|disk| disk.source.clone()).collect();
    rig.spec.disks.iter_mut().zip(sources).for_each(|(disk, source)| disk.source = source);
    bench.platform().define(&rig.spec).await.unwrap();
    must_be_compared(rig, Distrust::DiskTouched).await;
}

#[tokio::test]
async fn a_disk_that_nobody_saw_being_let_go_of_is_not_believed() {
    let bench = bench::qemu().await;
    let rig = at_rest(&bench).await;
    rig.start_tracked(1).await;
    // As a host does that goes down: QEMU saves its maps, and we are gone already.
    qmp(bench.dir().join("machines").join(NAME).join("life-2.sock"), "quit", serde_json::json!({})).await;
    while rig.power().await != Power::Off {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    must_be_compared(rig, Distrust::DiskTouched).await;
}

#[tokio::test]
async fn a_mark_is_not_believed_on_disks_that_were_touched_since_it_was_given() {
    let bench = bench::qemu().await;
    let mut rig = Rig::own(&bench, &[Raw]).await;
    rig.start_tracked(1).await;
    rig.write(0, 0, MIB, 1).await;
    switch_off(&rig).await;
    // Its last changes are at the target as 1.9, and it is to go on from there: but it is not what it was.
    let file = std::fs::File::options().write(true).open(image(&bench, 0)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4096], 0).unwrap();
    drop(file);
    let track = Some((rig.lineage, at(9)));
    bench.platform().start(NAME, platforms::Start { paused: false, track }).await.unwrap();
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), []);
    let cut = capture.cut(at(10)).await.unwrap();
    assert_eq!((cut.since, cut.changes), (None, Changes::Unknown(Distrust::DiskTouched)));
}

#[tokio::test]
async fn an_overlay_restored_from_a_copy_is_not_believed_to_hold_what_was_written_since() {
    let bench = bench::qemu().await;
    let view = view(bench.dir(), vec![9; SIZE as usize]).await;
    let source = DiskSource::OverlayOnView { overlay: "a.qcow2".into(), view: view.uri.to_string() };
    let mut rig = Rig::of(&bench, vec![source], vec![9; SIZE as usize]).await;
    let overlay = bench.dir().join("machines").join(NAME).join("overlays/a.qcow2");
    rig.start_tracked(2).await;
    rig.write(0, 0, BLOCK, 1).await;
    switch_off(&rig).await;
    std::fs::copy(&overlay, bench.dir().join("copy")).unwrap();
    rig.start_tracked(2).await;
    rig.write(0, MIB, BLOCK, 2).await;
    let both: BlockMap = rig.take_written().remove(&rig.spec.disks[0].key).unwrap();
    let Changes::Known(maps) = switch_off(&rig).await else { panic!("an untouched overlay is believed") };
    assert!(maps[&rig.spec.disks[0].key].covers(&both));
    // In place: it is the same file.
    std::fs::copy(bench.dir().join("copy"), &overlay).unwrap();
    rig.model.values_mut().for_each(|bytes| bytes[MIB as usize..(MIB + BLOCK) as usize].fill(9));
    let settled = bench.platform().settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, settled.changes), (None, Changes::Unknown(Distrust::DiskTouched)));
    rig.start_tracked(2).await;
    let mut capture = rig.capture().await;
    let cut = capture.cut(Attempt { generation: 2, number: 7 }).await.unwrap();
    assert_eq!((cut.since, &cut.changes), (None, &Changes::Unknown(Distrust::DiskTouched)));
    assert_reads(&cut, &rig.model).await;
}
