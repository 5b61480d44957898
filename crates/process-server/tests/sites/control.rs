//! A control server that decides nothing: it hands out what a test wants and collects what components say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use identity::{Authority, Certified, Identity, Request};
use protocol::keeping::Keeping;
use protocol::order::{
    ExchangeReply, ExchangeRequest, NumberedOrder, Order, Outcome, Registration, Replication, ReplicationStatus,
    ReportState, Wishes,
};
use protocol::rest::{Register, Registered};
use protocol::{Bandwidth, Fault};

use super::PATIENCE;

/// What lies on control's desk for one component.
#[derive(Default)]
struct Desk {
    registered: Option<Registration>,
    orders: Vec<NumberedOrder>,
    handed_out: BTreeSet<String>,
    ended: BTreeMap<String, Result<Outcome, Fault>>,
    replications: Vec<Replication>,
    keepings: Vec<Keeping>,
    bandwidth: Bandwidth,
    number: u64,
    /// The number of what it said it goes by.
    seen: u64,
    status: Option<ReplicationStatus>,
    faults: Vec<Fault>,
}

type Desks = Arc<Mutex<BTreeMap<String, Desk>>>;

/// The control server. Ends when it is dropped.
pub struct Control {
    pub url: String,
    desks: Desks,
    authority: Arc<Authority>,
    /// For how long a registration is good, in ms; 0 while none is taken.
    good_for: Arc<AtomicU64>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Control {
    pub async fn start() -> Control {
        let desks = Desks::default();
        let authority = Arc::new(Authority::make().unwrap());
        let good_for = Arc::new(AtomicU64::new(3_600_000));
        let app = Router::new()
            .route("/api/v1/components/register", post(register))
            .with_state((desks.clone(), authority.clone(), good_for.clone()))
            .route("/api/v1/components/{name}/exchange", post(exchange).with_state(desks.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Control { url, desks, authority, good_for, server }
    }

    /// Registrations are good for so many ms from now on; for 0 none is taken.
    pub fn registers_for(&self, ms: u64) {
        self.good_for.store(ms, Ordering::SeqCst);
    }

    /// It cannot be reached any more.
    pub fn vanish(&self) {
        self.server.abort();
    }

    fn desk<T>(&self, component: &str, look: impl FnOnce(&mut Desk) -> T) -> T {
        look(lock(&self.desks).entry(component.to_string()).or_default())
    }

    /// Waits until `look` finds what it looks for.
    async fn wait<T>(&self, component: &str, what: &str, mut look: impl FnMut(&mut Desk) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.desk(component, &mut look) {
                return found;
            }
            let status = self.desk(component, |desk| desk.status.clone());
            assert!(tokio::time::Instant::now() < deadline, "{component} never {what}; it says {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Somebody of that name who may dial others.
    pub fn certified(&self, name: &str) -> Identity {
        let request = Request::make().unwrap();
        let certified = self.authority.certify(name, &request.pem).unwrap();
        request.answered(&certified.certificate, &certified.authority).unwrap()
    }

    /// Where the component listens, once it has registered; it is then forgotten, so that a restart is noticed.
    pub async fn registered(&self, component: &str) -> Option<String> {
        self.wait(component, "registered", |desk| desk.registered.take()).await.address
    }

    /// Has an order carried out.
    pub async fn order(&self, component: &str, order: Order) -> Result<Outcome, Fault> {
        let id = format!("{component}-{}", uuid::Uuid::new_v4());
        let numbered = NumberedOrder { id: id.clone(), order, cancelled: false };
        self.desk(component, |desk| desk.orders.push(numbered));
        self.wait(component, "carried an order out", |desk| desk.ended.remove(&id)).await
    }

    /// Replaces the list of what the component replicates.
    pub fn replicate(&self, component: &str, replications: Vec<Replication>) {
        self.desk(component, |desk| {
            desk.replications = replications;
            desk.number += 1;
        });
    }

    /// Says how fast the component may send in all.
    pub fn cap(&self, component: &str, bandwidth: Bandwidth) {
        self.desk(component, |desk| {
            desk.bandwidth = bandwidth;
            desk.number += 1;
        });
    }

    /// Waits until the component goes by what it was told last.
    pub async fn is_told(&self, component: &str) {
        self.wait(component, "took over what it was told", |desk| (desk.seen == desk.number).then_some(())).await;
    }

    /// Replaces the list of what the component keeps.
    pub fn keep(&self, component: &str, keepings: Vec<Keeping>) {
        self.desk(component, |desk| {
            desk.keepings = keepings;
            desk.number += 1;
        });
    }

    /// The status of the component's only replication, once `look` is content with it.
    pub async fn status(
        &self,
        component: &str,
        what: &str,
        look: impl Fn(&ReplicationStatus) -> bool,
    ) -> ReplicationStatus {
        self.wait(component, what, |desk| desk.status.clone().filter(&look)).await
    }

    /// Forgets what the component said last.
    pub fn forget_status(&self, component: &str) {
        self.desk(component, |desk| desk.status = None);
    }

    /// The codes of all faults that the component's replication ever showed.
    pub fn faults(&self, component: &str) -> BTreeSet<String> {
        self.desk(component, |desk| desk.faults.iter().map(|fault| fault.code.to_string()).collect())
    }
}

fn lock(desks: &Desks) -> MutexGuard<'_, BTreeMap<String, Desk>> {
    desks.lock().unwrap()
}

async fn register(
    State((desks, authority, good_for)): State<(Desks, Arc<Authority>, Arc<AtomicU64>)>,
    Json(Register { registration, certificate_request }): Json<Register>,
) -> Result<Json<Registered>, StatusCode> {
    let renew_after_ms = good_for.load(Ordering::SeqCst);
    if renew_after_ms == 0 {
        return Err(StatusCode::FORBIDDEN);
    }
    let mut desks = lock(&desks);
    let desk = desks.entry(registration.name.clone()).or_default();
    let Certified { certificate, authority, .. } = authority.certify(&registration.name, &certificate_request).unwrap();
    desk.registered = Some(registration);
    Ok(Json(Registered { token: "component".into(), certificate, authority, renew_after_ms }))
}

async fn exchange(
    State(desks): State<Desks>,
    Path(name): Path<String>,
    Json(request): Json<ExchangeRequest>,
) -> Json<ExchangeReply> {
    {
        let mut desks = lock(&desks);
        let desk = desks.entry(name.clone()).or_default();
        for report in request.reports {
            let ended = match report.state {
                ReportState::Running { .. } => continue,
                ReportState::Done(outcome) => Ok(outcome),
                ReportState::Failed(fault) => Err(fault),
            };
            desk.orders.retain(|order| order.id != report.id);
            desk.ended.insert(report.id, ended);
        }
        desk.seen = request.seen;
        if let Some(status) = request.replications.into_iter().next() {
            desk.faults.extend(status.fault.clone());
            desk.status = Some(status);
        }
    }
    // Held open for a moment, unless there is news.
    for _ in 0..10 {
        {
            let mut desks = lock(&desks);
            let desk = desks.entry(name.clone()).or_default();
            let ids: Vec<String> = desk.orders.iter().map(|order| order.id.clone()).collect();
            if desk.number != request.seen || ids.iter().any(|id| !desk.handed_out.contains(id)) {
                desk.handed_out.extend(ids);
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let desks = lock(&desks);
    let desk = &desks[&name];
    let (replications, keepings) = (desk.replications.clone(), desk.keepings.clone());
    let wishes = Wishes { replications, keepings, bandwidth: desk.bandwidth.clone() };
    Json(ExchangeReply { orders: desk.orders.clone(), wishes, number: desk.number })
}
