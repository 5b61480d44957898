//! The trust rules with a real QEMU, one by one: where what the machine tells about its changes could be wrong, no delta is
//! sent but both sides are compared, and the replica is the machine, byte for byte.
//!
//! ```text
//!   epochs flow ─► the machine is off ─► somebody has its disks in hand ─► it runs again ─► the next epoch
//! ```
//! What the platform says of the same is tested in `crates/platforms/tests/conformance/trust.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use crate::sites;
use crate::sites::qemu::{Home, copy, run};
use crate::sites::{NAME, SIZES, Sites, TOKEN};
use platforms::{Platform, Start};
use protocol::machine::{DiskFormat, Settled};
use protocol::order::{Grant, Order, Outcome, ReplicationStatus};
use protocol::position::{Changes, Distrust};
use protocol::{Attempt, BLOCK};

const MIB: u64 = 1 << 20;

/// Sites whose machine at home is under QEMU and replicated.
async fn replicating(seed: u64, format: DiskFormat) -> (Sites, Home) {
    let mut sites = Sites::prepared(seed).await;
    let home = Home::new(format).await;
    home.start().await;
    home.write(0, 0, MIB, 1).await;
    home.write(1, 0, MIB, 2).await;
    sites.platform = Arc::new(home.platform.clone());
    sites.replicate().await;
    must_be_equal(&sites, &home).await;
    (sites, home)
}

/// Waits for a point that was cut after this call; nobody writes meanwhile.
async fn must_be_equal(sites: &Sites, home: &Home) -> ReplicationStatus {
    let status = sites.seals().await;
    for place in 0..SIZES.len() {
        let (here, there) = (home.content(place).await, sites.replica(place));
        let differ = here.iter().zip(&there).filter(|(a, b)| a != b).count();
        assert!(here == there, "a wrong delta: {differ} bytes of disk {place} differ; it says {:?}", status.distrust);
    }
    status
}

/// Switches the machine off and lets go of its disks, as every move does.
async fn switch_off(sites: &Sites) -> Settled {
    let machine = NAME.to_string();
    let stop = Order::ShutDown { machine: machine.clone(), timeout_ms: 0, then_power_off: true };
    sites.order_source(stop).await.unwrap();
    let settle = Order::Settle { machine, lineage: sites.lineage, stop: None };
    match sites.order_source(settle).await.unwrap() {
        Outcome::Settled { settled, .. } => settled,
        other => panic!("{other:?}"),
    }
}

/// Starts it again as a move that was given up does.
async fn switch_on(sites: &Sites) {
    let mark = Attempt { generation: 0, number: 0 };
    let start = Order::StartMachine { machine: NAME.into(), lineage: sites.lineage, mark };
    sites.order_source(start).await.unwrap();
}

/// The next epoch is a compare, for that reason, and the ones after it are deltas again.
async fn must_compare(sites: Sites, home: Home, why: Distrust) {
    let before = must_be_equal(&sites, &home).await;
    assert_eq!(before.distrust, Some(why));
    home.write(1, MIB, BLOCK, 0x51).await;
    let after = must_be_equal(&sites, &home).await;
    let (read, changed) =
        (after.moved.read_source - before.moved.read_source, after.moved.changed - before.moved.changed);
    assert_eq!((read, changed), (BLOCK, BLOCK), "it was not a delta that followed");
    sites.end().await;
}

