//! `cargo xtask simulate replica`: random schedules on a machine whose power goes, each compared with a model.
//!
//! ```text
//!   seed ─► schedule of epochs, crashes, prunes, pins, thinnings, views ─► invariants after every step ─► counts
//! ```
//! A seed is all that a schedule depends on: one that fails prints the command that plays it again. The tests run a few
//! seeds on every occasion; this runs as many as one likes. With `--sabotage` a fault is built in (`docs/sabotage.md`): the
//! schedules should find it, and the seed that did should find it again.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::run;
use crate::sabotage::FAULTS;

const USAGE: &str = "usage: cargo xtask simulate replica [--seeds N | --seed N] [--sabotage NAME]";
/// The test that plays the schedules.
const TEST: &str = "no_schedule_of_epochs_and_power_cuts_loses_or_changes_a_point";
/// How many schedules without being told.
const SEEDS: &str = "2000";

/// Plays the schedules that `arguments` ask for.
pub(crate) fn simulate(root: &Path, arguments: &[String]) -> Result<()> {
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let fault = match arguments.iter().position(|argument| *argument == "--sabotage") {
        Some(at) => {
            let fault = *arguments.get(at + 1).context(USAGE)?;
            arguments.drain(at..at + 2);
            Some(fault)
        }
        None => None,
    };
    let setting = match arguments[..] {
        ["replica"] => format!("SOCKEYE_SEEDS={SEEDS}"),
        ["replica", "--seeds", count] => format!("SOCKEYE_SEEDS={}", number(count)?),
        ["replica", "--seed", seed] => format!("SOCKEYE_SEED={}", number(seed)?),
        _ => bail!("{USAGE}"),
    };
    let fault_setting = fault.map(|name| format!("SOCKEYE_SABOTAGE={name}"));
    let mut line = vec!["env", &setting];
    line.extend(fault_setting.as_deref());
    line.extend(["cargo", "test", "--quiet", "--package", "replica", "--test", "power_cut"]);
    if let Some(name) = fault {
        if FAULTS.iter().all(|fault| fault.name != name) {
            bail!("there is no fault {name}; see: cargo xtask sabotage --list");
        }
        line.extend(["--features", "replica/sabotage"]);
    }
    line.extend(["--", "--exact", TEST, "--nocapture"]);
    run(root, &line)
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text} is not a number\n{USAGE}"))
}
