//! Plans: shown, confirmed, then started by their fingerprint. The plan and the job are made of the same steps.

use std::time::Duration;

use protocol::epoch::Point;
use protocol::fault::{Fault, code};
use protocol::id::ItemId;
use protocol::rest::{Check, FailoverKind, Figures, Job, JobState, Operation, Plan, Request, Start};
use protocol::stage::{Side, Stage};

use crate::clock::now_ms;
use crate::database::{commit, failed};
use crate::item::{Item, for_item};
use crate::job::{JobRow, Planned};
use crate::stage_table::{Decision, Event, decide};
use crate::{Control, audit, checks, complete, database, item, job, landing, sequence};

/// How long a plan waits for the list of points.
const POINTS_PATIENCE: Duration = Duration::from_secs(3);

/// The event that an operation takes to the table; what only stands beside the item takes none.
fn event(operation: &Operation) -> Option<Event> {
    Some(match operation {
        Operation::Protect { .. } => Event::Protect,
        Operation::Unprotect { .. } => Event::Unprotect,
        Operation::Failover { .. } => Event::Failover,
        Operation::ChangePoint { .. } => Event::ChangePoint,
        Operation::Commit { .. } => Event::Commit,
        Operation::Fold {} => Event::Fold,
        Operation::Reprotect { .. } => Event::Reprotect,
        Operation::Failback { .. } => Event::Failback,
        Operation::Complete { .. } => Event::Complete,
        Operation::Cancel {} => Event::Cancel,
        Operation::TestFailover { .. }
        | Operation::Cleanup {}
        | Operation::View { .. }
        | Operation::EndView { .. }
        | Operation::Verify { .. } => return None,
    })
}

/// Whether what stands beside the item stands there, or does not, as the operation wants it.
fn beside_already(item: Option<&Item>, operation: &Operation) -> bool {
    let Some(item) = item else { return false };
    match operation {
        Operation::TestFailover { point, .. } => {
            item.test.as_ref().is_some_and(|test| point.is_none_or(|point| point == test.point))
        }
        Operation::Cleanup {} => item.test.is_none(),
        Operation::EndView { view } => item.view(*view).is_none(),
        _ => false,
    }
}

/// What a request amounts to at the moment.
struct Sketch {
    item: Option<Item>,
    job: Option<JobRow>,
    stage: Stage,
    already: bool,
    checks: Vec<Check>,
    steps: Vec<Planned>,
    deletes: Vec<String>,
    point: Option<Point>,
}

impl Control {
    /// Shows what a request would do. Changes nothing.
    pub async fn plan(&self, request: Request) -> Result<Plan, Fault> {
        let request = self.meant(request).await?;
        let sketch = self.sketch(&request).await?;
        let fingerprint = fingerprint(&request, &sketch)?;
        let (source, target) = match (&sketch.item, &request.operation) {
            (_, Operation::Protect { from, to, .. }) => (from.clone(), to.clone()),
            (Some(item), operation) => {
                let here = item.stage.runs_at();
                let (from, to) = match (operation, sequence::beside(item, operation)) {
                    (_, Some(side)) => (here, side),
                    (Operation::ChangePoint { .. }, None) => (here, here),
                    (Operation::Cancel {}, None) if sketch.job.is_some() => (here.other(), here),
                    _ => (here, here.other()),
                };
                let target = landing::of(operation).map_or(item.site(to), |landing| landing::site(item, landing));
                (item.site(from).clone(), target.clone())
            }
            (None, _) => return Err(item::unknown(&request.item)),
        };
        let quote = self.quote_of(&request, sketch.item.as_ref()).await?;
        let age = sketch.point.as_ref().map(|point| now_ms().unsigned_abs().saturating_sub(point.cut_at_ms));
        Ok(Plan {
            fingerprint,
            source,
            target,
            stage: sketch.stage,
            stage_words: sketch.stage.words(None),
            point: sketch.point,
            point_age_ms: age,
            deletes: sketch.deletes,
            steps: sketch.steps.iter().map(|step| step.name.clone()).collect(),
            checks: sketch.checks,
            quote,
            undo_until: undo_until(&request.operation).into(),
            already: sketch.already,
            request,
        })
    }

