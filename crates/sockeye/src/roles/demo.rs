//! `sockeye demo`: makes two sites, goes round the circle, and says what was seen.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use demo::circle::Circle;
use demo::net::Hosts;
use demo::world::{Part, Settings, World};

use crate::cli::{Demo, Output};

/// Two disks of this size, sparse.
const DISK_BYTES: u64 = 8 << 30;
/// Written on each of them before anything starts.
const WRITTEN_BYTES: u64 = 1 << 29;

/// Goes round. The exit code is 0 only if every check held.
///
/// # Errors
/// When the two sites could not be made at all.
pub fn run(wanted: &Demo, output: Output) -> anyhow::Result<ExitCode> {
    let json = output == Output::Json;
    let began = Instant::now();
    // With JSON on stdout, the story goes to stderr.
    let say = move |text: &str| {
        let line = format!("{:7.1} s  {text}", began.elapsed().as_secs_f64());
        let _ = if json { writeln!(std::io::stderr(), "{line}") } else { writeln!(std::io::stdout(), "{line}") };
    };
    let root = root(wanted)?;
    let settings = Settings {
        root: root.clone(),
        sockeye: std::env::current_exe().context("this program does not know where it is")?,
        guest: wanted.guest.clone(),
        disk_bytes: DISK_BYTES,
        written_bytes: WRITTEN_BYTES,
        rate: wanted.rate,
        hosts: if wanted.no_namespaces { Hosts::Loopback } else { Hosts::Own },
        libvirt: Default::default(),
        formats: demo::world::FORMATS,
    };
    say(&format!("two sites in {}", root.display()));
    let result = World::build(settings).and_then(|world| round(world, &say, wanted.keep));
    let (report, checks) = match result {
        Ok(done) => done,
        Err(error) => {
            say(&format!("the two sites are left in {} to be looked at", root.display()));
            return Err(error);
        }
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("\n{}\n", report.tables());
    }
    match &checks {
        Ok(()) => say("verified: every check held"),
        Err(error) => say(&format!("NOT VERIFIED: {error:#}\nlogs and disks are left in {}", root.display())),
    }
    if checks.is_ok() && !wanted.keep {
        std::fs::remove_dir_all(&root).with_context(|| format!("{} could not be removed", root.display()))?;
    }
    Ok(if checks.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn round(
    mut world: World,
    say: &dyn Fn(&str),
    keep: bool,
) -> anyhow::Result<(demo::report::Report, anyhow::Result<()>)> {
    match &world.why_loopback {
        None if world.net.is_real() => {
            say("each site is a host of its own (network and mount namespaces), one link between them")
        }
        None => say("both sites share the loopback, as asked"),
        Some(why) => say(&format!("both sites share the loopback ({why})")),
    }
    say("the guest starts at home");
    let (mut report, mut checks) = Circle::begin(&mut world, say)?.go_round();
    world.stop();
    if checks.is_ok() {
        checks = at_rest(&world, say);
        if let Err(error) = &checks {
            report.verified = false;
            report.problems.push(format!("{error:#}"));
        }
    }
    if keep && checks.is_ok() {
        say(&by_yourself(&world));
    }
    Ok((report, checks))
}

/// Reads every block of the replica at the cloud as a plain file, seeded data included: nothing of the engine is in the way.
fn at_rest(world: &World, say: &dyn Fn(&str)) -> anyhow::Result<()> {
    let [a, b] = world.replica_disks();
    let found = guest::verify(&a, &b, guest::Scope::WholeDisk).map_err(|fault| anyhow::anyhow!("{fault}"))?;
    anyhow::ensure!(found.consistent(), "the replica's disks are not consistent: {:?}", found.problems);
    anyhow::ensure!(found.holds(100) && found.data_blocks_checked > 0, "too little was found on the replica's disks");
    say(&format!(
        "the replica's files, read whole: record {} newest, {} blocks of seeded data as they were written",
        found.highest, found.data_blocks_checked
    ));
    Ok(())
}

/// How the reader checks what is left, with nothing of ours.
fn by_yourself(world: &World) -> String {
    let [a, b] = world.replica_disks();
    let [home_a, home_b] = world.home_disks();
    let logs = world.log(demo::world::At::Cloud, Part::Control);
    format!(
        "what is left, and how to check it without us:
  the replica at the cloud (plain raw disks at the newest recovery point):
    python3 docs/verify_ledger.py {} {}
  home's own disks (as the last failback brought them home; what the guest wrote since is in its overlays):
    qemu-img convert -O raw {} /tmp/a.raw && python3 docs/verify_ledger.py /tmp/a.raw {}
  logs: {} and beside it",
        a.display(),
        b.display(),
        home_a.display(),
        home_b.display(),
        logs.display()
    )
}

/// Where the sites are made: short, since unix sockets lie below it.
fn root(wanted: &Demo) -> anyhow::Result<std::path::PathBuf> {
    let root = match &wanted.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => Path::new("/tmp").join(format!("sockeye-demo-{}", std::process::id())),
    };
    std::fs::create_dir_all(&root).with_context(|| format!("{} cannot be made", root.display()))?;
    let empty = std::fs::read_dir(&root)?.next().is_none();
    anyhow::ensure!(empty, "{} is not empty; the demo would overwrite what is there", root.display());
    Ok(root)
}
