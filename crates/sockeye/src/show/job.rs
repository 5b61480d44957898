//! Jobs: the table, the page of one job, and the line with which a job ends.

use protocol::order::Moved;
use protocol::rest::{Figures, Job, JobState, Step, StepState};
use protocol::verified::Verified;

use super::table::{facts, table};
use super::{plan, quote, words};

/// The table of jobs, newest first.
pub fn list(jobs: &[Job], now_ms: i64) -> String {
    let mut jobs: Vec<_> = jobs.iter().collect();
    jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
    let rows = jobs.iter().map(|job| {
        let now = job.steps.iter().find(|step| step.state == StepState::Running);
        let fault = job.fault.as_ref().map(|fault| fault.code.clone());
        vec![
            job.id.to_string(),
            job.item.to_string(),
            job.operation.verb().into(),
            brief(job.state).into(),
            words::instant(job.started_at_ms),
            words::span(took(job, now_ms)),
            fault.or_else(|| now.map(with_percent)).unwrap_or_default(),
            job.next.clone().unwrap_or_default(),
        ]
    });
    let headings = ["JOB", "ITEM", "OPERATION", "STATE", "STARTED", "TOOK", "STEP/FAULT", "NEXT"];
    table(&headings, rows.collect(), "no job was started yet")
}

/// One job's page.
pub fn page(job: &Job, now_ms: i64) -> String {
    let mut text = format!("job {}: {} {}: {}", job.id, plan::doing(&job.operation), job.item, state(job.state));
    text.push_str(&format!(
        "\n  started {}, took {}",
        words::instant(job.started_at_ms),
        words::span(took(job, now_ms))
    ));
    if let Some(window) = &job.complete_at {
        text.push_str(&format!("\n  completes {}; call it off: sockeye cancel {}", quote::window(window), job.item));
    }
    for step in &job.steps {
        text.push_str(&format!("\n  {}", step_line(step, now_ms)));
    }
    push_block(&mut text, &figures(&job.figures, now_ms));
    job.figures.warnings.iter().for_each(|fault| push_block(&mut text, &super::warning(fault)));
    if let Some(fault) = &job.fault {
        push_block(&mut text, &super::error(fault));
    }
    if let Some(next) = &job.next {
        push_block(&mut text, &format!("next: {next}"));
    }
    text
}

/// The lines that end the following of a job, without its steps (which were seen) and its fault (which is an error).
pub fn ending(job: &Job, now_ms: i64) -> String {
    let verb = plan::doing(&job.operation);
    let mut text =
        format!("job {} ({verb} {}): {} after {}", job.id, job.item, state(job.state), words::span(took(job, now_ms)));
    push_block(&mut text, &figures(&job.figures, now_ms));
    job.figures.warnings.iter().for_each(|fault| push_block(&mut text, &super::warning(fault)));
    if leaves_exposed(job) {
        push_block(&mut text, &format!("{} is NOT PROTECTED: what it writes now is nowhere else", job.item));
    }
    if let Some(next) = &job.next {
        push_block(&mut text, &format!("next: {next}"));
    }
    text
}

/// Whether the job ended where nothing is replicated (H19).
fn leaves_exposed(job: &Job) -> bool {
    use protocol::rest::Operation::{ChangePoint, Commit, Failback, Failover};
    job.state == JobState::Done
        && matches!(job.operation, ChangePoint { .. } | Commit { .. } | Failback { .. } | Failover { .. })
}

/// A state in words.
pub fn state(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Waiting => "waiting for a person",
        JobState::Compensating => "undoing what was done",
        JobState::Done => "done",
        JobState::Failed => "FAILED, what it had done is undone",
        JobState::Cancelled => "cancelled, what it had done is undone",
    }
}

/// The same in a word.
fn brief(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Waiting => "waiting",
        JobState::Compensating => "undoing",
        JobState::Done => "done",
        JobState::Failed => "FAILED",
        JobState::Cancelled => "cancelled",
    }
}

