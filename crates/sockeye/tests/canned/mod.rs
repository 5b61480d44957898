//! A server that answers with documents prepared by a test, for the contract of the command line: what is typed, which
//! requests follow from it, what is printed, and the exit code. (What the real server does with those requests is shown by
//! the tests beside this one that start it.)

#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

use crate::typed::{Ran, run};

/// The token that the canned server wants.
pub const TOKEN: &str = "open-sesame";

/// What one route answers, one answer after the other; the last one stays.
type Answers = HashMap<String, Vec<(u16, Value)>>;

#[derive(Default)]
struct Inner {
    answers: Answers,
    seen: Vec<(String, Value)>,
}

/// The server; gone when dropped.
pub struct Canned {
    pub address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Canned {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Canned {
    /// Starts one on a free port of loopback.
    pub async fn start() -> Canned {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let app = Router::new().fallback(answer).with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Canned { address, inner, task }
    }

    /// From now on `route` (`GET /api/v1/items`) answers so, after what was prepared for it before.
    pub fn on(&self, route: &str, status: u16, document: Value) -> &Canned {
        self.inner.lock().unwrap().answers.entry(route.into()).or_default().push((status, document));
        self
    }

    /// The bodies that were posted to `route`.
    pub fn posted(&self, route: &str) -> Vec<Value> {
        let inner = self.inner.lock().unwrap();
        inner.seen.iter().filter(|(seen, _)| seen == route).map(|(_, body)| body.clone()).collect()
    }

    /// Runs the command line against this server, signed in, without a terminal.
    pub async fn run(&self, line: &str) -> Ran {
        run(line, &[("SOCKEYE_SERVER", &format!("http://{}", self.address)), ("SOCKEYE_TOKEN", TOKEN)], "").await
    }
}

async fn answer(
    State(inner): State<Arc<Mutex<Inner>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, axum::Json<Value>) {
    let route = format!("{method} {}", uri.path());
    let signed_in = headers.get("authorization").is_some_and(|given| given == &format!("Bearer {TOKEN}"));
    if route == "GET /healthz" {
        return (StatusCode::OK, axum::Json(json!("ok")));
    }
    if !signed_in {
        return (StatusCode::UNAUTHORIZED, axum::Json(problem("CTL-014")));
    }
    let mut inner = inner.lock().unwrap();
    inner.seen.push((route.clone(), serde_json::from_slice(&body).unwrap_or(Value::Null)));
    let (status, document) = match inner.answers.get_mut(&route) {
        Some(prepared) if prepared.len() > 1 => prepared.remove(0),
        Some(prepared) => prepared[0].clone(),
        None => (404, problem("CTL-001")),
    };
    (StatusCode::from_u16(status).unwrap(), axum::Json(document))
}

/// A problem+json with this code.
pub fn problem(code: &str) -> Value {
    json!({"title": "no", "status": 409, "code": code, "message": "it does not go", "cause": "the facts", "remedy": "do this"})
}
