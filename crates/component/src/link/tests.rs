//! Links over loopback: what arrives, what is noticed, who is let in.

use std::sync::Arc;

use bytes::Bytes;
use identity::{Authority, Credentials, Identity, Request};
use protocol::replication::Peer;
use protocol::session::{MOST_LANES, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::*;

fn certified(authority: &Authority, name: &str) -> Identity {
    let request = Request::make().unwrap();
    let certified = authority.certify(name, &request.pem).unwrap();
    request.answered(&certified.certificate, &certified.authority).unwrap()
}

/// A folder, a master target that listens in it and its system's authority.
struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
    door: Door,
    peer: Peer,
}

impl Site {
    async fn open() -> Site {
        let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::make().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer { name: "cloud".into(), address: listener.local_addr().unwrap().to_string() };
        let credentials = kept(&dir, certified(&authority, "cloud"));
        Site { door: Door::open(listener, credentials), dir, authority, peer }
    }

    fn dialler(&self, connections: u8) -> Dialler {
        Dialler { credentials: kept(&self.dir, certified(&self.authority, "home")), connections }
    }

    async fn pair(&mut self, connections: u8) -> (Link, Link) {
        let dialler = self.dialler(connections);
        let (dialled, accepted) = tokio::join!(dialler.dial(&self.peer), self.door.next());
        (dialled.unwrap(), accepted.unwrap())
    }

    /// A link of one connection, of which this end is in the test's hand.
    async fn by_hand(&mut self) -> (tokio_rustls::client::TlsStream<TcpStream>, Link) {
        let greeting = Message::Greeting { version: VERSION, link: uuid::Uuid::new_v4(), lane: 0, lanes: 1 };
        let stream = self.connect(&greeting.into()).await;
        (stream, self.door.next().await.unwrap())
    }

    /// A connection by hand, whose first frame is `greeting`.
    async fn connect(&self, greeting: &Frame) -> tokio_rustls::client::TlsStream<TcpStream> {
        let identity = certified(&self.authority, "home");
        let stream = TcpStream::connect(&self.peer.address).await.unwrap();
        let name = identity::server_name("cloud").try_into().unwrap();
        let mut stream = TlsConnector::from(identity.client()).connect(name, stream).await.unwrap();
        stream.write_all(&greeting.encode().0).await.unwrap();
        stream.flush().await.unwrap();
        stream
    }
}

fn kept(dir: &tempfile::TempDir, identity: Identity) -> Arc<Credentials> {
    let credentials = Credentials::open(&dir.path().join(format!("{}.pem", uuid::Uuid::new_v4()))).unwrap();
    credentials.replace(identity).unwrap();
    Arc::new(credentials)
}

fn data(sequence: u64, length: usize) -> Frame {
    Frame::Data { sequence, disk: 0, offset: 0, bytes: Bytes::from(vec![sequence as u8; length]) }
}

#[tokio::test]
async fn frames_arrive_in_order_over_any_number_of_connections_and_are_counted_at_both_ends() {
    let mut site = Site::open().await;
    for connections in [1, 2, 5, MOST_LANES] {
        let (near, mut far) = site.pair(connections).await;
        let Link { mut incoming, mut outgoing, .. } = near;
        let sends = async {
            for sequence in 1..=200 {
                outgoing.send(&data(sequence, 1 + (sequence as usize * 977) % 70_000)).await.unwrap();
            }
            outgoing.say(Message::Ping { number: 4 }).await.unwrap();
        };
        let receives = async {
            for wanted in 1..=200 {
                let got = far.incoming.next().await.unwrap().unwrap().0;
                assert!(matches!(got, Frame::Data { sequence, .. } if sequence == wanted), "{connections} connections");
            }
            assert_eq!(far.incoming.message("ping").await.unwrap(), Message::Ping { number: 4 });
            for number in 0..50 {
                far.outgoing.say(Message::Pong { number }).await.unwrap();
            }
        };
        tokio::join!(sends, receives);
        for number in 0..50 {
            assert_eq!(incoming.message("pong").await.unwrap(), Message::Pong { number });
        }
        assert_eq!(outgoing.traffic().bytes, far.outgoing.traffic().bytes, "{connections} connections");
        drop((incoming, outgoing));
        assert!(far.incoming.next().await.unwrap().is_none());
    }
}

