//! A compare, then a few more changes, then a compare again: what the second one costs. For reading; there is no goal yet.
//!
//! The way back is called off each time before it would move the machine: what counts is the first copy of the direction.

use std::time::Instant;

use anyhow::{Context, Result};
use demo::world::{At, MACHINE};

use crate::Bench;
use crate::figures::{head, mb, row};
use crate::sites::{STOPPING, Sites};

const GIB: u64 = 16;
const ALLOCATED: u64 = 2 << 30;
/// One block of so many changes before a compare.
const CHANGES: [u64; 2] = [100, 1000];

pub fn measure(bench: &Bench) -> Result<()> {
    let size = bench.bytes(GIB);
    let sites = Sites::new(bench, "again", size, ALLOCATED.min(size / 2))?;
    sites.protect()?;
    let mut rows = Vec::new();
    for one_of in CHANGES {
        sites.away(true)?;
        let written = sites.change(At::Cloud, one_of)?;
        let began = Instant::now();
        let job = sites.job(&["reprotect", MACHINE, "--sync", "compare"])?;
        let moved = job.figures.first.context("reprotect told no figures")?;
        rows.push((one_of, written, moved, began.elapsed().as_secs_f64()));
        sites.job(&[&["failback", MACHINE, "--complete", "--max-downtime", "1m"], &STOPPING[..]].concat())?;
        sites.job(&["commit", MACHINE])?;
        sites.job(&["reverse", MACHINE])?;
        sites.caught_up()?;
    }
    drop(sites);
    head(
        &format!("a compare of a disk of {} GiB, and one after it", size >> 30),
        &["changed before it", "MB", "seconds", "read at the cloud MB", "read at home MB", "sent MB"],
    );
    for (one_of, written, moved, seconds) in rows {
        row(&[
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