    /// Starts what a plan showed. A repetition of what is under way gets the job that is.
    pub async fn start(&self, mut start: Start) -> Result<Job, Fault> {
        start.request = self.meant(start.request).await?;
        let reason = start.reason.as_deref();
        let request = &start.request;
        if let Some(key) = &start.idempotency_key {
            let mut on = self.database().readers().acquire().await.map_err(failed)?;
            if let Some(row) = job::with_key(&mut on, key).await? {
                drop(on);
                return self.job_view(&row).await;
            }
        }
        let sketch = self.sketch(request).await?;
        if let Some(running) = &sketch.job {
            return match &request.operation {
                Operation::Complete { at } => self.complete(running, *at, reason).await,
                Operation::Cancel {} => self.cancel_running(running, reason).await,
                operation if *operation == running.operation => self.job_view(running).await,
                _ => Err(busy(running)),
            };
        }
        match (&request.operation, sketch.already) {
            (Operation::Complete { .. }, false) => {
                return Err(Fault::new(
                    code::STAGE_REFUSES,
                    format!("{}: nothing waits for Complete", request.item),
                    format!("the item is: {}", sketch.stage),
                ));
            }
            (Operation::Cancel {}, _) if !matches!(sketch.stage, Stage::CommitPending { .. }) => {
                return Err(not_cancellable(&request.item, &sketch.stage.words(None)));
            }
            _ => {}
        }
        if let Some(shown) = &start.fingerprint
            && *shown != fingerprint(request, &sketch)?
        {
            return Err(Fault::new(
                code::WORLD_CHANGED,
                format!("what {} was planned on has changed", request.operation.verb()),
                format!("the item is: {}", sketch.stage),
            ));
        }
        if let Some(fault) = sketch.checks.iter().find_map(|check| check.fault.clone())
            && !sketch.already
        {
            return Err(fault);
        }
        let steps = if sketch.already { vec![] } else { sketch.steps };
        let quote = if steps.is_empty() { None } else { self.quote_of(request, sketch.item.as_ref()).await? };
        let figures = Figures { quote, ..Figures::default() };
        let id = self.insert_job(&start, &steps, figures, sketch.stage).await?;
        if !steps.is_empty() {
            self.carry(id).await;
        }
        self.announce_job(id).await;
        self.job(id).await
    }

    async fn insert_job(
        &self,
        start: &Start,
        steps: &[Planned],
        figures: Figures,
        planned_on: Stage,
    ) -> Result<i64, Fault> {
        let Start { request, reason, idempotency_key: key, .. } = start;
        let mut change = self.database().change().await?;
        // Between the look and now somebody may have been quicker.
        if let Some(other) = job::in_the_way(&mut change, &request.item, &request.operation).await? {
            return if other.operation == request.operation { Ok(other.id) } else { Err(busy(&other)) };
        }
        let stage = item::find(&mut change, &request.item).await?.map_or(Stage::Unprotected, |(item, _)| item.stage);
        if stage != planned_on {
            return Err(Fault::new(
                code::WORLD_CHANGED,
                format!("{} has changed meanwhile", request.item),
                format!("it was: {planned_on}, it is: {stage}"),
            ));
        }
        if let Some(key) = key
            && let Some(other) = job::with_key(&mut change, key).await?
        {
            return Ok(other.id);
        }
        let id = job::insert(&mut change, &request.item, &request.operation, steps, &figures, key.as_deref()).await?;
        let what = format!("{} (job {id})", request.operation.verb());
        audit::note(&mut change, Some(&request.item), &what, reason.as_deref()).await?;
        commit(change).await?;
        Ok(id)
    }

    /// Where only a test is there to be cancelled, that is meant.
    pub(crate) async fn meant(&self, request: Request) -> Result<Request, Fault> {
        if request.operation != (Operation::Cancel {}) {
            return Ok(request);
        }
        let mut on = self.database().readers().acquire().await.map_err(failed)?;
        let busy = job::at_work_on(&mut on, &request.item).await?.is_some();
        let tested = item::find(&mut on, &request.item).await?.is_some_and(|(item, _)| {
            item.test.is_some() && matches!(decide(item.stage, Event::Cancel), Decision::Refused(_))
        });
        let operation = if tested && !busy { Operation::Cleanup {} } else { request.operation };
        Ok(Request { operation, ..request })
    }

