//! A compare on the way back: the old primary's maps died with its host, and what the other site has not written since it
//! was raised is known there in hashes. Only what changed is read there, whatever becomes of the line.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use component::link::Link;
use protocol::BLOCK;
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::leaf::LeafSize;
use protocol::machine::DiskFormat;
use protocol::order::{ReplicationStatus, Sync};
use protocol::replication::Peer;
use protocol::retention::Budget;
use protocol::session::Message;

use crate::sites::back::{Back, RAISED, TOKEN};
use crate::sites::qemu::Home;
use crate::sites::{MASTER_TARGET, NAME, PATIENCE, SIZES, Sites, keeping, key};

const MIB: u64 = 1 << 20;
/// Blocks that the machine writes at the other site, and one that home wrote last and that never travelled.
const WRITTEN: [(usize, u64); 3] = [(0, 5), (0, 40), (1, 3)];
const UNREPLICATED: (usize, u64) = (0, 20);

/// The home site was lost after a block was written that never travelled; the machine has run at the other site since, on
/// a replica whose hashes were kept.
async fn lost(seed: u64) -> (Back, Home) {
    lost_with(seed, LeafSize::default()).await
}

/// The same with hashes that stand for so much each at the other site; at home they are as they are without a word.
async fn lost_with(seed: u64, leaf_bytes: LeafSize) -> (Back, Home) {
    lost_as(seed, leaf_bytes, DiskFormat::Qcow2).await
}

/// The same with disks of that format at home.
async fn lost_as(seed: u64, leaf_bytes: LeafSize, format: DiskFormat) -> (Back, Home) {
    let mut sites = Sites::prepared(seed).await;
    let home = Home::new(format).await;
    home.start().await;
    home.write(0, 0, 3 * MIB, 1).await;
    home.write(1, 0, MIB, 2).await;
    sites.platform = Arc::new(home.platform.clone());
    // As control does: what is to be kept is said before there is anything.
    let mut keeping = keeping(sites.lineage);
    keeping.leaf_bytes = leaf_bytes;
    keeping.retention.budget = Some(Budget { bytes: 1 << 30, alarm_percent: 80 });
    sites.control.keep(MASTER_TARGET, vec![keeping.clone()]);
    sites.is_remembered(&keeping.manifest).await;
    sites.replicate().await;
    sites.seals().await;
    hashes_are_kept(&sites.folder().join("cloud"), leaf_bytes).await;
    sites.stop_process_server().await;
    home.write(UNREPLICATED.0, UNREPLICATED.1 * BLOCK, BLOCK, 9).await;
    home.kill().await;
    let mut back = Back::from(sites, Arc::new(home.platform.clone())).await;
    for (place, block) in WRITTEN {
        let bytes = back.sites.dice.noise(BLOCK);
        back.sites.cloud.write(NAME, &key(place), block * BLOCK, &bytes).unwrap();
    }
    (back, home)
}

