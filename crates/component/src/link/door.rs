//! Being dialled: connections are proven, greeted, and put together to links.
//!
//! ```text
//!   accept ─► TLS ─► Greeting{link, lane 1 of 2} ─┐
//!   accept ─► TLS ─► Greeting{link, lane 0 of 2} ─┴─► link
//! ```
//!
//! # Always true
//! - A stranger costs one task for a few seconds, and no more strangers than [`WAITING`] are let in at once.
//! - All lanes of a link come from the same component.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::Credentials;
use protocol::Fault;
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::session::{MOST_LANES, Message, VERSION};
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

use super::counted::Counted;
use super::lane::{Connection, prepare};
use super::{Link, LinkError, message};

/// Connections that may be on their way to becoming part of a link.
const WAITING: usize = 256;
/// How long one may take for that.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a component listens, and what others are told.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The address of this host.
    pub address: SocketAddr,
    /// Where others reach it (`host:port`); with port 0 the port that the system chose is put in.
    pub advertise: String,
}

impl Listen {
    /// Begins to listen; also gives the address that others are told.
    ///
    /// # Errors
    /// `RPL-005` when the system does not let it.
    pub async fn bind(&self) -> Result<(TcpListener, String), Fault> {
        let unusable = |error: std::io::Error| {
            Fault::new(code::REPLICA_IO, format!("{} cannot be listened on", self.address), error.to_string())
                .with_remedy("choose another with --listen, or end what listens there")
        };
        let listener = TcpListener::bind(self.address).await.map_err(unusable)?;
        let port = listener.local_addr().map_err(unusable)?.port();
        let host = self.advertise.strip_suffix(":0");
        Ok((listener, host.map_or(self.advertise.clone(), |host| format!("{host}:{port}"))))
    }
}

/// Where a component is dialled.
pub struct Door {
    links: mpsc::Receiver<Link>,
    _listens: JoinSet<()>,
}

impl Door {
    /// Begins to accept.
    pub fn open(listener: TcpListener, credentials: Arc<Credentials>) -> Door {
        let (tell, links) = mpsc::channel(1);
        let mut listens = JoinSet::new();
        listens.spawn(listen(listener, credentials, tell));
        Door { links, _listens: listens }
    }

    /// The next link; none when the door is closed.
    pub async fn next(&mut self) -> Option<Link> {
        self.links.recv().await
    }
}

/// A link of which some lanes are still on their way.
struct Gathering {
    certificate: CertificateDer<'static>,
    lanes: Vec<Option<(Connection, OwnedSemaphorePermit)>>,
}

type Gatherings = Mutex<HashMap<Uuid, Gathering>>;

async fn listen(listener: TcpListener, credentials: Arc<Credentials>, links: mpsc::Sender<Link>) {
    let gatherings = Arc::new(Gatherings::default());
    let strangers = Arc::new(Semaphore::new(WAITING));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = strangers.clone().acquire_owned().await else { return };
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (credentials, gatherings, links) = (credentials.clone(), gatherings.clone(), links.clone());
                tasks.spawn(async move {
                    let peer = peer.to_string();
                    let welcome = welcome(stream, &peer, &credentials, &gatherings, permit);
                    match tokio::time::timeout(PATIENCE, welcome).await {
                        Ok(Ok(Welcomed::Whole(link))) => drop(links.send(*link).await),
                        Ok(Ok(Welcomed::First(link))) => {
                            tokio::time::sleep(PATIENCE).await;
                            lock(&gatherings).remove(&link);
                        }
                        Ok(Ok(Welcomed::Another)) => {}
                        Ok(Err(error)) => {
                            let fault = error.fault();
                            tracing::info!(peer, code = fault.code, cause = %fault.cause, "a connection is not accepted");
                        }
                        Err(_) => tracing::debug!(peer, "a connection said nothing"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn lock(gatherings: &Gatherings) -> std::sync::MutexGuard<'_, HashMap<Uuid, Gathering>> {
    gatherings.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Welcomed {
    /// The last lane of a link.
    Whole(Box<Link>),
    /// The first of several.
    First(Uuid),
    /// One in between.
    Another,
}

async fn welcome(
    stream: TcpStream,
    peer: &str,
    credentials: &Credentials,
    gatherings: &Gatherings,
    permit: OwnedSemaphorePermit,
) -> Result<Welcomed, LinkError> {
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection could not be tuned");
    }
    let identity = credentials.now().ok_or(LinkError::Uncertified)?;
    let stream = TlsAcceptor::from(identity.server()).accept(Counted::new(stream)).await;
    let stream = stream.map_err(|source| LinkError::Io { peer: peer.into(), source })?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
    let mut connection = Connection::new(stream.into(), peer.into());
    let greeting = message(connection.next().await?, peer, "a greeting")?;
    let (link, lane, lanes) = match understood(greeting) {
        Ok(greeting) => greeting,
        Err(fault) => {
            connection.send(&Frame::Message(Message::Refused { fault: fault.clone() })).await?;
            return Err(LinkError::Refused(fault));
        }
    };
    let nobody = || LinkError::Io { peer: peer.into(), source: std::io::ErrorKind::PermissionDenied.into() };
    let certificate = certificate.ok_or_else(nobody)?;
    let mut all = lock(gatherings);
    let known = all.contains_key(&link);
    let gathering = all
        .entry(link)
        .or_insert_with(|| Gathering { certificate: certificate.clone(), lanes: (0..lanes).map(|_| None).collect() });
    let fits = gathering.certificate == certificate && gathering.lanes.len() == usize::from(lanes);
    match gathering.lanes.get_mut(usize::from(lane)) {
        Some(place @ None) if fits => *place = Some((connection, permit)),
        _ => {
            let got = "another greeting for a lane that is taken".into();
            return Err(LinkError::OutOfTurn { peer: peer.into(), got, wanted: "a free lane" });
        }
    }
    if gathering.lanes.iter().any(Option::is_none) {
        return Ok(if known { Welcomed::Another } else { Welcomed::First(link) });
    }
    let lanes = all.remove(&link).into_iter().flat_map(|gathering| gathering.lanes).flatten();
    let connections = lanes.map(|(connection, _)| connection).collect();
    Ok(Welcomed::Whole(Box::new(Link::of(connections, Some(certificate)))))
}

/// Which lane of which link it is that a connection wants to be.
fn understood(greeting: Message) -> Result<(Uuid, u8, u8), Fault> {
    let bad = |message: &str, cause: String| Err(Fault::new(code::PROTOCOL, message, cause));
    match greeting {
        Message::Greeting { version, .. } if version != VERSION => bad(
            "the versions of the movers differ",
            format!("the one that dials speaks version {version}, this one {VERSION}"),
        ),
        Message::Greeting { link, lane, lanes, .. } if lane < lanes && lanes <= MOST_LANES => Ok((link, lane, lanes)),
        Message::Greeting { lane, lanes, .. } => {
            bad("a greeting makes no sense", format!("lane {lane} of {lanes}; at most {MOST_LANES} are allowed"))
        }
        _ => bad("the first message is not a greeting", format!("this mover speaks version {VERSION}")),
    }
}
