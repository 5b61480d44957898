//! Two sites for one test: small disks, a real guest, real processes; everything is gone afterwards unless the test fails.
#![allow(clippy::unwrap_used, dead_code)]

pub mod dice;
pub mod plain;
mod witness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use demo::console::{Console, Found};
use demo::net::Hosts;
use demo::world::{At, FORMATS, MACHINE, Part, Settings, World, wait_for};
use guest::Libvirtd;
use platforms::Platform;
use platforms::libvirt::Libvirt;
use platforms::qemu::Qemu;
use protocol::epoch::Point;
use protocol::machine::{DiskSource, Machine, Power};
use protocol::rest::{ItemView, Job, JobState};

pub use witness::{Witness, now_ms};

/// Size of each disk.
const DISK_BYTES: u64 = 512 << 20;
/// Seeded over both.
const WRITTEN_BYTES: u64 = 48 << 20;
/// Longer than any job of a test takes, shorter than the patience of whoever runs the tests.
const JOB_PATIENCE: Duration = Duration::from_secs(120);

/// Two sites and somebody who listens.
pub struct Scene {
    /// The sites.
    pub world: World,
    /// What the guests said.
    pub witness: Witness,
    runtime: tokio::runtime::Runtime,
    began: Instant,
}

/// Plays one test, each site a host of its own if the test wants that and the kernel allows it.
pub fn play(namespaces: bool, act: impl FnOnce(&mut Scene) -> anyhow::Result<()>) {
    play_on(if namespaces { Hosts::Own } else { Hosts::Loopback }, act);
}

/// Plays one test.
pub fn play_on(hosts: Hosts, act: impl FnOnce(&mut Scene) -> anyhow::Result<()>) {
    play_with(hosts, &[], FORMATS, act);
}