    /// Whether a request is fulfilled already, and else what stands against it.
    pub(crate) async fn answer(&self, request: &Request) -> Result<(bool, Vec<Fault>), Fault> {
        let sketch = self.sketch(request).await?;
        match (&sketch.job, &request.operation) {
            (Some(job), Operation::Cancel {}) if job.past_return => Err(passed(job)),
            (Some(_), Operation::Cancel {} | Operation::Complete { .. }) => Ok((false, vec![])),
            (Some(job), operation) if job.operation.verb() == operation.verb() => Ok((true, vec![])),
            (Some(job), _) => Err(busy(job)),
            (None, _) => Ok((sketch.already, sketch.checks.into_iter().filter_map(|check| check.fault).collect())),
        }
    }

    async fn sketch(&self, request: &Request) -> Result<Sketch, Fault> {
        let (found, job) = {
            let mut on = self.database().readers().acquire().await.map_err(failed)?;
            (
                item::find(&mut on, &request.item).await?.map(|(item, _)| item),
                job::in_the_way(&mut on, &request.item, &request.operation).await?,
            )
        };
        let stage = found.as_ref().map_or(Stage::Unprotected, |item| item.stage);
        if found.is_none() && !matches!(request.operation, Operation::Protect { .. }) && job.is_none() {
            return Err(item::unknown(&request.item));
        }
        let already = match event(&request.operation).map(|event| decide(stage, event)) {
            None => job.is_none() && beside_already(found.as_ref(), &request.operation),
            Some(Decision::Move(_)) => false,
            // A planned failover that waits for a person is moving already, and is completed all the same.
            Some(Decision::AlreadyThere) => !job.as_ref().is_some_and(|job| complete::answers(&request.operation, job)),
            // A job at work answers for itself: cancel and complete go to it, anything else is told that it is busy.
            Some(Decision::Refused(_)) if job.is_some() => false,
            Some(Decision::Refused(fault)) => return Err(for_item(fault, &request.item)),
        };
        let mut sketch =
            Sketch { item: found, job, stage, already, checks: vec![], steps: vec![], deletes: vec![], point: None };
        if let Operation::Protect { machine, from, to, policy, .. } = &request.operation {
            if let Some(item) = &sketch.item
                && (item.home != *from || item.away != *to || item.spec.name != *machine)
            {
                return Err(for_item(
                    Fault::new(
                        code::ALREADY_PROTECTED,
                        format!("{} is an item already", request.item),
                        format!("{} from {} to {}", item.spec.name, item.home, item.away),
                    ),
                    &request.item,
                ));
            }
            if sketch.item.is_none() {
                let items = item::all(self.database()).await?;
                sketch.checks = checks::protect(&self.fleet(), &items, request.item.as_str(), &request.operation);
                let known = self.policy(policy).await.err();
                sketch.checks.push(Check { what: format!("there is a policy {policy}"), fault: known });
                sketch.checks.extend(self.guest_at_protect(&request.operation).await?);
                let site = |side| if side == Side::Home { from.to_string() } else { to.to_string() };
                sketch.steps = named(sequence::protect(&request.operation), machine, site);
            }
            return Ok(sketch);
        }
        if let Operation::Complete { at: Some(window) } = &request.operation {
            sketch.checks.push(complete::is_to_come(*window));
        }
        if let Some(running) = &sketch.job {
            sketch.steps = self.steps_of_running(running, &request.operation).await?;
        }
        if let Some(item) = sketch.item.clone()
            && sketch.job.is_none()
            && !already
        {
            let items = item::all(self.database()).await?;
            sketch.checks = checks::of(&self.fleet(), &item, &request.operation);
            sketch.checks.extend(checks::beside(&self.fleet(), &items, &item, &request.operation));
            sketch.deletes = checks::deletes(&item, &request.operation);
            sketch.checks.extend(self.guest_at_move(&item, &request.operation).await?);
            let site = |side| item.site(side).to_string();
            sketch.steps = named(sequence::steps(&item, &request.operation), &item.spec.name, site);
            match &request.operation {
                Operation::Failover { kind: FailoverKind::Planned { .. }, point } => {
                    sketch.checks.extend(point.map(|_| checks::no_point_named()));
                }
                Operation::ChangePoint { point } => {
                    self.look_at_points(&mut sketch, &item, item.stage.runs_at(), *point).await;
                }
                Operation::Failover { point, .. }
                | Operation::TestFailover { point, .. }
                | Operation::View { point, .. } => {
                    let side = sequence::beside(&item, &request.operation);
                    let side = side.unwrap_or(item.stage.runs_at().other());
                    self.look_at_points(&mut sketch, &item, side, *point).await;
                }
                _ => {}
            }
        }
        Ok(sketch)
    }

