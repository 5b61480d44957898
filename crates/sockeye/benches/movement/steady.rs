//! Steady state: a machine that is written to all the time, replicated once a second.
//!
//! ```text
//!   core 0   fio ─NBD─► the bench ─► device of web01 (replicated) or of twin (the same machine, not replicated)    both QEMUs
//!   core 1   control, process servers, master targets
//! ```
//! Replication on and off alternate: fio writes to web01, then to its twin, then the other way about. Before web01 is left, all
//! it was given is in a recovery point, so that nothing of it is done while the twin is written to.

use anyhow::{Context, Result, ensure};
use demo::world::{At, MACHINE, Part};
use protocol::order::ReplicationStatus;

use crate::Bench;
use crate::device::{Offered, offer};
use crate::figures::{goal, head, interval, mb, median, percentile, row};
use crate::fio::{self, Job};
use crate::process::{Counts, Process, pin, unpin};
use crate::sites::{BLOCK, Sites};

const GIB: u64 = 4;
const RUNS: usize = 10;
const TWIN: &str = "twin";
/// What is written to: allocated before anything is measured, and small enough for a history in memory.
const REGION: u64 = 256 << 20;
const CHURN: u64 = 20_000_000;
/// Seconds of one alternation, and of the churn in one piece.
const SECONDS: u64 = 2;
const IN_ONE_PIECE: u64 = 45;

/// How it is written, in words; whether a share of throughput is a goal of it.
const WAYS: [(&str, Job, bool); 5] = [
    ("64 KiB sequential, 20 MB/s", job("write", BLOCK, Some(CHURN)), true),
    ("64 KiB random, 20 MB/s", job("randwrite", BLOCK, Some(CHURN)), true),
    ("sequential (1 MiB), as fast as it goes", job("write", 1 << 20, None), true),
    ("64 KiB random, as fast as it goes", job("randwrite", BLOCK, None), true),
    ("4 KiB random, as fast as it goes", job("randwrite", 4096, None), false),
];

const fn job(pattern: &'static str, block: u64, rate: Option<u64>) -> Job {
    Job { pattern, block, rate, region: REGION }
}

pub fn measure(bench: &Bench) -> Result<()> {
    fio::is_there()?;
    let measured = pinned(bench);
    unpin();
    measured
}

fn pinned(bench: &Bench) -> Result<()> {
    let (size, runs) = (bench.bytes(GIB).max(REGION), bench.runs.unwrap_or(RUNS));
    pin(1);
    let mut sites = Sites::empty(bench, "steady", size)?;
    pin(0);
    sites.start(MACHINE, 0)?;
    sites.start(TWIN, 0)?;
    let offered =
        |machine: &str| offer(&sites.world, At::Home, machine, size, &bench.dir.join(format!("{machine}.sock")));
    let steady = Steady { on: offered(MACHINE)?, off: offered(TWIN)?, sites: &sites };
    for disk in [&steady.on, &steady.off] {
        fio::write(&disk.uri, job("write", 1 << 20, None), None)?;
    }
    pin(1);
    sites.protect()?;
    let (flow, mut ages) = steady.in_one_piece()?;
    let mut rows = Vec::new();
    for (words, job, wanted) in WAYS {
        let pairs: Vec<Pair> = (0..runs).map(|run| steady.pair(job, run % 2 == 0)).collect::<Result<_>>()?;
        if job.rate.is_some() {
            ages.extend(pairs.iter().flat_map(|pair| pair.on.ages.iter()));
        }
        rows.push((words, wanted, pairs));
    }
    tell_flow(&flow, &ages);
    tell_rates(&rows, runs);
    Ok(())
}

/// The two machines as they are written to.
struct Steady<'a> {
    on: Offered,
    off: Offered,
    sites: &'a Sites,
}

/// What happened while fio wrote.
struct Spell {
    fio: fio::Wrote,
    qemu: Counts,
    process_server: Counts,
    master_target: Counts,
    /// Bytes of the blocks that epochs carried, and bytes on the connection.
    changed: u64,
    sent: u64,
    /// Ages of recovery points just before they were replaced, in ms.
    ages: Vec<f64>,
}

/// The same writes with replication on and off.
struct Pair {
    on: Spell,
    off: Spell,
}

