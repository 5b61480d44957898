//! Problems: every error of the API in one shape (RFC 9457, with the members of a fault).

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderValue, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use protocol::fault::{Fault, code};
use serde::Serialize;
use utoipa::ToSchema;

/// An error as it is sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The code's meaning in one sentence.
    title: String,
    /// The HTTP status.
    status: u16,
    /// The fault.
    #[serde(flatten)]
    fault: Fault,
}

/// A fault on its way out.
#[derive(Debug)]
pub struct Refusal(pub Fault);

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal(fault)
    }
}

fn status(fault: &Fault) -> StatusCode {
    let is = |entries: &[&protocol::fault::Entry]| entries.iter().any(|entry| fault.is(entry));
    if is(&[
        code::UNKNOWN_ITEM,
        code::UNKNOWN_JOB,
        code::UNKNOWN_POINT,
        code::UNKNOWN_SITE,
        code::UNKNOWN_VM,
        code::UNKNOWN_POLICY,
        code::UNKNOWN_TOKEN,
    ]) {
        StatusCode::NOT_FOUND
    } else if is(&[code::BAD_REQUEST]) {
        StatusCode::BAD_REQUEST
    } else if is(&[code::SIGN_IN]) {
        StatusCode::UNAUTHORIZED
    } else if is(&[code::INTERNAL]) {
        StatusCode::INTERNAL_SERVER_ERROR
    } else if is(&[code::ORDER_TIMED_OUT]) {
        StatusCode::GATEWAY_TIMEOUT
    } else {
        // A check or a stage refused; nothing was changed.
        StatusCode::CONFLICT
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = status(&self.0);
        respond(status, self.0)
    }
}

fn respond(status: StatusCode, fault: Fault) -> Response {
    let title = protocol::fault::explain(&fault.code).map_or_else(|| fault.message.clone(), |entry| entry.title.into());
    let problem = Problem { title, status: status.as_u16(), fault };
    let mut response = (status, axum::Json(problem)).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The answer to a path that does not exist.
pub async fn no_such_route() -> Response {
    let fault = Fault::new(code::BAD_REQUEST, "there is no such path", "the API is described at /api/v1/openapi.json");
    respond(StatusCode::NOT_FOUND, fault)
}

/// The answer to a method that a path does not have.
pub async fn no_such_method() -> Response {
    let fault =
        Fault::new(code::BAD_REQUEST, "the path has no such method", "the API is described at /api/v1/openapi.json");
    respond(StatusCode::METHOD_NOT_ALLOWED, fault)
}

/// A JSON body; what cannot be read is answered as a problem.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Response> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(body)) => Ok(Body(body)),
            Err(rejection) => Err(unreadable(&rejection)),
        }
    }
}

fn unreadable(rejection: &JsonRejection) -> Response {
    let fault = Fault::new(code::BAD_REQUEST, "the request's body cannot be used", rejection.body_text());
    respond(rejection.status(), fault)
}

/// A path's parameter or a query; what cannot be read is answered as a problem.
#[derive(Debug)]
pub struct Of<T>(pub T);

impl<T: serde::de::DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Of<axum::extract::Path<T>> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        axum::extract::Path::<T>::from_request_parts(parts, state).await.map(Of).map_err(|rejection| {
            let fault = Fault::new(code::BAD_REQUEST, "the path cannot be understood", rejection.body_text());
            respond(rejection.status(), fault)
        })
    }
}

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Of<axum::extract::Query<T>> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        axum::extract::Query::<T>::from_request_parts(parts, state).await.map(Of).map_err(|rejection| {
            let fault = Fault::new(code::BAD_REQUEST, "the query cannot be understood", rejection.body_text());
            respond(rejection.status(), fault)
        })
    }
}