    /// What cancel and complete will make of the job at work.
    async fn steps_of_running(&self, running: &JobRow, operation: &Operation) -> Result<Vec<Planned>, Fault> {
        let begun = job::last_records(&job::log(self.database(), running.id).await?);
        let steps = running.steps.iter().enumerate();
        Ok(match operation {
            Operation::Cancel {} => steps
                .rev()
                .filter(|(index, _)| begun.contains_key(index))
                .map(|(_, step)| Planned { name: format!("undo: {}", step.name), work: step.work.clone() })
                .collect(),
            Operation::Complete { .. } => {
                steps.filter(|(index, _)| !begun.contains_key(index)).map(|(_, step)| step.clone()).collect()
            }
            _ => vec![],
        })
    }

    /// Finds the point that is asked for at `side`: as the master target tells, or else as last heard.
    async fn look_at_points(&self, sketch: &mut Sketch, item: &Item, side: Side, wanted: Option<protocol::Attempt>) {
        let last_heard = {
            let fleet = self.fleet();
            let sender = item.stage.runs_at();
            let status = fleet.status(item.site(sender), &item.name).filter(|_| sender != side);
            status.and_then(|(status, _)| status.newest.clone())
        };
        let (what, found) = match self.points_at(item, side, POINTS_PATIENCE).await {
            Ok(points) => match wanted {
                Some(wanted) => (
                    format!("point {wanted} is kept"),
                    points.into_iter().find(|point| point.attempt == wanted).ok_or_else(|| unknown_point(item, wanted)),
                ),
                None => {
                    ("there is a recovery point".into(), points.into_iter().next_back().ok_or_else(|| no_point(item)))
                }
            },
            Err(fault) => match (wanted, last_heard) {
                (None, Some(point)) => ("the newest point, as last heard".into(), Ok(point)),
                _ => ("the points can be listed".into(), Err(fault)),
            },
        };
        match found {
            Ok(point) => {
                sketch.checks.push(Check { what, fault: None });
                sketch.point = Some(point);
            }
            Err(fault) => sketch.checks.push(Check { what, fault: Some(fault) }),
        }
    }

    async fn cancel_running(&self, running: &JobRow, reason: Option<&str>) -> Result<Job, Fault> {
        let mut change = self.database().change().await?;
        if !job::ask_cancel(&mut change, running.id).await? {
            drop(change);
            return Err(passed(running));
        }
        audit::note(&mut change, Some(&running.item), &format!("cancel (job {})", running.id), reason).await?;
        commit(change).await?;
        self.wake_jobs();
        self.job(running.id).await
    }

    /// Cancels a job.
    pub async fn cancel_job(&self, id: i64) -> Result<Job, Fault> {
        let row = job::load(self.database(), id).await?;
        match row.state {
            JobState::Cancelled | JobState::Compensating => self.job_view(&row).await,
            state if state.ended() => Err(not_cancellable(&row.item, "the job has ended")),
            _ => self.cancel_running(&row, None).await,
        }
    }

