//! An identity as TLS wants it.

use std::fmt::Write;
use std::sync::Arc;

use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::IdentityError;

/// Key, certificate and authority of one component.
#[derive(Clone)]
pub struct Identity {
    pem: String,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// The identity of a key, its certificate and the authority's certificate, in this order.
    ///
    /// # Errors
    /// They are not that, or do not fit together.
    pub fn from_pem(text: &str) -> Result<Identity, IdentityError> {
        let bad = |why: rustls::pki_types::pem::Error| IdentityError::Pem { what: "a key", why: why.to_string() };
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(bad)?;
        let [own, authority] = &certificates(text)?[..] else {
            return Err(IdentityError::Pem { what: "an identity", why: "it has not exactly two certificates".into() });
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let roots = Arc::new(roots);
        let chain = vec![own.clone()];

        let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.resumption = Resumption::disabled();

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build()?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Identity { pem: text.to_string(), client: Arc::new(client), server: Arc::new(server) })
    }

    /// For the end that dials.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// For the end that is dialled.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }
}

/// The certificates in a text, in order.
pub(crate) fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    all.map_err(|why| IdentityError::Pem { what: "a certificate", why: why.to_string() })
}

/// Whether a certificate that was believed is `name`'s.
pub fn is_named(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let (Ok(parsed), Ok(wanted)) = (ParsedCertificate::try_from(certificate), ServerName::try_from(server_name(name)))
    else {
        return false;
    };
    verify_server_name(&parsed, &wanted).is_ok()
}

/// The name by which a component's certificate is recognised: components may be called anything, host names may not.
pub fn server_name(name: &str) -> String {
    // A label has at most 63 characters.
    let mut text = String::new();
    for label in name.as_bytes().chunks(30) {
        for byte in label {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('.');
    }
    text + "sockeye.internal"
}
