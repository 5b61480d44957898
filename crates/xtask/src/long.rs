//! `cargo xtask test --long`: what the default run leaves out because it takes long.
//!
//! ```text
//!   long/debian.sh (debootstrap, PostgreSQL, agent, boot loader) ─► target/long/debian.qcow2      (three minutes, kept)
//!   git clone, an older commit ─► target/long/older/build                                         (six minutes, kept)
//!       ─► sockeye's tests `long::` ─► docs/long-run.md                                           (half an hour)
//! ```
//! The image is made anew when what it is made from has changed. It needs root, for chroot and mounts.
//!
//! # If it is interrupted
//! The note of what the image was made from is written last: without it the image counts for nothing.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::command::{phase, run};
use crate::packages::{install, run_as_root};
use crate::target_dir;

const MIRROR: &str = "http://deb.debian.org/debian";
const SUITE: &str = "bookworm";
/// The build from which a newer one is upgraded to: the last before the mover protocol 7. Once there are releases, the one before.
const OLDER: &str = "bc71abf";
/// What making the image starts.
const PROGRAMS: [(&str, &str); 3] = [("debootstrap", "debootstrap"), ("sfdisk", "fdisk"), ("losetup", "mount")];
/// What the image is made from.
const RECIPE: [&str; 5] = [
    include_str!("long/debian.sh"),
    include_str!("long/guest/ledger"),
    include_str!("long/guest/ledger.service"),
    include_str!("long/guest/fsfreeze-hook"),
    include_str!("long/guest/office.nmconnection"),
];

/// Makes the image if it has to, and runs what takes long.
pub(crate) fn long(root: &Path) -> Result<()> {
    let folder = target_dir(root).join("long");
    let (image, made_from) = (folder.join("debian.qcow2"), folder.join("debian.recipe"));
    phase("long: programs", || install(root, &PROGRAMS))?;
    phase("long: a Debian with PostgreSQL", || {
        let recipe = RECIPE.concat();
        if image.is_file() && fs::read_to_string(&made_from).is_ok_and(|made| made == recipe) {
            println!("   {} is up to date", image.display());
            return Ok(());
        }
        fs::create_dir_all(&folder)?;
        if made_from.exists() {
            fs::remove_file(&made_from)?;
        }
        let script = root.join("crates/xtask/src/long/debian.sh");
        let (script, place) = (script.to_string_lossy(), folder.to_string_lossy());
        run_as_root(root, &["unshare", "--mount", "--propagation", "private", "sh", &script, &place, MIRROR, SUITE])?;
        Ok(fs::write(&made_from, recipe)?)
    })?;
    let older = folder.join("older");
    phase("long: an older build", || older_build(root, &older))?;
    phase("long: runs", || {
        let debian = format!("SOCKEYE_DEBIAN={}", image.display());
        let transcript = format!("SOCKEYE_TRANSCRIPT={}", root.join("docs/long-run.md").display());
        let older = format!("SOCKEYE_OLDER={}", older.join("build/debug/sockeye").display());
        let nextest = ["cargo", "nextest", "run", "--package", "sockeye", "--run-ignored", "only", "long::"];
        run(root, &[&["env", &debian, &transcript, &older], &nextest[..]].concat())
    })
}

/// Builds the program as it was at [`OLDER`], in a clone of its own.
fn older_build(root: &Path, folder: &Path) -> Result<()> {
    let clone = folder.join("clone");
    let (clone, build) = (clone.to_string_lossy(), folder.join("build"));
    if !folder.join("clone/.git").exists() {
        run(root, &["git", "clone", "--quiet", "--no-checkout", ".", &clone])?;
    }
    run(root, &["git", "-C", &clone, "fetch", "--quiet", "origin"])?;
    run(root, &["git", "-C", &clone, "checkout", "--quiet", "--detach", OLDER])?;
    let (manifest, build) = (format!("{clone}/Cargo.toml"), format!("CARGO_TARGET_DIR={}", build.display()));
    let cargo = ["cargo", "build", "--quiet", "--locked", "--package", "sockeye", "--bin", "sockeye"];
    run(root, &[&["env", &build], &cargo[..], &["--manifest-path", &manifest]].concat())
}
