//! Who is believed, what is kept, and what is taken from a request.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use identity::{Authority, Credentials, Identity, Request, is_named, server_name};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConnection, ServerConnection};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

fn certified(authority: &Authority, name: &str) -> Identity {
    let request = Request::make().unwrap();
    let certified = authority.certify(name, &request.pem).unwrap();
    request.answered(&certified.certificate, &certified.authority).unwrap()
}

/// Whether both believe each other.
fn meet(dials: &Identity, answers: &Identity, name: &str) -> Result<(), rustls::Error> {
    let name = server_name(name).try_into().unwrap();
    let mut near = ClientConnection::new(dials.client(), name).unwrap();
    let mut far = ServerConnection::new(answers.server()).unwrap();
    while near.is_handshaking() || far.is_handshaking() {
        let mut words = Vec::new();
        while near.wants_write() {
            near.write_tls(&mut words).unwrap();
        }
        let mut unread = &words[..];
        while !unread.is_empty() {
            far.read_tls(&mut unread).unwrap();
        }
        far.process_new_packets()?;
        words.clear();
        while far.wants_write() {
            far.write_tls(&mut words).unwrap();
        }
        unread = &words[..];
        while !unread.is_empty() {
            near.read_tls(&mut unread).unwrap();
        }
        near.process_new_packets()?;
    }
    assert_eq!(near.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(far.peer_certificates().map(<[_]>::len), Some(1));
    Ok(())
}

#[test]
fn components_of_one_system_believe_each_other_and_nobody_else() {
    let (ours, others) = (Authority::make().unwrap(), Authority::make().unwrap());
    // Any name will do, also one that no host could have.
    for name in ["cloud-master-target", "ein Rechner in Köln", &"x".repeat(100)] {
        meet(&certified(&ours, "home"), &certified(&ours, name), name).unwrap();
        assert!(meet(&certified(&ours, "home"), &certified(&ours, name), "somebody-else").is_err());
        assert!(meet(&certified(&others, "home"), &certified(&ours, name), name).is_err());
        assert!(meet(&certified(&ours, "home"), &certified(&others, name), name).is_err());
    }
}

#[test]
fn an_authority_that_was_written_down_is_the_same_one() {
    let authority = Authority::make().unwrap();
    let again = Authority::from_pem(&authority.to_pem()).unwrap();
    meet(&certified(&authority, "home"), &certified(&again, "cloud"), "cloud").unwrap();
    for (from, to) in [(0, 10), (0, 300)] {
        let text = authority.to_pem();
        assert!(Authority::from_pem(&text[from..to]).is_err());
    }
    assert!(Authority::from_pem("").is_err());
}

#[test]
fn nothing_but_the_key_is_taken_from_a_request() {
    let authority = Authority::make().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec![server_name("cloud"), "example.org".into()]).unwrap();
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = greedy.serialize_request(&key).unwrap().pem().unwrap();
    let given = authority.certify("home", &request).unwrap();
    let der = CertificateDer::from_pem_slice(given.certificate.as_bytes()).unwrap();
    let (_, read) = X509Certificate::from_der(&der).unwrap();
    assert!(!read.is_ca());
    let names = read.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert_eq!(names, [GeneralName::DNSName(&server_name("home"))]);
    let lasts = Duration::from_secs(read.validity().time_to_expiration().unwrap().whole_seconds().unsigned_abs());
    let renewed = given.renew_after;
    assert!(lasts > 2 * renewed && lasts < 4 * renewed, "{lasts:?}, renewed after {renewed:?}");

    // A request that is not signed with the key it names is none.
    let mut forged = String::new();
    let middle = request.len() / 2;
    for (n, letter) in request.chars().enumerate() {
        forged.push(if n == middle { if letter == 'A' { 'B' } else { 'A' } } else { letter });
    }
    assert!(authority.certify("home", &forged).is_err());
    assert!(authority.certify("home", "").is_err());
}

#[test]
fn a_certificate_is_one_name_s() {
    let authority = Authority::make().unwrap();
    let certified = authority.certify("home", &Request::make().unwrap().pem).unwrap();
    let der = CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap();
    assert!(is_named(&der, "home"));
    for other in ["", "hom", "home2", "HOME"] {
        assert!(!is_named(&der, other), "{other}");
    }
}

#[test]
fn an_answer_to_another_request_is_refused() {
    let authority = Authority::make().unwrap();
    let (one, other) = (Request::make().unwrap(), Request::make().unwrap());
    let certified = authority.certify("home", &one.pem).unwrap();
    assert!(other.answered(&certified.certificate, &certified.authority).is_err());
    assert!(one.answered(&certified.certificate, &certified.authority).is_ok());
}

#[test]
fn credentials_outlive_their_process_and_are_nobody_else_s_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("process-server.pem");
    let authority = Authority::make().unwrap();
    let first = Credentials::open(&file).unwrap();
    assert!(first.now().is_none());
    first.replace(certified(&authority, "home")).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let second = Arc::new(Credentials::open(&file).unwrap());
    meet(&second.now().unwrap(), &certified(&authority, "cloud"), "cloud").unwrap();
    // What was torn is not used, and replaced by the next registration.
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &text[..text.len() / 2]).unwrap();
    let third = Credentials::open(&file).unwrap();
    assert!(third.now().is_none());
    third.replace(certified(&authority, "home")).unwrap();
    assert!(Credentials::open(&file).unwrap().now().is_some());
}
