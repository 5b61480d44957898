//! The engine: carries each job from its log to its end.
//!
//! ```text
//!            ┌── started ── perform ── done ──┐ next step            point of no return
//!   log ──► step                              ├──────────► … ───────────────┼──────────► Done
//!            └── failed / cancelled ──┐       │                             │
//!                                     ▼                                     ▼ a failure behind it unwinds
//!          undone ◄── undo ◄── undo_started (backwards)                       only as far as here
//! ```
//!
//! # Always true
//! - A job is one task; jobs of different items go side by side.
//! - Everything that is done is safe to do twice, forwards and backwards.
//! - An undo never waits for a component that is gone: its order stays in the book and is carried out when it returns.
//! - Every job ends, whatever dies: what cannot go on is undone; what cannot be undone is left and named.
//!
//! # If power fails
//! On the next start every job that has not ended goes on from the last record of each step.

use std::time::Duration;

use protocol::fault::{Fault, code};
use protocol::rest::{JobState, Operation};
use protocol::stage::{MovePhase, Stage};

use crate::database::commit;
use crate::job::{self, JobRow, Record};
use crate::stage_table::Event;
use crate::steps::{Context, Ending, Halt};
use crate::work::Work;
use crate::{Control, audit, item, view};

/// How often a step behind the point of no return is tried before the job gives up.
const TRIES: u32 = 5;

/// Why a run of the engine ends before its job does.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The server stops (or a test says that it died).
    Stopped,
    /// The database failed.
    Database(Fault),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Broken {
        Broken::Database(fault)
    }
}

