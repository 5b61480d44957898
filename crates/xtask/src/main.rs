//! The chores of this workspace: `cargo xtask <chore>`.
//!
//! ```text
//!   setup ─► check = fmt · clippy · tidy · tests (· deny)
//!     │
//!     ├────► long = the runs that the tests leave out
//!     ├────► demo · sabotage · bench · fuzz · simulate
//!     └────► package ─► a .deb, installed on a clean root and started there
//! ```
//! `test` is setup and check together, and is exactly what continuous integration runs.

mod agent_initramfs;
mod bench;
mod check;
mod command;
mod cpio;
mod demo;
mod fio_initramfs;
mod fuzz;
mod initramfs;
mod long;
mod package;
mod packages;
mod sabotage;
mod setup;
mod simulate;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "\
usage: cargo xtask <chore>

  setup        install what this machine lacks, fetch the test guest's kernel, build its initramfs
  check        format, clippy, tidy, all tests: what continuous integration checks
  test         setup, then check
  test --long  setup, then what the check leaves out because it takes long: a Debian with PostgreSQL through the circle;
               a quarter of an hour, needs root; what it did is written into docs/long-run.md
  tidy         the workspace's own rules: edges between the rooms, names, lengths
  demo [..]    setup, build, then the whole circle: sockeye demo [..]
  sabotage [NAME..] [--list]
               build faults in, one at a time: each must be caught by a test
  bench replica [--json FILE] [--dir DIR]
               what the replica costs, against fio on the same disk: about two minutes once it is built
  bench movement [TABLE..] [--gib N] [--runs N] [--dir DIR]
               copies beside rsync, nbdcopy and qemu-img: some minutes, 12 GiB in /dev/shm unless told otherwise
  fuzz [--seconds N] [TARGET..] | --list
               what is decoded from the wire or a retention volume, fed by libFuzzer; a minute each without --seconds
  simulate replica [--seeds N | --seed N] [--sabotage NAME]
               random schedules of epochs, power cuts and prunes against a model; 2000 take some minutes
  package [--check]
               a release build as a Debian package, in target/package; --check installs it on a clean Debian 12, starts its
               services there under systemd, protects a machine, and removes it again: some minutes, needs root";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match chore(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(arguments: &[String]) -> Result<()> {
    let root = workspace_root()?;
    let Some((chore, rest)) = arguments.split_first() else { bail!("{USAGE}") };
    if chore == "test" && rest == ["--long"] {
        setup::setup(&root)?;
        return long::long(&root);
    }
    if !rest.is_empty() && !["demo", "sabotage", "bench", "fuzz", "simulate", "package"].contains(&chore.as_str()) {
        bail!("`{chore}` takes no arguments\n{USAGE}");
    }
    match chore.as_str() {
        "setup" => setup::setup(&root),
        "check" => check::check(&root),
        "test" => {
            setup::setup(&root)?;
            check::check(&root)
        }
        "tidy" => tidy::tidy(&root),
        "demo" => demo::demo(&root, rest),
        "sabotage" => sabotage::sabotage(&root, rest),
        "bench" => bench::bench(&root, rest),
        "fuzz" => fuzz::fuzz(&root, rest),
        "package" => package::package(&root, rest),
        "simulate" => simulate::simulate(&root, rest),
        _ => bail!("there is no chore called {chore}\n{USAGE}"),
    }
}

fn workspace_root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).context("this crate stands two folders below the root")?;
    if !root.join("Cargo.lock").is_file() {
        bail!("{} is gone: run cargo xtask from the clone it was built in", root.display());
    }
    Ok(root.to_path_buf())
}

/// Where cargo builds, as an absolute path.
fn target_dir(root: &Path) -> PathBuf {
    root.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}
