//! The REST contract from the other side: each route as a call, each answer in the shapes of [`protocol::rest`].
//!
//! ```text
//!   verb ──► Client ──HTTP──► api          problem+json ──► Trouble (code, message, cause, remedy, exit code)
//!                                          no answer     ──► Trouble CLI-001, exit code 5
//! ```
//!
//! # Always true
//! - An answer is bounded before it is kept, and what is not understood is a fault, never a panic.
//! - Starting a job carries an idempotency key, so a request whose answer was lost can be sent again.

mod stream;

use std::time::Duration;

use protocol::Fault;
use protocol::difference::Difference;
use protocol::epoch::Point;
use protocol::guest::{GuestTold, ItemNetwork, SetItemNetwork};
use protocol::id::{Attempt, ItemId, PolicyName, SiteName};
use protocol::keeping::{AddPoint, ApplyPolicy, KeptPoint, PinPoint, Policy, PolicyEffect, SetPolicy};
use protocol::quote::Quoted;
use protocol::rest::{
    AuditEntry, BandwidthEffect, ComponentView, Explanation, ItemView, Job, MachineView, Plan, Request, SetBandwidth,
    SiteView, Start,
};
use protocol::token::{AddToken, AddedToken, Join, Joined, TokenView};
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use stream::{Event, Stream};

use crate::ending::{Ending, Trouble};
use crate::fault;
use crate::profile::Access;

/// No answer of the contract comes near it; a server that sends more is not ours.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// Longer than the server holds any request of ours.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// The same where the server has disks read before it answers.
const READING_TIME: Duration = Duration::from_secs(11 * 60);

/// A connection to one control server.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    access: Access,
    time: Duration,
}

/// An answer in our shape, and as it came: what a newer server adds is passed on by `--output json`.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    /// In the contract's shape.
    pub read: T,
    /// As it came.
    pub document: Value,
}