/// Carries job `id` to its end.
pub(crate) async fn run(control: Control, id: i64) {
    loop {
        match advance(&control, id).await {
            Ok(()) | Err(Broken::Stopped) => return,
            Err(Broken::Database(fault)) => {
                tracing::error!(job = id, %fault, cause = fault.cause, "a job cannot go on at the moment");
                if control.stopped() {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn advance(control: &Control, id: i64) -> Result<(), Broken> {
    let row = job::load(control.database(), id).await?;
    if row.state.ended() {
        return Ok(());
    }
    let log = job::log(control.database(), id).await?;
    let unwinding = row.state == JobState::Compensating
        || log.iter().any(|entry| matches!(entry.record, Record::Failed | Record::UndoStarted | Record::Undone));
    if unwinding {
        let fault = row.fault.clone();
        return unwind(control, row, fault).await;
    }
    forward(control, row).await
}

async fn forward(control: &Control, mut row: JobRow) -> Result<(), Broken> {
    let last = job::last_records(&job::log(control.database(), row.id).await?);
    for index in 0..row.steps.len() {
        if matches!(last.get(&index), Some(Record::Done | Record::Skipped)) {
            continue;
        }
        let fresh = job::load(control.database(), row.id).await?;
        if fresh.cancel && !fresh.past_return {
            return unwind(control, row, Some(cancelled(&fresh))).await;
        }
        if row.steps[index].work.is_return() && !fresh.past_return && !pass_return(control, &row).await? {
            return unwind(control, row, Some(cancelled(&fresh))).await;
        }
        if !last.contains_key(&index) {
            record(control, &row, index, Record::Started, None).await?;
        }
        match perform(control, &mut row, index).await {
            Ok(Ending::Done(detail)) => record(control, &row, index, Record::Done, detail.as_deref()).await?,
            Ok(Ending::Skipped(why)) => record(control, &row, index, Record::Skipped, Some(&why)).await?,
            Err(Halt::Stopped) => return Err(Broken::Stopped),
            Err(Halt::Cancelled) => {
                let why = cancelled(&row);
                return unwind(control, row, Some(why)).await;
            }
            Err(Halt::Fault(fault)) => {
                record(control, &row, index, Record::Failed, Some(&fault.to_string())).await?;
                return unwind(control, row, Some(fault)).await;
            }
        }
    }
    finish(control, &row, JobState::Done, None).await
}

fn cancelled(row: &JobRow) -> Fault {
    Fault::new(
        code::CANCELLED,
        format!("{} of {} was cancelled", row.operation.verb(), row.item),
        "somebody asked for it",
    )
}

async fn pass_return(control: &Control, row: &JobRow) -> Result<bool, Broken> {
    control.tick()?;
    let mut change = control.database().change().await?;
    let passed = job::pass_return(&mut change, row.id).await?;
    commit(change).await?;
    control.tick()?;
    Ok(passed)
}

/// Performs one step, again and again if it lies behind the point of no return and must not be left undone.
async fn perform(control: &Control, row: &mut JobRow, index: usize) -> Result<Ending, Halt> {
    let hooks = control.hooks();
    if hooks.fail_before == Some(index) {
        return Err(Halt::Fault(hooks.fault()));
    }
    let tries = if row.steps[index].work.is_repeated() { TRIES } else { 1 };
    let mut attempt = 0;
    let ending = loop {
        let result = Context::new(control, row, index, attempt).perform().await;
        attempt += 1;
        match result {
            Err(Halt::Fault(fault)) if attempt < tries => {
                control.tell(row.id, Some(format!("{fault}; it is tried again")), None);
                control.rest(Duration::from_secs(1)).await;
            }
            other => break other?,
        }
    };
    let ending = if hooks.twice { Context::new(control, row, index, attempt - 1).perform().await? } else { ending };
    if hooks.fail_after == Some(index) {
        return Err(Halt::Fault(hooks.fault()));
    }
    Ok(ending)
}

/// Undoes what was done, backwards, as far as the point of no return if that was passed.
async fn unwind(control: &Control, mut row: JobRow, fault: Option<Fault>) -> Result<(), Broken> {
    if row.state != JobState::Compensating {
        set_state(control, &mut row, JobState::Compensating, fault.as_ref()).await?;
    }
    let last = job::last_records(&job::log(control.database(), row.id).await?);
    let mut floor = None;
    for index in (0..row.steps.len()).rev() {
        if floor.is_none() && is_passed(control, &row, index, last.get(&index)).await? {
            floor = Some(index);
        }
    }
    let first = floor.map_or(0, |index| index + 1);
    for index in (first..row.steps.len()).rev() {
        match last.get(&index) {
            None | Some(Record::Skipped | Record::Undone) => continue,
            Some(Record::UndoStarted) => {}
            Some(_) => record(control, &row, index, Record::UndoStarted, None).await?,
        }
        let mut detail = undo(control, &mut row, index).await?;
        if control.hooks().twice {
            detail = undo(control, &mut row, index).await?.or(detail);
        }
        record(control, &row, index, Record::Undone, detail.as_deref()).await?;
    }
    if floor.is_some() {
        leave_behind_the_return(control, &row).await?;
    }
    let was_cancelled = fault.as_ref().is_some_and(|fault| fault.is(code::CANCELLED));
    let end = if was_cancelled { JobState::Cancelled } else { JobState::Failed };
    finish(control, &row, end, fault.as_ref()).await
}

/// Whether a point of no return was passed, whatever the log had time to say: authority that has moved has moved.
async fn is_passed(control: &Control, row: &JobRow, index: usize, last: Option<&Record>) -> Result<bool, Broken> {
    match &row.steps[index].work {
        Work::Authorise { generation, .. } if last.is_some() => match item::load(control.database(), &row.item).await {
            Ok(item) => Ok(item.generation == *generation),
            Err(fault) if fault.is(code::UNKNOWN_ITEM) => Ok(false),
            Err(fault) => Err(fault.into()),
        },
        work => Ok(work.is_return() && last == Some(&Record::Done)),
    }
}

/// What went wrong with an undo is a detail of its step: the others are undone all the same.
async fn undo(control: &Control, row: &mut JobRow, index: usize) -> Result<Option<String>, Broken> {
    match Context::new(control, row, index, 0).undo().await {
        Ok(detail) => Ok(detail),
        Err(Halt::Stopped) => Err(Broken::Stopped),
        Err(Halt::Cancelled) => Ok(None),
        Err(Halt::Fault(fault)) if fault.is(code::INTERNAL) => Err(Broken::Database(fault)),
        Err(Halt::Fault(fault)) => Ok(Some(format!("could not be undone: {fault}"))),
    }
}

/// The authority has moved but the job failed after that: the machine is at its new side, and from commit pending there
/// are ways on (cancel, commit).
async fn leave_behind_the_return(control: &Control, row: &JobRow) -> Result<(), Broken> {
    let moved = item::update(control.database(), &row.item, |item| match item.stage {
        Stage::Moving { phase: MovePhase::Completing, .. } => item.hear(Event::Started).map(|_| ()),
        _ => Ok(()),
    })
    .await;
    match moved {
        Err(fault) if fault.is(code::UNKNOWN_ITEM) => Ok(()),
        other => Ok(other?),
    }
}

async fn set_state(control: &Control, row: &mut JobRow, state: JobState, fault: Option<&Fault>) -> Result<(), Broken> {
    control.tick()?;
    let mut change = control.database().change().await?;
    job::set_state(&mut change, row.id, state, fault, None).await?;
    commit(change).await?;
    row.state = state;
    control.tick()?;
    control.announce_job(row.id).await;
    Ok(())
}

async fn record(
    control: &Control,
    row: &JobRow,
    index: usize,
    record: Record,
    detail: Option<&str>,
) -> Result<(), Broken> {
    control.tick()?;
    let mut change = control.database().change().await?;
    job::append(&mut change, row.id, index, record, detail).await?;
    job::keep(&mut change, row.id, &row.notes, &row.figures).await?;
    commit(change).await?;
    control.tell(row.id, None, None);
    control.tick()?;
    control.announce_job(row.id).await;
    Ok(())
}

async fn finish(control: &Control, row: &JobRow, state: JobState, fault: Option<&Fault>) -> Result<(), Broken> {
    let next = match item::load(control.database(), &row.item).await {
        Ok(item) => view::next_command(&item, None),
        Err(_) => None,
    };
    let next = match (state, &row.operation) {
        (JobState::Failed, _) => Some(format!("sockeye job retry {}", row.id)),
        (JobState::Done, Operation::TestFailover { .. }) => Some(format!("sockeye cleanup {}", row.item)),
        (JobState::Done, Operation::View { .. }) => Some(format!("sockeye view {} --end {}", row.item, row.id)),
        _ => next,
    };
    control.tick()?;
    let mut change = control.database().change().await?;
    job::set_state(&mut change, row.id, state, fault, next.as_deref()).await?;
    let words = match (state, fault) {
        (JobState::Failed, Some(fault)) => format!("job {} ({}) failed: {fault}", row.id, row.operation.verb()),
        (JobState::Cancelled, _) => format!("job {} ({}) cancelled", row.id, row.operation.verb()),
        _ => format!("job {} ({}) done", row.id, row.operation.verb()),
    };
    audit::note(&mut change, Some(&row.item), &words, None).await?;
    commit(change).await?;
    control.forget_telling(row.id);
    control.tick()?;
    control.announce_job(row.id).await;
    control.announce_item(&row.item).await;
    control.wake_jobs();
    Ok(())
}
