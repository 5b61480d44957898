//! The first words of every version of the mover protocol so far, and of what is none, said to a door of today.
//!
//! `museum/` holds bytes as they were sent, never changed again. What becomes of each is here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use component::{Door, LinkError};
use identity::{Authority, Credentials, Identity, Request};
use protocol::fault::code;
use protocol::frame::{Frame, HEADER, Header};
use protocol::session::{Message, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// What becomes of somebody who begins like that.
enum Becomes {
    /// A link, on which what was said after the greeting arrives.
    Link(&'static [Message]),
    /// Refused, in these words.
    Refused(&'static str),
    /// Cut off without a word: it does not speak our language at all.
    CutOff,
}

const EXHIBITS: &[(&str, Becomes)] = &[
    ("v3-hello.bin", Becomes::Refused("not a greeting")),
    ("v4-greeting.bin", Becomes::Refused("versions of the movers differ")),
    ("v4-greeting-with-more.bin", Becomes::Refused("versions of the movers differ")),
    ("v5-greeting-and-ping.bin", Becomes::Refused("versions of the movers differ")),
    ("v5-greeting.bin", Becomes::Refused("versions of the movers differ")),
    ("v6-greeting-and-ping.bin", Becomes::Refused("versions of the movers differ")),
    ("v6-greeting.bin", Becomes::Refused("versions of the movers differ")),
    ("v7-greeting-and-ping.bin", Becomes::Link(&[Message::Ping { number: 7 }])),
    // Was made before there was a version 7: it says more than that one does.
    ("v7-greeting.bin", Becomes::Link(&[])),
    ("v8-greeting.bin", Becomes::Refused("versions of the movers differ")),
    ("greeting-of-33-lanes.bin", Becomes::Refused("versions of the movers differ")),
    ("v5-greeting-of-33-lanes.bin", Becomes::Refused("versions of the movers differ")),
    ("v6-greeting-of-33-lanes.bin", Becomes::Refused("versions of the movers differ")),
    ("v7-greeting-of-33-lanes.bin", Becomes::Refused("makes no sense")),
    ("greeting-with-a-flipped-bit.bin", Becomes::CutOff),
    ("greeting-of-16-gib.bin", Becomes::CutOff),
    ("http.bin", Becomes::CutOff),
];

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/museum")
}

fn certified(authority: &Authority, name: &str) -> Identity {
    let request = Request::make().unwrap();
    let certified = authority.certify(name, &request.pem).unwrap();
    request.answered(&certified.certificate, &certified.authority).unwrap()
}

/// What is said until the other end closes, or nothing more comes for a while.
async fn said(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = vec![0; 4096];
    while let Ok(Ok(some @ 1..)) = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await {
        said.extend_from_slice(&buffer[..some]);
    }
    said
}

#[tokio::test]
async fn every_version_is_met_as_it_deserves() {
    let authority = Authority::make().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let credentials = Credentials::open(&dir.path().join("cloud.pem")).unwrap();
    credentials.replace(certified(&authority, "cloud")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut door = Door::open(listener, Arc::new(credentials));
    let here: BTreeSet<String> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(here, EXHIBITS.iter().map(|(name, _)| (*name).to_string()).collect());
    for (name, becomes) in EXHIBITS {
        let bytes = std::fs::read(folder().join(name)).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(certified(&authority, "home").client());
        let mut stream = connector.connect(identity::server_name("cloud").try_into().unwrap(), stream).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        match becomes {
            Becomes::Link(messages) => {
                let mut link = door.next().await.unwrap();
                for message in *messages {
                    assert_eq!(link.incoming.message("what was said").await.unwrap(), *message, "{name}");
                }
                drop(stream);
                let end = link.incoming.message("the end").await;
                assert!(matches!(end, Err(LinkError::Io { .. })), "{name}: {end:?}");
            }
            Becomes::Refused(words) => {
                let said = said(&mut stream).await;
                let header = Header::decode(said[..HEADER].try_into().unwrap()).unwrap();
                let frame = header.frame(said[HEADER..].to_vec().into()).unwrap().0;
                let Frame::Message(Message::Refused { fault }) = frame else { panic!("{name}: {frame:?}") };
                assert!(fault.is(code::PROTOCOL) && fault.message.contains(words), "{name}: {fault:?}");
                assert!(fault.cause.contains(&VERSION.to_string()) || words.contains("sense"), "{name}: {fault:?}");
            }
            Becomes::CutOff => assert!(said(&mut stream).await.is_empty(), "{name}"),
        }
    }
}