impl Client {
    /// Prepares a connection; nothing is sent yet.
    ///
    /// # Errors
    /// This host cannot make HTTP requests.
    pub fn new(access: Access) -> Result<Client, Trouble> {
        // No proxy: the only server that is ever asked is the user's own control server.
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("sockeye/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|why| Trouble::local("no HTTP client can be made", why))?;
        Ok(Client { http, access, time: REQUEST_TIME })
    }

    /// The server's address.
    pub fn server(&self) -> &str {
        &self.access.server
    }

    /// Whether a control server answers there.
    pub async fn healthz(&self) -> Result<(), Trouble> {
        self.exchange(Method::GET, "/healthz", &[], None::<&()>).await.map(drop)
    }

    /// Every item, or one.
    pub async fn status(&self, item: Option<&ItemId>) -> Result<Answer<Vec<ItemView>>, Trouble> {
        let query: Vec<_> = item.iter().map(|item| ("item", item.as_str())).collect();
        self.get("/api/v1/status", &query).await
    }

    /// One item.
    pub async fn item(&self, item: &ItemId) -> Result<Answer<ItemView>, Trouble> {
        self.get(&format!("/api/v1/items/{item}"), &[]).await
    }

    /// An item's recovery points, in the order in which they were sealed.
    pub async fn points(&self, item: &ItemId, site: Option<&SiteName>) -> Result<Answer<Vec<KeptPoint>>, Trouble> {
        let query: Vec<_> = site.iter().map(|site| ("site", site.as_str())).collect();
        self.get(&format!("/api/v1/items/{item}/points"), &query).await
    }

    /// Pins a recovery point, or takes its pin away.
    pub async fn pin(
        &self,
        item: &ItemId,
        point: Attempt,
        site: Option<&SiteName>,
        wanted: &PinPoint,
    ) -> Result<(), Trouble> {
        let query: Vec<_> = site.iter().map(|site| ("site", site.as_str())).collect();
        let path = format!("/api/v1/items/{item}/points/{point}/pin");
        self.exchange(Method::PUT, &path, &query, Some(wanted)).await.map(drop)
    }

    /// Has a recovery point taken now.
    pub async fn add_point(&self, item: &ItemId, wanted: &AddPoint) -> Result<Answer<Point>, Trouble> {
        let patient = Client { time: READING_TIME, ..self.clone() };
        patient.post(&format!("/api/v1/items/{item}/points"), Some(wanted)).await
    }

    /// All policies.
    pub async fn policies(&self) -> Result<Answer<Vec<Policy>>, Trouble> {
        self.get("/api/v1/policies", &[]).await
    }

    /// Makes or changes a policy.
    pub async fn set_policy(&self, wanted: &SetPolicy) -> Result<Answer<PolicyEffect>, Trouble> {
        self.put(&format!("/api/v1/policies/{}", wanted.policy.name), wanted).await
    }

    /// Gives an item another policy.
    pub async fn apply_policy(&self, item: &ItemId, wanted: &ApplyPolicy) -> Result<Answer<PolicyEffect>, Trouble> {
        self.put(&format!("/api/v1/items/{item}/policy"), wanted).await
    }

    /// Removes a policy.
    pub async fn remove_policy(&self, name: &PolicyName, reason: Option<&str>) -> Result<(), Trouble> {
        let query: Vec<_> = reason.iter().map(|reason| ("reason", *reason)).collect();
        let path = format!("/api/v1/policies/{name}");
        self.exchange(Method::DELETE, &path, &query, None::<&()>).await.map(drop)
    }

    /// What two of its recovery points differ in.
    pub async fn difference(
        &self,
        item: &ItemId,
        from: Attempt,
        to: Attempt,
        site: Option<&SiteName>,
    ) -> Result<Answer<Difference>, Trouble> {
        let (from, to) = (from.to_string(), to.to_string());
        let mut query = vec![("from", from.as_str()), ("to", to.as_str())];
        query.extend(site.iter().map(|site| ("site", site.as_str())));
        let patient = Client { time: READING_TIME, ..self.clone() };
        patient.get(&format!("/api/v1/items/{item}/points/difference"), &query).await
    }

    /// The addresses of its guest.
    pub async fn network(&self, item: &ItemId) -> Result<Answer<ItemNetwork>, Trouble> {
        self.get(&format!("/api/v1/items/{item}/network"), &[]).await
    }

    /// Says which it shall have.
    pub async fn set_network(&self, item: &ItemId, wanted: &SetItemNetwork) -> Result<Answer<ItemNetwork>, Trouble> {
        self.put(&format!("/api/v1/items/{item}/network"), wanted).await
    }

    /// Gives the guest what it is to have where it runs, now.
    pub async fn apply_network(&self, item: &ItemId) -> Result<Answer<GuestTold>, Trouble> {
        let patient = Client { time: READING_TIME, ..self.clone() };
        patient.post(&format!("/api/v1/items/{item}/network/apply"), None::<&()>).await
    }

    /// What moving the item would cost.
    pub async fn quotes(&self, item: &ItemId) -> Result<Answer<Vec<Quoted>>, Trouble> {
        self.get(&format!("/api/v1/items/{item}/quote"), &[]).await
    }

    /// What is allowed on an item.
    pub async fn explain(&self, item: &ItemId) -> Result<Answer<Explanation>, Trouble> {
        self.get(&format!("/api/v1/items/{item}/explain"), &[]).await
    }

    /// What would be done.
    pub async fn plan(&self, request: &Request) -> Result<Answer<Plan>, Trouble> {
        self.post("/api/v1/plans", Some(request)).await
    }

    /// Starts what a plan showed.
    pub async fn start(&self, start: &Start) -> Result<Answer<Job>, Trouble> {
        self.post("/api/v1/jobs", Some(start)).await
    }

    /// All jobs.
    pub async fn jobs(&self) -> Result<Answer<Vec<Job>>, Trouble> {
        self.get("/api/v1/jobs", &[]).await
    }

    /// One job.
    pub async fn job(&self, id: i64) -> Result<Answer<Job>, Trouble> {
        self.get(&format!("/api/v1/jobs/{id}"), &[]).await
    }

    /// Cancels a job.
    pub async fn cancel_job(&self, id: i64) -> Result<Answer<Job>, Trouble> {
        self.post(&format!("/api/v1/jobs/{id}/cancel"), None::<&()>).await
    }

    /// Takes a failed job up again.
    pub async fn retry_job(&self, id: i64) -> Result<Answer<Job>, Trouble> {
        self.post(&format!("/api/v1/jobs/{id}/retry"), None::<&()>).await
    }

    /// The components.
    pub async fn components(&self) -> Result<Answer<Vec<ComponentView>>, Trouble> {
        self.get("/api/v1/components", &[]).await
    }

    /// Says how fast a process server may send in all.
    pub async fn set_bandwidth(&self, name: &str, wanted: &SetBandwidth) -> Result<Answer<BandwidthEffect>, Trouble> {
        self.put(&format!("/api/v1/components/{name}/bandwidth"), wanted).await
    }

    /// The sites, and what they have.
    pub async fn sites(&self) -> Result<Answer<Vec<SiteView>>, Trouble> {
        self.get("/api/v1/sites", &[]).await
    }

    /// Join tokens and the credentials of hosts.
    pub async fn tokens(&self) -> Result<Answer<Vec<TokenView>>, Trouble> {
        self.get("/api/v1/tokens", &[]).await
    }

    /// Makes a token that lets one host join.
    pub async fn add_token(&self, wanted: &AddToken) -> Result<Answer<AddedToken>, Trouble> {
        self.post("/api/v1/tokens", Some(wanted)).await
    }

    /// Takes a token back.
    pub async fn remove_token(&self, id: i64, reason: Option<&str>) -> Result<(), Trouble> {
        let query: Vec<_> = reason.iter().map(|reason| ("reason", *reason)).collect();
        self.exchange(Method::DELETE, &format!("/api/v1/tokens/{id}"), &query, None::<&()>).await.map(drop)
    }

    /// This host joins; the join token is what this client signs in with.
    pub async fn join(&self, wanted: &Join) -> Result<Answer<Joined>, Trouble> {
        self.post("/api/v1/join", Some(wanted)).await
    }

    /// The machines of the sites.
    pub async fn machines(&self, site: Option<&SiteName>) -> Result<Answer<Vec<MachineView>>, Trouble> {
        let query: Vec<_> = site.iter().map(|site| ("site", site.as_str())).collect();
        self.get("/api/v1/machines", &query).await
    }

    /// The audit log.
    pub async fn audit(&self) -> Result<Answer<Vec<AuditEntry>>, Trouble> {
        self.get("/api/v1/audit", &[]).await
    }

    /// What changes, as it changes.
    pub async fn events(&self) -> Result<Stream, Trouble> {
        let request = self.request(Method::GET, "/api/v1/events").header("accept", "text/event-stream");
        let response = request.send().await.map_err(|why| self.unreached(&why))?;
        Ok(Stream::new(self.checked(response).await?))
    }

    /// The fault of a connection that broke.
    pub fn unreached(&self, why: &reqwest::Error) -> Trouble {
        let fault = Fault::new(fault::UNREACHED, format!("{} was not reached", self.access.server), innermost(why));
        Trouble::new(Ending::Unreached, fault)
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<Answer<T>, Trouble> {
        let document = self.json(Method::GET, path, query, None::<&()>).await?;
        self.shaped(document)
    }

    async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&B>,
    ) -> Result<Answer<T>, Trouble> {
        let document = self.json(Method::POST, path, &[], body).await?;
        self.shaped(document)
    }

    async fn put<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<Answer<T>, Trouble> {
        let document = self.json(Method::PUT, path, &[], Some(body)).await?;
        self.shaped(document)
    }

    fn shaped<T: DeserializeOwned>(&self, document: Value) -> Result<Answer<T>, Trouble> {
        let read = T::deserialize(&document).map_err(|why| self.not_understood(why))?;
        Ok(Answer { read, document })
    }

    async fn json<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&B>,
    ) -> Result<Value, Trouble> {
        let bytes = self.exchange(method, path, query, body).await?;
        serde_json::from_slice(&bytes).map_err(|why| self.not_understood(why))
    }

