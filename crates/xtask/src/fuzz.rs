//! `cargo xtask fuzz`: the fuzz targets with knowledge of the code's coverage, for as long as one likes.
//!
//! ```text
//!   build instrumented (target/fuzz) ─► each target ─► libFuzzer ─► its corpus grows in target/fuzz/corpus
//!                                                          └─ what fails is left in target/fuzz/found
//! ```
//! The tests run the same targets with random bytes, a minute in all, and without any of this. The flags are those of
//! cargo-bolero, which builds a package's other tests as well, and those do not link with it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::command::{output, run};
use crate::target_dir;

const USAGE: &str = "usage: cargo xtask fuzz [--seconds N] [TARGET..] | --list";
/// Where targets are: package and the test binary in it.
const BINARIES: [(&str, &[&str]); 3] =
    [("protocol", &["--test", "fuzz"]), ("nbd", &["--test", "fuzz"]), ("replica", &["--lib"])];
/// For each target without being told.
const SECONDS: u64 = 60;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-stack-depth";

/// Runs the targets that `arguments` name, all of them for none.
pub(crate) fn fuzz(root: &Path, arguments: &[String]) -> Result<()> {
    let mut names: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let list = names.iter().position(|name| *name == "--list").map(|at| names.remove(at)).is_some();
    let seconds = match names.iter().position(|name| *name == "--seconds") {
        Some(at) => {
            let seconds = names.get(at + 1).and_then(|text| text.parse().ok()).context(USAGE)?;
            names.drain(at..at + 2);
            seconds
        }
        None => SECONDS,
    };
    let folder = target_dir(root).join("fuzz");
    let mut targets = Vec::new();
    for (package, binary) in BINARIES {
        let executable = build(root, &folder, package, binary)?;
        let told = output(root, &[&executable, "--list", "--format", "terse"])?;
        let told = String::from_utf8_lossy(&told).into_owned();
        let tests = told.lines().filter_map(|line| line.strip_suffix(": test"));
        let is_target = |test: &&str| binary.contains(&"fuzz") || test.starts_with("fuzz::");
        targets.extend(tests.filter(is_target).map(|test| (package, executable.clone(), test.to_string())));
    }
    let unknown = names.iter().find(|name| targets.iter().all(|(_, _, test)| !is_named(test, name)));
    if let Some(unknown) = unknown {
        bail!("there is no fuzz target {unknown}; see: cargo xtask fuzz --list");
    }
    for (package, executable, test) in targets {
        if list {
            println!("{package:10} {}", test.trim_start_matches("fuzz::"));
        } else if names.is_empty() || names.iter().any(|name| is_named(&test, name)) {
            let start = Instant::now();
            one(root, &folder, &executable, &test, seconds)?;
            println!("{package:10} {:50} {:4.0} s", test.trim_start_matches("fuzz::"), start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

fn is_named(test: &str, name: &str) -> bool {
    test.trim_start_matches("fuzz::") == name
}

/// The instrumented test binary.
fn build(root: &Path, folder: &Path, package: &str, binary: &[&str]) -> Result<String> {
    let target = format!("--target-dir={}", folder.display());
    let flags = format!("RUSTFLAGS={FLAGS}");
    // Coverage is a matter of code generation that the stable compiler has; only to be asked for it wants this.
    let mut line = vec!["env", "RUSTC_BOOTSTRAP=1", &flags, "cargo", "test", "--no-run", "--profile", "fuzz"];
    line.extend(["--target", TRIPLE, "--package", package, &target]);
    line.extend(binary);
    run(root, &line)?;
    line.push("--message-format=json");
    let told = output(root, &line)?;
    let messages = String::from_utf8_lossy(&told).into_owned();
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executables = messages.filter_map(|message| message["executable"].as_str().map(str::to_string));
    executables.next_back().with_context(|| format!("{package} has no test binary {binary:?}"))
}

fn one(root: &Path, folder: &Path, executable: &str, test: &str, seconds: u64) -> Result<()> {
    let (corpus, found) = (folder.join("corpus").join(test.replace("::", "-")), folder.join("found"));
    for folder in [&corpus, &found] {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let told = format!(
        "BOLERO_LIBFUZZER_ARGS={} -max_total_time={seconds} -timeout=30 -rss_limit_mb=2048 -print_final_stats=0 -verbosity=0 -artifact_prefix={}/",
        corpus.display(),
        found.display()
    );
    let name = format!("BOLERO_TEST_NAME={test}");
    let line = ["env", "BOLERO_FUZZER=libfuzzer", "BOLERO_LIBTEST_HARNESS=1", &name, &told, executable, test];
    let line = [&line[..], &["--exact", "--nocapture", "--quiet", "--test-threads", "1"]].concat();
    run(root, &line).with_context(|| format!("{test} fails; what it was fed is in {}", found.display()))
}