async fn hashes_are_kept(data_dir: &std::path::Path, size: LeafSize) {
    let file = data_dir.join("retention").join(NAME).join("leaves.json");
    // After the first epoch, not a minute later.
    let deadline = tokio::time::Instant::now() + PATIENCE / 2;
    loop {
        let written = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let standing = written.map(|written: serde_json::Value| written["standing"].clone());
        if standing.is_some_and(|standing| {
            standing["at"].is_string() && standing["changing"] == false && standing["bytes"] == size.bytes()
        }) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "nothing was hashed");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Waits for the first epoch home and checks that home is what the machine is.
async fn must_come_home(back: &Back, home: &Home) -> ReplicationStatus {
    let status = back.sealed().await;
    for place in 0..SIZES.len() {
        let (here, there) = (home.content(place).await, back.content(place));
        let differ = here.iter().zip(&there).filter(|(a, b)| a != b).count();
        assert!(here == there, "home is not what the machine is: {differ} bytes of disk {place} differ");
    }
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_the_host_only_the_old_primary_is_read_whole() {
    let (mut back, home) = lost(91).await;
    let beneath = back.beneath();
    back.replicate(Sync::Tracked, Some(beneath)).await;
    let status = must_come_home(&back, &home).await;
    let moved = status.first_moved.unwrap();
    let differing = (WRITTEN.len() as u64 + 1) * BLOCK;
    assert!(status.distrust.is_some(), "it was no compare");
    assert_eq!((moved.changed, moved.read_source), (differing, differing), "of the machine's disks more was read");
    assert_eq!(moved.read_target, 4 * MIB, "not all that home holds was read there, once");
    back.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_of_another_size_than_home_keeps_are_agreed_on_and_used() {
    let size: LeafSize = "256K".parse().unwrap();
    let (mut back, home) = lost_with(98, size).await;
    let beneath = back.beneath();
    back.replicate(Sync::Tracked, Some(beneath)).await;
    let moved = must_come_home(&back, &home).await.first_moved.unwrap();
    // No two of the blocks are of one leaf.
    let differing = (WRITTEN.len() as u64 + 1) * size.bytes();
    assert_eq!((moved.changed, moved.read_source), (differing, differing), "of the machine's disks more was read");
    assert_eq!(moved.read_target, 4 * MIB, "not all that home holds was read there, once");
    back.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_told_is_read() {
    let (mut back, home) = lost(92).await;
    // There is a master target, but not that one.
    let beneath = Peer { name: "another".into(), ..back.beneath() };
    back.replicate(Sync::Tracked, Some(beneath)).await;
    let moved = must_come_home(&back, &home).await.first_moved.unwrap();
    assert!(moved.read_source >= 4 * MIB, "{} bytes were read", moved.read_source);
    back.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_breaks_while_hashes_are_compared_changes_nothing() {
    for (seed, after) in [(93, 600), (94, 900), (95, 70_000), (96, 200_000)] {
        let (mut back, home) = lost(seed).await;
        back.line.hold_at(after);
        let beneath = back.beneath();
        back.replicate(Sync::Compare, Some(beneath)).await;
        back.line.has_caught_something().await;
        back.line.cut();
        back.line.hold(false);
        let moved = must_come_home(&back, &home).await.first_moved.unwrap();
        let differing = (WRITTEN.len() as u64 + 1) * BLOCK;
        // What was on its way when it broke is read again.
        assert!((differing..=2 * differing).contains(&moved.read_source), "{} bytes were read", moved.read_source);
        back.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_are_told_to_the_machines_own_process_server_and_to_nobody_else() {
    let (back, _home) = lost(97).await;
    let item = || NAME.parse().unwrap();
    for (token, generation, refused) in [
        (TOKEN, RAISED, None),
        ("another secret", RAISED, Some(code::NOT_AUTHORISED)),
        (TOKEN, RAISED + 1, Some(code::REPLICA_CLOSED)),
        (crate::sites::TOKEN, RAISED, Some(code::NOT_AUTHORISED)),
    ] {
        let dialler = back.sites.dialler("by-hand");
        let Link { mut incoming, mut outgoing, .. } = dialler.dial(&back.beneath()).await.unwrap();
        outgoing.say(Message::Consult { item: item(), token: token.into(), generation }).await.unwrap();
        match (incoming.message("an answer").await, refused) {
            (Ok(Message::Consulted { disks, .. }), None) => assert_eq!(disks.len(), SIZES.len()),
            (Err(component::LinkError::Refused(fault)), Some(entry)) => assert!(fault.is(entry), "{fault:?}"),
            (other, _) => panic!("{other:?}"),
        }
    }
    back.end().await;
}

/// A compare by hand that ends when all of home was hashed: how much was read for it.
async fn hashed_by_hand(back: &Back) -> u64 {
    let Link { mut incoming, mut outgoing, .. } = back.sites.dialler("by-hand").dial(&back.receiver()).await.unwrap();
    let hello = Message::Hello { item: NAME.parse().unwrap(), token: TOKEN.into(), generation: RAISED };
    outgoing.say(hello).await.unwrap();
    let Message::Welcome { .. } = incoming.message("a welcome").await.unwrap() else { panic!("no welcome") };
    let mut all = 0;
    for (disk, size) in SIZES.iter().enumerate() {
        let question = Message::HashRequest { disk: disk as u16, level: 0, offset: 0, length: *size };
        outgoing.say(question).await.unwrap();
        let Some((Frame::Hashes { read, .. }, _)) = incoming.next().await.unwrap() else { panic!("no hashes") };
        all += read;
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_compare_that_was_broken_off_read_at_home_the_next_one_does_not_read() {
    let (mut back, home) = lost(101).await;
    assert_eq!((hashed_by_hand(&back).await, hashed_by_hand(&back).await), (4 * MIB, 0));
    back.replicate(Sync::Compare, None).await;
    assert_eq!(must_come_home(&back, &home).await.first_moved.unwrap().read_target, 0);
    back.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_back_that_was_given_up_and_is_begun_again_reads_at_home_what_changed() {
    let (mut back, home) = lost(102).await;
    back.replicate(Sync::Compare, None).await;
    assert_eq!(must_come_home(&back, &home).await.first_moved.unwrap().read_target, 4 * MIB);
    hashes_are_kept(&back.sites.folder().join("back"), LeafSize::default()).await;
    back.give_up_and_begin_again().await;
    // The machine's map counts from what came home the first time, so its own site is read (decision 0023).
    back.replicate(Sync::Compare, None).await;
    let moved = must_come_home(&back, &home).await.first_moved.unwrap();
    let differing = (WRITTEN.len() as u64 + 1) * BLOCK;
    assert_eq!(moved.changed, differing);
    // What was rolled back is hashed, and nothing else.
    assert!(moved.read_target <= 2 * differing, "{} bytes were read at home", moved.read_target);
    back.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_something_else_wrote_meanwhile_is_read_whole_again() {
    let (mut back, home) = lost_as(103, LeafSize::default(), DiskFormat::Raw).await;
    assert_eq!(hashed_by_hand(&back).await, 4 * MIB);
    let image = std::fs::File::options().write(true).open(home.image(0)).unwrap();
    image.write_all_at(&[77; 4096], 7 * BLOCK + 512).unwrap();
    back.replicate(Sync::Compare, None).await;
    let moved = must_come_home(&back, &home).await.first_moved.unwrap();
    assert!(moved.read_target >= 3 * MIB, "only {} bytes were read at home", moved.read_target);
    back.end().await;
}
