//! A target that cannot keep up, with a real QEMU at home: the guest does not wait for it, what waits for it waits in the
//! source's map and on the source's disks, and when it is quick again one epoch brings all that was written meanwhile.
//!
//! Both ends run in this process, so that its peak of memory is that of both. What they have to move is several times the
//! bound: held anywhere on the way, it would be beyond it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::BLOCK;
use protocol::epoch::{DiskSize, Point};
use protocol::machine::DiskFormat;

use crate::sites::qemu::{Home, run};
use crate::sites::{Sites, key};

const MIB: u64 = 1 << 20;
/// What one epoch carries.
const FILLED: u64 = 640 * MIB;
const SIZE: u64 = FILLED + 64 * MIB;
/// What both ends together may take at most. A session may have 64 frames of 256 KiB and two batches of 8 MiB with what
/// they replace; two lanes hold eight frames at each end. The rest is this program itself. (Measured: 70 to 110 MiB.)
const BOUND: u64 = 192 * MIB;
/// Blocks that are written again and again meanwhile; the last one is not in what the epoch carries.
const BUSY: [u64; 5] = [0, 7, 4000, FILLED / BLOCK - 1, FILLED / BLOCK + 3];

/// How long the target is slow at least; a write that waited for it would take that long. With `SOCKEYE_LONG` so long that
/// the connection is given up, again and again.
fn slow() -> Duration {
    Duration::from_secs(if std::env::var_os("SOCKEYE_LONG").is_some() { 50 } else { 6 })
}

/// The most memory that this process had at once since it was forgotten.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn mib(bytes: u64) -> u64 {
    bytes / MIB
}

/// Sites with one large, empty disk whose replica is up to date.
async fn replicating(seed: u64) -> (Sites, Home) {
    let disks = vec![DiskSize { disk: key(0), size: SIZE }];
    let mut sites = Sites::prepared_for(seed, disks.clone()).await;
    let home = Home::with(DiskFormat::Raw, disks).await;
    home.start().await;
    sites.platform = Arc::new(home.platform.clone());
    (sites, home)
}

/// The guest fills its disk while an empty epoch is held: the next one carries all of it.
async fn fill(sites: &Sites, home: &Home) {
    sites.wire.hold(true);
    sites.wire.has_caught_something().await;
    for offset in (0..FILLED).step_by(64 << 20) {
        home.write(0, offset, 64 * MIB, 1 + (offset / 64 / MIB) as u8).await;
    }
}

/// The guest writes the busy blocks as often as it can while the target is slow. Gives the longest time that a write took,
/// and how many there were.
async fn burst(home: &Home) -> (Duration, u32) {
    let (begun, mut longest, mut writes) = (Instant::now(), Duration::ZERO, 0);
    while begun.elapsed() < slow() {
        for block in BUSY {
            let began = Instant::now();
            home.write_only(0, block * BLOCK, BLOCK, 0x80 + (writes % 100) as u8).await;
            (longest, writes) = (longest.max(began.elapsed()), writes + 1);
        }
    }
    (longest, writes)
}

