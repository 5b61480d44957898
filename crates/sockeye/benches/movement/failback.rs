//! What a failback of a large sparse disk reads at each end when one block of a hundred has changed: by the maps of both
//! sides, and after home's QEMU was killed and its map is lost.
//!
//! The figures are the product's own, of the first copy of the way back. What changed is counted by who wrote it, here.

use anyhow::{Context, Result};
use demo::world::{At, MACHINE};
use protocol::order::{Moved, Sync};

use crate::Bench;
use crate::figures::{goal, head, mb, row};
use crate::sites::{STOPPING, Sites};

const GIB: u64 = 64;
/// So much of the disk is written before anything starts.
const ALLOCATED: u64 = 2 << 30;
/// One block of so many changes.
const ONE_OF: u64 = 100;

struct Way {
    words: &'static str,
    sync: Sync,
    moved: Moved,
    written: u64,
    allocated: u64,
    seconds: f64,
}

pub fn measure(bench: &Bench) -> Result<()> {
    let size = bench.bytes(GIB);
    let sites = Sites::new(bench, "failback", size, ALLOCATED.min(size / 4))?;
    sites.protect()?;
    let tracked = way_back(&sites, true)?;
    sites.job(&[&["failback", MACHINE, "--complete", "--max-downtime", "1m"], &STOPPING[..]].concat())?;
    sites.job(&["commit", MACHINE])?;
    sites.job(&["reverse", MACHINE])?;
    sites.caught_up()?;
    hashes_follow();
    let killed = way_back(&sites, false)?;
    drop(sites);

    let title = format!("failback of a sparse disk of {} GiB, 1 % changed", size >> 30);
    head(
        &title,
        &[
            "way",
            "copy",
            "changed MB",
            "read at the cloud MB",
            "read at home MB",
            "home allocated MB",
            "seconds",
            "goals",
        ],
    );
    for way in [&tracked, &killed] {
        let Moved { read_source, read_target, .. } = way.moved;
        let times = |read: u64, of: u64| read as f64 / of as f64;
        let goals = match way.words {
            TRACKED => goal(
                "read at most 1.2 times the changed",
                times(read_source + read_target, way.written) <= 1.2 && way.sync == Sync::Tracked,
            ),
            _ => [
                goal("cloud at most 1.2 times the changed", times(read_source, way.written) <= 1.2),
                goal("home at most what is allocated", read_target <= way.allocated),
            ]
            .join("; "),
        };
        row(&[
            way.words.into(),
            way.sync.to_string(),
            format!("{:.0}", mb(way.written)),
            format!("{:.0} ({:.2} times)", mb(read_source), times(read_source, way.written)),
            format!("{:.0} ({:.2} of allocated)", mb(read_target), times(read_target, way.allocated)),
            format!("{:.0}", mb(way.allocated)),
            format!("{:.1}", way.seconds),
            goals,
        ]);
    }
    Ok(())
}

/// What came to the cloud is hashed there once a minute; a machine has run at home for longer than that.
#[allow(clippy::disallowed_methods, reason = "nothing outside says when it was hashed")]
fn hashes_follow() {
    std::thread::sleep(std::time::Duration::from_secs(70));
}

const TRACKED: &str = "home's QEMU ended cleanly";
const KILLED: &str = "home's QEMU was killed (-9)";

/// To the cloud, 1 % of changes there, and the first copy of the way back.
fn way_back(sites: &Sites, planned: bool) -> Result<Way> {
    sites.away(planned)?;
    let written = sites.change(At::Cloud, ONE_OF)?;
    let allocated = sites.allocated()?;
    let began = std::time::Instant::now();
    let job = sites.job(&["reprotect", MACHINE])?;
    let seconds = began.elapsed().as_secs_f64();
    let moved = job.figures.first.context("reprotect told no figures")?;
    let sync = job.figures.sync.context("reprotect did not say how it copied")?;
    Ok(Way { words: if planned { TRACKED } else { KILLED }, sync, moved, written, allocated, seconds })
}
