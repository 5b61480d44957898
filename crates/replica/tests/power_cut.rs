//! Random schedules of everything a replica can do, with the power cut at random moments, against a model of ten lines.
//!
//! The model is a list of points with the whole content of every disk. What is checked after every step:
//! 1. a sealed epoch is never lost; 2. what a view reads is exactly its point; 3. after an opening the disks are at the
//!    newest point; 6. what was rolled back leaves no trace.
//!
//! `SOCKEYE_SEEDS=2000 cargo test -p replica --test power_cut` runs more; a failure prints its seed, and
//! `SOCKEYE_SEED=N` runs that one alone.

#![allow(clippy::unwrap_used)]

#[path = "power_cut/checks.rs"]
mod checks;
#[path = "power_cut/deeds.rs"]
mod deeds;
#[path = "power_cut/epochs.rs"]
mod epochs;
#[path = "power_cut/history.rs"]
mod history;
#[path = "power_cut/schedule.rs"]
mod schedule;
mod simulated;

use schedule::{Counts, run};
use simulated::Lie;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_schedule_of_epochs_and_power_cuts_loses_or_changes_a_point() {
    let seeds = match number("SOCKEYE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SOCKEYE_SEEDS").unwrap_or(100),
    };
    let mut total = Counts::default();
    for seed in seeds.clone() {
        let counts = std::panic::catch_unwind(|| run(seed, Lie::None)).unwrap_or_else(|cause| {
            eprintln!("seed {seed} fails; alone: SOCKEYE_SEED={seed} cargo test -p replica --test power_cut");
            std::panic::resume_unwind(cause)
        });
        total.add(&counts);
    }
    println!("{} seeds: {total:?}", seeds.end - seeds.start);
    if seeds.end - seeds.start >= 100 {
        for (what, count) in total.named() {
            assert!(count >= 10, "{what} came too seldom: {total:?}");
        }
    }
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    let lies = [Lie::FileSync(".segment"), Lie::FileSync(".log"), Lie::DirectorySync, Lie::DiskFlush];
    for lie in lies {
        let noticed = (0..60).find(|seed| std::panic::catch_unwind(|| run(*seed, lie)).is_err());
        println!("{lie:?} is noticed by seed {noticed:?}");
        assert!(noticed.is_some(), "{lie:?} went unnoticed");
    }
}
