//! The one way in which anything is changed: plan, show, confirm, start, follow.
//!
//! ```text
//!   POST plans ─► show ─► refused by a check: 3 · already so: 0 · under way: follow it · --dry-run: stop · nobody says yes: 2
//!                  ▲  └─► POST jobs with the plan's fingerprint ─► follow (or --detach)
//!                  └───── CTL-018: what the plan rests on has changed meanwhile
//! ```
//!
//! # Always true
//! - What is started is what was shown: the server refuses another fingerprint.
//! - A start whose answer was lost is sent again under the same key, so it starts one job.

use std::time::{Duration, Instant};

use protocol::fault::code;
use protocol::rest::{Job, Operation, Plan, Request, Start};

use super::Desk;
use super::confirm::{Wanted, confirm};
use super::follow::{self, Wish};
use crate::cli::Change;
use crate::client::Answer;
use crate::ending::{Ending, Trouble};
use crate::show::{plan, words};

/// How often a plan is asked for again because the world changed under it, before that is reported.
const MOST_PLANS: usize = 4;

/// Carries a request out.
///
/// # Errors
/// It was refused, not confirmed, failed, or the server was lost.
pub async fn run(desk: &Desk, request: Request, change: &Change) -> Result<Ending, Trouble> {
    for again in 1.. {
        let plan = desk.client.plan(&request).await?;
        desk.screen.say(&plan::text(&plan.read, words::now_ms()));
        if plan.read.already
            && !change.dry_run
            && let Some(job) = under_way(desk, &request).await?
        {
            desk.screen.say("it is under way already:");
            return after(desk, &request.operation, job, change).await;
        }
        if let Some(ending) = stop_here(desk, &plan, change) {
            return Ok(ending);
        }
        let item = plan.read.request.item.to_string();
        let wanted = if plan::is_final(&plan.read) { Wanted::Name(&item) } else { Wanted::Yes };
        confirm("Start this?", wanted, change.yes).await?;
        match start(desk, &plan.read, change).await {
            Err(trouble) if trouble.fault.is(code::WORLD_CHANGED) && again < MOST_PLANS => {
                desk.screen.say("\nwhat this rests on has changed in the meantime; the new plan:");
            }
            Err(trouble) => return Err(trouble),
            Ok(job) => return after(desk, &request.operation, job, change).await,
        }
    }
    Ok(Ending::Failed)
}

/// Ends the command if the plan is not to be, or need not be, started.
fn stop_here(desk: &Desk, plan: &Answer<Plan>, change: &Change) -> Option<Ending> {
    let refusals = plan::refusals(&plan.read);
    if !refusals.is_empty() {
        desk.screen.document(&plan.document);
        refusals.into_iter().for_each(|fault| desk.screen.error(fault));
        return Some(Ending::Refused);
    }
    if plan.read.already {
        desk.screen.document(&plan.document);
        desk.screen.say("it is so already: nothing to do");
        return Some(Ending::Done);
    }
    if change.dry_run {
        desk.screen.document(&plan.document);
        return Some(Ending::Done);
    }
    None
}

/// The job that is doing just this: a command that is repeated after a lost connection follows what it began.
async fn under_way(desk: &Desk, request: &Request) -> Result<Option<Answer<Job>>, Trouble> {
    let Some(id) = desk.client.item(&request.item).await?.read.job else { return Ok(None) };
    let job = desk.client.job(id).await?;
    Ok((job.read.operation == request.operation && !job.read.state.ended()).then_some(job))
}

async fn start(desk: &Desk, plan: &Plan, change: &Change) -> Result<Answer<Job>, Trouble> {
    let start = Start {
        request: plan.request.clone(),
        fingerprint: Some(plan.fingerprint.clone()),
        reason: change.reason.clone(),
        idempotency_key: Some(uuid::Uuid::new_v4().to_string()),
    };
    let since = Instant::now();
    loop {
        match desk.client.start(&start).await {
            Err(trouble) if trouble.ending == Ending::Unreached && !trouble.fault.is(code::SIGN_IN) => {
                if since.elapsed() >= desk.patience {
                    let remedy = "whether it was started shows: sockeye job list; repeating is safe";
                    return Err(Trouble { fault: trouble.fault.with_remedy(remedy), ..trouble });
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            answer => return answer,
        }
    }
}

/// What happens once the job exists. `complete` and `cancel` are answered with the job that they act on.
async fn after(desk: &Desk, asked: &Operation, job: Answer<Job>, change: &Change) -> Result<Ending, Trouble> {
    if change.detach {
        let id = job.read.id;
        desk.screen.document(&job.document);
        desk.screen
            .say(&format!("job {id} was started; follow: sockeye job watch {id}; cancel: sockeye job cancel {id}"));
        return Ok(Ending::Done);
    }
    let wish = match asked {
        Operation::Cancel {} => Wish::Cancelled,
        Operation::Complete { .. } => Wish::WentOn,
        _ => Wish::Done,
    };
    follow::follow(desk, job, wish).await
}