impl Steady<'_> {
    fn pair(&self, job: Job, on_first: bool) -> Result<Pair> {
        if on_first {
            let on = self.spell(true, job, SECONDS)?;
            Ok(Pair { on, off: self.spell(false, job, SECONDS)? })
        } else {
            let off = self.spell(false, job, SECONDS)?;
            Ok(Pair { on: self.spell(true, job, SECONDS)?, off })
        }
    }

    fn in_one_piece(&self) -> Result<(Spell, Vec<f64>)> {
        let spell = self.spell(true, WAYS[1].1, IN_ONE_PIECE)?;
        let ages = spell.ages.clone();
        Ok((spell, ages))
    }

    fn status(&self) -> Result<ReplicationStatus> {
        self.sites.world.status()?.replication.context("nothing is replicated")
    }

    fn spell(&self, on: bool, job: Job, seconds: u64) -> Result<Spell> {
        let part = |at, part| self.sites.world.part_pid(at, part).map(Process).context("a part is missing");
        let machine = if on { MACHINE } else { TWIN };
        let all =
            [self.sites.qemu(machine)?, part(At::Home, Part::ProcessServer)?, part(At::Cloud, Part::MasterTarget)?];
        let counts = || all.iter().map(|process| process.counts()).collect::<Result<Vec<_>>>();
        let before = (counts()?, self.status()?);
        pin(0);
        let fio = fio::write(if on { &self.on.uri } else { &self.off.uri }, job, Some(seconds));
        pin(1);
        let fio = fio?;
        // What was told by now belongs to the time of writing; what the last epoch carries comes after it.
        let told = self.status()?;
        if on {
            self.sites.caught_up()?;
        }
        let after = (counts()?, self.status()?);
        let sealed = told.epochs.saturating_sub(before.1.epochs) as usize;
        ensure!(!on || sealed > 0, "no epoch was sealed while fio wrote");
        let ages = told.rpo_ms.iter().rev().take(sealed).map(|ms| *ms as f64).collect();
        let [qemu, process_server, master_target] = [0, 1, 2].map(|place| after.0[place] - before.0[place]);
        let (changed, sent) = (
            after.1.moved.changed.saturating_sub(before.1.moved.changed),
            after.1.moved.sent.saturating_sub(before.1.moved.sent),
        );
        Ok(Spell { fio, qemu, process_server, master_target, changed, sent, ages })
    }
}

fn tell_flow(flow: &Spell, ages: &[f64]) {
    head(
        "recovery points while 20 MB/s are written, one epoch a second",
        &["epochs", "RPO p50 ms", "p99 ms", "most ms", "goal"],
    );
    let p99 = percentile(ages, 99);
    row(&[
        ages.len().to_string(),
        format!("{:.0}", percentile(ages, 50)),
        format!("{p99:.0}"),
        format!("{:.0}", percentile(ages, 100)),
        goal("p99 at most 2000 ms", p99 <= 2000.0),
    ]);
    let gb = flow.changed as f64 / 1e9;
    let seconds = |counts: Counts| format!("{:.2}", counts.cpu.as_secs_f64() / gb);
    head(
        &format!("processor time for each GB carried ({IN_ONE_PIECE} s of 64 KiB random, 20 MB/s)"),
        &["carried GB", "sent GB", "process server s/GB", "master target s/GB", "QEMU, all its work s/GB"],
    );
    row(&[
        format!("{gb:.2}"),
        format!("{:.2}", flow.sent as f64 / 1e9),
        seconds(flow.process_server),
        seconds(flow.master_target),
        seconds(flow.qemu),
    ]);
}

/// Whether a share of 0.95 is reached: only an interval that lies on one side of it says so.
fn reached(low: f64, high: f64) -> String {
    const LEAST: f64 = 0.95;
    if low < LEAST && high >= LEAST {
        return format!("at least {LEAST}: not decided, the interval is too wide");
    }
    goal(&format!("at least {LEAST}"), low >= LEAST)
}

fn tell_rates(rows: &[(&str, bool, Vec<Pair>)], runs: usize) {
    head(
        &format!("what the writer gets, replication on against off, {runs} alternations of {SECONDS} s"),
        &["writes", "off MB/s", "on MB/s", "on of off", "95 % interval", "p99 of a write off, on ms", "goal"],
    );
    let all = |pairs: &[Pair], of: &dyn Fn(&Pair) -> f64| pairs.iter().map(of).collect::<Vec<f64>>();
    for (words, wanted, pairs) in rows {
        let ratios = all(pairs, &|pair| pair.on.fio.rate / pair.off.fio.rate);
        let ratio = median(&ratios);
        let (low, high) = interval(&ratios);
        row(&[
            (*words).into(),
            format!("{:.1}", median(&all(pairs, &|pair| pair.off.fio.rate)) / 1e6),
            format!("{:.1}", median(&all(pairs, &|pair| pair.on.fio.rate)) / 1e6),
            format!("{ratio:.3}"),
            format!("{low:.3} to {high:.3}"),
            format!(
                "{:.2}, {:.2}",
                median(&all(pairs, &|pair| pair.off.fio.p99_ms)),
                median(&all(pairs, &|pair| pair.on.fio.p99_ms))
            ),
            if *wanted { reached(low, high) } else { "reported".into() },
        ]);
    }
    head(
        "what a written byte costs: bytes that QEMU writes to files, and that epochs carry, for each; and QEMU's processor time",
        &["writes", "written MB", "QEMU, off", "QEMU, on", "carried", "on the connection", "QEMU's time off, on s/GB"],
    );
    for (words, _, pairs) in rows {
        let times = |of: &dyn Fn(&Spell) -> u64, on: bool| {
            median(&all(pairs, &|pair| {
                let spell = if on { &pair.on } else { &pair.off };
                of(spell) as f64 / spell.fio.bytes as f64
            }))
        };
        row(&[
            (*words).into(),
            format!("{:.0}", mb(pairs.iter().map(|pair| pair.on.fio.bytes).sum::<u64>())),
            format!("{:.2}", times(&|spell| spell.qemu.written, false)),
            format!("{:.2}", times(&|spell| spell.qemu.written, true)),
            format!("{:.2}", times(&|spell| spell.changed, true)),
            format!("{:.2}", times(&|spell| spell.sent, true)),
            format!(
                "{:.2}, {:.2}",
                times(&|spell| spell.qemu.cpu.as_nanos() as u64, false),
                times(&|spell| spell.qemu.cpu.as_nanos() as u64, true)
            ),
        ]);
    }
}
