//! The roles: what runs until it is told to stop.
//!
//! ```text
//!   server ─► control + api          process-server, master-target ─► ask the server for work
//!   up     ─► all of them in one process, two sites on this host
//!   init, join ─► those of this host, as services or in one process
//! ```
//!
//! A role ends on SIGTERM or Ctrl-C and leaves everything so that it goes on at the next start; it may as well be killed.

pub mod demo;
mod host;
mod mover;
mod server;
mod signal;
mod up;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::{Global, Verb};
use crate::copying;
use crate::ending::{Ending, Trouble};
use crate::pages;
use crate::show::Screen;

/// Runs the role that was typed, or what else asks no server; none if the verb is none of these.
pub async fn run(global: &Global, verb: &Verb) -> Option<Result<Ending, Trouble>> {
    let screen = Screen::new(global.output);
    match verb {
        Verb::Server(server) => Some(server::run(screen, server).await),
        Verb::ProcessServer(server) => Some(mover::process_server(global, server).await),
        Verb::MasterTarget(target) => Some(mover::master_target(global, target).await),
        Verb::Copy(copy) => Some(copying::copy(screen, copy).await),
        Verb::Receive(receive) => Some(copying::receive(screen, receive).await),
        Verb::Send(send) => Some(copying::send_to(screen, send).await),
        Verb::Init(init) => Some(host::init(global, init).await),
        Verb::Join(join) => Some(host::join(global, join).await),
        Verb::Up(up) => Some(up::run(screen, up).await),
        Verb::Pages { dir } => Some(pages::write(dir)),
        _ => None,
    }
}

/// Log lines go to stderr; `SOCKEYE_LOG` says which (`debug`, `info,master_target=trace`), in the manner of `RUST_LOG`.
fn log() {
    let filter = EnvFilter::try_from_env("SOCKEYE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Only fails when a log is set up already.
    let _ = lines.with_ansi(std::io::stderr().is_terminal()).try_init();
}
