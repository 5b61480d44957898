//! The routes of join tokens and of hosts' credentials.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use control::Control;
use protocol::token::{AddToken, AddedToken, TokenView};

use crate::policies::Why;
use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::Admin;

/// Join tokens and the credentials of hosts, oldest first.
#[utoipa::path(get, path = "/api/v1/tokens", tag = "tokens", security(("token" = [])),
    responses((status = 200, body = [TokenView]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn list(_: Admin, State(control): State<Control>) -> Result<Json<Vec<TokenView>>, Refusal> {
    Ok(Json(control.tokens().await?))
}

/// Makes a token that lets one host join, once.
#[utoipa::path(post, path = "/api/v1/tokens", tag = "tokens", request_body = AddToken, security(("token" = [])),
    responses((status = 200, body = AddedToken), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn add(
    _: Admin,
    State(control): State<Control>,
    Body(wanted): Body<AddToken>,
) -> Result<Json<AddedToken>, Refusal> {
    Ok(Json(control.add_token(wanted).await?))
}

/// Takes a token back. When it is a host's credential, its components can neither register nor exchange any more.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", tag = "tokens", params(("id" = i64, Path), Why), security(("token" = [])),
    responses((status = 204), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn remove(
    _: Admin,
    State(control): State<Control>,
    Of(Path(id)): Of<Path<i64>>,
    Of(Query(why)): Of<Query<Why>>,
) -> Result<StatusCode, Refusal> {
    control.remove_token(id, why.reason.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT)
}
