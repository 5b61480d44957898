//! Sign-in: whose token came with a request, and whether that is enough.

use axum::extract::FromRequestParts;
use axum::http::{header, request::Parts};
use control::{Control, Principal};
use protocol::fault::{Fault, code};

use crate::problem::Refusal;

/// The request came with the admin token.
#[derive(Debug)]
pub struct Admin;

/// The request came with the join token (or the admin token).
#[derive(Debug)]
pub struct Join;

/// The request came with the token of the component of this name.
#[derive(Debug)]
pub struct Component(pub String);

async fn principal(parts: &Parts, control: &Control) -> Result<Principal, Refusal> {
    let token = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token.len() <= 512)
        .map(|(_, token)| token);
    let Some(token) = token else { return Err(refused("there is no bearer token in the Authorization header")) };
    match control.principal(token).await? {
        Some(principal) => Ok(principal),
        None => Err(refused("the token is not known")),
    }
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

impl FromRequestParts<Control> for Join {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Join, Refusal> {
        match principal(parts, control).await? {
            Principal::Admin | Principal::Join => Ok(Join),
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
