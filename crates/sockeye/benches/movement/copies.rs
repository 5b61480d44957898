//! Copies side by side with their peers, in one run, alternately; medians and ratios.
//!
//! ```text
//!   source   ¼ holes · ¼ compressible · ½ random        target   the same, but for 1 % of its blocks
//!   compare  receive ◄═ TLS ═ copy --sync compare   |   rsync --inplace --no-whole-file   |   dd of both files
//!   full     receive ◄═ TLS ═ copy --sync full      |   nbdcopy   |   qemu-img convert -W        from one qemu-nbd
//!                                                    |   nbdcopy ◄═ TLS   |   qemu-img ◄═ TLS     from another one
//! ```
//! Ours carries a disk to another host; the peers do that when what they read from is an export over TLS.
//!
//! Everything lies in memory (`/dev/shm` unless told otherwise), so that programs are measured and not a disk.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::figures::{goal, head, median, range, row};
use crate::{Bench, credentials};

const BLOCK: u64 = 64 * 1024;
/// One block of so many differs.
const DIFFERS: u64 = 100;
/// Where `sockeye receive` listens.
pub const ADDRESS: &str = "127.0.0.1:17412";
/// Where the export over TLS is.
const EXPORT_PORT: u16 = 17413;

/// Four GiB, five times, unless something else is wanted.
const GIB: u64 = 4;
const RUNS: usize = 5;
/// Seconds beyond which a program is run once.
const MOST_REPEATED: f64 = 60.0;

struct Settings<'a> {
    sockeye: &'a Path,
    bytes: u64,
    runs: usize,
}

/// Measures both tables.
pub fn measure(bench: &Bench) -> Result<()> {
    let dir = bench.place("copy")?;
    let runs = bench.runs.unwrap_or(RUNS);
    let settings = Settings { sockeye: &bench.sockeye, bytes: bench.bytes(GIB), runs };
    let (source, target) = (dir.join("source.raw"), dir.join("target.raw"));
    make(&source, settings.bytes)?;
    done(Command::new("cp").arg("--sparse=always").args([&source, &target]))?;
    compare(&settings, &source, &target)?;
    full(&settings, &source, &target)?;
    Ok(std::fs::remove_dir_all(dir)?)
}

/// A line about one program, its times beside ours.
fn line(name: &str, times: &[f64], ours: &[f64], goal: String) {
    let (its, our) = (median(times), median(ours));
    row(&[name.into(), format!("{its:.2}"), range(times, 2), format!("{:.2}", its / our), goal]);
}

/// A quarter of holes, a quarter of text, half of it random.
pub fn make(path: &Path, bytes: u64) -> Result<()> {
    let (file, mut random) = (File::create(path)?, File::open("/dev/urandom")?);
    file.set_len(bytes)?;
    let mut block = vec![0; 1 << 20];
    let words: Vec<u8> =
        (0..1 << 20).map(|n: usize| b"0123456789 a line of some log, more or less \n"[(n * n / 977) % 45]).collect();
    for at in (0..bytes).step_by(1 << 20) {
        match (at >> 20) % 4 {
            0 => {}
            1 => file.write_all_at(&words, at)?,
            _ => {
                random.read_exact(&mut block)?;
                file.write_all_at(&block, at)?;
            }
        }
    }
    Ok(())
}

/// How much of an image of so many bytes is not holes.
pub fn held(bytes: u64) -> u64 {
    (0..bytes).step_by(1 << 20).filter(|at| !(at >> 20).is_multiple_of(4)).count() as u64 * (1 << 20)
}

/// Makes one block of a hundred differ, the same ones each time; gives how many bytes these are.
fn spoil(target: &Path, bytes: u64) -> Result<u64> {
    let (file, mut random) = (File::options().write(true).open(target)?, File::open("/dev/urandom")?);
    let mut block = vec![0; BLOCK as usize];
    let mut spoilt = 0;
    for n in (0..bytes / BLOCK).step_by(DIFFERS as usize) {
        random.read_exact(&mut block)?;
        // Not always the first of a hundred: it would always lie at the same place of a stretch.
        let at = (n + n / DIFFERS % DIFFERS).min(bytes / BLOCK - 1) * BLOCK;
        file.write_all_at(&block, at)?;
        spoilt += BLOCK;
    }
    Ok(spoilt)
}

