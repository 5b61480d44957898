//! Two sites with a machine that has one sparse disk and no guest, in a bench's hands.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use demo::net::Hosts;
use demo::world::{At, MACHINE, Part, Settings, World, wait_for};
use protocol::machine::Power;
use protocol::rest::{ItemView, Job, JobState, MachineView};
use rustix::process::{Signal, kill_process};

use crate::Bench;
use crate::device::{self, Device};
use crate::process::Process;

/// The unit in which the product copies and counts.
pub const BLOCK: u64 = 64 * 1024;
/// A machine without a guest does not hear the button: its power is taken as soon as may be.
pub const STOPPING: [&str; 4] = ["--shut-down-timeout", "1s", "--then", "power-off"];

/// Two sites. Everything is gone when it is dropped.
pub struct Sites {
    /// The sites.
    pub world: World,
    /// Size of the disk.
    pub size: u64,
    root: PathBuf,
    others: Vec<String>,
}

impl Sites {
    /// Makes two sites, and a machine that runs at home with a disk of `size` bytes, of which `allocated` are written,
    /// evenly distributed.
    pub fn new(bench: &Bench, name: &str, size: u64, allocated: u64) -> Result<Sites> {
        let mut sites = Sites::empty(bench, name, size)?;
        sites.start(MACHINE, allocated)?;
        Ok(sites)
    }

    /// Only the sites.
    pub fn empty(bench: &Bench, name: &str, size: u64) -> Result<Sites> {
        let root = bench.place(name)?;
        let settings = Settings {
            root: root.clone(),
            sockeye: bench.sockeye.clone(),
            guest: PathBuf::new(),
            disk_bytes: size,
            written_bytes: 0,
            rate: 0,
            hosts: Hosts::Loopback,
            libvirt: Default::default(),
            formats: demo::world::FORMATS,
        };
        let world = World::without_guest(settings)?;
        Ok(Sites { world, size, root, others: Vec::new() })
    }

