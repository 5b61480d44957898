//! Random schedules of everything a replica can do, with the power cut at random moments, against a model of ten lines.
//!
//! The model is a list of points with the whole content of every disk. What is checked after every step:
//! 1. a sealed epoch is never lost; 2. what a view reads is exactly its point; 3. every point that is kept is bit-exact,
//!    and after an opening the disks are at the newest; 6. what was rolled back leaves no trace.
//!
//! `cargo xtask simulate replica --seeds 2000` plays more; a failure prints the command that plays its seed alone.

#![allow(clippy::unwrap_used)]

mod checks;
mod deeds;
mod epochs;
mod history;
mod schedule;

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use self::schedule::{Counts, run};
use crate::simulated::Lie;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Plays these schedules, on as many threads as told.
fn play(seeds: Range<u64>, threads: usize) -> Counts {
    let (next, total, failed) = (AtomicU64::new(seeds.start), Mutex::new(Counts::default()), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let seed = next.fetch_add(1, Ordering::Relaxed)
                    && seed < seeds.end
                {
                    let Ok(counts) = std::panic::catch_unwind(|| run(seed, Lie::None)) else {
                        next.store(seeds.end, Ordering::Relaxed);
                        failed.lock().unwrap().get_or_insert(seed);
                        break;
                    };
                    total.lock().unwrap().add(&counts);
                }
            });
        }
    });
    if let Some(seed) = failed.into_inner().unwrap() {
        let fault =
            std::env::var("SOCKEYE_SABOTAGE").map_or_else(|_| String::new(), |name| format!(" --sabotage {name}"));
        panic!("seed {seed} fails; again: cargo xtask simulate replica --seed {seed}{fault}");
    }
    total.into_inner().unwrap()
}

#[test]
fn no_schedule_of_epochs_and_power_cuts_loses_or_changes_a_point() {
    let many = number("SOCKEYE_SEEDS");
    let seeds = match number("SOCKEYE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..many.unwrap_or(100),
    };
    let threads = many.and_then(|_| std::thread::available_parallelism().ok()).map_or(1, |threads| threads.get());
    let total = play(seeds.clone(), threads);
    println!("{} schedules", seeds.end - seeds.start);
    for (what, count) in total.named() {
        println!("  {count:>9}  {what}");
    }
    println!("invariants, after every step: (1) at {} openings, (2, 3) by {} views,", total.openings, total.views);
    println!("  (6, and the newest point) by {} comparisons of the disks: all held", total.presents);
    if seeds.end - seeds.start >= 100 {
        for (what, count) in total.named() {
            assert!(count >= 10, "{what} came too seldom: {total:?}");
        }
    }
}

#[test]
fn a_seed_plays_the_same_schedule_again() {
    for seed in [0, 7, 31] {
        assert_eq!(run(seed, Lie::None), run(seed, Lie::None), "seed {seed}");
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
