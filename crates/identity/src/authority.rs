//! The authority: it says whose key is whose.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::tls::{Identity, server_name};
use crate::{IdentityError, tls};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long an authority lasts: longer than any installation.
const AUTHORITY_LASTS: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
/// How long a component's certificate lasts. It is renewed after a third of it, so control may be away for weeks.
const CERTIFICATE_LASTS: Duration = Duration::from_secs(60 * 24 * 60 * 60);
/// The most characters of a name that a certificate shows to people (X.520's bound for a common name).
const COMMON_NAME: usize = 64;

/// The authority of one system.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// What an authority gives to whom it certified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The certificate, as PEM.
    pub certificate: String,
    /// The authority's own certificate, as PEM.
    pub authority: String,
    /// After how long it should be renewed.
    pub renew_after: Duration,
}

/// A fresh key that asks to be certified.
pub struct Request {
    key: KeyPair,
    /// What the authority needs, as PEM.
    pub pem: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// [`IdentityError::Make`] when there is no randomness.
    pub fn make() -> Result<Authority, IdentityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("Sockeye authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        lasts(&mut params, AUTHORITY_LASTS);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::from_ca_cert_pem(&certificate, key)?, certificate })
    }

    /// The one that [`Authority::to_pem`] wrote down.
    ///
    /// # Errors
    /// [`IdentityError::Pem`], [`IdentityError::Make`] when it is not one.
    pub fn from_pem(text: &str) -> Result<Authority, IdentityError> {
        let key = KeyPair::from_pem(text)?;
        let [certificate] = &tls::certificates(text)?[..] else {
            return Err(IdentityError::Pem { what: "an authority", why: "it has not exactly one certificate".into() });
        };
        let start = text.find("-----BEGIN CERTIFICATE").unwrap_or_default();
        let issuer = Issuer::from_ca_cert_der(certificate, key)?;
        Ok(Authority { issuer, certificate: text[start..].to_string() })
    }

    /// Key and certificate: whoever has this can be everybody.
    pub fn to_pem(&self) -> String {
        self.issuer.key().serialize_pem() + &self.certificate
    }

    /// Certifies that the key of a request is `name`'s, from now on for a while.
    ///
    /// # Errors
    /// [`IdentityError::Make`] when the request is none, or not signed with its key.
    pub fn certify(&self, name: &str, request: &str) -> Result<Certified, IdentityError> {
        // Its public key is proven and taken over; whatever else it asks for is not.
        let request = CertificateSigningRequestParams::from_pem(request)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.subject_alt_names = vec![SanType::DnsName(server_name(name).try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        lasts(&mut params, CERTIFICATE_LASTS);
        let certificate = params.signed_by(&request.public_key, &self.issuer)?.pem();
        Ok(Certified { certificate, authority: self.certificate.clone(), renew_after: CERTIFICATE_LASTS / 3 })
    }
}

impl Request {
    /// A request for a key that is made now.
    ///
    /// # Errors
    /// [`IdentityError::Make`] when there is no randomness.
    pub fn make() -> Result<Request, IdentityError> {
        let key = KeyPair::generate()?;
        let pem = CertificateParams::default().serialize_request(&key)?.pem()?;
        Ok(Request { key, pem })
    }

    /// The identity that the answer makes of it.
    ///
    /// # Errors
    /// The answer does not fit.
    pub fn answered(&self, certificate: &str, authority: &str) -> Result<Identity, IdentityError> {
        Identity::from_pem(&(self.key.serialize_pem() + certificate + authority))
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name.chars().take(COMMON_NAME).collect::<String>());
    names
}

/// From a day ago, because the clocks of two sites may differ.
fn lasts(params: &mut CertificateParams, how_long: Duration) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - DAY, now + how_long);
}
