//! Server-sent events: first everything as it is, then whatever changes.
//!
//! A client that reconnects therefore misses nothing that still matters, without the server keeping a history. One that is
//! too slow is told `missed` and given everything again.

use std::convert::Infallible;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use control::Control;
use futures::Stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use crate::problem::{Problem, Refusal};
use crate::sign_in::Admin;

struct Listening {
    control: Control,
    changes: Receiver<control::Event>,
    ready: std::collections::VecDeque<control::Event>,
    number: u64,
}

/// Events named `item` (an ItemView) and `job` (a Job).
#[utoipa::path(get, path = "/api/v1/events", tag = "server", security(("token" = [])),
    responses((status = 200, content_type = "text/event-stream", body = String),
              (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn events(
    _: Admin,
    State(control): State<Control>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    // Listening begins before the snapshot is taken, so that no change falls between.
    let changes = control.events();
    let ready = snapshot(&control).await.into();
    let listening = Listening { control, changes, ready, number: 0 };
    let stream = futures::stream::unfold(listening, next);
    Ok(Sse::new(stream).keep_alive(KeepAlive::default()))
}

async fn snapshot(control: &Control) -> Vec<control::Event> {
    let items = control.items().await.unwrap_or_default().into_iter().map(|item| control::Event::Item(Box::new(item)));
    let jobs = control.jobs().await.unwrap_or_default().into_iter().filter(|job| !job.state.ended());
    items.chain(jobs.map(|job| control::Event::Job(Box::new(job)))).collect()
}

async fn next(mut listening: Listening) -> Option<(Result<Event, Infallible>, Listening)> {
    listening.number += 1;
    let number = listening.number.to_string();
    if let Some(ready) = listening.ready.pop_front() {
        return Some((Ok(written(&ready, &number)), listening));
    }
    let stopped = listening.control.clone();
    let change = tokio::select! {
        change = listening.changes.recv() => change,
        () = stopped.until_stopped() => return None,
    };
    match change {
        Ok(change) => Some((Ok(written(&change, &number)), listening)),
        Err(RecvError::Lagged(_)) => {
            listening.ready = snapshot(&listening.control).await.into();
            Some((Ok(Event::default().event("missed").id(number).data("{}")), listening))
        }
        Err(RecvError::Closed) => None,
    }
}

fn written(change: &control::Event, number: &str) -> Event {
    let (name, text) = match change {
        control::Event::Job(job) => ("job", serde_json::to_string(job)),
        control::Event::Item(item) => ("item", serde_json::to_string(item)),
    };
    Event::default().event(name).id(number).data(text.unwrap_or_else(|_| "{}".into()))
}
