//! The items' routes.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use control::Control;
use protocol::difference::{Difference, Pair};
use protocol::epoch::Point;
use protocol::guest::{GuestTold, ItemNetwork, SetItemNetwork};
use protocol::id::{Attempt, ItemId, SiteName};
use protocol::keeping::{AddPoint, KeptPoint, PinPoint};
use protocol::quote::Quoted;
use protocol::rest::{Explanation, ItemView};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::problem::{Body, Of, Problem, Refusal};
use crate::sign_in::Admin;

/// Which items.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// Only this one.
    item: Option<ItemId>,
}

/// How items stand.
#[utoipa::path(get, path = "/api/v1/status", tag = "items", params(Which), security(("token" = [])),
    responses((status = 200, body = [ItemView]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn status(
    _: Admin,
    State(control): State<Control>,
    Of(Query(which)): Of<Query<Which>>,
) -> Result<Json<Vec<ItemView>>, Refusal> {
    match which.item {
        Some(item) => Ok(Json(vec![control.item(&item).await?])),
        None => Ok(Json(control.items().await?)),
    }
}

/// All items.
#[utoipa::path(get, path = "/api/v1/items", tag = "items", security(("token" = [])),
    responses((status = 200, body = [ItemView]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn list(_: Admin, State(control): State<Control>) -> Result<Json<Vec<ItemView>>, Refusal> {
    Ok(Json(control.items().await?))
}

/// One item.
#[utoipa::path(get, path = "/api/v1/items/{item}", tag = "items", params(("item" = ItemId, Path)), security(("token" = [])),
    responses((status = 200, body = ItemView), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn show(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
) -> Result<Json<ItemView>, Refusal> {
    Ok(Json(control.item(&item).await?))
}

/// Whose points.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct At {
    /// The site that keeps them; if none is given, the one that receives, or before a move is committed the one where
    /// the machine runs.
    site: Option<SiteName>,
}

/// Which two points.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Two {
    /// One point.
    from: Attempt,
    /// The other.
    to: Attempt,
    /// The site that keeps them; if none is given, the one that receives, or before a move is committed the one where
    /// the machine runs.
    site: Option<SiteName>,
}

/// The recovery points that are kept for an item, oldest first.
#[utoipa::path(get, path = "/api/v1/items/{item}/points", tag = "items", params(("item" = ItemId, Path), At), security(("token" = [])),
    responses((status = 200, body = [KeptPoint]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn points(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
    Of(Query(at)): Of<Query<At>>,
) -> Result<Json<Vec<KeptPoint>>, Refusal> {
    Ok(Json(control.points(&item, at.site.as_ref()).await?))
}

/// Has a recovery point taken now, where the item is replicated to, and pins it.
#[utoipa::path(post, path = "/api/v1/items/{item}/points", tag = "items", params(("item" = ItemId, Path)),
    request_body = AddPoint, security(("token" = [])),
    responses((status = 200, body = Point), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn add_point(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
    Body(wanted): Body<AddPoint>,
) -> Result<Json<Point>, Refusal> {
    Ok(Json(control.add_point(&item, wanted).await?))
}

/// Pins a recovery point, so that retention never takes it, or takes its pin away.
#[utoipa::path(put, path = "/api/v1/items/{item}/points/{point}/pin", tag = "items",
    params(("item" = ItemId, Path), ("point" = Attempt, Path), At), request_body = PinPoint, security(("token" = [])),
    responses((status = 204), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn pin(
    _: Admin,
    State(control): State<Control>,
    Of(Path((item, point))): Of<Path<(ItemId, Attempt)>>,
    Of(Query(at)): Of<Query<At>>,
    Body(wanted): Body<PinPoint>,
) -> Result<StatusCode, Refusal> {
    control.pin(&item, point, wanted, at.site.as_ref()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What two recovery points of an item differ in, exactly: both are read where they may differ.
#[utoipa::path(get, path = "/api/v1/items/{item}/points/difference", tag = "items", params(("item" = ItemId, Path), Two), security(("token" = [])),
    responses((status = 200, body = Difference), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn difference(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
    Of(Query(two)): Of<Query<Two>>,
) -> Result<Json<Difference>, Refusal> {
    let points = Pair { from: two.from, to: two.to };
    Ok(Json(control.difference(&item, points, two.site.as_ref()).await?))
}

/// What is allowed on an item, and why not the rest.
#[utoipa::path(get, path = "/api/v1/items/{item}/explain", tag = "items", params(("item" = ItemId, Path)), security(("token" = [])),
    responses((status = 200, body = Explanation), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn explain(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
) -> Result<Json<Explanation>, Refusal> {
    Ok(Json(control.explain(&item).await?))
}

/// What the movements would cost that can be begun with an item now, or the one that is under way.
#[utoipa::path(get, path = "/api/v1/items/{item}/quote", tag = "items", params(("item" = ItemId, Path)), security(("token" = [])),
    responses((status = 200, body = [Quoted]), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn quote(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
) -> Result<Json<Vec<Quoted>>, Refusal> {
    Ok(Json(control.quotes(&item).await?))
}

/// The addresses of an item's guest: what is given for each place, what it had at home, and what it has now.
#[utoipa::path(get, path = "/api/v1/items/{item}/network", tag = "items", params(("item" = ItemId, Path)), security(("token" = [])),
    responses((status = 200, body = ItemNetwork), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn network(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
) -> Result<Json<ItemNetwork>, Refusal> {
    Ok(Json(control.item_network(&item).await?))
}

/// Says which addresses an item's guest shall have, at all places, from the next move on.
#[utoipa::path(put, path = "/api/v1/items/{item}/network", tag = "items", params(("item" = ItemId, Path)),
    request_body = SetItemNetwork, security(("token" = [])),
    responses((status = 200, body = ItemNetwork), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn set_network(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
    Body(wanted): Body<SetItemNetwork>,
) -> Result<Json<ItemNetwork>, Refusal> {
    Ok(Json(control.set_item_network(&item, wanted).await?))
}

/// Gives the guest the addresses that it is to have where its machine runs, now. Done already: nothing changes.
#[utoipa::path(post, path = "/api/v1/items/{item}/network/apply", tag = "items", params(("item" = ItemId, Path)), security(("token" = [])),
    responses((status = 200, body = GuestTold), (status = "4XX", body = Problem, content_type = "application/problem+json")))]
pub async fn apply_network(
    _: Admin,
    State(control): State<Control>,
    Of(Path(item)): Of<Path<ItemId>>,
) -> Result<Json<GuestTold>, Refusal> {
    Ok(Json(control.apply_item_network(&item).await?))
}
