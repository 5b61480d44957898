//! The shapes of the REST contract `/api/v1`, shared by the server that gives them and the clients that read them.
//!
//! ```text
//!   GET  /healthz                                    "ok"
//!   GET  /api/v1/openapi.json
//!   GET  /api/v1/status?item=                        [ItemView]
//!   GET  /api/v1/items           GET /items/{item}   ItemView
//!   GET  /api/v1/items/{item}/points                 [KeptPoint]                 (?site=)
//!   POST /api/v1/items/{item}/points                 AddPoint     → Point        (the next one, pinned)
//!   PUT  /api/v1/items/{item}/points/{point}/pin     PinPoint                    (?site=)
//!   GET  /api/v1/items/{item}/points/difference      Difference                  (?from=&to=&site=)
//!   GET  /api/v1/items/{item}/explain                Explanation
//!   GET  /api/v1/items/{item}/quote                  [Quoted]
//!   PUT  /api/v1/items/{item}/policy                 ApplyPolicy  → PolicyEffect
//!   GET  /api/v1/policies                            [Policy]
//!   PUT  /api/v1/policies/{name}                     SetPolicy    → PolicyEffect
//!   DELETE /api/v1/policies/{name}
//!   POST /api/v1/plans                               Request      → Plan        (shows; changes nothing)
//!   POST /api/v1/jobs                                Start        → Job         (starts what was shown)
//!   GET  /api/v1/jobs            GET /jobs/{id}      Job
//!   POST /api/v1/jobs/{id}/cancel
//!   POST /api/v1/jobs/{id}/retry
//!   GET  /api/v1/sites  /components  /machines?site=
//!   PUT  /api/v1/components/{name}/bandwidth         SetBandwidth → BandwidthEffect
//!   GET  /api/v1/audit                               [AuditEntry], oldest first
//!   GET  /metrics                                    Prometheus text
//!   GET  /api/v1/events                              server-sent events: a Job or an ItemView that changed
//!   GET  /api/v1/tokens                              [TokenView]                 (see `token`)
//!   POST /api/v1/tokens                              AddToken → AddedToken
//!   DELETE /api/v1/tokens/{id}
//!   POST /api/v1/join                                Join → Joined               (with a join token)
//!   POST /api/v1/components/register                 Register → Registered
//!   POST /api/v1/components/{name}/exchange          ExchangeRequest → ExchangeReply
//! ```
//!
//! Every error is `application/problem+json` with the members of [`Fault`] (`code`, `message`, `cause`, `remedy`) beside
//! `title` and `status`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bandwidth::Bandwidth;
use crate::beside::{ServedView, TestMachine};
use crate::epoch::Point;
use crate::fault::Fault;
use crate::id::{ItemId, PolicyName, SiteName};
use crate::keeping::KeepingStatus;
use crate::machine::{Machine, SiteFacts};
pub use crate::operation::{FailoverKind, MAX_DOWNTIME_MS, Operation, SHUT_DOWN_MS, ShutDownFirst};
use crate::order::{Moved, Registration, ReplicationStatus, Sync};
use crate::quote::{Downtime, Moving, Quote, Window};
use crate::stage::{Side, Stage};
use crate::verified::Verified;

/// Asks for a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Request {
    /// The item (for `protect`: the name it will have).
    pub item: ItemId,
    /// What is to be done.
    pub operation: Operation,
}

/// What will happen: shown, confirmed, then started by its fingerprint (H5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// Changes whenever something that the plan rests on changes.
    pub fingerprint: String,
    /// Where the machine is, and where it or its data will go.
    pub source: SiteName,
    /// See `source`.
    pub target: SiteName,
    /// The item's stage at the moment.
    pub stage: Stage,
    /// The same in words.
    pub stage_words: String,
    /// The recovery point that will be used, if one is.
    pub point: Option<Point>,
    /// Its age in ms.
    pub point_age_ms: Option<u64>,
    /// What will be deleted, one line each.
    pub deletes: Vec<String>,
    /// What will be done, in order.
    pub steps: Vec<String>,
    /// What was checked; a plan with a failed check is refused when it is started.
    pub checks: Vec<Check>,
    /// What it is expected to cost; none where no data moves and no machine is stopped.
    pub quote: Option<Quote>,
    /// Until when it can be undone, in words.
    pub undo_until: String,
    /// Whether nothing would be done, because it is so already.
    pub already: bool,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at.
    pub what: String,
    /// What is wrong, if anything is.
    pub fault: Option<Fault>,
}