#[tokio::test]
async fn what_was_said_last_still_arrives() {
    let mut site = Site::open().await;
    for connections in [1, 3] {
        let (near, mut far) = site.pair(connections).await;
        let fault = Fault::new(code::NOT_AUTHORISED, "no", "because");
        let Link { incoming, mut outgoing, .. } = near;
        outgoing.say(Message::Ping { number: 1 }).await.unwrap();
        outgoing.say(Message::Refused { fault: fault.clone() }).await.unwrap();
        drop((incoming, outgoing));
        far.incoming.message("ping").await.unwrap();
        assert!(matches!(far.incoming.message("welcome").await, Err(LinkError::Refused(got)) if got == fault));
    }
}

#[tokio::test]
async fn a_lane_that_breaks_ends_the_link_at_both_ends() {
    let mut site = Site::open().await;
    // Every third connection leads through a line that is cut once so much went through it.
    let line = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = Peer { name: "cloud".into(), address: line.local_addr().unwrap().to_string() };
    let far_end = site.peer.address.clone();
    let lines = tokio::spawn(async move {
        let mut all = JoinSet::new();
        for number in 0..3u64 {
            let mut near = line.accept().await.unwrap().0;
            let mut far = TcpStream::connect(&far_end).await.unwrap();
            all.spawn(async move {
                let (near_in, mut near_out) = near.split();
                let (mut far_in, mut far_out) = far.split();
                let most = if number == 1 { 300_000 } else { u64::MAX };
                let mut some = near_in.take(most);
                tokio::select! {
                    _ = tokio::io::copy(&mut some, &mut far_out) => {}
                    _ = tokio::io::copy(&mut far_in, &mut near_out) => {}
                }
            });
        }
        while all.join_next().await.is_some() {}
    });
    let dialler = site.dialler(3);
    let (near, far) = tokio::join!(dialler.dial(&through), site.door.next());
    let (near, far) = (near.unwrap(), far.unwrap());
    let (mut incoming, mut outgoing) = (near.incoming, near.outgoing);
    let sends = async {
        let mut sequence = 0;
        loop {
            sequence += 1;
            let frame = data(sequence, 65_536);
            let failed = tokio::select! {
                sent = outgoing.send(&frame) => sent.is_err(),
                // Also one that only waits for an answer hears of it.
                came = incoming.next() => came.is_err() || came.is_ok_and(|came| came.is_none()),
            };
            if failed {
                return;
            }
        }
    };
    let Link { incoming: mut heard, outgoing: kept_open, .. } = far;
    let receives = async {
        let mut last = 0;
        while let Ok(Some((Frame::Data { sequence, .. }, _))) = heard.next().await {
            assert_eq!(sequence, last + 1, "nothing is skipped");
            last = sequence;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(sends, receives) }).await.unwrap();
    drop((outgoing, incoming, heard, kept_open));
    tokio::time::timeout(Duration::from_secs(20), lines).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error_not_an_end() {
    let mut site = Site::open().await;
    let (mut stream, mut far) = site.by_hand().await;
    let (bytes, _) = Frame::Message(Message::Ping { number: 1 }).encode();
    stream.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    stream.flush().await.unwrap();
    drop(stream);
    assert!(matches!(far.incoming.next().await, Err(LinkError::Io { .. })));
}

#[tokio::test]
async fn a_frame_that_was_changed_before_it_was_encrypted_is_refused() {
    let mut site = Site::open().await;
    let (mut stream, mut far) = site.by_hand().await;
    let mut bytes = data(1, 5000).encode().0.to_vec();
    bytes[4000] ^= 1;
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    let came = far.incoming.next().await;
    let refused = matches!(came, Err(LinkError::Frame { source: BadFrame::Checksum, .. }));
    assert!(refused, "a changed frame was believed");
}

#[tokio::test]
async fn whoever_is_not_of_the_system_is_not_let_in_and_not_believed() {
    let mut site = Site::open().await;
    let strangers = Authority::make().unwrap();
    let dial = async |identity: Identity, name: &str| {
        let dialler = Dialler { credentials: kept(&site.dir, identity), connections: 2 };
        let peer = Peer { name: name.into(), ..site.peer.clone() };
        match dialler.dial(&peer).await {
            Ok(mut link) => link.incoming.message("anything").await.unwrap_err().fault(),
            Err(error) => error.fault(),
        }
    };
    // The listener is another system's; it is ours, but another component; the one that dials is another system's.
    for (identity, name) in [
        (certified(&strangers, "home"), "cloud"),
        (certified(&site.authority, "home"), "elsewhere"),
        (mixed(&strangers, &site.authority), "cloud"),
    ] {
        let fault = dial(identity, name).await;
        assert!(fault.is(code::PEER), "{fault:?}");
    }
    let nobody = Credentials::open(&site.dir.path().join("none.pem")).unwrap();
    let dialled = Dialler { credentials: Arc::new(nobody), connections: 1 }.dial(&site.peer).await;
    assert!(matches!(dialled.err(), Some(LinkError::Uncertified)));
    // Somebody who does not even speak TLS.
    let mut plain = TcpStream::connect(&site.peer.address).await.unwrap();
    plain.write_all(&Frame::Message(Message::Ping { number: 1 }).encode().0).await.unwrap();
    let mut said = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), plain.read_to_end(&mut said)).await.unwrap();
    // And everybody else still gets in.
    site.pair(2).await;
}

