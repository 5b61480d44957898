//! The routes of sites, components, machines and the audit log.

use axum::Json;
use axum::extract::{Path, Query, State};
use control::Control;
use protocol::id::SiteName;
use protocol::rest::{AuditEntry, BandwidthEffect, ComponentView, MachineView, SetBandwidth, SiteView};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::Admin;

/// Which site.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Where {
    /// Only this one.
    site: Option<SiteName>,
}

/// Whether the server is up.
#[utoipa::path(get, path = "/healthz", tag = "server", responses((status = 200, body = String)))]
pub async fn healthz() -> &'static str {
    "ok"
}

/// Every site that has a component, with its networks and storage pools.
#[utoipa::path(get, path = "/api/v1/sites", tag = "fleet", security(("token" = [])),
    responses((status = 200, body = [SiteView]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn sites(_: Admin, State(control): State<Control>) -> Json<Vec<SiteView>> {
    Json(control.sites())
}

/// All components.
#[utoipa::path(get, path = "/api/v1/components", tag = "fleet", security(("token" = [])),
    responses((status = 200, body = [ComponentView]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn components(_: Admin, State(control): State<Control>) -> Json<Vec<ComponentView>> {
    Json(control.components())
}

/// Says how fast a process server may send in all. With `preview` it only tells what that would mean.
#[utoipa::path(put, path = "/api/v1/components/{name}/bandwidth", tag = "fleet", params(("name" = String, Path)),
    request_body = SetBandwidth, security(("token" = [])),
    responses((status = 200, body = BandwidthEffect), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn bandwidth(
    _: Admin,
    State(control): State<Control>,
    Of(Path(name)): Of<Path<String>>,
    Body(wanted): Body<SetBandwidth>,
) -> Result<Json<BandwidthEffect>, Refusal> {
    Ok(Json(control.set_bandwidth(&name, wanted).await?))
}

/// The machines that the sites have.
#[utoipa::path(get, path = "/api/v1/machines", tag = "fleet", params(Where), security(("token" = [])),
    responses((status = 200, body = [MachineView]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn machines(
    _: Admin,
    State(control): State<Control>,
    Of(Query(place)): Of<Query<Where>>,
) -> Result<Json<Vec<MachineView>>, Refusal> {
    Ok(Json(control.machines(place.site.as_ref()).await?))
}

/// What was done, by whose wish and why, oldest first.
#[utoipa::path(get, path = "/api/v1/audit", tag = "server", security(("token" = [])),
    responses((status = 200, body = [AuditEntry]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn audit(_: Admin, State(control): State<Control>) -> Result<Json<Vec<AuditEntry>>, Refusal> {
    Ok(Json(control.audit().await?))
}
