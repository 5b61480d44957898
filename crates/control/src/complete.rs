//! *Complete failover*: said by a person now, or told to come by itself at a time (H17).
//!
//! ```text
//!   complete ITEM          ─► the waiting job goes on at once, whatever the downtime: the person has seen what is expected
//!   complete ITEM --at T   ─► written with the job; comes when it is T, and what is left fits what is allowed
//! ```
//! # If power fails
//! Both are in the job's row before anybody is answered. A time that passed while no server ran lets a person decide.

use protocol::fault::{Fault, code};
use protocol::quote::Window;
use protocol::rest::{Check, Job, JobState, Operation};

use crate::clock::now_ms;
use crate::database::commit;
use crate::job::{JobRow, Record};
use crate::plan::busy;
use crate::work::Work;
use crate::{Control, audit, job, words};

/// Whether a *Complete* now is what the job waits for.
pub(crate) fn answers(operation: &Operation, job: &JobRow) -> bool {
    matches!(operation, Operation::Complete { at: None }) && job.state == JobState::Waiting
}

/// The check that a time for *Complete* has not passed.
pub(crate) fn is_to_come(window: Window) -> Check {
    let what = format!("{} is to come", words::instant(window.from_ms));
    let now = now_ms().unsigned_abs();
    let cause = if window.until_ms < window.from_ms {
        Some(format!("it would end before that, {}", words::instant(window.until_ms)))
    } else if window.from_ms < now {
        Some(format!("it is {}", words::instant(now)))
    } else {
        None
    };
    let fault = cause.map(|cause| {
        let message = format!("Complete cannot come at {}", words::instant(window.from_ms));
        Fault::new(code::BAD_REQUEST, message, cause)
            .with_remedy("name a time to come, or leave it away: sockeye complete ITEM goes ahead now")
    });
    Check { what, fault }
}

/// The check that a job which is told when *Complete* comes waits for it at all.
pub(crate) fn is_waited_for(offline: bool, complete: bool) -> Check {
    let fault = (offline || complete).then(|| {
        let message = "Complete cannot come at a time";
        Fault::new(code::BAD_REQUEST, message, "it was asked to run through").with_remedy("leave one of the two away")
    });
    Check { what: "it waits for Complete".into(), fault }
}

impl Control {
    /// Says *Complete* to the job at work, or when it is to come.
    pub(crate) async fn complete(
        &self,
        running: &JobRow,
        at: Option<Window>,
        reason: Option<&str>,
    ) -> Result<Job, Fault> {
        let last = job::last_records(&job::log(self.database(), running.id).await?);
        let over = |index: &usize| matches!(last.get(index), Some(Record::Done | Record::Skipped));
        let current = (0..running.steps.len()).find(|index| !over(index)).unwrap_or(running.steps.len());
        let left = &running.steps[current..];
        let waits = |step: &job::Planned| matches!(step.work, Work::WaitForComplete { .. });
        let goes_forward = running.state != JobState::Compensating && !running.cancel;
        let taken = goes_forward
            && match at {
                None => running.state == JobState::Waiting || running.complete || left.first().is_some_and(waits),
                Some(_) => left.iter().any(waits) && !running.complete,
            };
        if !taken {
            return Err(busy(running).with_remedy(format!("sockeye job watch {}", running.id)));
        }
        if let Some(fault) = at.and_then(|window| is_to_come(window).fault) {
            return Err(fault);
        }
        let mut change = self.database().change().await?;
        let what = match &at {
            None => {
                job::say_complete(&mut change, running.id).await?;
                format!("complete (job {})", running.id)
            }
            Some(window) => {
                job::schedule(&mut change, running.id, Some(window)).await?;
                format!("complete at {} (job {})", words::instant(window.from_ms), running.id)
            }
        };
        audit::note(&mut change, Some(&running.item), &what, reason).await?;
        commit(change).await?;
        self.wake_jobs();
        self.job(running.id).await
    }
}
