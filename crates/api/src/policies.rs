//! The policies' routes.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use control::Control;
use protocol::Fault;
use protocol::fault::code;
use protocol::id::{ItemId, PolicyName};
use protocol::keeping::{ApplyPolicy, Policy, PolicyEffect, SetPolicy};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::Admin;

/// All policies.
#[utoipa::path(get, path = "/api/v1/policies", tag = "policies", security(("token" = [])),
    responses((status = 200, body = [Policy]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn list(_: Admin, State(control): State<Control>) -> Result<Json<Vec<Policy>>, Refusal> {
    Ok(Json(control.policies().await?))
}

/// Makes a policy, or changes it for all items that have it. With `preview` it only tells what that would do.
#[utoipa::path(put, path = "/api/v1/policies/{name}", tag = "policies", params(("name" = PolicyName, Path)),
    request_body = SetPolicy, security(("token" = [])),
    responses((status = 200, body = PolicyEffect), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn set(
    _: Admin,
    State(control): State<Control>,
    Of(Path(name)): Of<Path<PolicyName>>,
    Body(wanted): Body<SetPolicy>,
) -> Result<Json<PolicyEffect>, Refusal> {
    if wanted.policy.name != name {
        let cause = format!("the path says {name}, the body {}", wanted.policy.name);
        return Err(Fault::new(code::BAD_REQUEST, "two names were given for one policy", cause).into());
    }
    Ok(Json(control.set_policy(wanted).await?))
}

/// For the audit log.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Why {
    /// Why, as the user gave it.
    pub(crate) reason: Option<String>,
}

/// Removes a policy that no item has.
#[utoipa::path(delete, path = "/api/v1/policies/{name}", tag = "policies", params(("name" = PolicyName, Path), Why), security(("token" = [])),
    responses((status = 204), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn remove(
    _: Admin,
    State(control): State<Control>,
    Of(Path(name)): Of<Path<PolicyName>>,
    Of(Query(why)): Of<Query<Why>>,
) -> Result<StatusCode, Refusal> {
    control.remove_policy(&name, why.reason.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives an item another policy. With `preview` it only tells what that would do.
#[utoipa::path(put, path = "/api/v1/items/{item}/policy", tag = "policies", params(("item" = ItemId, Path)),
    request_body = ApplyPolicy, security(("token" = [])),
    responses((status = 200, body = PolicyEffect), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn apply(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
    Body(wanted): Body<ApplyPolicy>,
) -> Result<Json<PolicyEffect>, Refusal> {
    Ok(Json(control.apply_policy(&item, wanted).await?))
}
