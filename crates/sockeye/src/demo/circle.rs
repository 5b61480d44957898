//! The circle, step by step, with a check after each.
//!
//! A check that saw too little fails: an empty ledger, a failover after which nothing was written, a compare that read
//! nothing prove nothing.

mod beside;

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use protocol::order::{Moved, Sync};
use protocol::rest::{Figures, ItemView, Job, JobState, StepState};

use crate::console::Console;
use crate::report::{Failover, Percentiles, Phase, Report, bytes};
use crate::world::{At, MACHINE, Part, World};

/// Records that must have been acknowledged before a failover counts as a test of anything.
const FEWEST_RECORDS: usize = 20;
/// Epochs that must flow before RPO is told.
const FEWEST_EPOCHS: usize = 5;

/// The circle under way.
pub struct Circle<'a> {
    pub(crate) world: &'a mut World,
    report: Report,
    say: &'a dyn Fn(&str),
    /// The guest's console since its last start.
    pub(crate) console: Console,
    rpo: Vec<u64>,
}

/// How a machine is brought home.
struct Back {
    sync: Sync,
    offline: bool,
}

impl<'a> Circle<'a> {
    /// Begins with the guest running at home.
    pub fn begin(world: &'a mut World, say: &'a dyn Fn(&str)) -> anyhow::Result<Circle<'a>> {
        let console = world.console(At::Home);
        world.start_guest()?;
        let circle = Circle { world, report: Report::default(), say, console, rpo: Vec::new() };
        let found = circle.console.found()?;
        ensure!(found.consistent, "the freshly seeded disks are not consistent");
        circle.console.writes(FEWEST_RECORDS)?;
        Ok(circle)
    }

    /// Goes round as the demo does. The report is complete only if every check held.
    pub fn go_round(mut self) -> (Report, anyhow::Result<()>) {
        let result = self.rounds();
        self.report.rpo_ms = Percentiles::of(&self.rpo);
        self.report.verified = result.is_ok();
        if let Err(error) = &result {
            self.report.problems.push(format!("{error:#}"));
        }
        (self.report, result)
    }

    fn rounds(&mut self) -> anyhow::Result<()> {
        self.protect()?;
        self.epochs_flow()?;
        self.test_failover()?;
        self.home_burns()?;
        self.fail_over_unplanned("home burns")?;
        self.commit("commit")?;
        self.home_is_back()?;
        let figures = self.reprotect(&["reprotect", MACHINE, "--yes"], "reprotect")?;
        self.expect_compare(&figures)?;
        self.fail_back(&Back { sync: Sync::Tracked, offline: false }, true)?;
        self.commit("commit at home")?;
        self.reverse()?;

        self.cut_off()?;
        self.fail_over_unplanned("home is cut off")?;
        self.change_point()?;
        self.commit("commit")?;
        self.mend()?;
        let figures = self.reprotect(&["reprotect", MACHINE, "--shut-down", "--yes"], "reprotect after the cut")?;
        self.expect_tracked(&figures)?;
        self.unreplicated_changes()?;
        self.fail_back(&Back { sync: Sync::Tracked, offline: false }, true)?;
        self.commit("commit at home")?;
        self.reverse()?;

        for back in [Back { sync: Sync::Compare, offline: false }, Back { sync: Sync::Full, offline: true }] {
            self.fail_over_planned()?;
            self.commit("commit")?;
            if back.sync == Sync::Compare {
                self.failback_called_off()?;
            }
            self.fail_back(&back, false)?;
            self.commit("commit at home")?;
            self.reverse()?;
        }
        Ok(())
    }

    pub(crate) fn told(&self, text: &str) {
        (self.say)(text);
    }

    pub(crate) fn phase(&mut self, name: &str, began: Instant, moved: Option<Moved>) {
        let read = moved.map(|moved| moved.read_source + moved.read_target);
        let seconds = began.elapsed().as_secs_f64();
        let mut line = format!("{name}: {seconds:.1} s");
        if let Some(moved) = moved {
            line += &format!(
                ", changed {}, read {}, sent {}",
                bytes(moved.changed),
                bytes(moved.read_source + moved.read_target),
                bytes(moved.sent)
            );
        }
        self.told(&line);
        self.report.phases.push(Phase {
            name: name.into(),
            seconds,
            bytes_changed: moved.map(|moved| moved.changed),
            bytes_read: read,
            bytes_sent: moved.map(|moved| moved.sent),
            down_ms: None,
        });
    }

    /// The same for a phase in which the machine changed sides.
    fn phase_of_move(&mut self, name: &str, began: Instant, moved: Option<Moved>) {
        self.phase(name, began, moved);
        let down_ms = self.report.failovers.last().map(|one| one.downtime_ms);
        if let Some(phase) = self.report.phases.last_mut() {
            phase.down_ms = down_ms;
        }
    }

    /// A job run to its end by the command line.
    fn job(&self, arguments: &[&str]) -> anyhow::Result<Job> {
        self.told(&format!("$ sockeye {}", arguments.join(" ")));
        let job: Job = self.world.ask(arguments, 0)?;
        ensure!(job.state == JobState::Done, "sockeye {}: the job is {:?}", arguments.join(" "), job.state);
        Ok(job)
    }

    fn protect(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let job = self.job(&["protect", MACHINE, "--from", "home", "--to", "cloud", "--yes"])?;
        let moved = job.figures.first.context("the initial replication told no figures")?;
        ensure!(
            moved.changed >= self.world.settings.written_bytes / 2,
            "the initial replication moved too little to be one"
        );
        self.phase("initial replication", began, Some(moved));
        Ok(())
    }

    fn epochs_flow(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        let before = self.console.acknowledged().len();
        let view = self.world.wait_status("recovery points", Duration::from_secs(60), |view| {
            rpo(view).len() > FEWEST_EPOCHS && view.stage_words == "protected"
        })?;
        let flowing = rpo(&view);
        ensure!(self.console.acknowledged().len() > before, "the guest did not write while it was replicated");
        let percentiles = Percentiles::of(&flowing[1..]);
        let pauses =
            view.replication.as_ref().map_or(0, |replication| replication.pauses_us.iter().copied().max().unwrap_or(0));
        self.told(&format!(
            "{} epochs: RPO p50 {} ms, p99 {} ms; longest pause of the guest {:.1} ms",
            flowing.len(),
            percentiles.p50,
            percentiles.p99,
            pauses as f64 / 1e3
        ));
        // The first point was as old as the first copy took; what comes after is the flow.
        self.rpo.extend(flowing.iter().skip(1));
        self.phase("epochs flow", began, None);
        Ok(())
    }

    fn home_burns(&mut self) -> anyhow::Result<()> {
        self.told("home burns: QEMU, process server and master target are killed, its files are out of reach");
        self.world.kill_guest(At::Home)?;
        self.world.kill(At::Home, Part::ProcessServer);
        self.world.kill(At::Home, Part::MasterTarget);
        if !self.world.net.is_real() {
            std::fs::rename(self.world.dir(At::Home), self.world.dir(At::Home).with_extension("lost"))?;
        }
        Ok(())
    }

    fn home_is_back(&mut self) -> anyhow::Result<()> {
        self.told("home is back");
        if !self.world.net.is_real() {
            std::fs::rename(self.world.dir(At::Home).with_extension("lost"), self.world.dir(At::Home))?;
        }
        self.world.start(At::Home, Part::MasterTarget)?;
        self.world.start(At::Home, Part::ProcessServer)?;
        self.world.wait_connected(4)
    }

    fn cut_off(&mut self) -> anyhow::Result<()> {
        self.told("the link is cut: home runs on where nobody can reach it");
        self.console.writes(FEWEST_RECORDS)?;
        match self.world.net.link(false) {
            Ok(()) => {}
            Err(_) => {
                for part in [Part::ProcessServer, Part::MasterTarget] {
                    self.world.freeze(At::Home, part, true);
                }
            }
        }
        // What is written now never reaches the other side.
        let reached = self.console.acknowledged().len();
        self.console.writes(reached + FEWEST_RECORDS)?;
        Ok(())
    }

    fn mend(&mut self) -> anyhow::Result<()> {
        self.told("the link is mended");
        match self.world.net.link(true) {
            Ok(()) => {}
            Err(_) => {
                for part in [Part::ProcessServer, Part::MasterTarget] {
                    self.world.freeze(At::Home, part, false);
                }
            }
        }
        self.world.wait_connected(4)
    }

    /// Starts the machine at the cloud from the newest point; what is found must be a prefix of what was acknowledged.
    fn fail_over_unplanned(&mut self, why: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let acknowledged = self.console.acknowledged();
        ensure!(acknowledged.len() >= FEWEST_RECORDS, "too few records were acknowledged before the disaster");
        let fresh = self.world.console(At::Cloud);
        let arguments = ["failover", MACHINE, "--unplanned", "--shut-down", "skip", "--yes"];
        let job = self.job(&arguments)?;
        self.arrived("unplanned failover", fresh, acknowledged, &job.figures, false)?;
        self.phase_of_move(&format!("unplanned failover ({why})"), began, None);
        Ok(())
    }

    fn fail_over_planned(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        self.console.writes(FEWEST_RECORDS)?;
        let fresh = self.world.console(At::Cloud);
        let job = self.job(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
        let acknowledged = self.until_the_end()?;
        self.arrived("planned failover", fresh, acknowledged, &job.figures, true)?;
        self.phase_of_move("planned failover", began, job.figures.last);
        Ok(())
    }

    /// Brings the machine home: phase 1, *Complete*, and no record may be lost.
    fn fail_back(&mut self, back: &Back, reprotected: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        self.console.writes(FEWEST_RECORDS)?;
        let fresh = self.world.console(At::Home);
        let sync = back.sync.to_string();
        let mut arguments = vec!["failback", MACHINE, "--sync", &sync, "--yes"];
        if back.offline {
            arguments.push("--offline");
        }
        let job = if back.offline {
            // There is no phase 1 with a running machine to wait in: it runs through.
            self.job(&arguments)?
        } else {
            self.told(&format!("$ sockeye {}", arguments.join(" ")));
            let waiting: Job = self.world.ask(&arguments, 4)?;
            ensure!(waiting.state == JobState::Waiting, "the failback does not wait for Complete: {:?}", waiting.state);
            let before = self.console.acknowledged().len();
            self.console.writes(before + 1).context("the guest does not write while the failback waits")?;
            self.job(&["complete", MACHINE, "--yes"])?
        };
        let acknowledged = self.until_the_end()?;
        self.arrived(
            &format!("failback ({sync}{})", if back.offline { ", offline" } else { "" }),
            fresh,
            acknowledged,
            &job.figures,
            true,
        )?;
        let mut moved = job.figures.last.unwrap_or_default();
        if !reprotected {
            let first = job.figures.first.context("the failback told no figures of its first copy")?;
            let used = job.figures.sync;
            ensure!(used == Some(back.sync), "{sync} was asked for and {used:?} was done");
            if back.sync == Sync::Compare {
                ensure!(first.read_source > 0 && first.read_target > 0, "a compare that read nothing is none");
            }
            moved += first;
        }
        self.phase_of_move(
            &format!("failback ({sync}{})", if back.offline { ", offline" } else { "" }),
            began,
            Some(moved),
        );
        Ok(())
    }

    /// What the guest acknowledged up to its goodbye, and that it was writing until the end.
    fn until_the_end(&self) -> anyhow::Result<Vec<(u64, u64)>> {
        let (last, bye_ms) = self.console.bye().context("the guest did not shut itself down")?;
        let acknowledged = self.console.acknowledged();
        let late = acknowledged.iter().filter(|(_, ms)| ms + 500 >= bye_ms).count();
        ensure!(
            late >= 1,
            "no record was acknowledged in the last 500 ms: the guest was not writing when it was shut down"
        );
        ensure!(acknowledged.last().map(|(number, _)| *number) == Some(last), "the console lost the last records");
        self.told(&format!(
            "{late} records were acknowledged in the last 500 ms before the guest stopped after record {last}"
        ));
        Ok(acknowledged)
    }

    /// Judges what the guest found on its disks at the new side, and that it writes on there.
    fn arrived(
        &mut self,
        kind: &str,
        fresh: Console,
        acknowledged: Vec<(u64, u64)>,
        figures: &Figures,
        planned: bool,
    ) -> anyhow::Result<()> {
        let (newest, newest_ms) = *acknowledged.last().context("nothing was acknowledged")?;
        let found = fresh.found()?;
        ensure!(found.consistent, "{kind}: the disks are not a prefix of what was written: {found:?}");
        ensure!(
            found.found >= FEWEST_RECORDS as u64 && found.scribbles_checked > 0,
            "{kind}: too little was found to judge: {found:?}"
        );
        let lost = newest.saturating_sub(found.highest);
        let lost_ms = if lost == 0 { 0 } else { newest_ms.saturating_sub(found.highest_made_ms) };
        if planned && lost > 0 {
            bail!("{kind}: {lost} acknowledged records were lost");
        }
        let downtime_ms = figures.downtime_ms.with_context(|| format!("{kind}: no downtime was measured"))?;
        // A move without a first copy of its own (its direction had converged before) sends its last delta from the maps; an
        // unplanned one sends nothing.
        let moved_by = figures.sync.map_or_else(|| "tracked".into(), |sync| sync.to_string());
        let sync = if planned { moved_by } else { "none".into() };
        self.told(&format!(
            "{kind}: {newest} records acknowledged, {} found, {lost} lost ({lost_ms} ms); down {downtime_ms} ms",
            found.highest
        ));
        self.report.failovers.push(Failover {
            kind: kind.into(),
            sync,
            downtime_ms,
            records_acknowledged: newest,
            records_found: found.highest,
            records_lost: lost,
            lost_ms,
        });
        self.console = fresh;
        let (first, _) = self.console.writes(1)?;
        ensure!(first > found.highest, "the guest does not go on after what it found");
        Ok(())
    }

    fn commit(&mut self, name: &str) -> anyhow::Result<()> {
        let began = Instant::now();
        let job = self.job(&["commit", MACHINE, "--yes"])?;
        if name == "commit at home" {
            let fold = job.steps.last().context("a commit without steps")?;
            let folded = fold.name.starts_with("fold") && fold.state == StepState::Done;
            ensure!(folded, "the machine did not get its own disks back: {fold:?}");
            let before = self.console.acknowledged().len();
            self.console.writes(before + 1).context("the guest does not write after it got its own disks back")?;
        }
        self.phase(name, began, None);
        Ok(())
    }

    fn reprotect(&mut self, arguments: &[&str], name: &str) -> anyhow::Result<Figures> {
        let began = Instant::now();
        let job = self.job(arguments)?;
        let moved = job.figures.first.context("reprotect told no figures")?;
        self.phase(name, began, Some(moved));
        Ok(job.figures)
    }

    fn expect_compare(&self, figures: &Figures) -> anyhow::Result<()> {
        let moved = figures.first.unwrap_or_default();
        ensure!(figures.sync == Some(Sync::Compare), "QEMU was killed, yet {:?} was done", figures.sync);
        let why = figures.distrust.as_deref().context("it is not said why tracked was refused")?;
        ensure!(moved.read_source > 0 && moved.read_target > 0, "a compare that read nothing is none");
        // The other site knows in hashes what it holds, but for what the machine wrote since, and shortly before.
        ensure!(
            moved.read_source < moved.read_target / 2,
            "both sides were read: {} at home, {} at the other site",
            bytes(moved.read_target),
            bytes(moved.read_source)
        );
        let code = protocol::fault::code::TRACKED_REFUSED.code;
        ensure!(why.starts_with(code), "the refusal of tracked has no code: {why}");
        let read = (bytes(moved.read_target), bytes(moved.read_source));
        self.told(&format!(
            "tracked was refused, and both sides compared ({} read at home, {} at the other site): {why}",
            read.0, read.1
        ));
        Ok(())
    }

    fn expect_tracked(&self, figures: &Figures) -> anyhow::Result<()> {
        let moved = figures.first.unwrap_or_default();
        ensure!(figures.sync == Some(Sync::Tracked), "home's maps survived, yet {:?} was done", figures.sync);
        ensure!(moved.read_target == 0, "a tracked copy read {} at home", bytes(moved.read_target));
        ensure!(moved.changed > 0, "nothing had changed");
        ensure!(
            moved.read_source <= moved.changed + moved.changed / 5,
            "a tracked copy read {} for {} that changed",
            bytes(moved.read_source),
            bytes(moved.changed)
        );
        self.told("tracked: no disk was scanned on either side");
        Ok(())
    }

    fn reverse(&mut self) -> anyhow::Result<()> {
        let figures = self.reprotect(&["reverse", MACHINE, "--yes"], "reverse replicate")?;
        ensure!(figures.sync == Some(Sync::Tracked), "reverse replication was {:?}, not tracked", figures.sync);
        self.epochs_flow()
    }
}

fn rpo(view: &ItemView) -> Vec<u64> {
    view.replication.as_ref().map(|replication| replication.rpo_ms.clone()).unwrap_or_default()
}
