//! Runs other programs, with the workspace as working directory, and says which one failed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs `line` (program and arguments) with its output on ours; an exit code other than 0 is an error.
pub(crate) fn run(root: &Path, line: &[&str]) -> Result<()> {
    let status = command(root, line)?.status().with_context(|| format!("starting {}", line.join(" ")))?;
    if status.success() { Ok(()) } else { bail!("{} failed ({status})", line.join(" ")) }
}

/// Runs `line` and gives what it prints; an exit code other than 0 is an error with what it complained about.
pub(crate) fn output(root: &Path, line: &[&str]) -> Result<Vec<u8>> {
    let output = command(root, line)?.output().with_context(|| format!("starting {}", line.join(" ")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    bail!("{} failed ({}): {}", line.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim())
}

/// Whether `line` can be run here and exits with 0; what it prints is dropped.
pub(crate) fn works(root: &Path, line: &[&str]) -> bool {
    let quiet = command(root, line).map(|mut command| command.stdout(Stdio::null()).stderr(Stdio::null()).status());
    matches!(quiet, Ok(Ok(status)) if status.success())
}

/// Whether a program of that name can be found, in PATH or where administrators' programs stand.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).any(|file| file.is_file())
}

/// Does one phase under a heading, and says how long it took.
pub(crate) fn phase(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("== {name}");
    let start = Instant::now();
    work().with_context(|| format!("phase {name}"))?;
    println!("== {name}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn command(root: &Path, line: &[&str]) -> Result<Command> {
    let (program, arguments) = line.split_first().context("an empty command line")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root);
    Ok(command)
}
