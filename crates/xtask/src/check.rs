//! `cargo xtask check`: format, clippy, tidy, tests. Continuous integration runs exactly this.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::{phase, run, works};
use crate::{target_dir, tidy};

/// Runs all phases; the first that fails ends it.
pub(crate) fn check(root: &Path) -> Result<()> {
    phase("format", || run(root, &["cargo", "fmt", "--all", "--check"]))?;
    let clippy = ["cargo", "clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    phase("clippy", || run(root, &clippy))?;
    phase("tidy", || tidy::tidy(root))?;
    phase("tests", || tests(root))?;
    phase("deny", || deny(root))
}

fn tests(root: &Path) -> Result<()> {
    let guest = target_dir(root).join("guest");
    if !guest.join("initrd.img").is_file() {
        bail!("the test guest is not built; run: cargo xtask setup");
    }
    if works(root, &["cargo", "nextest", "--version"]) {
        run(root, &["cargo", "nextest", "run", "--workspace"])?;
        // Nextest leaves out the examples in comments; asking rustdoc about every crate takes a while, so only if needed.
        if tidy::has_doc_tests(root)? { run(root, &["cargo", "test", "--workspace", "--doc"]) } else { Ok(()) }
    } else {
        // Building nextest takes minutes; without it only its time limits are missed.
        println!("   cargo-nextest is not installed: cargo test instead");
        run(root, &["cargo", "test", "--workspace", "--", "--test-threads=2"])
    }
}

fn deny(root: &Path) -> Result<()> {
    if works(root, &["cargo", "deny", "--version"]) {
        // Advisories need the network and change by the day: not part of a check that must give the same answer twice.
        return run(root, &["cargo", "deny", "check", "bans", "licenses", "sources"]);
    }
    println!("   skipped: cargo-deny is not installed (cargo install cargo-deny --locked)");
    Ok(())
}
