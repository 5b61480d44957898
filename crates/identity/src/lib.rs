//! Who is who on the wire: one authority per system, a certificate for each component, and TLS 1.3 made of both.
//!
//! ```text
//!   component: a fresh key ─► Request ─── registration ───► control: Authority::certify
//!                  │                                                │
//!                  └──────────► Identity ◄── certificate, authority ┘
//!                                  ├─ client(): dials, and wants the peer that it was told of
//!                                  └─ server(): answers whoever the same authority certified
//! ```
//!
//! # Always true
//! - A key never leaves the process that made it, but for its own file (mode 0600).
//! - Nothing is taken over from a request but its public key.
//! - Both ends of a connection prove themselves, each time anew, with TLS 1.3 and nothing older.
//! # If the process dies
//! - an identity is read from its file again, so that movers find each other while control cannot be reached.

mod authority;
mod keeping;
mod tls;

pub use authority::{Authority, Certified, Request};
pub use keeping::Credentials;
pub use tls::{Identity, is_named, server_name};

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key or certificate could not be made.
    #[error("a certificate cannot be made")]
    Make(#[from] rcgen::Error),
    /// What should be a key or certificate is none.
    #[error("{what} cannot be read as PEM: {why}")]
    Pem {
        /// What was to be read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Key, certificate and authority do not fit together.
    #[error("key, certificate and authority do not fit together")]
    Tls(#[from] rustls::Error),
    /// The authority's certificate cannot be used to verify others.
    #[error("the authority cannot be used to verify others")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The file cannot be read or written.
    #[error("the identity's file {path} cannot be used")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}