/// Starts what a plan showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Start {
    /// What is to be done.
    pub request: Request,
    /// The fingerprint of the plan that was shown; none to start without having looked.
    pub fingerprint: Option<String>,
    /// For the audit log.
    pub reason: Option<String>,
    /// A repeated request with the same key is answered with the job that the first one started.
    pub idempotency_key: Option<String>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// The item.
    pub item: ItemId,
    /// What was asked for.
    pub operation: Operation,
    /// How it goes.
    pub state: JobState,
    /// Its steps in order.
    pub steps: Vec<Step>,
    /// When it was started, ms since 1970.
    pub started_at_ms: i64,
    /// When it ended.
    pub ended_at_ms: Option<i64>,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// The command that a waiting job waits for, or that follows a finished one.
    pub next: Option<String>,
    /// When *Complete* comes by itself, as long as it was not said.
    #[serde(default)]
    pub complete_at: Option<Window>,
    /// Figures that the job measured.
    pub figures: Figures,
}

/// How a job goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// A step is being done.
    Running,
    /// It waits for a person.
    Waiting,
    /// What was done is being undone.
    Compensating,
    /// It reached its end.
    Done,
    /// It failed, and what it had done is undone.
    Failed,
    /// It was cancelled, and what it had done is undone.
    Cancelled,
}

impl JobState {
    /// Whether nothing more will happen.
    pub fn ended(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed | JobState::Cancelled)
    }
}

/// One step of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// In an operator's words.
    pub name: String,
    /// How it goes.
    pub state: StepState,
    /// More, while it runs.
    pub detail: Option<String>,
    /// How far, 0 to 100, when that is known.
    pub percent: Option<u8>,
    /// The same in bytes, with rate and time left, while it carries data.
    #[serde(default)]
    pub moving: Option<Moving>,
    /// ms since 1970.
    pub started_at_ms: Option<i64>,
    /// ms since 1970.
    pub ended_at_ms: Option<i64>,
}

/// How a step goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Under way.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Done, then undone.
    Undone,
    /// Not needed.
    Skipped,
}

/// What a job measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// How the first epoch was chosen.
    pub sync: Option<Sync>,
    /// Why it was not tracked, when tracked was asked for.
    pub distrust: Option<String>,
    /// What the first copy of the direction moved.
    pub first: Option<Moved>,
    /// What the last delta moved.
    pub last: Option<Moved>,
    /// From the source standing still (or the order to start, when it was unplanned) to the target going on, in ms.
    pub downtime_ms: Option<u64>,
    /// What a planned move's downtime was made of.
    #[serde(default)]
    pub downtime: Option<Downtime>,
    /// What was expected before it started.
    #[serde(default)]
    pub quote: Option<Quote>,
    /// The point that the machine was started from.
    pub point: Option<Point>,
    /// The recovery point that is served.
    pub served: Option<ServedView>,
    /// What a scrub of the replica read, and what it found.
    pub verified: Option<Verified>,
    /// What went wrong without keeping the job from its end.
    #[serde(default)]
    pub warnings: Vec<Fault>,
    /// What the guest told when it was given its addresses, a line each.
    #[serde(default)]
    pub guest: Vec<String>,
    /// Bytes of the old side's unreplicated changes, as far as they are known.
    pub unreplicated_bytes: Option<u64>,
}

/// An item as people see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ItemView {
    /// Its name.
    pub item: ItemId,
    /// Its stage.
    pub stage: Stage,
    /// The same in words.
    pub stage_words: String,
    /// How well it goes.
    pub health: Health,
    /// Why not well.
    pub health_reason: Option<String>,
    /// Where the machine runs.
    pub runs_at: SiteName,
    /// The side of that site.
    pub side: Side,
    /// Home.
    pub home: SiteName,
    /// The disaster recovery site.
    pub away: SiteName,
    /// Now minus the cut time of the newest durable epoch, in ms; none while nothing is replicated.
    pub rpo_ms: Option<u64>,
    /// The policy's limit for it, in ms.
    pub rpo_limit_ms: u64,
    /// The policy's name.
    pub policy: PolicyName,
    /// How its history stands where the machine does not run, as the master target there last told.
    pub history: Option<KeepingStatus>,
    /// The newest recovery point at the side where the machine does not run.
    pub newest: Option<Point>,
    /// Whether a failback is possible, in words.
    pub failback: String,
    /// The next command.
    pub next: Option<String>,
    /// The generation that is authorised to run.
    pub generation: u64,
    /// The job at work.
    pub job: Option<i64>,
    /// How replication stands, as the process server last told.
    pub replication: Option<ReplicationStatus>,
    /// The test failover that is under way.
    pub test: Option<TestMachine>,
    /// The recovery points that are served.
    #[serde(default)]
    pub views: Vec<ServedView>,
}

