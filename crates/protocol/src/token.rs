//! Tokens that let a host join once, and the credentials that hosts then have, as the REST contract shows them.
//!
//! ```text
//!   operator ── AddToken ──► join token ── by hand ──► host: makes a secret
//!                                                        │ Join { secret } with the token
//!                                                        ▼
//!                                     the secret is the host's credential: its components register with it
//! ```
//! The host makes the secret, keeps it and only then asks, so an answer that is lost costs nothing: the same question is
//! answered as the first one was.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::SiteName;

/// Characters of a host's secret: 256 bits in hexadecimal.
pub const SECRET_CHARS: usize = 64;

/// Asks for a token that lets one host join once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddToken {
    /// The only site that it is good for; none for any.
    pub site: Option<SiteName>,
    /// For how many ms it is good.
    pub lasts_ms: u64,
    /// For the audit log.
    pub reason: Option<String>,
}

/// A token that was made. This is the only time that it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddedToken {
    /// Its number.
    pub id: i64,
    /// The token.
    pub token: String,
    /// The only site that it is good for.
    pub site: Option<SiteName>,
    /// Until when, ms since 1970.
    pub expires_at_ms: i64,
}

/// A join token or a host's credential, without what it is a secret of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its number.
    pub id: i64,
    /// Which of the two.
    pub kind: TokenKind,
    /// The site that it is good for; none for a join token for any.
    pub site: Option<SiteName>,
    /// The host that has it, or that used it up.
    pub host: Option<String>,
    /// When it was made, ms since 1970.
    pub made_at_ms: i64,
    /// Until when it can be used; a credential is good until it is removed.
    pub expires_at_ms: Option<i64>,
    /// When a host joined with it.
    pub used_at_ms: Option<i64>,
    /// The components that registered with it.
    pub components: Vec<String>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// Lets one host join, once.
    Join,
    /// A host's own: its components register with it.
    Host,
}

/// A host joins; the join token is in the `Authorization` header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Join {
    /// What the host will prove itself with from now on: [`SECRET_CHARS`] hexadecimal digits that it made.
    pub secret: String,
    /// Its site.
    pub site: SiteName,
    /// What people call the host.
    pub host: String,
    /// The names of the components that it will have.
    pub components: Vec<String>,
}

/// The host has joined, now or before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Joined {
    /// The number of its credential.
    pub id: i64,
    /// Its site.
    pub site: SiteName,
    /// Those of its components that are connected.
    pub connected: Vec<String>,
}
