//! The only door: REST under `/api/v1`, OpenAPI, bearer tokens, server-sent events.
//!
//! ```text
//!   CLI, portal ── admin token ────────► items, plans, jobs, sites, tokens, events ──┐
//!   host ───────── join token ─────────► join                                       │
//!   component ──── host's credential ──► register                                   ├──► control
//!   component ──── its own token ──────► exchange                                  ──┘
//! ```
//!
//! # Always true
//! - Whatever needs a token looks at it before the body is read; bodies are bounded.
//! - Every error is `application/problem+json` with a code, a message, a cause and a remedy.

mod components;
mod events;
mod fleet;
mod items;
mod jobs;
mod metrics;
mod policies;
mod problem;
mod sign_in;
mod tokens;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use control::Control;
use tokio::net::TcpListener;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// A request's body may have this many bytes; a component's exchange carries change maps and may have more.
const BODY_LIMIT: usize = 1 << 20;
/// See [`BODY_LIMIT`].
const EXCHANGE_LIMIT: usize = 64 << 20;

/// Serves `control` on `listener` until the control server stops.
pub async fn serve(control: Control, listener: TcpListener) -> std::io::Result<()> {
    let until = control.clone();
    axum::serve(listener, router(control)).with_graceful_shutdown(async move { until.until_stopped().await }).await
}

/// The routes alone, for whoever serves them in another way.
pub fn router(control: Control) -> Router {
    let (routes, document) = described().split_for_parts();
    let document = std::sync::Arc::new(document);
    routes
        .route("/api/v1/openapi.json", get(move || async move { axum::Json(document.as_ref().clone()) }))
        .fallback(problem::no_such_route)
        .method_not_allowed_fallback(problem::no_such_method)
        .with_state(control)
}

/// The OpenAPI document, as it is committed at `docs/openapi.json`.
pub fn openapi() -> OpenApi {
    described().split_for_parts().1
}

fn described() -> OpenApiRouter<Control> {
    let info = InfoBuilder::new()
        .title("Sockeye")
        .version("v1")
        .description(Some("Replicates virtual machines between sites, fails them over, and brings them home."))
        .build();
    let mut document = OpenApiBuilder::new().info(info).build();
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_default().security_schemes.insert("token".into(), bearer.into());
    let exchange =
        OpenApiRouter::new().routes(routes!(components::exchange)).layer(DefaultBodyLimit::max(EXCHANGE_LIMIT));
    OpenApiRouter::with_openapi(document)
        .routes(routes!(fleet::healthz))
        .routes(routes!(metrics::metrics))
        .routes(routes!(items::status))
        .routes(routes!(items::list))
        .routes(routes!(items::show))
        .routes(routes!(items::points, items::add_point))
        .routes(routes!(items::pin))
        .routes(routes!(items::difference))
        .routes(routes!(items::explain))
        .routes(routes!(items::quote))
        .routes(routes!(items::network, items::set_network))
        .routes(routes!(items::apply_network))
        .routes(routes!(policies::list))
        .routes(routes!(policies::set, policies::remove))
        .routes(routes!(policies::apply))
        .routes(routes!(jobs::plan))
        .routes(routes!(jobs::list, jobs::start))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(fleet::sites))
        .routes(routes!(fleet::components))
        .routes(routes!(fleet::bandwidth))
        .routes(routes!(fleet::machines))
        .routes(routes!(fleet::audit))
        .routes(routes!(events::events))
        .routes(routes!(tokens::list, tokens::add))
        .routes(routes!(tokens::remove))
        .routes(routes!(components::join))
        .routes(routes!(components::register))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .merge(exchange)
}
