//! Steps of phase 1: bring what is left down to what the downtime allows, and wait for *Complete*.
//!
//! ```text
//!   epochs close to each other ─► look ┬─ too early, or still falling ─► look again
//!                                      ├─ fits ─► phase 2
//!                                      └─ stuck ─► a person: complete (goes ahead), cancel (goes back)
//!   Complete: a person's ─► as near as it gets ─► phase 2        a time's ─► fits ─► phase 2, stuck ─► a person
//! ```
//! # Always true
//! - Without a person's *Complete* the machine is not stopped while more downtime is expected than was allowed.
//! - What cannot fit is told with its figures, and nothing is repeated for ever: while a person is waited for, epochs come
//!   at the item's own interval again.
//!
//! # If power fails
//! What a person said, and when *Complete* is to come, is in the job's row; the look begins anew.

use protocol::machine::Power;
use protocol::order::{ReplicationStatus, Role};
use protocol::quote::Window;
use protocol::rest::JobState;

use super::{Context, Ending, Halt};
use crate::clock::now_ms;
use crate::database::commit;
use crate::item::Item;
use crate::job::{self, JobRow};
use crate::words;

/// Epochs that are watched before anything is said: as many as [`protocol::pace::Pace::last_us`] is of.
const FIRST_LOOK: u64 = 3;
/// Epochs without what is left becoming less, after which it is stuck.
const STUCK_AFTER: u64 = 6;

/// What the last epochs say of the downtime.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    /// Nothing yet.
    Early,
    /// It does not fit, but less is left each time.
    Falling(String),
    /// It fits.
    Fits(String),
    /// It does not fit, and will not without somebody's doing.
    Stuck(String),
}

/// How what is left develops.
#[derive(Debug, Default)]
struct Course {
    /// The number of epochs when the look began, and when less was left than ever.
    begun: Option<u64>,
    best: Option<(u64, u64)>,
    /// The number of epochs when it was last looked.
    seen: u64,
}

impl Course {
    /// Looks at what the process server tells. `bring_up_ms` is what the target took the last time.
    fn look(&mut self, status: &ReplicationStatus, bring_up_ms: Option<u64>, most_ms: u64) -> Look {
        // A process server that was started again counts from nothing.
        if status.epochs < self.seen {
            *self = Course::default();
        }
        self.seen = status.epochs;
        let begun = *self.begun.get_or_insert(status.epochs);
        let pace = status.pace;
        let (Some(delta), true) = (pace.last_delta_ms(), status.epochs >= begun + FIRST_LOOK) else {
            return Look::Early;
        };
        let expected = delta + bring_up_ms.unwrap_or(0);
        let brought_up = bring_up_ms.map_or("bringing it up was never measured".into(), |ms| {
            format!("bringing it up took {} the last time", words::span(ms))
        });
        let facts = format!(
            "{} of {} allowed: the last delta about {} ({}), {brought_up}",
            words::span(expected),
            words::span(most_ms),
            words::span(delta),
            words::bytes(pace.last_bytes.unwrap_or(0)),
        );
        if expected <= most_ms {
            return Look::Fits(format!("expected downtime {facts}"));
        }
        if pace.is_outrun() {
            let per_second = |rate: Option<u64>| rate.map_or("?".into(), |rate| format!("{}/s", words::bytes(rate)));
            let (changes, carries) = (per_second(pace.change_rate()), per_second(pace.rate()));
            return Look::Stuck(format!(
                "it cannot converge: {changes} change and {carries} can be carried; expected downtime {facts}"
            ));
        }
        // Less by a tenth is less; anything smaller may be chance.
        match self.best {
            Some((least, at)) if expected >= least / 10 * 9 => {
                if status.epochs >= at + STUCK_AFTER {
                    return Look::Stuck(format!("it does not become less: expected downtime {facts}"));
                }
            }
            _ => self.best = Some((expected, status.epochs)),
        }
        Look::Falling(format!("expected downtime {facts}"))
    }
}

