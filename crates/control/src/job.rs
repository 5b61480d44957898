//! Jobs: an operation on its way, and the log that is the truth about it.
//!
//! ```text
//!   step 0   started done
//!   step 1   started done                     undo_started undone
//!   step 2   started            failed        undo_started undone
//!   step 3   (nothing: never begun)
//! ```
//!
//! A record is appended before and after each thing that is done. After a crash the last record of each step says what
//! to do: a step that was started is done again (all are safe to repeat), one that was being undone is undone again.

use std::collections::BTreeMap;

use protocol::fault::{Fault, code};
use protocol::id::{Attempt, ItemId};
use protocol::machine::Settled;
use protocol::position::Position;
use protocol::quote::{Moving, Window};
use protocol::rest::{Figures, Job, JobState, Operation, Step, StepState};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

use crate::beside::{self, Lane};
use crate::clock::now_ms;
use crate::database::{Database, failed, from_text, to_text};
use crate::work::Work;

/// A step as it was planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// In an operator's words.
    pub name: String,
    /// What it does.
    pub work: Work,
}

/// What steps tell later steps of the same job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    /// When the machine was found to stand still, ms since 1970.
    pub stopped_at_ms: Option<u64>,
    /// How long it took to shut down.
    #[serde(default)]
    pub shut_down_ms: Option<u64>,
    /// When its last delta was told to be durable, ms since 1970, and what of the time before that was the target's.
    #[serde(default)]
    pub sealed: Option<(u64, u64)>,
    /// When the machine stood ready at its new side, ms since 1970.
    #[serde(default)]
    pub ready_at_ms: Option<u64>,
    /// Why *Complete* did not come when it was to come by itself.
    #[serde(default)]
    pub lapsed: Option<String>,
    /// The attempt of the final delta.
    pub last: Option<Attempt>,
    /// Where the receiving side's copy stands.
    pub settled: Option<Settled>,
    /// Where the running machine's disks stood at its start.
    pub standpoint: Option<Position>,
    /// The point that the machine was raised from.
    pub raised: Option<(Attempt, u64)>,
}

/// What a log record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// The step begins.
    Started,
    /// It is done.
    Done,
    /// It was not needed.
    Skipped,
    /// It failed.
    Failed,
    /// It begins to be undone.
    UndoStarted,
    /// It is undone.
    Undone,
}

impl Record {
    const ALL: [(Record, &'static str); 6] = [
        (Record::Started, "started"),
        (Record::Done, "done"),
        (Record::Skipped, "skipped"),
        (Record::Failed, "failed"),
        (Record::UndoStarted, "undo_started"),
        (Record::Undone, "undone"),
    ];

    fn text(self) -> &'static str {
        Record::ALL.iter().find(|(record, _)| *record == self).map_or("", |(_, text)| text)
    }

    fn parse(text: &str) -> Result<Record, Fault> {
        Record::ALL.iter().find(|(_, known)| *known == text).map(|(record, _)| *record).ok_or_else(|| {
            Fault::new(code::INTERNAL, "a job's log cannot be read", format!("it has a record {text:?}"))
        })
    }
}

/// One record.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The step's index.
    pub step: usize,
    /// What it says.
    pub record: Record,
    /// More, in words.
    pub detail: Option<String>,
    /// ms since 1970.
    pub at_ms: i64,
}

/// A job as the database has it.
#[derive(Debug, Clone)]
pub struct JobRow {
    /// Its number.
    pub id: i64,
    /// The item.
    pub item: ItemId,
    /// What was asked for.
    pub operation: Operation,
    /// Its steps.
    pub steps: Vec<Planned>,
    /// How it goes.
    pub state: JobState,
    /// See [`Notes`].
    pub notes: Notes,
    /// What was measured.
    pub figures: Figures,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// The next command.
    pub next: Option<String>,
    /// Somebody wants it to end.
    pub cancel: bool,
    /// Somebody said *Complete*.
    pub complete: bool,
    /// When *Complete* comes by itself.
    pub complete_at: Option<Window>,
    /// The point of no return was passed.
    pub past_return: bool,
    /// ms since 1970.
    pub started_at_ms: i64,
    /// ms since 1970.
    pub ended_at_ms: Option<i64>,
}

