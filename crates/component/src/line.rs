//! A component's line to control: it registers, asks for orders, carries them out and reports.
//!
//! ```text
//!   loop:  POST exchange { heartbeat, reports } ──► control holds it open ──► { orders, wishes }
//!             │                                                                    │
//!             │   a finished order interrupts the waiting request,                 ├─ new order: carried out in a task
//!             └── so that its report travels at once                               └─ known order: left alone
//! ```
//!
//! # Always true
//! - Control is dialled, never the other way round; while it cannot be reached everything that runs goes on.
//! - An order is carried out by one task at a time. Its report is repeated until control no longer lists the order.
//! # If the component dies
//! - its orders are handed out again after the restart; every order is safe to repeat.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use identity::{Credentials, IdentityError, Request};
use protocol::Fault;
use protocol::fault::code;
use protocol::keeping::KeepingStatus;
use protocol::machine::{Machine, SiteFacts};
use protocol::order::{
    ExchangeReply, ExchangeRequest, NumberedOrder, Order, Outcome, Registration, ReplicationStatus, Report,
    ReportState, Wishes,
};
use protocol::rest::{Register, Registered};
use tokio::sync::{Notify, watch};

/// How long control may hold an exchange open; also how often figures are refreshed.
const WAIT: Duration = Duration::from_millis(1000);
/// How long a component waits before it dials control again.
const RETRY: Duration = Duration::from_millis(500);
/// How long it waits after a certificate could not be renewed, which lasts for weeks still.
const RENEW_AGAIN: Duration = Duration::from_secs(60 * 60);

/// How a component belongs to a system.
#[derive(Debug, Clone)]
pub struct Membership {
    /// Base URL of the control server.
    pub server: String,
    /// The credential of its host: lets the component register.
    pub join_token: String,
    /// What it says about itself.
    pub registration: Registration,
    /// Who it can prove to be; renewed at each registration.
    pub credentials: Arc<Credentials>,
}

/// A component's credentials, kept in this file.
///
/// # Errors
/// `RPL-005` when they cannot be read.
pub fn credentials(file: &Path) -> Result<Arc<Credentials>, Fault> {
    let opened = Credentials::open(file);
    opened.map(Arc::new).map_err(|error| Fault::new(code::REPLICA_IO, error.to_string(), cause(&error)))
}

fn cause(error: &IdentityError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// What a component's owner does with what control wants.
#[async_trait]
pub trait Duty: Send + Sync + 'static {
    /// Carries out an order. Safe to repeat; looks at `ticket` now and then for a cancellation.
    ///
    /// # Errors
    /// The fault that becomes the order's report; what was begun is undone.
    async fn carry_out(&self, order: Order, ticket: &Ticket) -> Result<Outcome, Fault>;

    /// Takes over what is wanted of the component from now on.
    async fn follow(&self, wishes: Wishes);

    /// What is to be told about the site now.
    async fn heartbeat(&self) -> Heartbeat;
}

/// What a component tells about its site.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat {
    /// The site's machines.
    pub machines: Option<Vec<Machine>>,
    /// What else the site has, if that was looked at.
    pub site: Option<SiteFacts>,
    /// Why something cannot be told.
    pub fault: Option<Fault>,
    /// How replications stand.
    pub replications: Vec<ReplicationStatus>,
    /// How the histories that it keeps stand.
    pub keepings: Vec<KeepingStatus>,
}

/// An order's way to say how it goes and to hear that it is not wanted any more.
#[derive(Debug, Clone)]
pub struct Ticket {
    running: watch::Sender<(String, Option<u8>)>,
    cancelled: watch::Receiver<bool>,
}

impl Ticket {
    /// Says what is being done, and how far it is.
    pub fn step(&self, words: impl Into<String>, percent: Option<u8>) {
        self.running.send_replace((words.into(), percent));
    }

