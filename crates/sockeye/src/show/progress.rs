//! A job as it goes: bars on a terminal, otherwise a line whenever a step changes.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::rest::{Job, Step, StepState};

use super::{Screen, job, tame};

/// Shows a job while it is followed.
pub struct Progress {
    screen: Screen,
    seen: BTreeMap<usize, Seen>,
    bars: Option<Bars>,
}

/// What was shown of a step: its state, and its tenth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    state: StepState,
    tenth: u8,
}

struct Bars {
    all: MultiProgress,
    steps: BTreeMap<usize, ProgressBar>,
}

impl Progress {
    /// Bars if a person watches, lines otherwise.
    pub fn new(screen: Screen) -> Progress {
        let bars = screen.is_live().then(|| {
            let target = if screen.is_json() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::stdout() };
            Bars { all: MultiProgress::with_draw_target(target), steps: BTreeMap::new() }
        });
        Progress { screen, seen: BTreeMap::new(), bars }
    }

    /// Shows how the job stands now.
    pub fn show(&mut self, job: &Job, now_ms: i64) {
        match &mut self.bars {
            Some(bars) => bars.show(job, now_ms),
            None => {
                for line in changes(&mut self.seen, job, now_ms) {
                    self.screen.say(&format!("  {line}"));
                }
            }
        }
    }

    /// Says something beside the steps.
    pub fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.all.println(tame(text));
            }
            None => self.screen.say(text),
        }
    }

    /// Leaves what was shown and gives the terminal back.
    pub fn end(&mut self) {
        if let Some(bars) = &mut self.bars {
            for bar in bars.steps.values() {
                bar.abandon();
            }
        }
    }
}

/// The lines for what changed since the last look.
fn changes(seen: &mut BTreeMap<usize, Seen>, job: &Job, now_ms: i64) -> Vec<String> {
    let mut lines = Vec::new();
    for (number, step) in job.steps.iter().enumerate() {
        let now = Seen { state: step.state, tenth: step.percent.unwrap_or(0) / 10 };
        let changed = seen.insert(number, now) != Some(now);
        // A step that is over has no tenths any more; one that has not begun has nothing to tell.
        let tells = !matches!(step.state, StepState::Pending | StepState::Skipped);
        if changed && tells {
            lines.push(job::step_line(step, now_ms));
        }
    }
    lines
}

impl Bars {
    fn show(&mut self, job: &Job, now_ms: i64) {
        for (number, step) in job.steps.iter().enumerate() {
            if matches!(step.state, StepState::Pending | StepState::Skipped) {
                continue;
            }
            let fresh = !self.steps.contains_key(&number);
            let all = &self.all;
            let bar = self.steps.entry(number).or_insert_with(|| all.add(ProgressBar::new(100)));
            draw(bar, step, now_ms);
            if fresh {
                // Not before it has its words: a tick in between would show an empty bar.
                bar.enable_steady_tick(Duration::from_millis(120));
            }
        }
    }
}

fn draw(bar: &ProgressBar, step: &Step, now_ms: i64) {
    let running = step.state == StepState::Running;
    if bar.is_finished() && !running {
        return;
    }
    let template = match (running, step.percent) {
        (true, Some(_)) => "  {spinner} {msg} [{bar:30}] {pos}%",
        (true, None) => "  {spinner} {msg}",
        (false, _) => "  {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_position(u64::from(step.percent.unwrap_or(0).min(100)));
    let mut text = step.name.clone();
    if let Some(detail) = step.detail.as_ref().filter(|detail| running && !detail.is_empty()) {
        text.push_str(&format!(" ({detail})"));
    }
    if running {
        bar.set_message(tame(&text));
    } else {
        bar.abandon_with_message(tame(&job::step_line(step, now_ms)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::sample;

    #[test]
    fn a_line_is_printed_when_a_step_changes_and_not_otherwise() {
        let (mut seen, mut job) = (BTreeMap::new(), sample::job());
        assert_eq!(changes(&mut seen, &job, sample::NOW).len(), 2, "one done, one running, one pending");
        assert!(changes(&mut seen, &job, sample::NOW).is_empty());
        job.steps[1].percent = Some(45);
        assert!(changes(&mut seen, &job, sample::NOW).is_empty(), "the same tenth");
        job.steps[1].percent = Some(51);
        assert_eq!(changes(&mut seen, &job, sample::NOW), ["running    start it at cloud, 51%"]);
        job.steps[1].state = StepState::Done;
        assert_eq!(changes(&mut seen, &job, sample::NOW).len(), 1);
    }
}
