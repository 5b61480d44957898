//! The most memory that each process ever took, by the size of the disk: through a first replication, epochs, an unplanned
//! failover, and a compare on the way back, which is what holds most.

use anyhow::{Result, ensure};
use demo::world::{At, MACHINE};

use crate::Bench;
use crate::figures::{head, row};
use crate::sites::Sites;

const SIZES: [u64; 2] = [64 << 30, 1 << 40];
/// So much of each disk is written before anything starts, and later.
const ALLOCATED: u64 = 1 << 30;
const CHANGED: u64 = 256 << 20;

pub fn measure(bench: &Bench) -> Result<()> {
    let sizes = bench.gib.map_or(SIZES.to_vec(), |gib| vec![gib << 30]);
    let all: Vec<_> = sizes.iter().map(|size| peaks(bench, *size)).collect::<Result<_>>()?;
    let names: Vec<String> = sizes.iter().map(|size| format!("{} GiB disk, MiB", size >> 30)).collect();
    let columns: Vec<&str> = ["process"].into_iter().chain(names.iter().map(String::as_str)).collect();
    head("most memory ever (VmHWM)", &columns);
    ensure!(all.iter().all(|one| one.len() == all[0].len()), "a process is missing");
    for (place, (name, _)) in all[0].iter().enumerate() {
        let cells = all.iter().map(|one| format!("{:.0}", one[place].1 as f64 / f64::from(1 << 20)));
        row(&[name.clone()].into_iter().chain(cells).collect::<Vec<_>>());
    }
    Ok(())
}

fn peaks(bench: &Bench, size: u64) -> Result<Vec<(String, u64)>> {
    let sites = Sites::new(bench, "memory", size, ALLOCATED)?;
    sites.protect()?;
    sites.change(At::Home, size / CHANGED)?;
    sites.caught_up()?;
    sites.away(false)?;
    sites.change(At::Cloud, size / CHANGED)?;
    sites.job(&["reprotect", MACHINE])?;
    sites.caught_up()?;
    sites.processes().into_iter().map(|(name, process)| Ok((name, process.peak()?))).collect()
}
