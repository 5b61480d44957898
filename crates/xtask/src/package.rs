//! `cargo xtask package`: the program as an operator installs it, and a trial of it on a machine that knows nothing of ours.
//!
//! ```text
//!   release build ─► staged (every file in its place) ─► dpkg-deb ─► target/package/sockeye_VERSION_amd64.deb
//!                    notices (of the crates in it)                            │ --check
//!                                    clean (debootstrap, cached) ─► apt ─► booted (systemd) ─► trial
//! ```
//! Why `dpkg-deb` and not a tool around it: `docs/decisions/0024-a-package-by-dpkg-deb.md`.

mod booted;
mod clean;
mod notices;
mod staged;
mod trial;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{output, phase, run};
use crate::packages::{install, run_as_root};
use crate::target_dir;

const USAGE: &str = "usage: cargo xtask package [--check]";
/// What building a package starts besides the compiler.
const PROGRAMS: [(&str, &str); 3] = [("dpkg-shlibdeps", "dpkg-dev"), ("strip", "binutils"), ("gzip", "gzip")];

/// Builds the package; tries it when it is told to.
pub(crate) fn package(root: &Path, arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [] => build(root).map(drop),
        ["--check"] => {
            let deb = build(root)?;
            // As root, and only this: what cargo builds stays ours.
            let own = std::env::current_exe()?;
            let (own, deb) = (own.to_string_lossy(), deb.to_string_lossy());
            run_as_root(root, &[&own, "package", "--try", &deb])
        }
        ["--try", deb] => trial::trial(root, Path::new(deb)),
        _ => bail!("{USAGE}"),
    }
}

fn build(root: &Path) -> Result<PathBuf> {
    phase("package: programs", || install(root, &PROGRAMS))?;
    println!("   (a release build takes about six minutes on two cores the first time)");
    let cargo = ["cargo", "build", "--release", "--locked", "--package", "sockeye", "--bin", "sockeye"];
    phase("package: release build", || run(root, &cargo))?;
    let folder = target_dir(root).join("package");
    let mut deb = PathBuf::new();
    phase("package: deb", || {
        let staged = staged::stage(root, &target_dir(root).join("release/sockeye"), &folder.join("staged"))?;
        deb = folder.join(format!("sockeye_{}_amd64.deb", staged.version));
        let epoch = format!("SOURCE_DATE_EPOCH={}", staged.committed);
        let (from, to) = (staged.folder.to_string_lossy(), deb.to_string_lossy());
        // Times, owners and order are the same at every build, wherever it is made.
        output(root, &["env", &epoch, "dpkg-deb", "--build", "--root-owner-group", "-Zxz", &from, &to])?;
        let bytes = std::fs::metadata(&deb).context("the package is not there")?.len();
        println!("   {} ({:.1} MiB)", deb.display(), bytes as f64 / f64::from(1 << 20));
        Ok(())
    })?;
    Ok(deb)
}
