//! `cargo xtask bench movement`: copies side by side with their peers, in one run, alternately; medians and ratios.
//!
//! ```text
//!   source   ¼ holes · ¼ compressible · ½ random        target   the same, but for 1 % of its blocks
//!   compare  receive ◄═ TLS ═ copy --sync compare   |   rsync --inplace --no-whole-file   |   dd of both files
//!   full     receive ◄═ TLS ═ copy --sync full      |   nbdcopy   |   qemu-img convert -W        from one qemu-nbd
//! ```
//!
//! Everything lies in memory (`/dev/shm` unless told otherwise), so that programs are measured and not a disk.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command::run;

const BLOCK: u64 = 64 * 1024;
/// One block of so many differs.
const DIFFERS: u64 = 100;
const ADDRESS: &str = "127.0.0.1:17412";

/// What a bench was told.
struct Settings {
    bytes: u64,
    runs: usize,
    dir: PathBuf,
}

/// Times of one program, in seconds.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn line(&self, name: &str, than: &Times) -> String {
        let (least, most) = self.0.iter().fold((f64::MAX, 0.0f64), |(low, high), t| (low.min(*t), high.max(*t)));
        let median = self.median();
        let ratio = median / than.median();
        format!("| {name} | {median:.2} | {least:.2} to {most:.2} | {ratio:.2} |")
    }
}

