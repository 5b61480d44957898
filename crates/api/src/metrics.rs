//! Metrics in the text form that Prometheus reads: what an alarm needs, for whoever holds the admin token.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use control::Control;
use protocol::rest::Health;

use crate::problem::{Problem, Refusal};
use crate::sign_in::Admin;

/// Recovery point objective as it is lived, health, and which components are connected.
#[utoipa::path(get, path = "/metrics", tag = "server", security(("token" = [])),
    responses((status = 200, body = String), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn metrics(_: Admin, State(control): State<Control>) -> Result<impl IntoResponse, Refusal> {
    let mut text = String::new();
    let items = control.items().await?;
    let gauge = |text: &mut String, name: &str| {
        let _ = writeln!(text, "# TYPE {name} gauge");
    };
    gauge(&mut text, "sockeye_item_rpo_seconds");
    for item in &items {
        if let Some(rpo_ms) = item.rpo_ms {
            let _ = writeln!(text, "sockeye_item_rpo_seconds{{item=\"{}\"}} {}", item.item, rpo_ms as f64 / 1000.0);
        }
    }
    gauge(&mut text, "sockeye_item_health");
    for item in &items {
        let health = match item.health {
            Health::Ok => 0,
            Health::Warning => 1,
            Health::Critical => 2,
        };
        let _ = writeln!(text, "sockeye_item_health{{item=\"{}\"}} {health}", item.item);
    }
    gauge(&mut text, "sockeye_item_protected");
    for item in &items {
        let protected = u8::from(item.stage.is_protected());
        let _ = writeln!(text, "sockeye_item_protected{{item=\"{}\"}} {protected}", item.item);
    }
    gauge(&mut text, "sockeye_component_connected");
    for component in control.components() {
        let name = component.name.replace(['"', '\\', '\n'], "_");
        let _ = writeln!(text, "sockeye_component_connected{{component=\"{name}\"}} {}", u8::from(component.connected));
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}
