//! `cargo xtask demo`: from a fresh clone to the whole circle, in one command.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::command::run;
use crate::{setup, target_dir};

/// Sets up, builds `sockeye`, and runs its demo with `arguments`.
pub(crate) fn demo(root: &Path, arguments: &[String]) -> Result<()> {
    setup::setup(root)?;
    println!("== build: sockeye (about five minutes on two cores the first time, seconds later)");
    let start = Instant::now();
    run(root, &["cargo", "build", "--package", "sockeye"])?;
    println!("== build: {:.1} s", start.elapsed().as_secs_f64());
    let target = target_dir(root);
    let (sockeye, guest) = (target.join("debug/sockeye"), target.join("guest"));
    let (sockeye, guest) = (sockeye.to_string_lossy(), guest.to_string_lossy());
    let mut line = vec![&*sockeye, "demo", "--guest", &*guest];
    line.extend(arguments.iter().map(String::as_str));
    run(root, &line)
}
