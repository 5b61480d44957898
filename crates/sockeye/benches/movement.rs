//! What moving a machine costs: `cargo xtask bench movement [TABLE..] [--gib N] [--runs N] [--dir DIR]`.
//!
//! ```text
//!   copy         a disk onto a disk, beside rsync, nbdcopy and qemu-img         files
//!   connections  the same by the number of connections, with and without delay  files
//!   steady       replication under churn: RPO, the writer's rate, CPU           two sites, a machine without a guest
//!   failback     what is read at each end for 1 % of changes                    two sites, a machine without a guest
//!   memory       peaks of every process, by the size of the disk                two sites, a machine without a guest
//!   again        a compare, and one after it                                    two sites, a machine without a guest
//!   downtime     of a planned failback, by the size of the disks                two sites, a real guest
//!   guest        what fio in a guest gets, replicated and not                   two sites, a real guest
//! ```
//! Everything is the shipped program, started as an operator starts it, and what it says of itself; the rest is read from
//! `/proc`. It measures and never judges: the goal stands beside the figure. Seconds of one run are compared only with
//! seconds of the same run, because a machine in a cloud is another one an hour later.

#[path = "movement/again.rs"]
mod again;
#[path = "movement/connections.rs"]
mod connections;
#[path = "movement/copies.rs"]
mod copies;
#[path = "movement/credentials.rs"]
mod credentials;
#[path = "movement/device.rs"]
mod device;
#[path = "movement/downtime.rs"]
mod downtime;
#[path = "movement/failback.rs"]
mod failback;
#[path = "movement/figures.rs"]
mod figures;
#[path = "movement/fio.rs"]
mod fio;
#[path = "movement/guest.rs"]
mod guest;
#[path = "movement/memory.rs"]
mod memory;
#[path = "movement/process.rs"]
mod process;
#[path = "movement/sites.rs"]
mod sites;
#[path = "movement/steady.rs"]
mod steady;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: cargo xtask bench movement [copy] [connections] [steady] [failback] [memory] [again] \
    [downtime] [guest] [--gib N] [--runs N] [--dir DIR]";

type Table = fn(&Bench) -> Result<()>;

const TABLES: [(&str, Table); 8] = [
    ("copy", copies::measure),
    ("connections", connections::measure),
    ("steady", steady::measure),
    ("failback", failback::measure),
    ("memory", memory::measure),
    ("again", again::measure),
    ("downtime", downtime::measure),
    ("guest", guest::measure),
];

/// What the bench was told.
struct Bench {
    /// The program as it is shipped.
    sockeye: PathBuf,
    /// Size of the disks, where the table has not sizes of its own.
    gib: Option<u64>,
    /// How often, where a table's own number is not wanted.
    runs: Option<usize>,
    /// Where everything lies; gone at the end.
    dir: PathBuf,
}

impl Bench {
    /// The size of a disk in bytes, when nothing was said: `gib`.
    fn bytes(&self, gib: u64) -> u64 {
        self.gib.unwrap_or(gib) << 30
    }

    /// A directory of its own for one arrangement.
    fn place(&self, name: &str) -> Result<PathBuf> {
        let place = self.dir.join(name);
        std::fs::create_dir(&place).with_context(|| format!("making {}", place.display()))?;
        Ok(place)
    }
}

fn main() {
    if let Err(why) = run() {
        eprintln!("bench: {why:#}");
        std::process::exit(1);
    }
}

fn run() -> Result<()> {
    let (mut names, mut gib, mut runs, mut within) = (Vec::new(), None, None, PathBuf::from("/dev/shm"));
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} wants a value; {USAGE}"));
        match argument.as_str() {
            "--gib" => gib = Some(value()?.parse::<u64>()?),
            "--runs" => runs = Some(value()?.parse::<usize>()?),
            "--dir" => within = value()?.into(),
            name if TABLES.iter().any(|(table, _)| *table == name) => names.push(argument),
            _ => bail!("{USAGE}"),
        }
    }
    ensure!(gib != Some(0) && runs != Some(0), "there is nothing to measure");
    let dir = within.join(format!("skb{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let _gone = Gone(&dir);
    interrupted(dir.clone())?;
    let bench = Bench { sockeye: env!("CARGO_BIN_EXE_sockeye").into(), gib, runs, dir: dir.clone() };
    for (name, table) in TABLES.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name))
    {
        let began = Instant::now();
        println!("\n== {name}");
        table(&bench).with_context(|| format!("measuring {name}"))?;
        println!("\n== {name}: {:.0} s", began.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Who interrupts the bench does not want its machines to run on: ends every process that was given something in `dir`.
fn interrupted(dir: PathBuf) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut terminated = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate())?
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = terminated.recv() => {}, _ = tokio::signal::ctrl_c() => {} }
        });
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&*dir.to_string_lossy())
                && let Some(pid) = Pid::from_raw(pid)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = std::fs::remove_dir_all(&dir);
        std::process::exit(130);
    });
    Ok(())
}

/// A directory that ends with the bench, whatever it came to.
struct Gone<'a>(&'a Path);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0);
    }
}