/// A step's line: state, name, how far or how long.
pub fn step_line(step: &Step, now_ms: i64) -> String {
    let word = match step.state {
        StepState::Pending => "-",
        StepState::Running => "running",
        StepState::Done => "done",
        StepState::Failed => "FAILED",
        StepState::Undone => "undone",
        StepState::Skipped => "not needed",
    };
    let mut line = format!("{word:<10} {}", step.name);
    match step.state {
        StepState::Running => {
            if let Some(percent) = step.percent {
                line.push_str(&format!(", {percent}%"));
            }
            if let Some(detail) = step.detail.as_ref().filter(|detail| !detail.is_empty()) {
                line.push_str(&format!(" ({detail})"));
            }
        }
        StepState::Done | StepState::Failed | StepState::Undone => {
            if let Some(took) = step_took(step, now_ms) {
                line.push_str(&format!(" ({})", words::span(took)));
            }
        }
        StepState::Pending | StepState::Skipped => {}
    }
    line
}

fn step_took(step: &Step, now_ms: i64) -> Option<u64> {
    let from = step.started_at_ms?;
    u64::try_from(step.ended_at_ms.unwrap_or(now_ms).saturating_sub(from)).ok()
}

fn took(job: &Job, now_ms: i64) -> u64 {
    u64::try_from(job.ended_at_ms.unwrap_or(now_ms).saturating_sub(job.started_at_ms)).unwrap_or(0)
}

fn with_percent(step: &Step) -> String {
    step.percent.map_or_else(|| step.name.clone(), |percent| format!("{} {percent}%", step.name))
}

/// What the job measured.
fn figures(figures: &Figures, now_ms: i64) -> String {
    let mut how = figures.sync.map(|sync| sync.to_string()).unwrap_or_default();
    if let Some(why) = &figures.distrust {
        how.push_str(&format!(", because {why}"));
    }
    facts(&[
        ("point", figures.point.as_ref().map(|point| words::point(point, None, now_ms)).unwrap_or_default()),
        ("view", figures.served.as_ref().map(words::view).unwrap_or_default()),
        ("verified", figures.verified.as_ref().map(verified).unwrap_or_default()),
        ("sync", how),
        ("first copy", figures.first.as_ref().map(moved).unwrap_or_default()),
        ("last delta", figures.last.as_ref().map(moved).unwrap_or_default()),
        ("expected", figures.quote.as_ref().map(quote::expected).unwrap_or_default()),
        ("downtime", downtime(figures)),
        ("guest", figures.guest.join("\n")),
        (
            "kept apart",
            figures
                .unreplicated_bytes
                .map(|n| format!("{} that were never replicated", words::bytes(n)))
                .unwrap_or_default(),
        ),
    ])
}

fn downtime(figures: &Figures) -> String {
    let total = figures.downtime_ms.map(words::span).unwrap_or_default();
    figures.downtime.as_ref().map_or(total.clone(), |parts| format!("{total}: {}", quote::parts(parts)))
}

/// Extents of one damage that are shown; more come with `--output json`.
const SHOWN: usize = 5;

fn verified(found: &Verified) -> String {
    let disks = match &found.at {
        Some(at) => format!("{} of disks at point {at}", words::bytes(found.disk_bytes)),
        None => "no disks: the replica has no hashes to compare them with".into(),
    };
    let mut text = format!("{} of journal, {disks}: ", words::bytes(found.journal_bytes));
    text.push_str(&match found.damage_count {
        0 => "nothing is damaged".to_string(),
        count => format!("{count} DAMAGED"),
    });
    for damage in &found.damage {
        let what = if damage.newest { "newest state" } else { "older points" };
        text.push_str(&format!("\n  {}, {what}: {}", damage.disk, damage.why));
        for extent in damage.extents.iter().take(SHOWN) {
            text.push_str(&format!("\n    {:>14} + {}", extent.offset, extent.length));
        }
        let shown = damage.extents.len().min(SHOWN) as u64;
        if damage.extent_count > shown {
            text.push_str(&format!("\n    and {} more", damage.extent_count - shown));
        }
    }
    text
}

