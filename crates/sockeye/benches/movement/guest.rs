//! What replication costs inside a guest: fio in a real guest under emulation, replicated and not, by turns.
//!
//! ```text
//!   guest   fio 4 KiB · fio 64 KiB · fio 4 KiB · …      each for three seconds, what it got on the console
//!   host    off ─ protect ─ on ─ unprotect ─ off ─ …     the first two of each turn count for neither
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use demo::world::{At, MACHINE};

use crate::Bench;
use crate::figures::{head, interval, median, row};
use crate::sites::Sites;

const RUNS: usize = 6;
/// Spells of fio of each turn that are not counted, and that are: as many of 4 KiB as of 64 KiB.
const SKIPPED: usize = 2;
const COUNTED: usize = 4;
/// How long one spell may take: it is three seconds, and fio's start under emulation.
const PATIENCE: Duration = Duration::from_secs(60);
const WORK: u64 = 128 << 20;

/// What fio got in one spell.
#[derive(Debug, Clone, Copy)]
struct Spell {
    kb_per_second: f64,
    mean_us: f64,
    p99_us: f64,
}

/// The spells of one turn, by the size of their requests.
type Turn = BTreeMap<String, Vec<Spell>>;

pub fn measure(bench: &Bench) -> Result<()> {
    let guest = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../guest-fio");
    let sites = Sites::empty(bench, "guest", WORK)?;
    let home = sites.world.dir(At::Home);
    std::fs::create_dir_all(&home)?;
    let image = |name: &str| home.join(name).display().to_string();
    make(&["create", "-q", "-f", "qcow2", &image("work.qcow2"), &WORK.to_string()])?;
    make(&[
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "qcow2",
        &guest.join("tools.img").display().to_string(),
        &image("tools.qcow2"),
    ])?;
    let site = sites.world.site_dir(At::Home).display().to_string();
    let (work, tools) =
        (format!("work={}:qcow2", image("work.qcow2")), format!("tools={}:qcow2", image("tools.qcow2")));
    let (kernel, initrd) =
        (guest.join("vmlinuz").display().to_string(), guest.join("initrd.img").display().to_string());
    let define = ["vm", "define", "--site-dir", &site, "--name", MACHINE, "--memory", "512", "--disk", &work];
    let boot =
        ["--disk", &tools, "--kernel", &kernel, "--initrd", &initrd, "--append", "console=ttyS0 quiet", "--start"];
    let defined = sites.world.sockeye(&[&define[..], &boot[..]].concat())?;
    ensure!(defined.code == 0, "{}{}", defined.stdout, defined.stderr);
    let console = sites.world.console_file(At::Home);
    let (mut off, mut on) = (Vec::new(), Vec::new());
    for run in 0..bench.runs.unwrap_or(RUNS) {
        off.push(turn(&console)?);
        if run == 0 {
            sites.protect()?;
        } else {
            sites.job(&["protect", MACHINE, "--from", "home", "--to", "cloud", "--policy", "bench"])?;
            sites.caught_up()?;
        }
        on.push(turn(&console)?);
        sites.job(&["unprotect", MACHINE, "--delete"])?;
    }
    tell(&off, &on);
    Ok(())
}

fn make(arguments: &[&str]) -> Result<()> {
    let made = Command::new("qemu-img").args(arguments).status()?;
    ensure!(made.success(), "qemu-img {}", arguments.join(" "));
    Ok(())
}

/// Waits for the spells of one turn.
fn turn(console: &Path) -> Result<Turn> {
    let before = spells(console)?.len();
    let wanted = before + SKIPPED + COUNTED;
    let began = Instant::now();
    loop {
        let all = spells(console)?;
        if all.len() >= wanted {
            let mut turn = Turn::new();
            for (block, spell) in &all[before + SKIPPED..wanted] {
                turn.entry(block.clone()).or_default().push(*spell);
            }
            return Ok(turn);
        }
        let text = std::fs::read(console).unwrap_or_default();
        let last = String::from_utf8_lossy(&text[text.len().saturating_sub(400)..]).into_owned();
        ensure!(began.elapsed() < PATIENCE * (SKIPPED + COUNTED) as u32, "fio in the guest tells nothing: {last}");
        demo::pause(Duration::from_millis(100));
    }
}

/// All spells that the guest told of.
fn spells(console: &Path) -> Result<Vec<(String, Spell)>> {
    let text = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    ensure!(!whole.contains("FIO-ERROR"), "the guest: {whole}");
    whole.lines().filter_map(|line| line.trim().strip_prefix("FIO ")).map(spell).collect()
}

/// One line: the size, and a terse report of version 3.
fn spell(line: &str) -> Result<(String, Spell)> {
    let (block, report) = line.split_once(' ').context("a line without a report")?;
    let fields: Vec<&str> = report.split(';').collect();
    let number = |place: usize| {
        let field = fields.get(place).and_then(|field| field.parse::<f64>().ok());
        field.with_context(|| format!("fio in the guest says {report:?}"))
    };
    let percentiles = fields.get(58..78).unwrap_or_default();
    let p99 = percentiles.iter().find_map(|field| field.strip_prefix("99.000000%=")?.parse::<f64>().ok());
    let spell = Spell {
        kb_per_second: number(47)?,
        mean_us: number(56)?,
        p99_us: p99.with_context(|| format!("fio in the guest tells no percentile: {report:?}"))?,
    };
    Ok((block.to_string(), spell))
}

fn tell(off: &[Turn], on: &[Turn]) {
    head(
        &format!("fio in a guest under emulation (random writes, one at a time), {} turns off and on", off.len()),
        &[
            "writes",
            "off KB/s",
            "on KB/s",
            "on of off",
            "95 % interval",
            "mean of a write off, on ms",
            "p99 off, on ms",
        ],
    );
    for block in ["4k", "64k"] {
        let of = |turns: &[Turn], part: fn(&Spell) -> f64| -> Vec<f64> {
            turns
                .iter()
                .filter_map(|turn| Some(median(&turn.get(block)?.iter().map(part).collect::<Vec<_>>())))
                .collect()
        };
        let rate = |turns| of(turns, |spell| spell.kb_per_second);
        let ratios: Vec<f64> = rate(off).iter().zip(rate(on)).map(|(off, on)| on / off).collect();
        let (low, high) = interval(&ratios);
        let both = |part: fn(&Spell) -> f64| {
            format!("{:.2}, {:.2}", median(&of(off, part)) / 1e3, median(&of(on, part)) / 1e3)
        };
        row(&[
            format!("{block}iB random"),
            format!("{:.0}", median(&rate(off))),
            format!("{:.0}", median(&rate(on))),
            format!("{:.3}", median(&ratios)),
            format!("{low:.3} to {high:.3}"),
            both(|spell| spell.mean_us),
            both(|spell| spell.p99_us),
        ]);
    }
}