impl Context<'_> {
    /// Phase 1, as far as a machine that runs on allows.
    pub(super) async fn converge(&mut self, most_ms: u64) -> Result<Ending, Halt> {
        let mut course = Course::default();
        loop {
            let mut news = self.control.news();
            let row = self.row().await?;
            let waits = row.state == JobState::Waiting && !row.complete;
            let look = if waits {
                self.look(&mut course, most_ms).await?
            } else {
                self.near(&mut course, &row, most_ms).await?
            };
            match look {
                Look::Early => {}
                Look::Falling(words) => self.control.tell(self.id, Some(words), None),
                Look::Fits(words) => return self.goes_on(&row, words).await,
                Look::Stuck(words) if row.complete => {
                    return self.goes_on(&row, format!("a person said Complete; {words}")).await;
                }
                Look::Stuck(words) if row.complete_at.is_some() => {
                    return self.goes_on(&row, format!("{words}; looked at again when Complete comes")).await;
                }
                Look::Stuck(words) => self.wait_for_person(&row, &words).await?,
            }
            self.control.pause(&mut news).await?;
        }
    }

    /// Waits for *Complete*, and then for what is left to fit, or to be as little as it gets where a person said it.
    pub(super) async fn wait_for_complete(&mut self, most_ms: u64) -> Result<Ending, Halt> {
        let mut course = Course::default();
        loop {
            let mut news = self.control.news();
            let row = self.row().await?;
            let now = now_ms().unsigned_abs();
            match row.complete_at.filter(|_| !row.complete) {
                None if row.complete => match self.near(&mut course, &row, most_ms).await? {
                    Look::Early => {}
                    Look::Falling(words) => self.control.tell(self.id, Some(words), None),
                    Look::Fits(words) | Look::Stuck(words) => return self.goes_on(&row, words).await,
                },
                None => {
                    let words = match self.look(&mut course, most_ms).await? {
                        Look::Early => String::new(),
                        Look::Falling(words) | Look::Fits(words) | Look::Stuck(words) => words,
                    };
                    let said = [self.notes.lapsed.clone().unwrap_or_default(), words];
                    self.wait_for_person(&row, &said.join("; ")).await?;
                }
                Some(window) if now < window.from_ms => {
                    self.runs(&row).await?;
                    self.hurry(false).await?;
                    self.control.tell(self.id, Some(when(window)), None);
                }
                Some(window) if now <= window.until_ms => match self.near(&mut course, &row, most_ms).await? {
                    Look::Early => {}
                    Look::Falling(words) => self.control.tell(self.id, Some(words), None),
                    Look::Fits(words) => return self.goes_on(&row, format!("at its time; {words}")).await,
                    Look::Stuck(words) => {
                        self.lapse(format!("Complete did not come at its time: {words}")).await?;
                        course = Course::default();
                    }
                },
                Some(window) => {
                    let until = words::instant(window.until_ms);
                    self.lapse(format!("Complete did not come at its time, which ended {until}")).await?;
                }
            }
            self.control.pause(&mut news).await?;
        }
    }

    /// Lets epochs follow each other closely, or at the item's interval again. Tells whether that is new.
    pub(super) async fn hurry(&self, hurried: bool) -> Result<bool, Halt> {
        if self.load().await?.wish.is_none_or(|wish| wish.hurried == hurried) {
            return Ok(false);
        }
        self.change(|item| {
            if let Some(wish) = &mut item.wish {
                wish.hurried = hurried;
            }
            Ok(())
        })
        .await?;
        Ok(true)
    }

    /// Brings what is left down, and looks how near it is.
    async fn near(&self, course: &mut Course, row: &JobRow, most_ms: u64) -> Result<Look, Halt> {
        self.runs(row).await?;
        if self.stands_still().await? {
            return Ok(Look::Fits("the machine does not run: nothing changes".into()));
        }
        if self.hurry(true).await? {
            *course = Course::default();
        }
        self.look(course, most_ms).await
    }

    /// The job as it is now, unless it was cancelled.
    async fn row(&self) -> Result<JobRow, Halt> {
        let row = job::load(self.control.database(), self.id).await?;
        self.check_cancelled(&row)?;
        Ok(row)
    }

    async fn look(&self, course: &mut Course, most_ms: u64) -> Result<Look, Halt> {
        let item = self.load().await?;
        let Some(status) = self.told(&item).await? else { return Ok(Look::Early) };
        if let Some(fault) = &status.fault {
            self.control.tell(self.id, Some(fault.to_string()), None);
            return Ok(Look::Early);
        }
        let to = item.stage.runs_at().other();
        Ok(course.look(&status, item.copy(to).bring_up_ms, most_ms))
    }

    /// How the replication stands that goes by the present list; none while that is not told.
    async fn told(&self, item: &Item) -> Result<Option<ReplicationStatus>, Halt> {
        let component = self.component(item.stage.runs_at(), Role::ProcessServer).await?;
        let (number, _) = self.control.wishes_for(&component).await?;
        let fleet = self.control.fleet();
        if !fleet.connected(&component) {
            drop(fleet);
            self.control.tell(self.id, Some(format!("waiting for component {component}")), None);
            return Ok(None);
        }
        let known = fleet.components.get(&component).filter(|known| known.seen_list == number);
        Ok(known.and_then(|known| known.statuses.iter().find(|status| status.item == item.name).cloned()))
    }

    async fn stands_still(&self) -> Result<bool, Halt> {
        let item = self.load().await?;
        let fleet = self.control.fleet();
        let found = fleet.machine(item.site(item.stage.runs_at()), &item.spec.name);
        Ok(found.is_some_and(|(machine, fresh)| fresh && matches!(machine.power, Power::Off | Power::Held)))
    }

    /// Phase 2 may begin: epochs follow each other closely until the machine is off.
    async fn goes_on(&mut self, row: &JobRow, words: String) -> Result<Ending, Halt> {
        self.runs(row).await?;
        self.hurry(true).await?;
        Ok(Ending::Done(Some(words)))
    }

    async fn runs(&self, row: &JobRow) -> Result<(), Halt> {
        if row.state == JobState::Waiting { self.set_job(JobState::Running, None).await } else { Ok(()) }
    }

    async fn wait_for_person(&self, row: &JobRow, words: &str) -> Result<(), Halt> {
        let command = format!("sockeye complete {}", self.item);
        self.hurry(false).await?;
        if row.state != JobState::Waiting {
            self.set_job(JobState::Waiting, Some(&command)).await?;
        }
        let words = words.trim_matches([';', ' ']);
        let told = if words.is_empty() { format!("next: {command}") } else { format!("{words}; next: {command}") };
        self.control.tell(self.id, Some(told), None);
        Ok(())
    }

    /// *Complete* does not come by itself any more.
    async fn lapse(&mut self, words: String) -> Result<(), Halt> {
        self.notes.lapsed = Some(words);
        self.control.tick()?;
        let mut change = self.control.database().change().await?;
        job::schedule(&mut change, self.id, None).await?;
        job::keep(&mut change, self.id, self.notes, self.figures).await?;
        commit(change).await?;
        self.control.tick()?;
        self.control.announce_job(self.id).await;
        Ok(())
    }
}

