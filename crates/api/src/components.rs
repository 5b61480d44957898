//! The routes of hosts and components: join once, register once, then exchange for ever.

use axum::Json;
use axum::extract::{Path, State};
use control::Control;
use protocol::fault::{Fault, code};
use protocol::order::{ExchangeReply, ExchangeRequest};
use protocol::rest::{Register, Registered};
use protocol::token::{Join, Joined};

use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::{Bearer, Component, Registrar};

/// Lets a host in that has a join token; the secret that it made is its credential from then on. Asking again with the same
/// secret is answered as the first time, whatever became of the token.
#[utoipa::path(post, path = "/api/v1/join", tag = "components", security(("token" = [])),
    request_body = Join,
    responses((status = 200, body = Joined), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn join(
    Bearer(token): Bearer,
    State(control): State<Control>,
    Body(join): Body<Join>,
) -> Result<Json<Joined>, Refusal> {
    Ok(Json(control.join(&token, join).await?))
}

/// Registers a component and gives it its own token and certificate.
#[utoipa::path(post, path = "/api/v1/components/register", tag = "components", security(("token" = [])),
    request_body = Register,
    responses((status = 200, body = Registered), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn register(
    Registrar(host): Registrar,
    State(control): State<Control>,
    Body(register): Body<Register>,
) -> Result<Json<Registered>, Refusal> {
    Ok(Json(match host {
        Some(host) => control.register_of(host, register).await?,
        None => control.register(register).await?,
    }))
}

/// Tells how a component is and gets what is to be done; held open for a while when there is nothing.
#[utoipa::path(post, path = "/api/v1/components/{name}/exchange", tag = "components", security(("token" = [])),
    params(("name" = String, Path, description = "The component's name")),
    request_body(content = serde_json::Value, description = "An ExchangeRequest (see protocol::order)"),
    responses((status = 200, body = serde_json::Value, description = "An ExchangeReply (see protocol::order)"),
              (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn exchange(
    Component(owner): Component,
    State(control): State<Control>,
    Of(Path(name)): Of<Path<String>>,
    Body(request): Body<ExchangeRequest>,
) -> Result<Json<ExchangeReply>, Refusal> {
    if owner != name {
        return Err(
            Fault::new(code::SIGN_IN, "the token is another component's", format!("it belongs to {owner}")).into()
        );
    }
    Ok(Json(control.exchange(&name, request).await?))
}