const COLUMNS: &str = "id, item, operation, plan, state, notes, figures, fault, next, cancel, complete, past_return, \
                       started_at_ms, ended_at_ms, complete_at";

fn read(row: &sqlx::sqlite::SqliteRow) -> Result<JobRow, Fault> {
    let item: String = row.get(1);
    Ok(JobRow {
        id: row.get(0),
        item: item.parse().map_err(|error: protocol::id::BadName| {
            Fault::new(code::INTERNAL, "a job in the database cannot be read", error.to_string())
        })?,
        operation: from_text(&row.get::<String, _>(2))?,
        steps: from_text(&row.get::<String, _>(3))?,
        state: from_text(&row.get::<String, _>(4))?,
        notes: from_text(&row.get::<String, _>(5))?,
        figures: from_text(&row.get::<String, _>(6))?,
        fault: row.get::<Option<String>, _>(7).map(|text| from_text(&text)).transpose()?,
        next: row.get(8),
        cancel: row.get::<i64, _>(9) != 0,
        complete: row.get::<i64, _>(10) != 0,
        past_return: row.get::<i64, _>(11) != 0,
        started_at_ms: row.get(12),
        ended_at_ms: row.get(13),
        complete_at: row.get::<Option<String>, _>(14).map(|text| from_text(&text)).transpose()?,
    })
}

fn select(condition: &str) -> sqlx::AssertSqlSafe<String> {
    // The columns are a constant and every condition is a literal of this file: nothing from outside becomes SQL text.
    sqlx::AssertSqlSafe(format!("select {COLUMNS} from job where {condition}"))
}

/// Inserts a job; the database refuses a second one at work in the same lane of the item.
pub async fn insert(
    on: &mut SqliteConnection,
    item: &ItemId,
    operation: &Operation,
    steps: &[Planned],
    figures: &Figures,
    key: Option<&str>,
) -> Result<i64, Fault> {
    // What is so already is a job that ended as soon as it began.
    let complete_at = match operation {
        Operation::Failback { complete_at, .. } => complete_at.as_ref().map(to_text).transpose()?,
        _ => None,
    };
    let (state, ended) = if steps.is_empty() { (JobState::Done, Some(now_ms())) } else { (JobState::Running, None) };
    sqlx::query_scalar(
        "insert into job (item, operation, plan, state, notes, figures, cancel, complete, past_return, idempotency_key,
                          started_at_ms, ended_at_ms, lane, complete_at)
         values ($1, $2, $3, $4, $5, $6, 0, 0, 0, $7, $8, $9, $10, $11) returning id",
    )
    .bind(item.as_str())
    .bind(to_text(operation)?)
    .bind(to_text(&steps)?)
    .bind(to_text(&state)?)
    .bind(to_text(&Notes::default())?)
    .bind(to_text(figures)?)
    .bind(key)
    .bind(now_ms())
    .bind(ended)
    .bind(Lane::of(operation).text())
    .bind(complete_at)
    .fetch_one(on)
    .await
    .map_err(failed)
}

/// The job of that number.
pub async fn load(database: &Database, id: i64) -> Result<JobRow, Fault> {
    let row = sqlx::query(select("id = $1")).bind(id).fetch_optional(database.readers()).await.map_err(failed)?;
    match row {
        Some(row) => read(&row),
        None => Err(Fault::new(code::UNKNOWN_JOB, format!("there is no job {id}"), "control has no record of it")),
    }
}

/// The job at work on an item itself, not on what stands beside it.
pub async fn at_work_on(on: &mut SqliteConnection, item: &ItemId) -> Result<Option<JobRow>, Fault> {
    let row = sqlx::query(select("item = $1 and lane = $2 and ended_at_ms is null"))
        .bind(item.as_str())
        .bind(Lane::Item.text())
        .fetch_optional(on)
        .await
        .map_err(failed)?;
    row.as_ref().map(read).transpose()
}