fn moved(moved: &Moved) -> String {
    let Moved { changed, read_source, read_target, .. } = *moved;
    let [changed, source, target] = [changed, read_source, read_target].map(words::bytes);
    format!("{changed} changed; {source} read at the source, {target} at the target; {}", words::sent(moved))
}

fn push_block(text: &mut String, block: &str) {
    if !block.is_empty() {
        text.push('\n');
        text.push_str(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::sample;
    use protocol::extent::Extent;
    use protocol::order::Sync;
    use protocol::quote::{Downtime, Quote, Window};
    use protocol::verified::Damage;

    #[test]
    fn a_job_tells_its_steps_figures_and_what_comes_next() {
        let mut job = sample::job();
        let shown = page(&job, sample::NOW);
        for part in [
            "done       shut the machine down at home (2.0 s)",
            "running    start it at cloud, 40%",
            "-          settle",
            "took 3.0 s",
        ] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
        job.complete_at = Some(Window { from_ms: 1_790_000_000_000, until_ms: 1_790_003_600_000 });
        let shown = page(&job, sample::NOW);
        assert!(
            shown.contains("completes by itself between 2026-") && shown.contains("sockeye cancel web01"),
            "{shown}"
        );
        job.complete_at = None;
        job.state = JobState::Done;
        job.ended_at_ms = Some(sample::NOW);
        job.next = Some("sockeye commit web01".into());
        job.figures = Figures {
            sync: Some(Sync::Compare),
            distrust: Some("no change map survived".into()),
            first: Some(Moved {
                changed: 1 << 20,
                read_source: 1 << 30,
                read_target: 1 << 30,
                sent: 2 << 20,
                blocks_compressed: 5,
                blocks_plain: 2,
                saved: 3 << 20,
            }),
            downtime_ms: Some(2300),
            downtime: Some(Downtime {
                shut_down_ms: 4000,
                last_delta_ms: 300,
                seal_ms: 100,
                bring_up_ms: 1500,
                start_ms: 400,
            }),
            quote: Some(Quote { bytes: Some(3 << 20), moving_ms: Some(250), ..Quote::default() }),
            ..Figures::default()
        };
        let shown = ending(&job, sample::NOW + 60_000);
        for part in [
            "job 7 (unplanned failover of web01): done after 3.0 s",
            "compare, because no change map survived",
            "1.0 MiB changed; 1.0 GiB read at the source, 1.0 GiB at the target; 2.0 MiB sent (3.0 MiB spared: 5 of 7 blocks were \
             compressed)",
            "expected    3.0 MiB to be sent, within 250 ms",
            "downtime    2.3 s: last delta 300 ms, sealed in 100 ms, brought up in 1.5 s, start accepted in 400 ms; before it 4.0 s to shut down",
            "next: sockeye commit web01",
        ] {
            assert!(shown.contains(part), "{part} in\n{shown}");
        }
    }

    #[test]
    fn what_a_scrub_found_is_told_by_disk_and_place() {
        let map = (0..7).map(|n| Extent::new(n * 131_072, 65_536)).collect();
        let one = Damage::of("disk0".parse().unwrap(), &map, "the disk does not hold what was written".into(), true);
        let at = Some("1.42".parse().unwrap());
        let mut found = Verified { at, journal_bytes: 1 << 20, disk_bytes: 1 << 30, damage_count: 0, damage: vec![] };
        assert_eq!(verified(&found), "1.0 MiB of journal, 1.0 GiB of disks at point 1.42: nothing is damaged");
        (found.damage_count, found.damage) = (1, vec![one]);
        let text = verified(&found);
        for part in ["1 DAMAGED", "disk0, newest state: the disk", "        131072 + 65536", "and 2 more"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn jobs_are_listed_newest_first() {
        let (mut first, mut second) = (sample::job(), sample::job());
        (first.id, second.id) = (1, 2);
        let shown = list(&[first, second], sample::NOW);
        let numbers: Vec<_> = shown.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(numbers, ["2", "1"]);
    }
}
