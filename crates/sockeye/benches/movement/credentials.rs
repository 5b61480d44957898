//! Certificates for QEMU's and libnbd's TLS, in a directory as GnuTLS's users lay it out.
//!
//! ```text
//!   ca-cert.pem · server-cert.pem, server-key.pem · client-cert.pem, client-key.pem        all of them "localhost"
//! ```

use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Makes a directory with an authority and a certificate for each end.
pub fn make(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    std::fs::write(dir.join("ca-cert.pem"), params.self_signed(&key)?.pem())?;
    let authority = Issuer::new(params, key);
    for end in ["server", "client"] {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(["localhost".into()])?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        std::fs::write(dir.join(format!("{end}-cert.pem")), params.signed_by(&key, &authority)?.pem())?;
        std::fs::write(dir.join(format!("{end}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}