/// The job at work on an item that `operation` has to wait for.
pub async fn in_the_way(
    on: &mut SqliteConnection,
    item: &ItemId,
    operation: &Operation,
) -> Result<Option<JobRow>, Fault> {
    let rows = sqlx::query(select("item = $1 and ended_at_ms is null order by id"))
        .bind(item.as_str())
        .fetch_all(on)
        .await
        .map_err(failed)?;
    let jobs: Vec<JobRow> = rows.iter().map(read).collect::<Result<_, _>>()?;
    Ok(jobs.into_iter().find(|job| beside::exclude(&job.operation, operation)))
}

/// The job that was started with an idempotency key.
pub async fn with_key(on: &mut SqliteConnection, key: &str) -> Result<Option<JobRow>, Fault> {
    let row = sqlx::query(select("idempotency_key = $1")).bind(key).fetch_optional(on).await.map_err(failed)?;
    row.as_ref().map(read).transpose()
}

/// All jobs that have not ended.
pub async fn unfinished(database: &Database) -> Result<Vec<JobRow>, Fault> {
    let rows =
        sqlx::query(select("ended_at_ms is null order by id")).fetch_all(database.readers()).await.map_err(failed)?;
    rows.iter().map(read).collect()
}

/// The newest jobs, oldest first.
pub async fn newest(database: &Database, most: i64) -> Result<Vec<JobRow>, Fault> {
    let rows = sqlx::query(select("id in (select id from job order by id desc limit $1) order by id"))
        .bind(most)
        .fetch_all(database.readers())
        .await
        .map_err(failed)?;
    rows.iter().map(read).collect()
}

/// A job's log in order.
pub async fn log(database: &Database, id: i64) -> Result<Vec<Entry>, Fault> {
    let rows = sqlx::query("select step, record, detail, at_ms from job_log where job = $1 order by seq")
        .bind(id)
        .fetch_all(database.readers())
        .await
        .map_err(failed)?;
    rows.iter()
        .map(|row| {
            Ok(Entry {
                step: usize::try_from(row.get::<i64, _>(0)).unwrap_or(usize::MAX),
                record: Record::parse(&row.get::<String, _>(1))?,
                detail: row.get(2),
                at_ms: row.get(3),
            })
        })
        .collect()
}