/// Two runs of the machine, both replicated; a copy of its disks was made between them. Now it is off.
async fn off_with_a_copy(seed: u64, format: DiskFormat) -> (Sites, Home) {
    let (sites, home) = replicating(seed, format).await;
    switch_off(&sites).await;
    for place in 0..SIZES.len() {
        copy(&["-p"], &home.image(place), &home.image(place).with_extension("copy")).await;
    }
    switch_on(&sites).await;
    home.write(0, 2 * MIB, 3 * BLOCK, 3).await;
    home.write(1, 0, BLOCK, 4).await;
    must_be_equal(&sites, &home).await;
    switch_off(&sites).await;
    (sites, home)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_off_and_that_nobody_touched_goes_on_with_a_delta() {
    let (sites, home) = off_with_a_copy(61, DiskFormat::Qcow2).await;
    switch_on(&sites).await;
    home.write(0, 0, BLOCK, 5).await;
    let status = must_be_equal(&sites, &home).await;
    assert_eq!(status.distrust, None);
    assert_eq!(status.moved.changed, BLOCK);
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_died_with_its_qemu_before_it_was_saved_is_absent() {
    for format in [DiskFormat::Qcow2, DiskFormat::Raw] {
        let (sites, home) = replicating(62, format).await;
        home.write(0, 2 * MIB, BLOCK, 3).await;
        home.kill().await;
        home.start().await;
        must_compare(sites, home, Distrust::MapAbsent).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_was_in_use_when_its_qemu_was_killed_is_not_used() {
    let (mut sites, home) = replicating(63, DiskFormat::Qcow2).await;
    switch_off(&sites).await;
    // No epoch makes a new map meanwhile: the one in the image is used.
    sites.stop_process_server().await;
    home.start().await;
    home.write(0, 2 * MIB, BLOCK, 3).await;
    home.kill().await;
    home.start().await;
    sites.start_process_server().await;
    must_compare(sites, home, Distrust::MapInconsistent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_disk_keeps_no_map_over_a_clean_end_of_its_qemu() {
    let (sites, home) = replicating(64, DiskFormat::Raw).await;
    switch_off(&sites).await;
    home.start().await;
    must_compare(sites, home, Distrust::MapAbsent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_another_program_wrote_while_the_machine_was_off_is_compared() {
    // Past its format, into the data of the image; and through it, where QEMU's own tools know of the maps.
    for past_its_format in [true, false] {
        let (sites, home) = off_with_a_copy(65, DiskFormat::Qcow2).await;
        let image = home.image(0);
        if past_its_format {
            let told = run("qemu-img", &["map", "--output=json", &image.to_string_lossy()]).await;
            let map: serde_json::Value = serde_json::from_slice(&told).unwrap();
            let data = map.as_array().unwrap().iter().find(|piece| piece["data"] == true).unwrap();
            let file = std::fs::File::options().write(true).open(&image).unwrap();
            file.write_all_at(&[9; 4096], data["offset"].as_u64().unwrap()).unwrap();
        } else {
            run("qemu-io", &["-c", &format!("write -P 9 0 {BLOCK}"), &image.to_string_lossy()]).await;
        }
        assert_eq!(home.content(0).await[0], 9, "it was written somewhere else");
        switch_on(&sites).await;
        must_compare(sites, home, Distrust::DiskTouched).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_restored_from_a_copy_is_compared() {
    for words in [&[][..], &["-p"]] {
        let (sites, home) = off_with_a_copy(66, DiskFormat::Qcow2).await;
        copy(words, &home.image(0).with_extension("copy"), &home.image(0)).await;
        switch_on(&sites).await;
        must_compare(sites, home, Distrust::DiskTouched).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_whose_images_were_exchanged_are_compared() {
    let (sites, home) = off_with_a_copy(67, DiskFormat::Qcow2).await;
    // Of one size, so that nothing else gives it away.
    let aside = home.folder().join("aside");
    for (from, to) in [(home.image(0), aside.clone()), (home.image(1), home.image(0)), (aside, home.image(1))] {
        std::fs::rename(from, to).unwrap();
    }
    for (place, size) in SIZES.into_iter().enumerate() {
        let image = home.image(place).to_string_lossy().into_owned();
        run("qemu-img", &["resize", "-q", "--shrink", &image, &size.to_string()]).await;
    }
    switch_on(&sites).await;
    must_compare(sites, home, Distrust::DiskTouched).await;
}

/// As when the file system that all of it lies on is rolled back: what the platform noted comes back with the disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_counts_from_an_earlier_cut_than_it_did_is_not_believed() {
    let (sites, home) = off_with_a_copy(68, DiskFormat::Qcow2).await;
    let rest = home.folder().join("rest.json");
    let mut noted: serde_json::Value = serde_json::from_slice(&std::fs::read(&rest).unwrap()).unwrap();
    for place in 0..SIZES.len() {
        let image = home.image(place);
        copy(&["-p"], &image.with_extension("copy"), &image).await;
        let meta = std::fs::metadata(&image).unwrap();
        let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let (modified, changed) = (time(meta.mtime(), meta.mtime_nsec()), time(meta.ctime(), meta.ctime_nsec()));
        let stamp = &mut noted[format!("disk{place}")]["stamp"];
        assert!(stamp.is_string(), "{noted}");
        *stamp = format!("{}:{}:{modified}:{changed}", meta.ino(), meta.size()).into();
    }
    std::fs::write(&rest, noted.to_string()).unwrap();
    switch_on(&sites).await;
    must_compare(sites, home, Distrust::MapMismatch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_of_another_history_or_another_generation_is_no_base() {
    let (sites, home) = replicating(69, DiskFormat::Qcow2).await;
    switch_off(&sites).await;
    // Another history's map goes on beside ours, which does not.
    let (folder, other) = (home.folder(), protocol::Lineage::fresh());
    std::fs::remove_file(folder.join("rest.json")).unwrap();
    let track = Some((other, Attempt { generation: 3, number: 1 }));
    home.platform.start(NAME, Start { paused: false, track }).await.unwrap();
    home.write(0, 3 * MIB, BLOCK, 7).await;
    let before = must_be_equal(&sites, &home).await;
    assert!(before.distrust.is_some(), "another history's map was taken for ours");
    // And one that counts from the start of a generation that the target knows nothing of.
    let machine = NAME.to_string();
    switch_off(&sites).await;
    std::fs::remove_file(folder.join("rest.json")).unwrap();
    let mark = Attempt { generation: 2, number: 0 };
    sites.order_source(Order::StartMachine { machine, lineage: sites.lineage, mark }).await.unwrap();
    home.write(0, 3 * MIB, BLOCK, 8).await;
    must_compare(sites, home, Distrust::NoCommonBase).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_that_were_touched_before_their_site_took_them_over_have_no_map() {
    for touched in [false, true] {
        let mut sites = Sites::prepared(70).await;
        let home = Home::new(DiskFormat::Qcow2).await;
        home.start().await;
        sites.platform = Arc::new(home.platform.clone());
        sites.replicate().await;
        home.write(0, 0, MIB, 1).await;
        must_be_equal(&sites, &home).await;
        let settled = switch_off(&sites).await;
        assert!(matches!(settled.changes, Changes::Known(_)), "{settled:?}");
        if touched {
            run("qemu-io", &["-c", "write -P 9 0 4096", &home.image(0).to_string_lossy()]).await;
        }
        sites.stop_master_target().await;
        sites.target_platform = Arc::new(home.platform.clone());
        sites.start_master_target().await;
        let taken = sites.order(Order::TakeOver {
            item: "web01-at-home".parse().unwrap(),
            lineage: sites.lineage,
            machine: NAME.into(),
            settled,
            authored: Some(sites::GENERATION),
            grant: Grant { generation: sites::GENERATION + 1, token: TOKEN.into() },
            no_way_back: false,
        });
        let Outcome::Taken { distrust, changed_bytes, .. } = taken.await.unwrap() else { panic!("it was not taken") };
        match touched {
            true => assert_eq!((distrust, changed_bytes), (Some(Distrust::DiskTouched), None)),
            false => assert_eq!((distrust, changed_bytes), (None, Some(0))),
        }
        sites.end().await;
    }
}
