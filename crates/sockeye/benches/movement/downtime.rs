//! How long a planned failback keeps a machine down, by the size of its disks: a real guest that writes until its end.
//!
//! ```text
//!   order ─ guest shuts down ─┤ source off ─ last delta ─ seal ─ bring-up ─ start accepted ├─ guest boots ─ writes
//!                              └──────────────── the engine's share ───────────────────────┘
//! ```

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use demo::console::Console;
use demo::net::Hosts;
use demo::world::{At, MACHINE, Settings, World};
use protocol::quote::Downtime;
use protocol::rest::{Figures, ItemView, Job, JobState};

use crate::Bench;
use crate::figures::{goal, head, median, range, row};
use crate::sites::now_ms;

const SIZES: [u64; 3] = [1, 16, 64];
const RUNS: usize = 3;
/// Seeded over each of the two disks.
const WRITTEN: u64 = 64 << 20;
/// Records of 4 KiB that the guest writes a second.
const RATE: u32 = 100;

struct Down {
    parts: Downtime,
    /// From the start being accepted to the first record written, in seconds.
    boot: f64,
}

pub fn measure(bench: &Bench) -> Result<()> {
    let sizes = bench.gib.map_or(SIZES.to_vec(), |gib| vec![gib]);
    let runs = bench.runs.unwrap_or(RUNS);
    let mut rows = Vec::new();
    for gib in sizes {
        rows.push((gib, back(bench, gib, runs)?));
    }
    head(
        &format!("downtime of a planned failback, two disks, {RATE} records a second, {runs} times"),
        &[
            "disks GiB",
            "engine ms",
            "range",
            "last delta",
            "seal",
            "bring-up",
            "start",
            "guest's shutting down ms",
            "guest's boot s",
            "goal",
        ],
    );
    for (gib, all) in &rows {
        let of = |part: &dyn Fn(&Down) -> f64| all.iter().map(part).collect::<Vec<f64>>();
        let engine = of(&|down| down.parts.total_ms() as f64);
        let part = |part: &dyn Fn(&Downtime) -> u64| format!("{:.0}", median(&of(&|down| part(&down.parts) as f64)));
        row(&[
            gib.to_string(),
            format!("{:.0}", median(&engine)),
            range(&engine, 0),
            part(&|parts| parts.last_delta_ms),
            part(&|parts| parts.seal_ms),
            part(&|parts| parts.bring_up_ms),
            part(&|parts| parts.start_ms),
            part(&|parts| parts.shut_down_ms),
            format!("{:.1}", median(&of(&|down| down.boot))),
            goal("at most 1000 ms", median(&engine) <= 1000.0),
        ]);
    }
    Ok(())
}

fn back(bench: &Bench, gib: u64, runs: usize) -> Result<Vec<Down>> {
    let root = bench.place("downtime")?;
    let settings = Settings {
        root: root.clone(),
        sockeye: bench.sockeye.clone(),
        guest: Path::new(env!("CARGO_TARGET_TMPDIR")).join("../guest"),
        disk_bytes: (gib << 30) / 2,
        written_bytes: WRITTEN,
        rate: RATE,
        hosts: Hosts::Loopback,
        libvirt: Default::default(),
        formats: demo::world::FORMATS,
    };
    let world = World::build(settings)?;
    let console = world.console(At::Home);
    world.start_guest()?;
    console.writes(20)?;
    job(&world, &["protect", MACHINE, "--from", "home", "--to", "cloud"])?;
    flows(&world)?;
    let mut all = Vec::new();
    for _ in 0..runs {
        moved(&world, At::Cloud, &["failover", MACHINE, "--planned", "--max-downtime", "1m"])?;
        job(&world, &["commit", MACHINE])?;
        job(&world, &["reprotect", MACHINE])?;
        flows(&world)?;
        let (figures, boot) = moved(&world, At::Home, &["failback", MACHINE, "--complete", "--max-downtime", "1m"])?;
        all.push(Down { parts: figures.downtime.context("no parts of the downtime were told")?, boot });
        job(&world, &["commit", MACHINE])?;
        job(&world, &["reverse", MACHINE])?;
        flows(&world)?;
    }
    drop(world);
    std::fs::remove_dir_all(root)?;
    Ok(all)
}

/// Moves the machine; gives what the job measured, and how long the guest took from its start to its first record.
fn moved(world: &World, to: At, arguments: &[&str]) -> Result<(Figures, f64)> {
    let (tell, told) = mpsc::channel();
    let fresh = world.console(to);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = tell.send(first_record(&fresh));
        });
        let job = job(world, arguments)?;
        let goes_on = format!("let {MACHINE} go on");
        let wrote_ms = told.recv().context("nobody listened to the guest")??;
        let accepted =
            job.steps.iter().filter(|step| step.name.starts_with(&goes_on)).filter_map(|step| step.ended_at_ms);
        let accepted = accepted.max().context("the job has no step that starts the machine")?;
        Ok((job.figures, (wrote_ms as f64 - accepted as f64) / 1e3))
    })
}

/// Waits for a record to be written; when that was, by this host's clock.
fn first_record(console: &Console) -> Result<u64> {
    let began = Instant::now();
    while console.acknowledged().is_empty() {
        ensure!(began.elapsed() < Duration::from_secs(180), "the guest does not write");
        demo::pause(Duration::from_millis(20));
    }
    Ok(now_ms())
}

fn job(world: &World, arguments: &[&str]) -> Result<Job> {
    let job: Job = world.ask(&[arguments, &["--yes"]].concat(), 0)?;
    ensure!(job.state == JobState::Done, "sockeye {}: {job:?}", arguments.join(" "));
    Ok(job)
}

/// Waits until a point is durable that was cut from now on.
fn flows(world: &World) -> Result<ItemView> {
    let now = now_ms();
    world.wait_status("recovery points", Duration::from_secs(120), |view| {
        view.job.is_none() && view.newest.as_ref().is_some_and(|point| point.cut_at_ms > now)
    })
}