/// Builds the program as it is shipped, and measures it.
pub(crate) fn bench(root: &Path, arguments: &[String]) -> Result<()> {
    let settings = settings(arguments)?;
    println!("== build: sockeye as it is shipped");
    run(root, &["cargo", "build", "--quiet", "--release", "--package", "sockeye"])?;
    let sockeye = root.join("target/release/sockeye");
    let dir = settings.dir.join(format!("sockeye-bench-{}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("making {}", dir.display()))?;
    let measured = measure(&sockeye, &settings, &dir);
    std::fs::remove_dir_all(&dir)?;
    measured
}

fn settings(arguments: &[String]) -> Result<Settings> {
    let mut settings = Settings { bytes: 4 << 30, runs: 5, dir: "/dev/shm".into() };
    let mut left = arguments.iter();
    while let Some(name) = left.next() {
        let value = left.next().with_context(|| format!("{name} wants a value"))?;
        match name.as_str() {
            "--gib" => settings.bytes = value.parse::<u64>()? << 30,
            "--runs" => settings.runs = value.parse()?,
            "--dir" => settings.dir = value.into(),
            _ => bail!("usage: cargo xtask bench movement [--gib N] [--runs N] [--dir DIR]"),
        }
    }
    ensure!(settings.bytes > 0 && settings.runs > 0, "there is nothing to measure");
    Ok(settings)
}

fn measure(sockeye: &Path, settings: &Settings, dir: &Path) -> Result<()> {
    let (source, target) = (dir.join("source.raw"), dir.join("target.raw"));
    println!("== images: {} GiB in {}", settings.bytes >> 30, dir.display());
    make(&source, settings.bytes)?;
    run(dir, &["cp", "--sparse=always", &text(&source), &text(&target)])?;
    compare(sockeye, settings, &source, &target)?;
    std::fs::remove_file(&target)?;
    full(sockeye, settings, &source, dir)
}

/// A quarter of holes, a quarter of text, half of it random.
fn make(path: &Path, bytes: u64) -> Result<()> {
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

fn compare(sockeye: &Path, settings: &Settings, source: &Path, target: &Path) -> Result<()> {
    let (mut ours, mut local, mut rsync, mut dd) =
        (Times::default(), Times::default(), Times::default(), Times::default());
    let mut wire = 0.0f64;
    for _ in 0..settings.runs {
        dd.0.push(timed(|| both_read(source, target))?);
        let spoilt = spoil(target, settings.bytes)?;
        rsync
            .0
            .push(timed(|| done(Command::new("rsync").args(["--inplace", "--no-whole-file"]).args([source, target])))?);
        spoil(target, settings.bytes)?;
        let (seconds, report) = over_tls(sockeye, &text(source), target, "compare")?;
        ours.0.push(seconds);
        let sent = report["sent_bytes"].as_u64().context("the report does not say what was sent")?;
        wire = wire.max(sent as f64 / spoilt as f64);
        spoil(target, settings.bytes)?;
        local.0.push(timed(|| done(Command::new(sockeye).arg("copy").args([source, target]).stdout(Stdio::null())))?);
        done(Command::new("cmp").args([source, target]))?;
    }
    println!("\n### compare, 1 % of the blocks differ\n\n| | median s | range | of ours |\n|---|---|---|---|");
    println!("{}", ours.line("`copy --sync compare` over TLS", &ours));
    println!("{}", local.line("`copy --sync compare` in one process", &ours));
    println!("{}", rsync.line("`rsync --inplace --no-whole-file`", &ours));
    println!("{}", dd.line("`dd` of both files at once", &ours));
    println!("\nbytes on the wire: at most {wire:.3} times the bytes that differed");
    Ok(())
}

fn full(sockeye: &Path, settings: &Settings, source: &Path, dir: &Path) -> Result<()> {
    let socket = dir.join("source.sock");
    let mut server = Running(
        Command::new("qemu-nbd")
            .args(["--format=raw", "--read-only", "--persistent", "--shared=16", "--socket"])
            .arg(&socket)
            .arg(source)
            .spawn()?,
    );
    appears(&socket)?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let (mut ours, mut nbdcopy, mut convert) = (Times::default(), Times::default(), Times::default());
    for _ in 0..settings.runs {
        let target = dir.join("copy.raw");
        nbdcopy.0.push(timed(|| done(Command::new("nbdcopy").args([&uri, &text(&target)])))?);
        std::fs::remove_file(&target)?;
        let line = ["convert", "-W", "-f", "raw", "-O", "raw", &uri, &text(&target)];
        convert.0.push(timed(|| done(Command::new("qemu-img").args(line)))?);
        std::fs::remove_file(&target)?;
        ours.0.push(over_tls(sockeye, &uri, &target, "full")?.0);
        done(Command::new("cmp").args([source, &target]))?;
        std::fs::remove_file(&target)?;
    }
    server.0.kill()?;
    server.0.wait()?;
    println!("\n### full, from one NBD export\n\n| | median s | range | of ours |\n|---|---|---|---|");
    println!("{}", ours.line("`copy --sync full` over TLS", &ours));
    println!("{}", nbdcopy.line("`nbdcopy`", &ours));
    println!("{}", convert.line("`qemu-img convert -W`", &ours));
    Ok(())
}

/// A copy between two processes; its time and its report.
fn over_tls(sockeye: &Path, source: &str, target: &Path, sync: &str) -> Result<(f64, serde_json::Value)> {
    let ticket = target.with_extension("ticket");
    let mut receiver = Command::new(sockeye);
    receiver.arg("receive").arg(target).args(["--listen", ADDRESS, "--ticket"]).arg(&ticket);
    let mut receiver = Running(receiver.stdout(Stdio::piped()).spawn()?);
    // It says so when it waits.
    let said = receiver.0.stdout.take().context("no output")?;
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(said), &mut first)?;
    let begun = Instant::now();
    let mut copy = Command::new(sockeye);
    copy.args(["--output", "json", "copy", "--sync", sync, "--ticket"]).arg(&ticket).arg(source);
    let told = copy.arg(format!("sockeye+tls://{ADDRESS}/disk")).stderr(Stdio::inherit()).output()?;
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

/// Waits until a program has made its socket.
#[allow(clippy::disallowed_methods, reason = "a bench waits for another program")]
fn appears(socket: &Path) -> Result<()> {
    let begun = Instant::now();
    while !socket.exists() {
        ensure!(begun.elapsed() < Duration::from_secs(30), "nobody listens on {}", socket.display());
        std::thread::sleep(Duration::from_millis(20));
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
