//! `job list | show | watch | cancel | retry`.

use protocol::Fault;
use protocol::fault::code;
use protocol::rest::{Job, JobState};

use super::Desk;
use super::confirm::{Wanted, confirm};
use super::follow::{self, Wish};
use crate::cli::{JobVerb, OnJob};
use crate::client::Answer;
use crate::ending::{Ending, Trouble};
use crate::show::{job as show, words};

/// Does it.
///
/// # Errors
/// The job is unknown, the server refuses, or it was not reached.
pub async fn run(desk: &Desk, verb: JobVerb) -> Result<Ending, Trouble> {
    match verb {
        JobVerb::List => {
            let jobs = desk.client.jobs().await?;
            desk.screen.result(&jobs.document, &show::list(&jobs.read, words::now_ms()));
            Ok(Ending::Done)
        }
        JobVerb::Show { id } => {
            let job = desk.client.job(id).await?;
            desk.screen.result(&job.document, &show::page(&job.read, words::now_ms()));
            Ok(Ending::Done)
        }
        JobVerb::Watch { id } => follow::follow(desk, desk.client.job(id).await?, Wish::Done).await,
        JobVerb::Cancel(on) => cancel(desk, &on).await,
        JobVerb::Retry(on) => retry(desk, &on).await,
    }
}

async fn cancel(desk: &Desk, on: &OnJob) -> Result<Ending, Trouble> {
    let job = desk.client.job(on.id).await?;
    match job.read.state {
        JobState::Cancelled => return already(desk, &job),
        JobState::Done | JobState::Failed => {
            let cause = format!("it is over: {}", show::state(job.read.state));
            let fault = Fault::new(code::NOT_CANCELLABLE, format!("job {} cannot be cancelled", on.id), cause);
            return Err(Trouble::new(Ending::Refused, fault));
        }
        JobState::Running | JobState::Waiting | JobState::Compensating => {}
    }
    if let Some(ending) = ask(desk, &job, on, "Cancel it, and undo what it did?").await? {
        return Ok(ending);
    }
    let job = desk.client.cancel_job(on.id).await?;
    after(desk, job, on, Wish::Cancelled).await
}

async fn retry(desk: &Desk, on: &OnJob) -> Result<Ending, Trouble> {
    let job = desk.client.job(on.id).await?;
    if job.read.state == JobState::Done {
        return already(desk, &job);
    }
    if let Some(ending) = ask(desk, &job, on, "Take it up again?").await? {
        return Ok(ending);
    }
    let job = desk.client.retry_job(on.id).await?;
    after(desk, job, on, Wish::WentOn).await
}

fn already(desk: &Desk, job: &Answer<Job>) -> Result<Ending, Trouble> {
    desk.screen.result(&job.document, &format!("job {} is so already: {}", job.read.id, show::state(job.read.state)));
    Ok(Ending::Done)
}

/// Shows the job and asks; some ending when nothing is to be started.
async fn ask(desk: &Desk, job: &Answer<Job>, on: &OnJob, question: &str) -> Result<Option<Ending>, Trouble> {
    desk.screen.say(&show::page(&job.read, words::now_ms()));
    if on.change.dry_run {
        desk.screen.document(&job.document);
        return Ok(Some(Ending::Done));
    }
    confirm(question, Wanted::Yes, on.change.yes).await?;
    Ok(None)
}

async fn after(desk: &Desk, job: Answer<Job>, on: &OnJob, wish: Wish) -> Result<Ending, Trouble> {
    if on.change.detach {
        desk.screen.document(&job.document);
        desk.screen.say(&format!("follow: sockeye job watch {}", job.read.id));
        return Ok(Ending::Done);
    }
    follow::follow(desk, job, wish).await
}