fn compare(settings: &Settings, source: &Path, target: &Path) -> Result<()> {
    let (mut ours, mut local, mut rsync, mut dd) = (vec![], vec![], vec![], vec![]);
    let mut wire = 0.0f64;
    for _ in 0..settings.runs {
        dd.push(timed(|| both_read(source, target))?);
        let spoilt = spoil(target, settings.bytes)?;
        rsync.push(timed(|| {
            done(Command::new("rsync").args(["--inplace", "--no-whole-file", "--ignore-times"]).args([source, target]))
        })?);
        spoil(target, settings.bytes)?;
        let words = ["--sync", "compare"];
        let copy = Copy { source: &text(source), target, words: &words, dial: ADDRESS };
        let (seconds, report) = over_tls(settings.sockeye, &copy)?;
        ours.push(seconds);
        let sent = report["sent_bytes"].as_u64().context("the report does not say what was sent")?;
        wire = wire.max(sent as f64 / spoilt as f64);
        spoil(target, settings.bytes)?;
        let mut copy = Command::new(settings.sockeye);
        local.push(timed(|| done(copy.arg("copy").args([source, target]).stdout(Stdio::null())))?);
        done(Command::new("cmp").args([source, target]))?;
    }
    let times = |of: &[f64]| median(of) / median(&ours);
    let title = format!("compare, {} GiB, 1 % of the blocks differ", settings.bytes >> 30);
    head(&title, &["", "median s", "range", "of ours", "goal"]);
    line("`copy --sync compare` over TLS", &ours, &ours, String::new());
    line("`copy --sync compare` in one process", &local, &ours, String::new());
    line("`rsync --inplace --no-whole-file`", &rsync, &ours, goal("at least 8", times(&rsync) >= 8.0));
    // Ours is to take at most 1.8 times as long as reading both.
    line("`dd` of both files at once", &dd, &ours, goal("at least 0.56", times(&dd) >= 1.0 / 1.8));
    println!("\nbytes on the wire: at most {wire:.3} times the bytes that differed ({})", goal("1.15", wire <= 1.15));
    Ok(())
}