fn when(window: Window) -> String {
    format!(
        "Complete comes by itself from {} until {}",
        words::instant(window.from_ms),
        words::instant(window.until_ms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::order::{Moved, Progress, ReplicationPhase};
    use protocol::pace::Pace;

    fn status(epochs: u64, last_us: u64, changed: u64, carried: u64) -> ReplicationStatus {
        let (changing_us, carrying_us) = (1_000_000, 1_000_000);
        let (last_bytes, last_us) = (Some(changed), Some(last_us));
        ReplicationStatus {
            item: "web01".parse().unwrap(),
            generation: 1,
            phase: ReplicationPhase::Epochs,
            newest: None,
            sync: None,
            distrust: None,
            first: Progress::default(),
            first_moved: None,
            moved: Moved::default(),
            epochs,
            pauses_us: vec![],
            rpo_ms: vec![],
            pace: Pace { carried, carrying_us, changed, changing_us, last_bytes, last_us, ..Pace::default() },
            fault: None,
            capped: None,
            app: Default::default(),
        }
    }

    #[test]
    fn what_fits_is_known_after_three_epochs_and_not_before() {
        let mut course = Course::default();
        let quick = |epochs| status(epochs, 50_000, 1 << 20, 100 << 20);
        for epochs in [7, 8, 9] {
            assert_eq!(course.look(&quick(epochs), Some(400), 5000), Look::Early);
        }
        let Look::Fits(words) = course.look(&quick(10), Some(400), 5000) else { panic!() };
        assert!(words.contains("500 ms of 5.0 s allowed: the last delta about 100 ms (1.0 MiB)"), "{words}");
        let Look::Fits(words) = Course { begun: Some(7), ..Course::default() }.look(&quick(10), None, 5000) else {
            panic!()
        };
        assert!(words.contains("bringing it up was never measured"), "{words}");
    }

    #[test]
    fn a_guest_that_outruns_the_link_is_stuck_at_once_and_one_that_falls_is_given_time() {
        let mut course = Course { begun: Some(0), ..Course::default() };
        let Look::Stuck(words) = course.look(&status(3, 9_000_000, 80 << 20, 40 << 20), None, 5000) else { panic!() };
        assert!(words.contains("80.0 MiB/s change and 40.0 MiB/s can be carried"), "{words}");
        let mut course = Course { begun: Some(0), ..Course::default() };
        for (epochs, last_us) in [(3, 90_000_000), (4, 60_000_000), (5, 30_000_000), (6, 10_000_000)] {
            let look = course.look(&status(epochs, last_us, 10 << 20, 40 << 20), None, 5000);
            assert!(matches!(look, Look::Falling(_)), "{look:?}");
        }
        assert!(matches!(course.look(&status(7, 2_000_000, 10 << 20, 40 << 20), None, 5000), Look::Fits(_)));
    }

    #[test]
    fn what_no_longer_falls_is_stuck_and_a_process_server_started_again_begins_anew() {
        let mut course = Course { begun: Some(0), ..Course::default() };
        let flat = |epochs| status(epochs, 4_000_000, 1 << 20, 40 << 20);
        assert!((3..9).all(|epochs| matches!(course.look(&flat(epochs), None, 5000), Look::Falling(_))));
        let Look::Stuck(words) = course.look(&flat(9), None, 5000) else { panic!() };
        assert!(words.contains("it does not become less: expected downtime 8.0 s of 5.0 s"), "{words}");
        assert_eq!(course.look(&flat(1), None, 5000), Look::Early);
        assert_eq!(course.look(&flat(3), None, 5000), Look::Early);
    }
}
