//! Sign-in: whose token came with a request, and whether that is enough.

use axum::extract::FromRequestParts;
use axum::http::{header, request::Parts};
use control::{Control, Principal};
use protocol::fault::{Fault, code};

use crate::problem::Refusal;

/// The request came with the admin token.
#[derive(Debug)]
pub struct Admin;

/// The request came with the credential of the host of this number, or with the admin token.
#[derive(Debug)]
pub struct Registrar(pub Option<i64>);

/// The request came with this token, whatever it is good for.
#[derive(Debug)]
pub struct Bearer(pub String);

/// The request came with the token of the component of this name.
#[derive(Debug)]
pub struct Component(pub String);

async fn principal(parts: &Parts, control: &Control) -> Result<Principal, Refusal> {
    match control.principal(bearer(parts)?).await? {
        Some(principal) => Ok(principal),
        None => Err(refused("the token is not known")),
    }
}

fn bearer(parts: &Parts) -> Result<&str, Refusal> {
    let token = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token.len() <= 512)
        .map(|(_, token)| token);
    token.ok_or_else(|| refused("there is no bearer token in the Authorization header"))
}

fn refused(cause: &str) -> Refusal {
    Refusal(Fault::new(code::SIGN_IN, "you are not signed in", cause))
}

impl FromRequestParts<Control> for Admin {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Admin, Refusal> {
        match principal(parts, control).await? {
            Principal::Admin => Ok(Admin),
            _ => Err(refused("the token is not an operator's")),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Bearer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Bearer, Refusal> {
        bearer(parts).map(|token| Bearer(token.to_string()))
    }
}

impl FromRequestParts<Control> for Registrar {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Registrar, Refusal> {
        match principal(parts, control).await? {
            Principal::Admin => Ok(Registrar(None)),
            Principal::Host(host) => Ok(Registrar(Some(host))),
            Principal::Component(_) => Err(refused("a component's own token does not register others")),
        }
    }
}

impl FromRequestParts<Control> for Component {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Component, Refusal> {
        match principal(parts, control).await? {
            Principal::Component(name) => Ok(Component(name)),
            _ => Err(refused("only a component exchanges")),
        }
    }
}