/// One that believes `believed`, but is certified by `by`.
fn mixed(by: &Authority, believed: &Authority) -> Identity {
    let request = Request::make().unwrap();
    let own = by.certify("home", &request.pem).unwrap();
    let other = believed.certify("home", &request.pem).unwrap();
    request.answered(&own.certificate, &other.authority).unwrap()
}

#[tokio::test]
async fn a_greeting_that_makes_no_sense_is_refused_in_words() {
    let site = Site::open().await;
    let link = uuid::Uuid::new_v4();
    for (greeting, word) in [
        (Message::Greeting { version: VERSION + 1, link, lane: 0, lanes: 1 }, "versions"),
        (Message::Greeting { version: VERSION, link, lane: 2, lanes: 2 }, "sense"),
        (Message::Greeting { version: VERSION, link, lane: 0, lanes: MOST_LANES + 1 }, "sense"),
        (Message::Ping { number: 1 }, "not a greeting"),
    ] {
        let mut stream = site.connect(&greeting.into()).await;
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        let text = String::from_utf8_lossy(&said);
        assert!(text.contains(code::PROTOCOL.code) && text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn a_lane_that_is_not_one_s_own_or_comes_twice_is_not_put_in() {
    let mut site = Site::open().await;
    let link = uuid::Uuid::new_v4();
    let greeting = |lane| Frame::from(Message::Greeting { version: VERSION, link, lane, lanes: 2 });
    // `connect` certifies a new key each time: the lanes are of three components, and whose comes first has the link.
    let mut ends = JoinSet::new();
    for lane in [0, 1, 0] {
        let mut stream = site.connect(&greeting(lane)).await;
        ends.spawn(async move {
            let mut said = Vec::new();
            let _ = stream.read_to_end(&mut said).await;
            said
        });
    }
    for _ in 0..2 {
        let refused = tokio::time::timeout(Duration::from_secs(10), ends.join_next()).await;
        assert!(refused.unwrap().unwrap().unwrap().is_empty());
    }
    let more = async { tokio::join!(ends.join_next(), site.door.next()) };
    assert!(tokio::time::timeout(Duration::from_millis(200), more).await.is_err());
}