    /// Makes a machine at home, and starts it.
    pub fn start(&mut self, machine: &str, allocated: u64) -> Result<()> {
        let (raw, disk) = (self.root.join("seed.raw"), self.disk(machine));
        seed(&raw, self.size, allocated)?;
        let made =
            Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).args([&raw, &disk]).status()?;
        ensure!(made.success(), "qemu-img could not make {}", disk.display());
        std::fs::remove_file(raw)?;
        if machine != MACHINE {
            self.others.push(machine.into());
        }
        self.world.define_bare(machine, &format!("disk0={}:qcow2", disk.display()))
    }

    /// A machine's own disk, at home.
    pub fn disk(&self, machine: &str) -> PathBuf {
        self.world.dir(At::Home).join(format!("{machine}.qcow2"))
    }

    /// Bytes that are allocated to the machine's own disk.
    pub fn allocated(&self) -> Result<u64> {
        Ok(std::fs::metadata(self.disk(MACHINE))?.blocks() * 512)
    }

    /// Replicates the machine to the cloud, each second, keeping little of its history.
    pub fn protect(&self) -> Result<()> {
        let keep = ["--all-for", "5s", "--then-none", "--app-none", "--budget", "2GiB"];
        let added = self.world.sockeye(&[&["policy", "add", "bench"], &keep[..], &["--yes"]].concat())?;
        ensure!(added.code == 0, "the policy: {}{}", added.stdout, added.stderr);
        wait_for("machine that runs at home", Duration::from_secs(60), || {
            let seen: Vec<MachineView> = self.world.ask(&["vm", "list"], 0).ok()?;
            seen.iter()
                .any(|seen| seen.machine.spec.name == MACHINE && seen.machine.power == Power::Running)
                .then_some(())
        })?;
        self.job(&["protect", MACHINE, "--from", "home", "--to", "cloud", "--policy", "bench"])?;
        self.caught_up().map(drop)
    }

    /// Runs a job to its end.
    pub fn job(&self, arguments: &[&str]) -> Result<Job> {
        let job: Job = self.world.ask(&[arguments, &["--yes"]].concat(), 0)?;
        ensure!(job.state == JobState::Done, "sockeye {}: {job:?}", arguments.join(" "));
        Ok(job)
    }

    /// Waits until everything written so far is in a recovery point.
    pub fn caught_up(&self) -> Result<ItemView> {
        let now = now_ms();
        self.world.wait_status("recovery point with all that was written", Duration::from_secs(120), |view| {
            view.job.is_none() && view.newest.as_ref().is_some_and(|point| point.cut_at_ms > now)
        })
    }

    /// Moves the machine to the cloud: as planned, or after its QEMU at home was killed.
    pub fn away(&self, planned: bool) -> Result<()> {
        if planned {
            self.job(&[&["failover", MACHINE, "--planned", "--max-downtime", "5m"], &STOPPING[..]].concat())?;
        } else {
            self.world.kill_guest(At::Home)?;
            self.job(&["failover", MACHINE, "--unplanned", "--shut-down", "skip"])?;
        }
        self.job(&["commit", MACHINE]).map(drop)
    }

    /// Writes every so manieth block of the machine's disk where it runs, through its device; bytes written.
    pub fn change(&self, at: At, one_of: u64) -> Result<u64> {
        let mut random = Random(one_of + now_ms());
        let mut bytes = vec![0; BLOCK as usize];
        let mut written = 0;
        device::runtime()?.block_on(async {
            let device = Device::open(&self.world, at, MACHINE, self.size).await?;
            for group in 0..self.size / BLOCK / one_of {
                random.fill(&mut bytes);
                // Anywhere in its group, or it would always lie at the same place of a larger unit.
                device.write_all_at(&bytes, (group * one_of + random.next() % one_of) * BLOCK).await?;
                written += BLOCK;
            }
            device.flush_all().await?;
            anyhow::Ok(written)
        })
    }

    /// Processes of the sites, by the names people know them under.
    pub fn processes(&self) -> Vec<(String, Process)> {
        let mut all = vec![("control".to_string(), At::Cloud, Part::Control)];
        for at in [At::Home, At::Cloud] {
            all.push((format!("process server, {}", at.name()), at, Part::ProcessServer));
            all.push((format!("master target, {}", at.name()), at, Part::MasterTarget));
        }
        all.into_iter().filter_map(|(name, at, part)| Some((name, Process(self.world.part_pid(at, part)?)))).collect()
    }

    /// The QEMU of a machine at home.
    pub fn qemu(&self, machine: &str) -> Result<Process> {
        let pid = self.world.pid_of(At::Home, machine).with_context(|| format!("{machine} does not run"))?;
        Ok(Process(pid.as_raw_nonzero().get().unsigned_abs()))
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        self.world.stop();
        for machine in &self.others {
            if let Some(pid) = self.world.pid_of(At::Home, machine) {
                let _ = kill_process(pid, Signal::KILL);
                let gone = || self.world.pid_of(At::Home, machine).is_none().then_some(());
                let _ = wait_for("end of QEMU", Duration::from_secs(10), gone);
            }
        }
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// A sparse file with stretches of noise, evenly distributed.
fn seed(path: &std::path::Path, size: u64, allocated: u64) -> Result<()> {
    const STRETCH: u64 = 4 << 20;
    let file = File::create(path)?;
    file.set_len(size)?;
    let stretches = allocated / STRETCH;
    let (mut random, mut bytes) = (Random(allocated | 1), vec![0; STRETCH as usize]);
    for stretch in 0..stretches {
        random.fill(&mut bytes);
        file.write_all_at(&bytes, size / stretches / STRETCH * stretch * STRETCH)?;
    }
    Ok(())
}

/// Noise: nothing gains anything by compressing it.
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes());
        }
    }
}

/// This host's clock.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
