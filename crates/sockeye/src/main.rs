//! The one binary: the command line, which speaks only REST, and every role.
//!
//! ```text
//!   main ─► cli (what was typed) ─┬─► verb (client ─► show)      exit code of the contract
//!                                 └─► roles (server · process-server · master-target · up)
//! ```

mod cli;
mod client;
mod copying;
mod ending;
mod fault;
mod pages;
mod profile;
mod roles;
mod show;
mod verb;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::Cli;
use crate::show::Screen;

/// Memory up to this size is kept for the next one who wants it, and not given back to the system at once.
const KEPT: libc::c_int = 64 << 20;

fn main() -> anyhow::Result<ExitCode> {
    keep_buffers();
    let Cli { global, verb } = Cli::parse();
    if let cli::Verb::Demo(wanted) = &verb {
        return roles::demo::run(wanted, global.output);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("this process cannot start its threads")?;
    let screen = Screen::new(global.output);
    let ending = runtime.block_on(async {
        match roles::run(&global, &verb).await {
            Some(ended) => ended,
            None => verb::run(&global, verb).await,
        }
    });
    // A thread that still reads from the terminal must not keep the process.
    runtime.shutdown_background();
    Ok(match ending {
        Ok(ending) => ending.code(),
        Err(trouble) => {
            screen.document(&trouble.fault);
            screen.error(&trouble.fault);
            trouble.ending.code()
        }
    })
}

/// Frames come and go by the thousand, and their buffers are larger than what the C library keeps by itself: each would be
/// mapped anew, page by page (measured: `docs/performance.md`).
#[allow(unsafe_code)]
fn keep_buffers() {
    // SAFETY: two settings of the allocator, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT / 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