/// Appends a record.
pub async fn append(
    on: &mut SqliteConnection,
    id: i64,
    step: usize,
    record: Record,
    detail: Option<&str>,
) -> Result<(), Fault> {
    sqlx::query(
        "insert into job_log (job, seq, step, record, detail, at_ms)
         values ($1, (select coalesce(max(seq), 0) + 1 from job_log where job = $1), $2, $3, $4, $5)",
    )
    .bind(id)
    .bind(i64::try_from(step).unwrap_or(i64::MAX))
    .bind(record.text())
    .bind(detail)
    .bind(now_ms())
    .execute(on)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Writes what a step learned.
pub async fn keep(on: &mut SqliteConnection, id: i64, notes: &Notes, figures: &Figures) -> Result<(), Fault> {
    sqlx::query("update job set notes = $1, figures = $2 where id = $3")
        .bind(to_text(notes)?)
        .bind(to_text(figures)?)
        .bind(id)
        .execute(on)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Writes how the job goes, and its next command.
pub async fn set_state(
    on: &mut SqliteConnection,
    id: i64,
    state: JobState,
    fault: Option<&Fault>,
    next: Option<&str>,
) -> Result<(), Fault> {
    let ended = state.ended().then(now_ms);
    sqlx::query(
        "update job set state = $1, fault = coalesce($2, fault), next = $3, ended_at_ms = $4
         where id = $5 and ended_at_ms is null",
    )
    .bind(to_text(&state)?)
    .bind(fault.map(to_text).transpose()?)
    .bind(next)
    .bind(ended)
    .bind(id)
    .execute(on)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Asks the job to end; tells whether it still can.
pub async fn ask_cancel(on: &mut SqliteConnection, id: i64) -> Result<bool, Fault> {
    flag(on, "update job set cancel = 1 where id = $1 and past_return = 0 and ended_at_ms is null", id).await
}

/// Says *Complete* to the job.
pub async fn say_complete(on: &mut SqliteConnection, id: i64) -> Result<bool, Fault> {
    flag(on, "update job set complete = 1 where id = $1 and ended_at_ms is null", id).await
}

/// Writes when *Complete* is to come by itself, or that it is not.
pub async fn schedule(on: &mut SqliteConnection, id: i64, at: Option<&Window>) -> Result<(), Fault> {
    sqlx::query("update job set complete_at = $1 where id = $2 and ended_at_ms is null")
        .bind(at.map(to_text).transpose()?)
        .bind(id)
        .execute(on)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Passes the point of no return, unless somebody cancelled before.
pub async fn pass_return(on: &mut SqliteConnection, id: i64) -> Result<bool, Fault> {
    flag(on, "update job set past_return = 1 where id = $1 and cancel = 0", id).await
}

async fn flag(on: &mut SqliteConnection, query: &'static str, id: i64) -> Result<bool, Fault> {
    Ok(sqlx::query(query).bind(id).execute(on).await.map_err(failed)?.rows_affected() == 1)
}

/// The last record of each step.
pub fn last_records(log: &[Entry]) -> BTreeMap<usize, Record> {
    log.iter().map(|entry| (entry.step, entry.record)).collect()
}

/// What a job's running step tells, in memory only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Telling {
    /// More, in words.
    pub detail: Option<String>,
    /// How far.
    pub percent: Option<u8>,
    /// How far, where data is carried.
    pub moving: Option<Moving>,
}

/// A job as people see it.
pub fn view(row: &JobRow, log: &[Entry], telling: Option<&Telling>) -> Job {
    let mut steps: Vec<Step> = row
        .steps
        .iter()
        .map(|planned| Step {
            name: planned.name.clone(),
            state: StepState::Pending,
            detail: None,
            percent: None,
            moving: None,
            started_at_ms: None,
            ended_at_ms: None,
        })
        .collect();
    let mut current = None;
    for entry in log {
        let Some(step) = steps.get_mut(entry.step) else { continue };
        current = Some(entry.step);
        step.state = match entry.record {
            // The step that failed stays shown as the one that did.
            Record::UndoStarted | Record::Undone if step.state == StepState::Failed => StepState::Failed,
            Record::Started | Record::UndoStarted => StepState::Running,
            Record::Done => StepState::Done,
            Record::Skipped => StepState::Skipped,
            Record::Failed => StepState::Failed,
            Record::Undone => StepState::Undone,
        };
        match entry.record {
            Record::Started => step.started_at_ms = Some(entry.at_ms),
            Record::UndoStarted => {}
            _ => step.ended_at_ms = Some(entry.at_ms),
        }
        if entry.detail.is_some() {
            step.detail.clone_from(&entry.detail);
        }
    }
    if let (Some(telling), Some(step)) = (telling, current.and_then(|index| steps.get_mut(index)))
        && step.state == StepState::Running
    {
        step.detail.clone_from(&telling.detail);
        step.percent = telling.percent;
        step.moving = telling.moving;
    }
    for step in &mut steps {
        if step.state == StepState::Done {
            step.percent = Some(100);
        }
    }
    Job {
        id: row.id,
        item: row.item.clone(),
        operation: row.operation.clone(),
        state: row.state,
        steps,
        started_at_ms: row.started_at_ms,
        ended_at_ms: row.ended_at_ms,
        fault: row.fault.clone(),
        next: row.next.clone(),
        complete_at: row.complete_at.filter(|_| !row.state.ended()),
        figures: row.figures.clone(),
    }
}