    async fn exchange<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&B>,
    ) -> Result<Vec<u8>, Trouble> {
        let mut request = self.request(method, path).query(query).timeout(self.time);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|why| self.unreached(&why))?;
        let mut response = self.checked(response).await?;
        self.body(&mut response).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.access.server));
        match &self.access.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Turns a refusal into trouble.
    async fn checked(&self, mut response: Response) -> Result<Response, Trouble> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(&mut response).await.unwrap_or_default();
        let trouble = match serde_json::from_slice::<Fault>(&body) {
            Ok(fault) => Trouble::from_server(status.as_u16(), fault),
            Err(_) if matches!(status.as_u16(), 401 | 403) => {
                let fault =
                    Fault::new(protocol::fault::code::SIGN_IN, "the server wants a valid token", status.to_string());
                Trouble::from_server(status.as_u16(), fault)
            }
            // A gateway that finds nobody behind it; our own server always says why.
            Err(_) if matches!(status.as_u16(), 502..=504) => {
                let message = format!("{} was not reached", self.access.server);
                Trouble::new(Ending::Unreached, Fault::new(fault::UNREACHED, message, status.to_string()))
            }
            Err(_) => self.not_understood(format!("{} answered {status}", response.url().path())),
        };
        Err(trouble)
    }

    async fn body(&self, response: &mut Response) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|why| self.unreached(&why))? {
            if bytes.len().saturating_add(chunk.len()) > MOST_BYTES {
                return Err(self.not_understood(format!("the answer is longer than {MOST_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn not_understood(&self, why: impl ToString) -> Trouble {
        let message = format!("the answer of {} was not understood", self.access.server);
        Trouble::new(Ending::Failed, Fault::new(fault::NOT_UNDERSTOOD, message, why.to_string()))
    }
}

/// The cause at the root: "connection refused" tells more than "error sending request".
fn innermost(why: &reqwest::Error) -> String {
    if why.is_timeout() {
        return "it did not answer in time".into();
    }
    let mut cause: &dyn std::error::Error = why;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