/// Plays one test, with a libvirt of its own at each of `libvirt`. What fails leaves its directory and shows the ends of its
/// logs.
pub fn play_with(
    hosts: Hosts,
    libvirt: &[At],
    formats: [&'static str; 2],
    act: impl FnOnce(&mut Scene) -> anyhow::Result<()>,
) {
    play_in(World::build, hosts, libvirt, formats, act);
}

/// The same without a machine: the test brings its own.
pub fn play_bare(hosts: Hosts, libvirt: &[At], act: impl FnOnce(&mut Scene) -> anyhow::Result<()>) {
    play_in(World::without_guest, hosts, libvirt, FORMATS, act);
}

fn play_in(
    build: fn(Settings) -> anyhow::Result<World>,
    hosts: Hosts,
    libvirt: &[At],
    formats: [&'static str; 2],
    act: impl FnOnce(&mut Scene) -> anyhow::Result<()>,
) {
    // Beside another guest under emulation a test would measure that guest. (Nextest runs each in a process of its own and
    // has this from its settings; `cargo test` has not.)
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    static PLAYED: AtomicU32 = AtomicU32::new(0);
    let root = PathBuf::from(format!("/tmp/sk{}-{}", std::process::id(), PLAYED.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir(&root).unwrap();
    let debris = Debris(root.clone());
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
    let start = |at: &At| {
        let (dir, site) = (root.join(format!("lv-{}", at.name())), root.join(at.name()));
        (*at, Libvirtd::start(&dir, &site, &cache).unwrap())
    };
    let daemons: BTreeMap<At, Libvirtd> = libvirt.iter().map(start).collect();
    let settings = Settings {
        libvirt: daemons.iter().map(|(at, daemon)| (*at, daemon.uri())).collect(),
        formats,
        root: root.clone(),
        sockeye: env!("CARGO_BIN_EXE_sockeye").into(),
        guest: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
        disk_bytes: DISK_BYTES,
        written_bytes: WRITTEN_BYTES,
        rate: 100,
        hosts,
    };
    let result = build(settings).and_then(|world| {
        let runtime = tokio::runtime::Runtime::new()?;
        let witness = Witness::of(&world);
        act(&mut Scene { world, witness, runtime, began: Instant::now() })
    });
    if let Err(error) = result {
        daemons.values().for_each(|daemon| eprintln!("--- libvirtd\n{}", daemon.log()));
        panic!("{error:#}");
    }
    drop(daemons);
    std::fs::remove_dir_all(&root).unwrap();
    drop(debris);
}

/// Shows what a failed test leaves. By then the sites' processes are gone.
struct Debris(PathBuf);

impl Drop for Debris {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        eprintln!("logs and disks are left in {}", self.0.display());
        let machine = format!("qemu/machines/{MACHINE}/console.log");
        let consoles = ["home", "cloud"].map(|site| self.0.join(site).join(&machine));
        let logs = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = logs.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
        for path in logs.chain(consoles) {
            let text = std::fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}", path.display());
            lines[lines.len().saturating_sub(25)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Scene {
    /// Says what happens, and when.
    pub fn say(&self, text: &str) {
        eprintln!("{:7.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    /// Starts the guest at home and protects it.
    pub fn protect(&mut self) -> anyhow::Result<()> {
        let console = self.world.console(At::Home);
        self.world.start_guest()?;
        let found = console.found()?;
        ensure!(found.consistent, "the freshly seeded disks are not consistent: {found:?}");
        console.writes(20)?;
        self.done(&["protect", MACHINE, "--from", "home", "--to", "cloud", "--yes"])?;
        self.flows("protected")
    }

    /// Waits until epochs flow.
    pub fn flows(&self, words: &str) -> anyhow::Result<()> {
        self.newer_than(words, now_ms()).map(drop)
    }

    /// Waits until a point is durable that was cut after `ms`, and the item is well.
    pub fn newer_than(&self, words: &str, ms: u64) -> anyhow::Result<ItemView> {
        let began = Instant::now();
        let view = self.world.wait_status(&format!("new point while it is {words}"), Duration::from_secs(60), |view| {
            view.stage_words == words
                && view.job.is_none()
                && view.newest.as_ref().is_some_and(|point| point.cut_at_ms > ms)
        });
        let view = view.with_context(|| format!("the item: {:?}", self.world.status()))?;
        self.say(&format!("epochs flow after {:.1} s", began.elapsed().as_secs_f64()));
        Ok(view)
    }

    /// Starts a job.
    pub fn begin(&self, arguments: &[&str]) -> anyhow::Result<Job> {
        self.say(&format!("$ sockeye {}", arguments.join(" ")));
        let mut all = arguments.to_vec();
        all.push("--detach");
        self.world.ask(&all, 0)
    }

    /// Follows a job until it ends or waits; the control server may be away for a while.
    pub fn follow(&self, id: i64) -> anyhow::Result<Job> {
        self.until(id, |state| state.ended() || state == JobState::Waiting)
    }

    /// Follows a job to its end: one that is called off while it waits for a person still waits for a moment.
    pub fn end_of(&self, id: i64) -> anyhow::Result<Job> {
        self.until(id, JobState::ended)
    }

    fn until(&self, id: i64, settled: impl Fn(JobState) -> bool) -> anyhow::Result<Job> {
        let number = id.to_string();
        let settled = wait_for("end of the job", JOB_PATIENCE, || {
            let job: Job = self.world.ask(&["job", "show", &number], 0).ok()?;
            settled(job.state).then_some(job)
        });
        settled.with_context(|| format!("job {id}: {:?}", self.world.sockeye(&["job", "show", &number])))
    }

    /// Runs a job that must reach its end.
    pub fn done(&self, arguments: &[&str]) -> anyhow::Result<Job> {
        let job = self.end_of(self.begin(arguments)?.id)?;
        ensure!(job.state == JobState::Done, "sockeye {}: {job:?}", arguments.join(" "));
        Ok(job)
    }

    /// The recovery points.
    pub fn points(&self) -> anyhow::Result<Vec<Point>> {
        self.world.ask(&["points", MACHINE], 0)
    }

    /// The highest record that was ever acknowledged.
    pub fn highest(&self) -> u64 {
        self.witness.acknowledged(0).iter().map(|ack| ack.number).max().unwrap_or(0)
    }

    /// The guest started at a new side after a planned move: nothing may be missing, and it must go on there alone.
    pub fn lost_nothing(&self, at: At, fresh: &Console) -> anyhow::Result<Found> {
        let found = fresh.found()?;
        let acknowledged = self.witness.acknowledged(0);
        let there = acknowledged.iter().filter(|ack| ack.at == at.other()).map(|ack| ack.number).max().unwrap_or(0);
        ensure!(found.consistent, "the disks are not a prefix of what was written: {found:?}");
        ensure!(found.found >= 20 && found.scribbles_checked > 0, "too little was found to judge: {found:?}");
        ensure!(found.highest >= there, "{} acknowledged records were lost: {found:?}", there - found.highest);
        fresh.writes(3)?;
        self.witness.one_history()?;
        self.runs_only(at)?;
        self.say(&format!("{} has all {} records and goes on", at.name(), found.highest));
        Ok(found)
    }

    /// What the machine does, as the site's own hypervisor sees it.
    pub fn power(&self, at: At) -> anyhow::Result<Option<Power>> {
        Ok(self.machine(at)?.map(|machine| machine.power))
    }

    /// Runs virsh on a site's libvirt, as a person would.
    pub fn virsh(&self, at: At, words: &[&str]) -> anyhow::Result<()> {
        let uri = self.world.settings.libvirt.get(&at).context("the site has no libvirt")?;
        let done = std::process::Command::new("virsh").args(["-q", "-c", uri]).args(words).output()?;
        ensure!(done.status.success(), "virsh {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }

    /// A site's machine, which is off, is deleted there with its disks.
    pub fn loses_its_machine(&self, at: At) -> anyhow::Result<()> {
        let machine = self.machine(at)?.context("it has none")?;
        match self.world.settings.libvirt.contains_key(&at) {
            true => self.virsh(at, &["undefine", MACHINE, "--checkpoints-metadata"])?,
            false => std::fs::remove_dir_all(self.world.machine_dir(at, MACHINE))?,
        }
        for disk in machine.spec.disks {
            let DiskSource::Own { path, .. } = disk.source else { bail!("{} is not its own", disk.key) };
            std::fs::remove_file(self.world.site_dir(at).join(path))?;
        }
        Ok(())
    }

    /// The machine as the site's own hypervisor sees it.
    pub fn machine(&self, at: At) -> anyhow::Result<Option<Machine>> {
        let dir = self.world.site_dir(at);
        let found = self.runtime.block_on(async {
            match self.world.settings.libvirt.get(&at) {
                Some(uri) => Libvirt::open(uri, &dir).await?.machine(MACHINE).await,
                None => Qemu::open(&dir)?.machine(MACHINE).await,
            }
        });
        found.map_err(|fault| anyhow::anyhow!("{fault}: {}", fault.cause))
    }

    /// The processes of QEMU that belong to a site.
    pub fn qemus(&self, at: At) -> Vec<u32> {
        let ours = self.world.dir(at).to_string_lossy().into_owned();
        let is_one = |id: &u32| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            line.starts_with(b"qemu-system") && String::from_utf8_lossy(&line).contains(&ours)
        };
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
    }

    /// Exactly one copy of the machine runs, here.
    pub fn runs_only(&self, at: At) -> anyhow::Result<()> {
        let (here, there) = (self.power(at)?, self.power(at.other())?);
        ensure!(here == Some(Power::Running), "at {} it is {here:?}", at.name());
        match there {
            None | Some(Power::Off | Power::Held) => Ok(()),
            Some(power) => bail!("it runs at {}, and at {} it is {power:?}", at.name(), at.other().name()),
        }
    }

    /// Kills a part, leaves it dead for a while, and starts it again.
    pub fn kill(&mut self, (at, part): (At, Part), dead: Duration) -> anyhow::Result<()> {
        self.say(&format!("kill -9: {} {part:?}, for {} ms", at.name(), dead.as_millis()));
        self.world.kill(at, part);
        demo::pause(dead);
        self.world.start(at, part)
    }
}
