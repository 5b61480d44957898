//! The routes of plans and jobs.

use axum::Json;
use axum::extract::{Path, State};
use control::Control;
use protocol::rest::{Job, Plan, Request, Start};

use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::Admin;

/// Shows what an operation would do; changes nothing.
#[utoipa::path(post, path = "/api/v1/plans", tag = "jobs", request_body = Request, security(("token" = [])),
    responses((status = 200, body = Plan), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn plan(
    _: Admin,
    State(control): State<Control>,
    Body(request): Body<Request>,
) -> Result<Json<Plan>, Refusal> {
    Ok(Json(control.plan(request).await?))
}

/// Starts what a plan showed.
#[utoipa::path(post, path = "/api/v1/jobs", tag = "jobs", request_body = Start, security(("token" = [])),
    responses((status = 200, body = Job), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn start(_: Admin, State(control): State<Control>, Body(start): Body<Start>) -> Result<Json<Job>, Refusal> {
    Ok(Json(control.start(start).await?))
}

/// The newest jobs, oldest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", security(("token" = [])),
    responses((status = 200, body = [Job]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn list(_: Admin, State(control): State<Control>) -> Result<Json<Vec<Job>>, Refusal> {
    Ok(Json(control.jobs().await?))
}

/// One job.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = i64, Path)), security(("token" = [])),
    responses((status = 200, body = Job), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn show(_: Admin, State(control): State<Control>, Of(Path(id)): Of<Path<i64>>) -> Result<Json<Job>, Refusal> {
    Ok(Json(control.job(id).await?))
}

/// Cancels a job: what it did is undone.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = i64, Path)), security(("token" = [])),
    responses((status = 200, body = Job), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn cancel(
    _: Admin,
    State(control): State<Control>,
    Of(Path(id)): Of<Path<i64>>,
) -> Result<Json<Job>, Refusal> {
    Ok(Json(control.cancel_job(id).await?))
}

/// Does what a failed or cancelled job was to do once more, as a new job.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/retry", tag = "jobs", params(("id" = i64, Path)), security(("token" = [])),
    responses((status = 200, body = Job), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn retry(
    _: Admin,
    State(control): State<Control>,
    Of(Path(id)): Of<Path<i64>>,
) -> Result<Json<Job>, Refusal> {
    Ok(Json(control.retry_job(id).await?))
}
