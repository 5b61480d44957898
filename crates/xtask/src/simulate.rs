//! `cargo xtask simulate replica`: random schedules on a machine whose power goes, each compared with a model.
//!
//! ```text
//!   seed ─► schedule of epochs, crashes, prunes, pins, thinnings, views ─► invariants after every step ─► counts
//! ```
//! A seed is all that a schedule depends on: one that fails prints the command that plays it again. The tests run a few
//! seeds on every occasion; this runs as many as one likes.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::run;

const USAGE: &str = "usage: cargo xtask simulate replica [--seeds N | --seed N]";
/// The test that plays the schedules.
const TEST: &str = "no_schedule_of_epochs_and_power_cuts_loses_or_changes_a_point";
/// How many schedules without being told.
const SEEDS: &str = "2000";

/// Plays the schedules that `arguments` ask for.
pub(crate) fn simulate(root: &Path, arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let setting = match arguments[..] {
        ["replica"] => format!("SOCKEYE_SEEDS={SEEDS}"),
        ["replica", "--seeds", count] => format!("SOCKEYE_SEEDS={}", number(count)?),
        ["replica", "--seed", seed] => format!("SOCKEYE_SEED={}", number(seed)?),
        _ => bail!("{USAGE}"),
    };
    let test = ["cargo", "test", "--quiet", "--package", "replica", "--test", "power_cut", "--", "--exact", TEST];
    let line: Vec<&str> = ["env", &setting].into_iter().chain(test).chain(["--nocapture"]).collect();
    run(root, &line)
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text} is not a number\n{USAGE}"))
}