/// The epoch that fills the disk has really begun.
async fn is_under_way(sites: &Sites, before: u64) {
    let deadline = Instant::now() + crate::sites::PATIENCE;
    while sites.wire.passed() < before + MIB {
        assert!(Instant::now() < deadline, "nothing is sent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// After the target is quick again.
async fn recovers(sites: Sites, home: Home, before: Vec<Point>, (longest, writes): (Duration, u32)) {
    eprintln!("{writes} writes, the longest took {} ms", longest.as_millis());
    assert!(longest < Duration::from_secs(2) && writes > 50, "the guest waited: {longest:?}, {writes} writes");
    let status = sites.seals().await;
    let newest = before.iter().map(|point| point.attempt).max();
    let points = sites.points().await.into_iter().filter(|point| Some(point.attempt) > newest);
    let brought: Vec<u64> = points.map(|point| point.changed_bytes).filter(|bytes| *bytes > 0).collect();
    assert_eq!(brought, [FILLED, BUSY.len() as u64 * BLOCK], "not one epoch with each block once");
    assert_eq!((status.distrust, &status.fault, status.moved.read_target), (None, &None, 0), "{status:?}");
    let (here, there) = (home.image(0), sites.replica_file(0));
    run("cmp", &[&here.to_string_lossy(), &there.to_string_lossy()]).await;
    let peak = peak();
    eprintln!("at most {} MiB of memory for {} MiB that waited", mib(peak), mib(FILLED));
    assert!(peak < BOUND, "{} MiB", mib(peak));
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_does_not_wait_for_a_slow_line_and_nothing_piles_up_in_memory() {
    let (mut sites, home) = replicating(84).await;
    sites.replicate().await;
    sites.seals().await;
    fill(&sites, &home).await;
    let (before, passed) = (sites.points().await, sites.wire.passed());
    forget_peak();
    // Of each of two lanes: a megabyte a second in all.
    sites.wire.pace(MIB / 2);
    sites.wire.hold(false);
    is_under_way(&sites, passed).await;
    let wrote = burst(&home).await;
    let passed = sites.wire.passed() - passed;
    assert!(passed < FILLED / 10, "{} MiB went over a slow line", mib(passed));
    sites.wire.pace(u64::MAX);
    recovers(sites, home, before, wrote).await;
}

/// A file system of its own under the replicas, which can be made to stand still.
struct Medium(PathBuf);

impl Medium {
    /// Puts it where the master target of `sites` keeps its replicas.
    async fn under(sites: &mut Sites) -> Medium {
        let (here, aside) = (sites.folder().join("cloud/replicas"), sites.folder().join("aside"));
        let image = sites.folder().join("medium");
        sites.stop_master_target().await;
        std::fs::rename(&here, &aside).unwrap();
        std::fs::create_dir(&here).unwrap();
        std::fs::File::create(&image).unwrap().set_len(SIZE * 5 / 4).unwrap();
        let (path, file) = (here.to_string_lossy().into_owned(), image.to_string_lossy().into_owned());
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &file]).await;
        run("mount", &["-o", "loop", &file, &path]).await;
        let medium = Medium(here);
        std::fs::remove_dir(medium.0.join("lost+found")).unwrap();
        run("cp", &["-a", &format!("{}/.", aside.display()), &path]).await;
        sites.start_master_target().await;
        medium
    }

    /// While it stands still, nothing can be written to it.
    fn stands_still(&self, still: bool) {
        let word = if still { "--freeze" } else { "--unfreeze" };
        let done = Command::new("fsfreeze").arg(word).arg(&self.0).status().unwrap();
        assert!(done.success(), "fsfreeze {word}");
    }

    fn let_go(path: &Path) {
        for (program, word) in [("fsfreeze", "--unfreeze"), ("umount", "--lazy")] {
            let _ = Command::new(program).arg(word).arg(path).stderr(std::process::Stdio::null()).status();
        }
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        Medium::let_go(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_does_not_wait_for_a_disk_that_stands_still_and_nothing_piles_up_in_memory() {
    let (mut sites, home) = replicating(85).await;
    let medium = Medium::under(&mut sites).await;
    sites.replicate().await;
    sites.seals().await;
    fill(&sites, &home).await;
    let (before, passed) = (sites.points().await, sites.wire.passed());
    forget_peak();
    sites.wire.hold(false);
    is_under_way(&sites, passed).await;
    tokio::task::block_in_place(|| medium.stands_still(true));
    let sealed = sites.points().await.len();
    let wrote = burst(&home).await;
    assert_eq!(sites.points().await.len(), sealed, "an epoch was sealed on a disk that stands still");
    medium.stands_still(false);
    recovers(sites, home, before, wrote).await;
}
