//! What is true of QEMU only: its traps, and the ways in which our own processes can fail it.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use nbd::{Client, Options};
use platforms::{Start, Stopped};
use protocol::extent::BLOCK;
use protocol::fault::code;
use protocol::machine::DiskFormat::{Qcow2, Raw};
use protocol::machine::{DiskSource, Power};
use protocol::{Attempt, Changes};
use serde_json::json;
use tokio::net::UnixStream;

use crate::bench::{self, Bench, qmp, view};
use crate::rig::{NAME, Rig, SIZE, assert_reads, at, known};

const MIB: u64 = 1 << 20;

/// The folder of the rig's machine.
fn folder(bench: &dyn Bench) -> std::path::PathBuf {
    bench.dir().join("machines").join(NAME)
}

/// Waits until the firmware has reset the machine's first disk and drives it.
async fn firmware_drives(folder: &Path) {
    let device = json!({ "path": "/machine/peripheral/dev-0/virtio-backend" });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let said = qmp(folder.join("life-1.sock"), "x-query-virtio-status", device.clone()).await;
        if said["status"].to_string().contains("DRIVER_OK") {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{said}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `stop`, many things to do, `cont`: what a cut looks like to QEMU.
fn burst() -> Vec<u8> {
    let mut lines = vec![json!({ "execute": "stop" })];
    for n in 0..60 {
        lines.push(json!({ "execute": "blockdev-add", "arguments": { "driver": "null-co", "node-name": format!("n{n}"), "size": 512 } }));
    }
    for n in 0..60 {
        lines.push(json!({ "execute": "blockdev-del", "arguments": { "node-name": format!("n{n}") } }));
    }
    lines.push(json!({ "execute": "cont" }));
    lines.iter().flat_map(|line| (line.to_string() + "\n").into_bytes()).collect()
}

/// Whether QEMU is done with a burst: the guest runs, and none of the nodes is left.
async fn burst_is_done(folder: &Path) -> bool {
    let status = qmp(folder.join("life-1.sock"), "query-status", json!({})).await;
    let nodes = qmp(folder.join("life-1.sock"), "query-named-block-nodes", json!({ "flat": true })).await;
    let left = nodes
        .as_array()
        .unwrap()
        .iter()
        .any(|node| node["node-name"].as_str().is_some_and(|name| name.starts_with('n')));
    status["running"] == true && !left
}

#[tokio::test]
async fn a_client_that_dies_or_stands_still_after_its_one_write_leaves_no_guest_paused() {
    let bench = bench::qemu().await;
    let rig = Rig::own(&bench, &[Raw]).await;
    rig.start().await;
    drop(rig.capture().await);
    let folder = folder(&bench);
    for dies in [true, true, true, false] {
        let bytes = burst();
        assert!(bytes.len() < 64 * 1024);
        // Nobody reads the replies. Opening for reading and writing never waits for the other side.
        let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(folder.join("capture.in")).unwrap();
        assert_eq!(fifo.write(&bytes).unwrap(), bytes.len());
        let fifo = if dies { None } else { Some(fifo) };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !burst_is_done(&folder).await {
            assert!(tokio::time::Instant::now() < deadline, "the burst was torn");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        drop(fifo);
        // And a successor finds its way through the replies that nobody read.
        let mut capture = rig.capture().await;
        assert_eq!(capture.held().await.unwrap(), []);
    }
}

#[tokio::test]
async fn a_client_that_stands_still_on_a_monitor_does_not_keep_others_from_the_power() {
    let bench = bench::qemu().await;
    let rig = Rig::own(&bench, &[Raw]).await;
    rig.start().await;
    let _stopped = UnixStream::connect(folder(&bench).join("life-0.sock")).await.unwrap();
    let _capturing = rig.capture().await;
    assert_eq!(bench.platform().power_off(NAME).await.unwrap(), Stopped::PoweredOff);
    bench.platform().settle(NAME, rig.lineage).await.unwrap();
    assert_eq!(rig.power().await, Power::Off);
}

#[tokio::test]
async fn a_guest_that_stands_still_for_a_cut_runs_and_nobody_wakes_it() {
    let bench = bench::qemu().await;
    let rig = Rig::own(&bench, &[Raw]).await;
    rig.start().await;
    let life = folder(&bench).join("life-1.sock");
    qmp(life.clone(), "stop", json!({})).await;
    let cutter = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let status = qmp(life.clone(), "query-status", json!({})).await;
        qmp(life.clone(), "cont", json!({})).await;
        status["running"] == true
    };
    let platform = bench.platform();
    let (woken, started, resumed, settled, power) = tokio::join!(
        cutter,
        platform.start(NAME, Start::default()),
        platform.resume(NAME),
        platform.settle(NAME, rig.lineage),
        rig.power()
    );
    assert!(!woken, "the filter would have missed a write");
    assert_eq!((started, resumed, power), (Ok(()), Ok(()), Power::Running));
    assert!(settled.unwrap_err().is(code::MACHINE_RUNNING));

    // One that really is paused goes on, though not as long as somebody cuts it.
    qmp(life.clone(), "stop", json!({})).await;
    let lock = std::fs::File::open(folder(&bench).join("cut.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(4), platform.resume(NAME)).await.is_err());
    drop(lock);
    platform.resume(NAME).await.unwrap();
    assert_eq!(rig.power().await, Power::Running);
}

#[tokio::test]
async fn reads_within_the_limit_are_right_and_longer_ones_are_why_there_is_one() {
    let bench = bench::qemu().await;
    let mut rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start().await;
    rig.write(0, 0, SIZE / 2, 1).await;
    let mut capture = rig.capture().await;
    let cut = capture.cut(at(1)).await.unwrap();
    let then = rig.model.clone();
    for block in (1..20).step_by(2) {
        rig.write(0, block * BLOCK, BLOCK / 2, 2).await;
    }
    assert_reads(&cut, &then).await;
    let client = Client::connect(&cut.disks[0].export, &Options::default()).await.unwrap();
    let long = client.read(0, 4 * MIB as u32).await.unwrap();
    let lies = long.iter().filter(|byte| **byte != 1).count();
    // Not asserted: a newer QEMU may be right. The limit is what the contract rests on.
    eprintln!("a read of 4 MiB through this QEMU's snapshot-access returned {lies} bytes from after the cut");
}

#[tokio::test]
async fn a_discard_is_a_change_and_is_saved_before_it_happens() {
    let bench = bench::qemu().await;
    let view = view(bench.dir(), vec![9; SIZE as usize]).await;
    let overlay = DiskSource::OverlayOnView { overlay: "a.qcow2".into(), view: view.uri.to_string() };
    let sources = vec![bench.own("a.img", Raw, SIZE).await, bench.own("b.img", Qcow2, SIZE).await, overlay];
    let mut rig = Rig::of(&bench, sources, vec![0; SIZE as usize]).await;
    rig.model.values_mut().last().unwrap().fill(9);
    rig.start().await;
    for place in 0..3 {
        rig.write(place, 0, MIB / 2, 1).await;
    }
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    let cut = capture.cut(at(2)).await.unwrap();
    let then = rig.model.clone();
    for place in 0..3 {
        bench.io(NAME, place, &format!("discard 0 {}", 2 * BLOCK)).await;
        bench.io(NAME, place, &format!("write -z -u {} {BLOCK}", 4 * BLOCK)).await;
        // What is below the overlay's own data must not come to light either.
        bench.io(NAME, place, &format!("discard {MIB} {BLOCK}")).await;
        for (offset, length) in [(0, 2 * BLOCK), (4 * BLOCK, BLOCK), (MIB, BLOCK)] {
            rig.wrote(place, offset, length, 0);
        }
    }
    assert_reads(&cut, &then).await;
    capture.acknowledged(at(2)).await.unwrap();
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(2)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

#[tokio::test]
async fn a_disk_that_another_program_writes_is_refused() {
    let bench = bench::qemu().await;
    let rig = Rig::own(&bench, &[Qcow2]).await;
    let DiskSource::Own { path, .. } = &rig.spec.disks[0].source else { panic!("it is its own") };
    let settings = nbd::qemu_nbd::Settings::file(
        bench.dir().join(path),
        nbd::qemu_nbd::Format::Qcow2,
        bench.dir().join("other.sock"),
    );
    let other = nbd::QemuNbd::start(&settings).await.unwrap();
    let fault = bench.platform().start(NAME, Start::default()).await.unwrap_err();
    assert!(fault.is(code::DISK_IN_USE), "{fault:?}");
    assert_eq!(rig.power().await, Power::Off);
    other.stop().await.unwrap();
    rig.start().await;
}

#[tokio::test]
async fn a_machine_whose_view_is_not_served_is_not_cut_and_its_guest_not_stopped() {
    let bench = bench::qemu().await;
    let view = view(bench.dir(), vec![9; SIZE as usize]).await;
    let source = DiskSource::OverlayOnView { overlay: "a.qcow2".into(), view: view.uri.to_string() };
    let rig = Rig::of(&bench, vec![source], vec![9; SIZE as usize]).await;
    rig.start_tracked(2).await;
    let mut capture = rig.capture().await;
    drop(view);
    let mark = Attempt::start_of(2);
    let fault = capture.cut(mark.next()).await.unwrap_err();
    assert!(fault.is(code::HYPERVISOR) && fault.cause.contains("not served"), "{fault:?}");
    assert_eq!(rig.power().await, Power::Running);
    let _view = bench::view(bench.dir(), vec![9; SIZE as usize]).await;
    let cut = capture.cut(mark.next().next()).await.unwrap();
    assert_eq!(cut.since, Some(mark));
    // QEMU comes back to the view by itself.
    assert_reads(&cut, &rig.model).await;
}

#[tokio::test]
async fn a_hung_scratch_costs_the_cut_and_not_the_guest() {
    // The scratch is a qcow2 on a file that its own program holds: a qemu-nbd, which is then stopped.
    let bench = bench::qemu().await;
    let mut rig = Rig::own(&bench, &[Raw]).await;
    rig.start().await;
    // A device that is reset waits for all that goes on below it, the copy into the scratch too: its firmware has done so.
    firmware_drives(&folder(&bench)).await;
    rig.write(0, 0, MIB, 1).await;
    rig.take_written();
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();

    let image = bench.dir().join("scratch.qcow2");
    let made = tokio::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&image)
        .arg(SIZE.to_string())
        .status()
        .await;
    assert!(made.unwrap().success());
    let settings =
        nbd::qemu_nbd::Settings::file(&image, nbd::qemu_nbd::Format::Qcow2, bench.dir().join("scratch.sock"));
    let scratch = nbd::QemuNbd::start(&settings).await.unwrap();
    let pid = rustix::process::Pid::from_raw(scratch.pid().unwrap().cast_signed()).unwrap();
    let life = folder(&bench).join("life-1.sock");
    // The nodes of an open cut under the names that a cut gives them, so that the sweep of the next one finds them.
    let server = json!({ "type": "unix", "path": bench.dir().join("scratch.sock") });
    for (command, arguments) in [
        ("blockdev-add", json!({ "driver": "nbd", "node-name": "fleece-0", "server": server })),
        ("stop", json!({})),
        (
            "blockdev-add",
            json!({ "driver": "copy-before-write", "node-name": "cbw-0", "file": "disk-0", "target": "fleece-0", "on-cbw-error": "break-snapshot", "cbw-timeout": 1 }),
        ),
        ("qom-set", json!({ "path": "/machine/peripheral/dev-0", "property": "drive", "value": "cbw-0" })),
        ("blockdev-add", json!({ "driver": "snapshot-access", "node-name": "past-0", "file": "cbw-0" })),
        ("cont", json!({})),
    ] {
        qmp(life.clone(), command, arguments).await;
    }
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let before = tokio::time::Instant::now();
    rig.write(0, 0, BLOCK, 2).await;
    let waited = before.elapsed();
    rig.write(0, BLOCK, BLOCK, 2).await;
    assert!(waited < Duration::from_secs(20), "the guest's write waited {waited:?}");
    assert_eq!(rig.power().await, Power::Running);
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    capture.release().await.unwrap();
    scratch.stop().await.unwrap();
    let cut = capture.cut(at(2)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

#[tokio::test]
async fn a_map_that_was_never_saved_is_absent_and_not_empty() {
    let bench = bench::qemu().await;
    let mut rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    rig.write(0, 0, BLOCK, 1).await;
    bench.kill(NAME).await;
    let settled = bench.platform().settle(NAME, rig.lineage).await.unwrap();
    assert_eq!(settled.since, None);
    assert!(matches!(settled.changes, Changes::Unknown(_)), "{settled:?}");
}