    /// Does what a failed or cancelled job was to do once more: a new job of the same operation.
    pub async fn retry_job(&self, id: i64) -> Result<Job, Fault> {
        let row = job::load(self.database(), id).await?;
        if !matches!(row.state, JobState::Failed | JobState::Cancelled) {
            return Err(Fault::new(
                code::BAD_REQUEST,
                format!("job {id} cannot be tried again"),
                "only a job that failed or was cancelled can",
            ));
        }
        let request = Request { item: row.item, operation: row.operation };
        let reason = Some(format!("retry of job {id}"));
        self.start(Start { request, fingerprint: None, reason, idempotency_key: None }).await
    }
}

fn named(steps: Vec<crate::work::Work>, machine: &str, site: impl Fn(Side) -> String) -> Vec<Planned> {
    steps.into_iter().map(|work| Planned { name: work.words(machine, &site), work }).collect()
}

/// What a plan rests on, in a few letters: not the newest point, which changes with every epoch.
fn fingerprint(request: &Request, sketch: &Sketch) -> Result<String, Fault> {
    let failing: Vec<&str> =
        sketch.checks.iter().filter_map(|check| check.fault.as_ref()).map(|fault| fault.code.as_str()).collect();
    let rests_on = (
        request,
        sketch.stage,
        sketch.item.as_ref().map(|item| item.generation),
        sketch.job.as_ref().map(|job| job.id),
        failing,
        &sketch.deletes,
        &sketch.steps,
        sketch.already,
    );
    Ok(blake3::hash(database::to_text(&rests_on)?.as_bytes()).to_hex()[..16].to_string())
}

fn undo_until(operation: &Operation) -> &'static str {
    match operation {
        Operation::Protect { .. } => "at any time: sockeye cancel while it runs, sockeye unprotect after it",
        Operation::Unprotect { delete: false } => "it cannot be undone; protect again copies anew",
        Operation::Unprotect { delete: true } => "it cannot be undone",
        Operation::Reprotect { no_way_back: true, .. } | Operation::Failback { no_way_back: true, .. } => {
            "until the first data arrives; given up after that, the disks there are damaged until it is run again"
        }
        Operation::Failover { .. } | Operation::Failback { .. } => "until commit: sockeye cancel",
        Operation::ChangePoint { .. } => {
            "until the machine goes on: sockeye cancel; then change it again, until commit"
        }
        Operation::Commit { .. } => "it cannot be undone; fail over again",
        Operation::Fold {} => "it cannot be undone",
        Operation::Reprotect { .. } => "until it has converged: sockeye cancel",
        Operation::Complete { .. } => "until commit: sockeye cancel",
        Operation::Cancel {} => "it cannot be undone; repeat the operation",
        Operation::TestFailover { .. } => "at any time: sockeye cleanup",
        Operation::Cleanup {} => "it cannot be undone; test again",
        Operation::View { .. } => "at any time: sockeye view --end",
        Operation::EndView { .. } => "it cannot be undone; serve the point again",
        Operation::Verify { .. } => "it changes nothing",
    }
}

pub(crate) fn busy(running: &JobRow) -> Fault {
    Fault::new(
        code::BUSY,
        format!("{}: another job is at work", running.item),
        format!("job {} ({})", running.id, running.operation.verb()),
    )
    .with_remedy(format!("wait for it: sockeye job watch {0}; or end it: sockeye job cancel {0}", running.id))
}

fn not_cancellable(item: &ItemId, cause: &str) -> Fault {
    Fault::new(code::NOT_CANCELLABLE, format!("{item}: there is nothing to be cancelled any more"), cause)
}

fn passed(job: &JobRow) -> Fault {
    let fault = not_cancellable(&job.item, "the job has passed its point of no return, or ended");
    fault.with_remedy(format!("wait until it has ended: sockeye job watch {}", job.id))
}

fn unknown_point(item: &Item, wanted: protocol::Attempt) -> Fault {
    for_item(
        Fault::new(code::UNKNOWN_POINT, format!("{} has no point {wanted}", item.name), "its replica does not keep it"),
        &item.name,
    )
}

fn no_point(item: &Item) -> Fault {
    for_item(
        Fault::new(code::UNKNOWN_POINT, format!("{} has no recovery point", item.name), "its replica keeps none"),
        &item.name,
    )
}
