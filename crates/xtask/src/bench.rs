//! `cargo xtask bench replica|movement`: measures a room, or machines on the move beside their peers, built as they are
//! shipped. Never part of the tests: figures are for reading.

use std::path::Path;

use anyhow::{Result, bail};

use crate::command::{phase, run};
use crate::setup::setup;
use crate::{fio_initramfs, target_dir};

const USAGE: &str = "usage: cargo xtask bench replica [--json FILE] [--dir DIR]
       cargo xtask bench movement [copy] [connections] [steady] [failback] [memory] [again] [downtime] [guest]
                                  [--gib N] [--runs N] [--dir DIR]";

/// Builds the bench that is named first and runs it with the rest of the arguments.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    let Some((room, rest)) = arguments.split_first() else { bail!("{USAGE}") };
    let package = match room.as_str() {
        "replica" => "replica",
        "movement" => {
            // Peers, fio and the guest.
            setup(root)?;
            let guest = target_dir(root).join("guest");
            phase("setup: the guest with fio", || fio_initramfs::build(&guest, &guest.with_file_name("guest-fio")))?;
            "sockeye"
        }
        _ => bail!("{USAGE}"),
    };
    println!("== build: the bench of {room} (minutes, the first time)");
    let mut line = vec!["cargo", "bench", "--quiet", "--package", package, "--bench", room, "--"];
    line.extend(rest.iter().map(String::as_str));
    run(root, &line)
}