/// Onto a file that is there and full: in memory a new file's pages have to be had from the host that runs this machine first,
/// and what that takes, several seconds or none, is not the programs' doing.
fn full(settings: &Settings, source: &Path, target: &Path) -> Result<()> {
    let (socket, certificates) = (source.with_extension("sock"), source.with_extension("pki"));
    credentials::make(&certificates)?;
    let credentials = |end: &str| format!("tls-creds-x509,id=tls,dir={},endpoint={end}", certificates.display());
    let serve = |place: &[&str]| -> Result<Running> {
        let all = ["--format=raw", "--read-only", "--persistent", "--shared=16"];
        Ok(Running(Command::new("qemu-nbd").args(all).args(place).arg(source).spawn()?))
    };
    let _server = serve(&["--socket", &text(&socket)])?;
    let (object, port) = (credentials("server"), EXPORT_PORT.to_string());
    let _over_tls = serve(&["--object", &object, "--tls-creds", "tls", "--bind", "127.0.0.1", "--port", &port])?;
    appears(|| socket.exists())?;
    appears(|| std::net::TcpStream::connect(("127.0.0.1", EXPORT_PORT)).is_ok())?;

    let plain = format!("nbd+unix:///?socket={}", socket.display());
    let encrypted = format!("nbds://localhost:{port}/?tls-certificates={}", certificates.display());
    let object = credentials("client");
    let options = format!("driver=nbd,host=localhost,port={port},tls-creds=tls");
    let to = text(target);
    let converted = ["convert", "-n", "-W", "-O", "raw"];
    let peers: [(&str, &str, Vec<&str>); 4] = [
        ("`nbdcopy`", "nbdcopy", vec![&plain, &to]),
        ("`qemu-img convert -W`", "qemu-img", [&converted[..], &["-f", "raw", &plain, &to]].concat()),
        ("`nbdcopy` from an export over TLS", "nbdcopy", vec![&encrypted, &to]),
        (
            "`qemu-img convert -W` from an export over TLS",
            "qemu-img",
            [&converted[..], &["--object", &object, "--image-opts", &options, &to]].concat(),
        ),
    ];
    let (mut ours, mut theirs) = (vec![], [const { Vec::new() }; 4]);
    for _ in 0..settings.runs {
        for ((_, program, words), times) in peers.iter().zip(&mut theirs) {
            // One that takes a minute and more is not made to do it five times.
            if times.first().is_none_or(|first| *first < MOST_REPEATED) {
                spoil(target, settings.bytes)?;
                times.push(timed(|| done(Command::new(program).args(words)))?);
            }
        }
        spoil(target, settings.bytes)?;
        let copy = Copy { source: &plain, target, words: &["--sync", "full"], dial: ADDRESS };
        ours.push(over_tls(settings.sockeye, &copy)?.0);
        done(Command::new("cmp").args([source, target]))?;
    }
    let title = format!("full, {} GiB, from one NBD export", settings.bytes >> 30);
    head(&title, &["", "median s", "range", "of ours", "goal"]);
    line("`copy --sync full` over TLS", &ours, &ours, String::new());
    for ((name, ..), times) in peers.iter().zip(&theirs) {
        let once = if times.len() < settings.runs { ", once" } else { "" };
        line(&format!("{name}{once}"), times, &ours, goal("slower than ours", median(times) > median(&ours)));
    }
    Ok(())
}

/// A copy between two processes.
pub struct Copy<'a> {
    /// A path or a URI.
    pub source: &'a str,
    /// The file that is received into.
    pub target: &'a Path,
    /// More for `sockeye copy`.
    pub words: &'a [&'a str],
    /// Where `receive` is reached.
    pub dial: &'a str,
}

/// Copies; its time and its report.
pub fn over_tls(sockeye: &Path, wanted: &Copy) -> Result<(f64, serde_json::Value)> {
    let ticket = wanted.target.with_extension("ticket");
    let mut receiver = Command::new(sockeye);
    receiver.arg("receive").arg(wanted.target).args(["--listen", ADDRESS, "--ticket"]).arg(&ticket);
    let mut receiver = Running(receiver.stdout(Stdio::piped()).spawn()?);
    // It says so when it waits.
    let said = receiver.0.stdout.take().context("no output")?;
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut first)?;
    let begun = Instant::now();
    let mut copy = Command::new(sockeye);
    copy.args(["--output", "json", "copy", "--ticket"]).arg(&ticket).args(wanted.words).arg(wanted.source);
    let told = copy.arg(format!("sockeye+tls://{}/disk", wanted.dial)).stderr(Stdio::inherit()).output()?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(told.status.success(), "the copy failed");
    receiver.0.wait()?;
    Ok((seconds, serde_json::from_slice(&told.stdout)?))
}

/// Both files, each read once by a program of its own.
fn both_read(one: &Path, other: &Path) -> Result<()> {
    let read = |path: &Path| {
        let input = format!("if={}", path.display());
        Command::new("dd").args([&input, "of=/dev/null", "bs=256k", "status=none"]).spawn()
    };
    for mut reading in [read(one)?, read(other)?] {
        ensure!(reading.wait()?.success(), "dd failed");
    }
    Ok(())
}

/// Waits until a program has made what it is asked through.
fn appears(is_there: impl Fn() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !is_there() {
        ensure!(begun.elapsed() < Duration::from_secs(30), "qemu-nbd does not begin to listen");
        demo::pause(Duration::from_millis(20));
    }
    Ok(())
}

/// A program that ends with the bench.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed ({status})") }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
