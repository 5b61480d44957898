//! Follows a job to its end.
//!
//! ```text
//!   look ─► done: 0 · failed: 1 · waits for a person: 4 ─┐
//!    ▲  └─► show what changed ─► a third of a second ────┘ Ctrl-C: the job goes on
//!    └────── no answer: asked again for a while (the server may be restarting), then 5
//! ```
//!
//! The job lives in the server: nothing that happens to this process changes how it goes.

use std::time::{Duration, Instant};

use protocol::fault::code;
use protocol::rest::{Job, JobState, Operation};

use super::Desk;
use crate::client::Answer;
use crate::ending::{Ending, Trouble};
use crate::show::progress::Progress;
use crate::show::{job as show, words};

/// Often enough for a person, seldom enough for a server (guessed).
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// How long a job that was told to go on may still say that it waits (guessed; a server under load).
const TO_GO_ON: Duration = Duration::from_secs(15);

/// What whoever follows hopes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The job reaches its end.
    Done,
    /// A waiting job was told to go on, and reaches its end.
    WentOn,
    /// It is cancelled.
    Cancelled,
}

/// Follows `job` until it ends or waits, and prints how.
///
/// # Errors
/// The server was lost for longer than the desk's patience, or no longer knows the job.
pub async fn follow(desk: &Desk, job: Answer<Job>, wish: Wish) -> Result<Ending, Trouble> {
    let id = job.read.id;
    desk.screen.say(&format!("job {id}: {} {}", crate::show::plan::doing(&job.read.operation), job.read.item));
    let mut progress = Progress::new(desk.screen);
    let seen = watch(desk, job, wish, &mut progress).await;
    progress.end();
    let (job, interrupted) = seen?;
    desk.screen.document(&job.document);
    if interrupted {
        let hint = format!("job {id} goes on; follow: sockeye job watch {id}; cancel: sockeye job cancel {id}");
        desk.screen.say(&hint);
        return Ok(Ending::Interrupted);
    }
    desk.screen.say(&show::ending(&job.read, words::now_ms()));
    if let Some(fault) = &job.read.fault {
        desk.screen.error(fault);
    }
    Ok(ending(job.read.state, &job.read.operation, wish))
}

/// The exit code for a state in which following ends.
fn ending(state: JobState, operation: &Operation, wish: Wish) -> Ending {
    match (state, wish) {
        (JobState::Waiting, _) => Ending::Waiting,
        (JobState::Cancelled, Wish::Cancelled) => Ending::Done,
        // It was too late: the job that was to be cancelled reached its end.
        (JobState::Done, Wish::Cancelled) if *operation != (Operation::Cancel {}) => Ending::Failed,
        (JobState::Done, _) => Ending::Done,
        _ => Ending::Failed,
    }
}

async fn watch(
    desk: &Desk,
    first: Answer<Job>,
    wish: Wish,
    progress: &mut Progress,
) -> Result<(Answer<Job>, bool), Trouble> {
    let (started, id) = (Instant::now(), first.read.id);
    let (mut job, mut answered, mut lost) = (first, Instant::now(), false);
    loop {
        progress.show(&job.read, words::now_ms());
        let told_to_go_on = wish != Wish::Done && started.elapsed() < TO_GO_ON;
        if job.read.state.ended() || (job.read.state == JobState::Waiting && !told_to_go_on) {
            return Ok((job, false));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok((job, true)),
        }
        match desk.client.job(id).await {
            Ok(now) => {
                if lost {
                    progress.say("the server answers again");
                }
                (job, answered, lost) = (now, Instant::now(), false);
            }
            Err(trouble) if trouble.ending != Ending::Unreached || trouble.fault.is(code::SIGN_IN) => {
                return Err(trouble);
            }
            Err(trouble) if answered.elapsed() >= desk.patience => {
                let remedy =
                    format!("the job goes on without this command; when the server is back: sockeye job watch {id}");
                return Err(Trouble { fault: trouble.fault.with_remedy(remedy), ..trouble });
            }
            Err(trouble) => {
                if !lost {
                    progress.say(&format!("{}; trying again (the job goes on)", trouble.fault.message));
                }
                lost = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cancelled_job_is_a_success_only_for_whoever_cancelled_it() {
        let (cancel, commit) = (Operation::Cancel {}, Operation::Commit { keep_history: false });
        assert_eq!(ending(JobState::Cancelled, &commit, Wish::Cancelled), Ending::Done);
        assert_eq!(ending(JobState::Done, &commit, Wish::Cancelled), Ending::Failed);
        assert_eq!(ending(JobState::Done, &cancel, Wish::Cancelled), Ending::Done);
        assert_eq!(ending(JobState::Cancelled, &commit, Wish::Done), Ending::Failed);
        assert_eq!(ending(JobState::Failed, &commit, Wish::Cancelled), Ending::Failed);
        assert_eq!(ending(JobState::Waiting, &commit, Wish::WentOn), Ending::Waiting);
    }
}
