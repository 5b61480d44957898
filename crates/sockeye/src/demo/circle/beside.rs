//! A test failover while replication goes on, and a change of the recovery point after a failover.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use protocol::beside::test_name;
use protocol::epoch::Point;
use protocol::rest::ItemView;

use super::{Circle, FEWEST_RECORDS};
use crate::console::{Console, Found};
use crate::world::{At, MACHINE, Part};

impl Circle<'_> {
    /// Starts a copy of the machine at the cloud, while it writes and is replicated at home; nothing is left of it.
    pub(super) fn test_failover(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let name = test_name(MACHINE);
        self.console.writes(FEWEST_RECORDS)?;
        let job = self.job(&["failover", MACHINE, "--test", "--yes"])?;
        let point = job.figures.point.context("the test says no point")?;
        let console = self.world.console_of(At::Cloud, &name);
        let found = console.found()?;
        let newest = self.console.acknowledged().last().map_or(0, |(number, _)| *number);
        self.judge("test failover", &found)?;
        ensure!(found.highest <= newest, "the test found record {}, {newest} is the newest", found.highest);
        console.writes(1).context("the test machine does not write")?;
        let acknowledged = self.console.acknowledged().len();
        let view = self.world.wait_status("points newer than the test", Duration::from_secs(60), |view| {
            view.newest.as_ref().is_some_and(|newest| newest.attempt > point.attempt)
        })?;
        ensure!(view.test.as_ref().is_some_and(|test| test.machine == name), "status does not show the test: {view:?}");
        ensure!(view.stage_words == "protected", "a test made the item {}", view.stage_words);
        self.console.writes(acknowledged + 1).context("the guest does not write beside its test")?;
        self.told(&format!(
            "test failover: {name} found {} records from point {} and writes on; replication goes on beside it",
            found.highest, point.attempt
        ));
        self.job(&["cleanup", MACHINE, "--yes"])?;
        let left = self.world.left_of(At::Cloud, TEST_MARK)?;
        ensure!(left.is_empty(), "the test left {left:?}");
        self.phase("test failover and its end", began, None);
        Ok(())
    }

    /// After an unplanned failover: from an older recovery point, then from the first one again. What is found each time is
    /// exactly what that point holds.
    pub(super) fn change_point(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let here = self.console.clone().found()?;
        let points: Vec<Point> = self.world.ask(&["points", MACHINE], 0)?;
        let newest = points.last().context("there are no points")?.attempt;
        // Far enough back that records lie between the two.
        let back = points.iter().rev().nth(FEWEST_EPOCHS_BACK).context("too few points to go back")?.attempt;
        let older = self.changed_to(&back.to_string())?;
        ensure!(older.highest < here.highest, "point {back} holds record {}, not fewer", older.highest);
        let again = self.changed_to(&newest.to_string())?;
        ensure!(
            (again.highest, again.highest_made_ms) == (here.highest, here.highest_made_ms),
            "point {newest} held record {}, and now {}",
            here.highest,
            again.highest
        );
        let view: ItemView = self.world.status()?;
        ensure!(view.stage_words.contains("commit pending"), "it is {}", view.stage_words);
        self.told(&format!(
            "change of the recovery point: {} records at point {back}, {} at point {newest} as before",
            older.highest, again.highest
        ));
        self.phase("recovery point changed twice", began, None);
        Ok(())
    }

    /// Changes the point; gives what the guest found. The circle goes on with that guest.
    fn changed_to(&mut self, point: &str) -> anyhow::Result<Found> {
        let before = self.console.acknowledged().len();
        self.console.writes(before + 1).context("the guest wrote nothing that could be thrown away")?;
        self.job(&["change-point", MACHINE, "--point", point, "--yes"])?;
        self.console = self.world.console_of(At::Cloud, MACHINE);
        let found = self.console.found()?;
        self.judge("change-point", &found)?;
        self.console.writes(1).context("the guest does not go on")?;
        Ok(found)
    }

    fn judge(&self, kind: &str, found: &Found) -> anyhow::Result<()> {
        ensure!(found.consistent, "{kind}: the disks are not a prefix of what was written: {found:?}");
        ensure!(
            found.found >= FEWEST_RECORDS as u64 && found.scribbles_checked > 0,
            "{kind}: too little was found to judge: {found:?}"
        );
        Ok(())
    }
}

/// What the name of everything ends with that belongs to a test.
const TEST_MARK: &str = "-test";
/// How many recovery points the older one lies back.
const FEWEST_EPOCHS_BACK: usize = 4;

impl crate::world::World {
    /// The console of a machine at a site since it was defined there.
    pub fn console_of(&self, at: At, machine: &str) -> Console {
        Console::whole(self.machine_dir(at, machine).join("console.log"))
    }

    /// What is still at a site of something that stood beside the machine: folders, overlays and sockets whose name ends with
    /// `mark`, processes that were given one of them, exports.
    ///
    /// # Errors
    /// The site cannot be looked at.
    pub fn left_of(&self, at: At, mark: &str) -> anyhow::Result<Vec<String>> {
        let kept = self.data_dir(at, Part::MasterTarget);
        let mut left = Vec::new();
        for directory in [self.site_dir(at).join("machines"), kept.join("raised"), kept.clone()] {
            for entry in std::fs::read_dir(directory)? {
                let path = entry?.path();
                if path.file_stem().is_some_and(|name| name.to_string_lossy().ends_with(mark)) {
                    left.push(path.display().to_string());
                }
            }
        }
        let site = self.dir(at).display().to_string();
        for entry in std::fs::read_dir("/proc")? {
            // One that ends while it is looked at is not left.
            let line = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&site) && line.contains(mark) {
                left.push(line);
            }
        }
        let uri = format!("nbd+unix:///?socket={}", kept.join("views.sock").display());
        let told = std::process::Command::new("nbdinfo").args(["--list", "--json", &uri]).output()?;
        ensure!(told.status.success(), "nbdinfo --list: {}", String::from_utf8_lossy(&told.stderr));
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).context("nbdinfo tells nothing")?;
        let names =
            told["exports"].as_array().into_iter().flatten().filter_map(|export| export["export-name"].as_str());
        left.extend(names.filter(|name| name.ends_with(&mark.replace('-', "."))).map(|name| format!("export {name}")));
        Ok(left)
    }
}
