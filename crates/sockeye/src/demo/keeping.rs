//! What the circle shows of history: a failback given up half-way, and the writes that never reached the other side.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use protocol::PointKind;
use protocol::difference::Difference;
use protocol::epoch::Point;
use protocol::rest::{Job, JobState};
use protocol::stage::{Side, Stage};

use crate::circle::Circle;
use crate::content::hash;
use crate::report::bytes;
use crate::world::{At, MACHINE, wait_for};

/// So much must have arrived at home before giving up proves anything.
const ARRIVED: u64 = 8 << 20;

impl Circle<'_> {
    /// Begins to bring everything home, gives it up half-way, and finds home's disks as they were, by hash.
    pub(crate) fn failback_called_off(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let holds = |circle: &Circle<'_>| -> anyhow::Result<Vec<String>> {
            circle.world.home_disks().iter().map(|disk| hash(disk)).collect()
        };
        let before = holds(self)?;
        let journal = self.world.dir(At::Home).join("retention").join(MACHINE);
        let kept = size(&journal);
        self.told(&format!("$ sockeye failback {MACHINE} --sync full, and sockeye cancel {MACHINE} half-way"));
        let job: Job = self.world.ask(&["failback", MACHINE, "--sync", "full", "--detach", "--yes"], 0)?;
        // Before-images of what is overwritten: what is in the journal is about to be on the disks.
        let deadline = Instant::now() + Duration::from_secs(60);
        while size(&journal) < kept + ARRIVED {
            ensure!(Instant::now() < deadline, "nothing arrives at home");
            crate::pause(Duration::from_millis(2));
        }
        let _: Job = self.world.ask(&["cancel", MACHINE, "--detach", "--yes"], 0)?;
        let job = wait_for("end of the failback", Duration::from_secs(120), || {
            let job: Job = self.world.ask(&["job", "show", &job.id.to_string()], 0).ok()?;
            job.state.ended().then_some(job)
        })?;
        ensure!(job.state == JobState::Cancelled, "the failback was not given up: {:?}", job.state);
        let view = self.world.status()?;
        ensure!(view.stage == Stage::NotProtected { runs_at: Side::Away }, "it is {}", view.stage_words);
        let after = holds(self)?;
        for (disk, (before, after)) in before.iter().zip(&after).enumerate() {
            self.told(&format!("home's disk{disk} before {}, after {}", &before[..16], &after[..16]));
        }
        ensure!(before == after, "home's disks are not what they were");
        let writes = self.console.acknowledged().len();
        self.console.writes(writes + 1).context("the guest does not run on after the failback was given up")?;
        self.phase("failback given up half-way", began, None);
        Ok(())
    }

    /// Lists what home wrote while it was cut off, and compares it with the line that went on without it.
    pub(crate) fn unreplicated_changes(&mut self) -> anyhow::Result<()> {
        let points: Vec<Point> = self.world.ask(&["points", MACHINE, "--at", "home"], 0)?;
        let kept = points.iter().rev().find(|point| point.kind == PointKind::Unreplicated);
        let kept = kept.context("home's unreplicated writes are no point")?.attempt.to_string();
        let newest = points.last().context("no point")?.attempt.to_string();
        self.told(&format!("$ sockeye points {MACHINE} --diff {kept} {newest}"));
        let told: Difference = self.world.ask(&["points", MACHINE, "--diff", &kept, &newest, "--at", "home"], 0)?;
        for disk in &told.disks {
            ensure!(disk.bytes > 0 && disk.extent_count > 0, "{} does not differ: both sides wrote on it", disk.disk);
            self.told(&format!("{}: {} in {} extents differ", disk.disk, bytes(disk.bytes), disk.extent_count));
        }
        Ok(())
    }
}

/// Bytes of the files in a directory; one that is not there holds nothing.
fn size(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}
