//! A compare, then a few more changes, then a compare again: what the later ones cost, at both ends.
//!
//! ```text
//!   compare ─► home, commit (folded: home's replica is gone) ─► away, compare ─► home, commit --keep-history ─► away, compare
//! ```
//! Of disks that were folded nothing is proven, and home is read whole; where its replica lives on, it reads what changed
//! (decision 0030).

use std::time::Instant;

use anyhow::{Context, Result};
use demo::world::{At, MACHINE};

use crate::Bench;
use crate::figures::{head, mb, row};
use crate::sites::{STOPPING, Sites};

const GIB: u64 = 16;
const ALLOCATED: u64 = 2 << 30;
/// One block of so many changes before a compare, and what home had been before it was left.
const ROUNDS: [(u64, &str); 3] = [(100, "its own disks"), (1000, "its own disks, folded"), (1000, "its replica, kept")];

pub fn measure(bench: &Bench) -> Result<()> {
    let size = bench.bytes(GIB);
    let sites = Sites::new(bench, "again", size, ALLOCATED.min(size / 2))?;
    sites.protect()?;
    let mut rows = Vec::new();
    for (round, (one_of, home)) in ROUNDS.into_iter().enumerate() {
        sites.away(true)?;
        let written = sites.change(At::Cloud, one_of)?;
        let began = Instant::now();
        let job = sites.job(&["reprotect", MACHINE, "--sync", "compare"])?;
        let moved = job.figures.first.context("reprotect told no figures")?;
        rows.push((one_of, home, written, moved, began.elapsed().as_secs_f64()));
        sites.job(&[&["failback", MACHINE, "--complete", "--max-downtime", "1m"], &STOPPING[..]].concat())?;
        // The last one is after a way home that kept what home's replica knows.
        let kept: &[&str] = if round + 2 == ROUNDS.len() { &["--keep-history"] } else { &[] };
        sites.job(&[&["commit", MACHINE], kept].concat())?;
        sites.job(&["reverse", MACHINE])?;
        sites.caught_up()?;
    }
    drop(sites);
    head(
        &format!("compares of a disk of {} GiB, one after another", size >> 30),
        &["home ran on", "changed before it", "MB", "seconds", "read at the cloud MB", "read at home MB", "sent MB"],
    );
    for (one_of, home, written, moved, seconds) in rows {
        row(&[
            home.into(),
            format!("{:.1} %", 100.0 / one_of as f64),
            format!("{:.0}", mb(written)),
            format!("{seconds:.1}"),
            format!("{:.0}", mb(moved.read_source)),
            format!("{:.0}", mb(moved.read_target)),
            format!("{:.0}", mb(moved.sent)),
        ]);
    }
    Ok(())
}
