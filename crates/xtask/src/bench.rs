//! `cargo xtask bench replica|movement`: measures a room, or copies beside their peers, built as they are shipped. Never
//! part of the tests: figures are for reading.

mod movement;

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::run;

/// Builds the bench of the room that is named first and runs it with the rest of the arguments.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    match arguments.split_first() {
        Some((room, rest)) if room == "replica" => {
            println!("== build: the bench of replica (about two minutes the first time)");
            let mut line = vec!["cargo", "bench", "--quiet", "--package", "replica", "--bench", "replica", "--"];
            line.extend(rest.iter().map(String::as_str));
            run(root, &line)
        }
        Some((room, rest)) if room == "movement" => movement::bench(root, rest),
        _ => bail!(
            "usage: cargo xtask bench replica [--json FILE] [--dir DIR] | movement [--gib N] [--runs N] [--dir DIR]"
        ),
    }
}
