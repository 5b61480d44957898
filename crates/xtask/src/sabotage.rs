//! `cargo xtask sabotage`: faults are built in, one at a time, and each must be caught by a test.
//!
//! ```text
//!   build once, feature `sabotage` ─► control run: every chosen test passes
//!                                 └─► per fault: SOCKEYE_SABOTAGE=<name> ─► its tests fail, and say what they found
//! ```
//! A fault counts as caught only if the test went through the sabotaged place (which says so), failed as a test fails, and
//! said what its list entry expects: a timeout, a crash or a build error catches nothing. What the tests printed is kept in
//! `target/sabotage/`. The programs of the product are not built here, so none with a fault in it is left behind.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub(crate) use faults::{Catcher, FAULTS, Fault};

use crate::command::{output, run};
use crate::target_dir;

/// Those with a fault, or with a test that catches one.
const PACKAGES: [&str; 6] = ["protocol", "platforms", "replica", "component", "process-server", "master-target"];
/// No test takes a quarter of it.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a test did.
struct Ran {
    seconds: f64,
    /// How it ended: none when it had to be killed.
    success: Option<bool>,
    said: String,
}

/// Builds, runs and judges the faults called `names`, all of them for no names.
pub(crate) fn sabotage(root: &Path, names: &[String]) -> Result<()> {
    if names.iter().any(|name| name == "--list") {
        FAULTS.iter().for_each(|fault| println!("{:28} {}", fault.name, fault.what));
        return Ok(());
    }
    let chosen = chosen(names)?;
    if !target_dir(root).join("guest/initrd.img").is_file() {
        bail!("the test guest is not built; run: cargo xtask setup");
    }
    let binaries = build(root)?;
    let tests: BTreeSet<Catcher> = chosen.iter().flat_map(|fault| fault.catchers).copied().collect();
    println!("== control run: {} tests without a fault", tests.len());
    for test in &tests {
        let ran = run_test(root, &binaries, test, None)?;
        if ran.success != Some(true) || !ran.said.contains("test result: ok. 1 passed") {
            bail!("{} does not pass without a fault; it says:\n{}", title(test), ran.said);
        }
    }
    println!("== {} faults\n{:28} {:>7}  caught by", chosen.len(), "fault", "seconds");
    let mut missed = 0;
    for fault in chosen {
        for test in fault.catchers {
            let ran = run_test(root, &binaries, test, Some(fault.name))?;
            let verdict = judge(fault.name, test, &ran);
            missed += usize::from(verdict.is_err());
            let words = verdict.map_or_else(|why| format!("NOT CAUGHT by {}: {why}", title(test)), |()| title(test));
            println!("{:28} {:7.1}  {words}", fault.name, ran.seconds);
        }
    }
    if missed > 0 {
        bail!("{missed} times a fault was not caught; see target/sabotage/");
    }
    println!("== every fault was caught");
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Fault>> {
    for name in names {
        if FAULTS.iter().all(|fault| fault.name != name) {
            bail!("there is no fault {name}; see: cargo xtask sabotage --list");
        }
    }
    Ok(FAULTS.iter().filter(|fault| names.is_empty() || names.iter().any(|name| name == fault.name)).collect())
}

fn title(test: &Catcher) -> String {
    format!("{} {} {}", test.package, test.binary, test.test)
}

/// Whether the test caught the fault; else why that was not it.
fn judge(fault: &str, test: &Catcher, ran: &Ran) -> Result<(), String> {
    match ran.success {
        None => Err(format!("it did not end within {} s", PATIENCE.as_secs())),
        Some(true) => Err("it passed".into()),
        Some(false) if !ran.said.contains(&format!("SABOTAGE {fault}")) => {
            Err("it failed without coming to the place of the fault".into())
        }
        Some(false) if !ran.said.contains("test result: FAILED. 0 passed; 1 failed") => {
            Err("it died instead of failing".into())
        }
        Some(false) if !ran.said.contains(test.says) => Err(format!("it failed without saying {:?}", test.says)),
        Some(false) => Ok(()),
    }
}

/// Builds the tests with all faults in them, none of them awake. Gives where each is, by package and binary.
fn build(root: &Path) -> Result<BTreeMap<(String, String), PathBuf>> {
    println!("== build: tests with the feature sabotage");
    let start = Instant::now();
    let features = PACKAGES.map(|package| format!("{package}/sabotage")).join(",");
    let mut line = vec!["cargo", "test", "--no-run", "--quiet", "--features", &features];
    PACKAGES.iter().for_each(|package| line.extend(["--package", package]));
    run(root, &line)?;
    line.push("--message-format=json");
    let told = output(root, &line)?;
    let mut binaries = BTreeMap::new();
    for message in String::from_utf8_lossy(&told).lines() {
        let message: serde_json::Value = serde_json::from_str(message).context("reading what cargo built")?;
        let (Some(executable), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let package = Path::new(manifest).parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let is_lib = message["target"]["kind"][0] == "lib";
        let binary = if is_lib { "lib" } else { message["target"]["name"].as_str().unwrap_or_default() };
        binaries.insert((package.into_owned(), binary.to_owned()), PathBuf::from(executable));
    }
    println!("== build: {:.1} s", start.elapsed().as_secs_f64());
    Ok(binaries)
}

/// Runs one test alone.
fn run_test(
    root: &Path,
    binaries: &BTreeMap<(String, String), PathBuf>,
    test: &Catcher,
    fault: Option<&str>,
) -> Result<Ran> {
    let of = |binary: &str| binaries.get(&(test.package.to_owned(), binary.to_owned()));
    let module = || of("all").map(|all| (all, format!("{}::{}", test.binary, test.test)));
    let found = of(test.binary).map(|own| (own, test.test.to_owned())).or_else(module);
    let (binary, exact) = found.with_context(|| format!("{} has no tests {}", test.package, test.binary))?;
    let logs = target_dir(root).join("sabotage");
    std::fs::create_dir_all(&logs)?;
    let name = test.test.rsplit("::").next().unwrap_or_default();
    let log = logs.join(format!("{}-{name}.log", fault.unwrap_or("control")));
    let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = Command::new(binary);
    command.args(["--exact", &exact, "--nocapture", "--test-threads=1"]);
    command.current_dir(root.join("crates").join(test.package)).env_remove("SOCKEYE_SABOTAGE");
    // A file, not a pipe: a machine that outlived its test would keep a pipe open. A group, so that none does.
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
    if let Some(fault) = fault {
        command.env("SOCKEYE_SABOTAGE", fault);
    }
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {}", binary.display()))?;
    let group = format!("-{}", child.id());
    let (tell, told) = mpsc::channel();
    let waiting = std::thread::spawn(move || tell.send(child.wait()));
    let success = match told.recv_timeout(PATIENCE) {
        Ok(status) => Some(status?.success()),
        Err(_) => {
            run(root, &["kill", "-KILL", "--", &group])?;
            None
        }
    };
    let _ = waiting.join();
    let seconds = start.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
    Ok(Ran { seconds, success, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: Catcher = Catcher { package: "a", binary: "lib", test: "t", says: "three differ" };
    const FAILED: &str = "test result: FAILED. 0 passed; 1 failed; 0 ignored";

    fn verdict(success: Option<bool>, said: &str) -> Result<(), String> {
        judge("f", &TEST, &Ran { seconds: 0.0, success, said: said.into() })
    }

    #[test]
    fn only_a_test_that_fails_for_the_right_reason_catches() {
        assert_eq!(verdict(Some(false), &format!("SABOTAGE f\nthree differ\n{FAILED}")), Ok(()));
        assert!(verdict(Some(true), "SABOTAGE f\nthree differ").is_err());
        assert!(verdict(None, &format!("SABOTAGE f\nthree differ\n{FAILED}")).unwrap_err().contains("did not end"));
        assert!(verdict(Some(false), &format!("three differ\n{FAILED}")).unwrap_err().contains("without coming"));
        assert!(verdict(Some(false), "SABOTAGE f\nthree differ").unwrap_err().contains("died"));
        assert!(verdict(Some(false), &format!("SABOTAGE f\n{FAILED}")).unwrap_err().contains("three differ"));
    }

    #[test]
    fn a_fault_that_nobody_knows_is_refused_and_no_name_means_all() {
        assert!(chosen(&["no-such-fault".into()]).is_err());
        assert_eq!(chosen(&[]).unwrap().len(), FAULTS.len());
        assert_eq!(chosen(&["extent-dropped".into()]).unwrap().len(), 1);
    }
}