/// How well an item does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// It wants to be looked at.
    Warning,
    /// Data or protection is at stake.
    Critical,
}

/// What is allowed on an item, and why not the rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The item.
    pub item: ItemId,
    /// Its stage in words.
    pub stage_words: String,
    /// Each operation, as it is where nothing more is said.
    pub operations: Vec<Explained>,
    /// What is to be done next, if anything is.
    pub next: Option<String>,
}

/// An operation on an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explained {
    /// As it is typed.
    pub verb: String,
    /// Whether it can be begun.
    pub answer: Answer,
    /// What stands against it, each with the shortest way to make it possible.
    pub guards: Vec<Fault>,
}

/// Whether an operation can be begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It can.
    Allowed,
    /// It is so already.
    Already,
    /// It cannot.
    Refused,
}

/// A component as control knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComponentView {
    /// What it told about itself.
    pub name: String,
    /// Its site.
    pub site: SiteName,
    /// Its role.
    pub role: crate::order::Role,
    /// Where movers reach it.
    pub address: Option<String>,
    /// Its version.
    pub version: String,
    /// Its platform.
    pub platform: String,
    /// When it was last heard of, ms since 1970.
    pub seen_at_ms: i64,
    /// Whether that was recently enough to count as connected.
    pub connected: bool,
    /// How fast it may send in all (a process server).
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// Says how fast a process server may send in all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetBandwidth {
    /// From now on.
    pub bandwidth: Bandwidth,
    /// Only tells what it would do.
    #[serde(default)]
    pub preview: bool,
    /// For the audit log.
    pub reason: Option<String>,
}

/// What another bandwidth of a process server means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BandwidthEffect {
    /// The process server.
    pub component: String,
    /// What was in force.
    pub before: Bandwidth,
    /// What comes into force.
    pub bandwidth: Bandwidth,
    /// Whether nothing changes, because it is so already.
    pub already: bool,
    /// The items that it sends now: together they have that much.
    pub items: Vec<ItemId>,
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// The component's own token for `exchange`.
    pub token: String,
    /// Its certificate, as PEM: other components recognise it by that.
    pub certificate: String,
    /// The certificate of the authority by which it recognises others, as PEM.
    pub authority: String,
    /// In how many ms it should register again: its certificate lasts three times as long.
    pub renew_after_ms: u64,
}

/// A site, and what its process server told that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteView {
    /// Its name.
    pub name: SiteName,
    /// Its kind of hypervisor.
    pub platform: Option<String>,
    /// Its components.
    pub components: Vec<String>,
    /// How many machines it has, as last told.
    pub machines: u64,
    /// Its networks and storage pools; none where that was never told, or not since the server started.
    pub facts: Option<SiteFacts>,
    /// Why something cannot be told.
    pub fault: Option<Fault>,
}

/// A machine at a site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineView {
    /// The site.
    pub site: SiteName,
    /// The machine.
    pub machine: Machine,
    /// The item that it is, if it is protected.
    pub item: Option<ItemId>,
    /// The item of which it is a test, if it is one.
    pub test_of: Option<ItemId>,
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// ms since 1970.
    pub at_ms: i64,
    /// The item.
    pub item: Option<ItemId>,
    /// What was done.
    pub what: String,
    /// Why, as the user gave it.
    pub reason: Option<String>,
}

/// What `POST /components/register` takes beside the host's credential in the `Authorization` header.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Register {
    /// What it says about itself.
    #[serde(flatten)]
    pub registration: Registration,
    /// Asks for a certificate: a PKCS#10 request as PEM, of which only the key counts.
    pub certificate_request: String,
}
