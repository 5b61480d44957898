//! What the replica costs: `cargo xtask bench replica [--json FILE] [--dir DIR]`.
//!
//! ```text
//!   ingest    fio write (W) ─ fio read (R) ─ replica ─ fio write ─ fio read ─ replica …     medians, as ratios
//!   history   one process for each of 10, 1,000 and 86,400 points: opening a view, reading through it, memory
//! ```
//! It measures and never judges: the goal stands beside the figure. Rates of one run are compared only with rates of the
//! same run, because a machine in a cloud is another one an hour later.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "replica/history.rs"]
mod history;
#[path = "replica/ingest.rs"]
mod ingest;
#[path = "replica/plain.rs"]
mod plain;
#[path = "replica/timed.rs"]
mod timed;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The share of the bound 1/(2+W/R) that ingest is to reach.
const GOAL: f64 = 0.85;

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "--history") {
        return history::measure(arguments[1].parse().unwrap(), Path::new(&arguments[2]));
    }
    let mut option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        let value = arguments.drain(at..(at + 2).min(arguments.len())).nth(1);
        Some(value.unwrap_or_else(|| fail(&format!("{name} needs a value"))))
    };
    let (to, within) = (option("--json"), option("--dir"));
    if !arguments.is_empty() {
        fail("usage: cargo xtask bench replica [--json FILE] [--dir DIR]");
    }
    let within = within.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    if !plain::is_there() {
        fail("fio is not installed, and nothing can be said without it; cargo xtask setup installs it");
    }
    std::fs::create_dir_all(&within).unwrap();
    let place = tempfile::tempdir_in(&within).unwrap();
    println!("== ingest in {}: MB/s, and the share of W; goal {GOAL} of the bound 1/(2+W/R)", within.display());
    let ingest = ingest::measure(place.path());
    println!("== history: a disk of {} MiB, one changed block of 4 KiB in each epoch", history::DISK >> 20);
    let history = history::all(place.path());
    if let Some(file) = to {
        let all = json!({ "goal": GOAL, "ingest": ingest, "history": history });
        std::fs::write(&file, serde_json::to_vec_pretty(&all).unwrap()).unwrap();
        println!("== written to {file}");
    }
}

fn fail(why: &str) -> ! {
    eprintln!("bench: {why}");
    std::process::exit(2)
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A number of a JSON object that was made here.
fn number(of: &Value, name: &str) -> f64 {
    of[name].as_f64().unwrap()
}

/// Bytes that look like nothing: no file system and no compression gains anything on them.
fn noise(bytes: &mut [u8], mut seed: u64) {
    for word in bytes.chunks_mut(8) {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        word.copy_from_slice(&seed.to_le_bytes()[..word.len()]);
    }
}
