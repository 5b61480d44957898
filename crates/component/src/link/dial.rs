//! Dialling: all lanes at once, each with a greeting that says where it belongs.

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use identity::{Credentials, Identity, server_name};
use protocol::frame::Frame;
use protocol::replication::Peer;
use protocol::session::{MOST_LANES, Message, VERSION};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::counted::Counted;
use super::lane::{Connection, prepare};
use super::{Link, LinkError};

/// How long a peer may take to answer, and to prove who it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections of a link where nobody says otherwise (guessed): two cores each at both ends, and lines of some milliseconds.
pub const CONNECTIONS: u8 = 4;

/// Dials others in a component's name.
#[derive(Clone)]
pub struct Dialler {
    /// Who dials.
    pub credentials: Arc<Credentials>,
    /// Connections of each link, from 1 to [`MOST_LANES`].
    pub connections: u8,
}

impl Dialler {
    /// A link to `peer`, and to nobody else who may answer there.
    ///
    /// # Errors
    /// [`LinkError::Uncertified`]; [`LinkError::Io`] when nobody answers within ten seconds, or not the peer.
    pub async fn dial(&self, peer: &Peer) -> Result<Link, LinkError> {
        let identity = self.credentials.now().ok_or(LinkError::Uncertified)?;
        let link = uuid::Uuid::new_v4();
        let lanes = self.connections.clamp(1, MOST_LANES);
        let dialled = (0..lanes).map(|lane| {
            let greeting = Message::Greeting { version: VERSION, link, lane, lanes };
            let dialled = dial(&identity, peer, greeting);
            async { tokio::time::timeout(PATIENCE, dialled).await.unwrap_or_else(|_| Err(too_late(peer))) }
        });
        Ok(Link::of(try_join_all(dialled).await?, None))
    }
}

fn too_late(peer: &Peer) -> LinkError {
    LinkError::Io { peer: peer.to_string(), source: std::io::ErrorKind::TimedOut.into() }
}

async fn dial(identity: &Identity, peer: &Peer, greeting: Message) -> Result<Connection, LinkError> {
    let failed = |source| LinkError::Io { peer: peer.to_string(), source };
    let stream = TcpStream::connect(&peer.address).await.map_err(failed)?;
    if let Err(error) = prepare(&stream) {
        tracing::debug!(%error, "a connection could not be tuned");
    }
    let name = ServerName::try_from(server_name(&peer.name)).map_err(|error| failed(std::io::Error::other(error)))?;
    let stream = TlsConnector::from(identity.client()).connect(name, Counted::new(stream)).await.map_err(failed)?;
    let mut connection = Connection::new(stream.into(), peer.to_string());
    connection.send(&Frame::Message(greeting)).await?;
    Ok(connection)
}
