//! What the kernel says of a process: the processor's time it took, what it wrote, its peak of memory; and where it may run.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

/// In what the kernel tells processor time: hundredths of a second on every Linux that we run on (`proc(5)`, USER_HZ).
const USER_HZ: u64 = 100;

/// A process that is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    /// What the kernel counted for it so far.
    pub fn counts(self) -> Result<Counts> {
        let stat = self.file("stat")?;
        // The name in parentheses may hold anything; behind it come the state and the rest, separated by spaces.
        let rest = stat.rsplit_once(')').context("a process without a name")?.1;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
        let written = line(&self.file("io")?, "wchar:").context("the kernel does not count what is written")?;
        Ok(Counts { cpu: Duration::from_millis(ticks * 1000 / USER_HZ), written })
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak(self) -> Result<u64> {
        let kib = line(&self.file("status")?, "VmHWM:").context("the kernel does not tell the peak")?;
        Ok(kib * 1024)
    }

    fn file(self, name: &str) -> Result<String> {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.0))
            .with_context(|| format!("process {} is gone", self.0))
    }
}

fn line(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Counts of a process.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Time of the processor, its own and the kernel's for it.
    pub cpu: Duration,
    /// Bytes given to the kernel to be written to files.
    pub written: u64,
}

impl std::ops::Sub for Counts {
    type Output = Counts;

    fn sub(self, before: Counts) -> Counts {
        Counts { cpu: self.cpu.saturating_sub(before.cpu), written: self.written.saturating_sub(before.written) }
    }
}

/// What this thread starts from now on, threads and processes, runs on this core only (everywhere, where there is no such core).
pub fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    let _ = sched_setaffinity(None, &set);
}

/// What is started from now on may run everywhere again.
pub fn unpin() {
    let mut set = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|core| set.set(core));
    let _ = sched_setaffinity(None, &set);
}