    /// Whether control still wants the order.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Returns when control no longer wants the order.
    pub async fn cancelled(&self) {
        let mut cancelled = self.cancelled.clone();
        if cancelled.wait_for(|is| *is).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

struct Carried {
    running: watch::Receiver<(String, Option<u8>)>,
    cancel: watch::Sender<bool>,
    ended: Option<ReportState>,
}

/// The orders at hand, by number.
type Book = Arc<Mutex<BTreeMap<String, Carried>>>;

/// Registers and serves `duty` until the future is dropped. `news` wakes the line so that a heartbeat travels at once.
pub async fn serve(membership: Membership, duty: Arc<dyn Duty>, news: Arc<Notify>) {
    let client = reqwest::Client::new();
    let book: Book = Arc::default();
    // Registered afresh at every start: its address may have changed with it.
    let mut token = None;
    // When it registered last, and how long that is good for: by this host's own count, for its clock may be far from control's.
    let mut renewed = (Instant::now(), Duration::ZERO);
    let mut seen = 0;
    loop {
        if token.is_none() || renewed.0.elapsed() >= renewed.1 {
            match register(&client, &membership).await {
                Some(registered) => {
                    renewed = (Instant::now(), Duration::from_millis(registered.renew_after_ms));
                    token = Some(registered.token);
                }
                // What it has is still good.
                None if token.is_some() => renewed = (Instant::now(), RENEW_AGAIN),
                None => tokio::time::sleep(RETRY).await,
            }
        }
        let Some(current): Option<String> = token.clone() else { continue };
        let request = request(duty.heartbeat().await, &book, seen);
        let reported: Vec<String> = request.reports.iter().filter(|r| ended(r)).map(|r| r.id.clone()).collect();
        let url = format!("{}/api/v1/components/{}/exchange", membership.server, membership.registration.name);
        let exchange =
            client.post(url).bearer_auth(current).json(&request).timeout(WAIT + Duration::from_secs(10)).send();
        let answer = tokio::select! {
            answer = exchange => answer,
            () = news.notified() => continue,
        };
        match answer {
            Ok(reply) if reply.status().is_success() => match reply.json::<ExchangeReply>().await {
                Ok(reply) => {
                    if reply.number != seen {
                        duty.follow(reply.wishes).await;
                        seen = reply.number;
                    }
                    take(reply.orders, &reported, &book, &duty, &news);
                }
                Err(error) => tracing::warn!(%error, "control's answer cannot be read"),
            },
            Ok(reply) if matches!(reply.status().as_u16(), 401 | 403 | 404) => {
                tracing::warn!(status = %reply.status(), "control does not know this component; registering again");
                token = None;
                tokio::time::sleep(RETRY).await;
            }
            Ok(reply) => {
                tracing::warn!(status = %reply.status(), "control refuses the exchange");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                tracing::debug!(%error, "control cannot be reached");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn ended(report: &Report) -> bool {
    !matches!(report.state, ReportState::Running { .. })
}

fn lock(book: &Book) -> std::sync::MutexGuard<'_, BTreeMap<String, Carried>> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn request(heartbeat: Heartbeat, book: &Book, seen: u64) -> ExchangeRequest {
    let reports = lock(book)
        .iter()
        .map(|(id, carried)| {
            let state = carried.ended.clone().unwrap_or_else(|| {
                let (step, percent) = carried.running.borrow().clone();
                ReportState::Running { step, percent }
            });
            Report { id: id.clone(), state }
        })
        .collect();
    ExchangeRequest {
        machines: heartbeat.machines,
        site: heartbeat.site,
        fault: heartbeat.fault,
        replications: heartbeat.replications,
        keepings: heartbeat.keepings,
        reports,
        wait_ms: WAIT.as_millis() as u64,
        seen,
    }
}

/// Begins what is new, passes cancellations on, forgets what control has heard of.
fn take(orders: Vec<NumberedOrder>, reported: &[String], book: &Book, duty: &Arc<dyn Duty>, news: &Arc<Notify>) {
    let mut at_hand = lock(book);
    at_hand.retain(|id, _| !reported.contains(id) || orders.iter().any(|order| &order.id == id));
    for NumberedOrder { id, order, cancelled } in orders {
        if let Some(carried) = at_hand.get(&id) {
            if cancelled {
                carried.cancel.send_replace(true);
            }
            continue;
        }
        let (running, watched) = watch::channel((String::new(), None));
        let (cancel, is_cancelled) = watch::channel(cancelled);
        at_hand.insert(id.clone(), Carried { running: watched, cancel, ended: None });
        let (book, duty, news) = (book.clone(), duty.clone(), news.clone());
        tokio::spawn(async move {
            tracing::info!(order = %id, ?order, "order begun");
            let ticket = Ticket { running, cancelled: is_cancelled };
            // A bug in an order must not leave control waiting for ever: the task's panic becomes the order's fault.
            let task = tokio::spawn(async move { duty.carry_out(order, &ticket).await });
            let result = task.await.unwrap_or_else(|panic| {
                Err(Fault::new(code::INTERNAL, "the component failed while it carried out an order", panic.to_string()))
            });
            match &result {
                Ok(_) => tracing::info!(order = %id, "order done"),
                Err(fault) => tracing::warn!(order = %id, %fault, cause = %fault.cause, "order failed"),
            }
            let state = match result {
                Ok(outcome) => ReportState::Done(outcome),
                Err(fault) => ReportState::Failed(fault),
            };
            if let Some(carried) = lock(&book).get_mut(&id) {
                carried.ended = Some(state);
            }
            news.notify_one();
        });
    }
}

/// Registers once; none when control cannot be reached or refuses (logged; the caller repeats).
async fn register(client: &reqwest::Client, membership: &Membership) -> Option<Registered> {
    let failed =
        |error: &IdentityError| tracing::error!(%error, cause = cause(error), "this component cannot be certified");
    // A key is made for each certificate, and never leaves this process but for its own file.
    let request = Request::make().inspect_err(failed).ok()?;
    let register = Register { registration: membership.registration.clone(), certificate_request: request.pem.clone() };
    let url = format!("{}/api/v1/components/register", membership.server);
    let sent = client
        .post(url)
        .bearer_auth(&membership.join_token)
        .timeout(Duration::from_secs(10))
        .json(&register)
        .send()
        .await;
    let reply = match sent {
        Ok(reply) if reply.status().is_success() => reply,
        Ok(reply) => {
            let status = reply.status();
            match reply.json::<Fault>().await {
                Ok(fault) => {
                    tracing::error!(%fault, cause = fault.cause, next = fault.remedy, "control refuses to register this component");
                }
                Err(_) => tracing::error!(%status, "control refuses to register this component"),
            }
            return None;
        }
        Err(error) => {
            tracing::debug!(%error, "control cannot be reached");
            return None;
        }
    };
    let unclear = |error: &reqwest::Error| tracing::error!(%error, "control's answer to a registration cannot be read");
    let registered: Registered = reply.json().await.inspect_err(unclear).ok()?;
    let identity = request.answered(&registered.certificate, &registered.authority).inspect_err(failed).ok()?;
    if let Err(error) = membership.credentials.replace(identity) {
        failed(&error);
    }
    tracing::info!(name = %membership.registration.name, server = %membership.server, "registered");
    Some(registered)
}
