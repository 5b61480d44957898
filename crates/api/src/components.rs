//! The components' routes: register once, then exchange for ever.

use axum::Json;
use axum::extract::{Path, State};
use control::Control;
use protocol::fault::{Fault, code};
use protocol::order::{ExchangeReply, ExchangeRequest};
use protocol::rest::{Register, Registered};

use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::{Component, Join};

/// Registers a component and gives it its own token and certificate.
#[utoipa::path(post, path = "/api/v1/components/register", tag = "components", security(("token" = [])),
    request_body = Register,
    responses((status = 200, body = Registered), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn register(
    _: Join,
    State(control): State<Control>,
    Body(register): Body<Register>,
) -> Result<Json<Registered>, Refusal> {
    Ok(Json(control.register(register).await?))
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
