//! Back-pressure and outage: what a guest writes while nothing gets through waits in the source's map. However often a block
//! is written, it travels once, in one epoch, when the line is back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::sites;
use crate::sites::qemu::run;
use crate::sites::{NAME, SIZES, Sites, key};
use protocol::BLOCK;
use protocol::epoch::Point;
use protocol::fault::code;

/// Blocks that are written again and again.
const BUSY: [(usize, u64); 5] = [(0, 0), (0, 7), (0, 8), (1, 0), (1, 31)];

/// Writes the busy blocks so often that all of it together is more than both disks hold many times over. Gives the longest
/// time that a write took.
fn burst(sites: &mut Sites) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..400 {
        for (place, block) in BUSY {
            let bytes = vec![sites.dice.roll() as u8; BLOCK as usize];
            let began = Instant::now();
            sites.home.write(NAME, &key(place), block * BLOCK, &bytes).unwrap();
            longest = longest.max(began.elapsed());
        }
    }
    longest
}

/// The points newer than `before` that brought something.
async fn brought(sites: &Sites, before: &[Point]) -> Vec<u64> {
    let newest = before.iter().map(|point| point.attempt).max();
    let points = sites.points().await.into_iter().filter(|point| Some(point.attempt) > newest);
    points.map(|point| point.changed_bytes).filter(|bytes| *bytes > 0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_while_the_line_stands_still_comes_as_one_epoch_that_holds_each_block_once() {
    let mut sites = Sites::replicating(81).await;
    sites.must_become_equal("after the first copy").await;
    for round in 0..3 {
        let before = sites.points().await;
        // An epoch is on its way, cut before the burst: the next is cut when it has arrived.
        sites.wire.hold(true);
        sites.wire.has_caught_something().await;
        let moved = sites.wire.passed();
        let longest = burst(&mut sites);
        eprintln!("round {round}: the longest write took {} us", longest.as_micros());
        assert_eq!(sites.wire.passed(), moved, "the line was not held");
        sites.wire.hold(false);
        sites.must_become_equal(&format!("after the line stood still in round {round}")).await;
        assert_eq!(brought(&sites, &before).await, [BUSY.len() as u64 * BLOCK], "not one epoch with each block once");
    }
    sites.end().await;
}

/// Longer than an open cut waits for the line: it is given up, and what it carried waits with the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_that_outlasts_its_cut_costs_one_epoch_and_nothing_else() {
    let mut sites = Sites::replicating(82).await;
    sites.must_become_equal("after the first copy").await;
    let before = sites.points().await;
    sites.wire.hold(true);
    sites.wire.has_caught_something().await;
    // In the next cut there is something of it already.
    sites.home.write(NAME, &key(0), 20 * BLOCK, &[1; 512]).unwrap();
    sites.wire.down(true);
    sites.wire.hold(false);
    sites.says(code::LINK).await;
    burst(&mut sites);
    let waits =
        |status: &protocol::order::ReplicationStatus| status.phase == protocol::order::ReplicationPhase::Waiting;
    sites.control.status("home-process-server", "gave its cut up", waits).await;
    burst(&mut sites);
    if std::env::var_os("SOCKEYE_LONG").is_some() {
        for _ in 0..12 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            burst(&mut sites);
        }
    }
    sites.wire.down(false);
    let status = sites.must_become_equal("after the outage").await;
    assert_eq!(brought(&sites, &before).await, [(BUSY.len() as u64 + 1) * BLOCK], "not one epoch with each block once");
    assert_eq!((status.distrust, status.fault), (None, None));
    assert_eq!(status.moved.read_target, 0, "it was compared");
    sites.end().await;
}

/// A volume of its own under the target's history, really as small as it says.
struct Volume(PathBuf);

impl Volume {
    /// Puts it where the master target of `sites` keeps its history, which is on it from now on.
    async fn under(sites: &mut Sites, mib: u64) -> Volume {
        let (here, aside) = (sites.folder().join("cloud/retention"), sites.folder().join("aside"));
        sites.stop_master_target().await;
        std::fs::rename(&here, &aside).unwrap();
        std::fs::create_dir(&here).unwrap();
        let (path, from) = (here.to_string_lossy().into_owned(), format!("{}/.", aside.display()));
        run("mount", &["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs", &path]).await;
        let volume = Volume(here);
        run("cp", &["-a", &from, &path]).await;
        sites.start_master_target().await;
        volume
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Leaves no room on it, and no history that could be let go of to make some.
    async fn fill(&self) {
        let begun = Instant::now();
        loop {
            let mut file = std::fs::File::options().append(true).create(true).open(self.ballast()).unwrap();
            // Looked at before it is filled: what is let go of later is less than that.
            let history = self.history();
            for piece in [1 << 20, 4096] {
                while file.write_all(&vec![1; piece]).is_ok() {}
            }
            if history < 1 << 20 {
                return;
            }
            assert!(begun.elapsed() < sites::PATIENCE, "{history} bytes of history are not let go of");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Bytes of before-images on it.
    fn history(&self) -> u64 {
        let files = std::fs::read_dir(self.0.join(NAME)).unwrap().filter_map(Result::ok);
        let segments = files.filter(|file| file.file_name().to_string_lossy().ends_with(".segment"));
        segments.filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Overwrites both disks with what cannot be compressed.
fn overwrite(sites: &mut Sites) {
    for (place, size) in SIZES.into_iter().enumerate() {
        let bytes: Vec<u8> = (0..size / 4).flat_map(|_| (sites.dice.roll() as u32).to_le_bytes()).collect();
        sites.home.write(NAME, &key(place), 0, &bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_retention_volume_stops_epochs_and_not_the_guest_and_they_go_on_when_there_is_room() {
    let mut sites = Sites::replicating(83).await;
    sites.must_become_equal("after the first copy").await;
    let volume = Volume::under(&mut sites, 24).await;
    overwrite(&mut sites);
    sites.must_become_equal("after the volume was put in place").await;
    volume.fill().await;
    overwrite(&mut sites);
    // What it would take to keep what the disks held does not fit.
    sites.says(code::NO_SPACE).await;
    let before = sites.points().await;
    for _ in 0..3 {
        burst(&mut sites);
        sites.control.forget_status("home-process-server");
        sites.says(code::NO_SPACE).await;
    }
    assert_eq!(brought(&sites, &before).await, [0; 0], "an epoch was sealed without room for what it replaces");
    std::fs::remove_file(volume.ballast()).unwrap();
    let status = sites.must_become_equal("after there was room again").await;
    assert_eq!(brought(&sites, &before).await.len(), 1, "not one epoch with all of it");
    assert_eq!((status.distrust, status.fault), (None, None));
    sites.end().await;
}
