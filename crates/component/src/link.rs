//! A framed link between two movers: frames of `protocol::frame` over one TLS connection or several.
//!
//! ```text
//!                 frame 1 ─► lane 0 ═══╗
//!   queue ──►     frame 2 ─► lane 1 ═══╬═ TLS, TLS, TLS ═►  taken from the lanes in the same turn ──► next
//!                 frame 3 ─► lane 2 ═══╝
//!                 frame 4 ─► lane 0 …
//! ```
//!
//! Frames take the lanes in turn, so their order needs no number, and whoever uses a link does not see how many
//! connections it has. Each lane compresses, encrypts and checks in tasks of its own, and sends no faster than the caps of
//! the link's session allow ([`crate::cap`]). Bytes are counted in both directions as
//! the system is given them (a failback's quote and its figures need them).
//!
//! # Always true
//! - Both ends have proven who they are before a frame is believed.
//! - A frame is checked (bounds, then checksum) before it is handed on.
//! - Frames arrive in the order in which they were queued, or the link ends.

mod counted;
mod dial;
mod door;
mod lane;
mod packing;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use protocol::Fault;
use protocol::fault::code;
use protocol::frame::{BadFrame, Frame};
use protocol::session::Message;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cap::Throttle;
pub use dial::{CONNECTIONS, Dialler};
pub use door::{Door, Listen};
use lane::{Connection, Inlet, Outlet};
use packing::Tally;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream failed or was closed.
    #[error("the connection to {peer} failed")]
    Io {
        /// The other end.
        peer: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// This component has not been certified yet.
    #[error("this component cannot prove who it is: it has never registered")]
    Uncertified,
    /// The peer sent something that is not a frame.
    #[error("{peer} sent a frame that cannot be accepted")]
    Frame {
        /// The other end.
        peer: String,
        /// What is wrong with it.
        #[source]
        source: BadFrame,
    },
    /// The peer sent a frame that does not belong here.
    #[error("{peer} sent {got} where {wanted} was expected")]
    OutOfTurn {
        /// The other end.
        peer: String,
        /// What came.
        got: String,
        /// What should have come.
        wanted: &'static str,
    },
    /// The peer said no.
    #[error("refused: {0}")]
    Refused(Fault),
}

impl LinkError {
    /// The error as people see it.
    pub fn fault(&self) -> Fault {
        match self {
            LinkError::Io { source, .. } if is_about_identity(source) => {
                Fault::new(code::PEER, self.to_string(), source.to_string())
            }
            LinkError::Io { source, .. } => Fault::new(code::LINK, self.to_string(), source.to_string()),
            LinkError::Uncertified => {
                Fault::new(code::PEER, self.to_string(), "control has not answered since it was installed")
            }
            LinkError::Frame { source, .. } => Fault::new(code::PROTOCOL, self.to_string(), source.to_string()),
            LinkError::OutOfTurn { .. } => {
                Fault::new(code::PROTOCOL, self.to_string(), "the session's order of messages was not kept")
            }
            LinkError::Refused(fault) => fault.clone(),
        }
    }
}

/// Whether one end did not believe the other to be who it says.
fn is_about_identity(error: &std::io::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => true,
        Some(Error::AlertReceived(alert)) => matches!(
            alert,
            Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::DecryptError
        ),
        _ => false,
    }
}

/// Both halves of a link.
pub struct Link {
    /// What comes.
    pub incoming: Incoming,
    /// What goes.
    pub outgoing: Outgoing,
    /// The other end's, where that dialled.
    certificate: Option<CertificateDer<'static>>,
}

/// The half that reads.
pub struct Incoming {
    lanes: Vec<Inlet>,
    turn: usize,
    /// Whether a lane has ended.
    over: watch::Receiver<bool>,
    peer: String,
    _readers: JoinSet<()>,
}

/// The half that writes.
pub struct Outgoing {
    lanes: Vec<Outlet>,
    turn: usize,
    peer: String,
    /// One for each lane.
    counted: Vec<Arc<AtomicU64>>,
    throttled: Throttled,
    tally: Arc<Tally>,
    writers: JoinSet<()>,
}

/// The caps that a link is under, once that is said.
type Throttled = Arc<OnceLock<Arc<Throttle>>>;

/// What went over a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes in both directions, encryption included.
    pub bytes: u64,
    /// Blocks that this end sent compressed.
    pub blocks_compressed: u64,
    /// Blocks that it sent as they are.
    pub blocks_plain: u64,
    /// Bytes that compression kept off the link.
    pub saved: u64,
}

/// How long the other lanes of a link are still read after one has ended: when a peer closes them all, what it said last
/// may be in another.
const GRACE: Duration = Duration::from_secs(1);
/// How long what is queued may take to leave after a link was given up, and how long a peer may take to hear why.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Link {
    fn of(connections: Vec<Connection>, certificate: Option<CertificateDer<'static>>) -> Link {
        let (tell, over) = watch::channel(false);
        let (mut readers, mut writers) = (JoinSet::new(), JoinSet::new());
        let peer = connections.first().map_or_else(String::new, |first| first.peer.clone());
        let counted = connections.iter().map(|connection| connection.count.clone()).collect();
        let (throttled, tally) = (Throttled::default(), Arc::new(Tally::default()));
        let (mut inlets, mut outlets) = (Vec::new(), Vec::new());
        for connection in connections {
            let told = (throttled.clone(), tally.clone());
            let (inlet, outlet) = connection.start(&mut readers, &mut writers, tell.clone(), told);
            inlets.push(inlet);
            outlets.push(outlet);
        }
        Link {
            incoming: Incoming { lanes: inlets, turn: 0, over, peer: peer.clone(), _readers: readers },
            outgoing: Outgoing { lanes: outlets, turn: 0, peer, counted, throttled, tally, writers },
            certificate,
        }
    }

    /// Two ends of a link inside this process: frames are handed over as they are.
    pub fn pair() -> (Link, Link) {
        let ((here, to_here), (there, to_there)) = (lane::near(), lane::near());
        (Link::within(here, to_there), Link::within(there, to_here))
    }

    fn within(inlet: Inlet, outlet: Outlet) -> Link {
        // There is only one lane: nobody waits for another.
        let (_, over) = watch::channel(false);
        let peer = "the other end in this process".to_string();
        let (readers, writers) = Default::default();
        Link {
            incoming: Incoming { lanes: vec![inlet], turn: 0, over, peer: peer.clone(), _readers: readers },
            outgoing: Outgoing {
                lanes: vec![outlet],
                turn: 0,
                peer,
                counted: Vec::new(),
                throttled: Throttled::default(),
                tally: Arc::default(),
                writers,
            },
            certificate: None,
        }
    }

    /// Whether the component of that name is what dialled.
    pub fn is_from(&self, name: &str) -> bool {
        self.certificate.as_ref().is_some_and(|certificate| identity::is_named(certificate, name))
    }
}

/// Ends a link by saying why. What the peer was still sending is read and dropped for a while: a connection that is closed
/// with unread bytes is reset, and a reset takes the reason from the peer.
///
/// # Errors
/// [`LinkError::Io`]: nobody hears it.
pub async fn refuse(incoming: &mut Incoming, mut outgoing: Outgoing, fault: Fault) -> Result<(), LinkError> {
    outgoing.say(Message::Refused { fault }).await?;
    let rest = async { while let Ok(Some(_)) = incoming.next().await {} };
    let _ = tokio::time::timeout(LAST_WORDS, rest).await;
    Ok(())
}

impl Incoming {
    /// The next frame and its payload's checksum; none when the peer closed the link between two frames. Nothing is lost
    /// when the future is dropped.
    ///
    /// # Errors
    /// [`LinkError::Io`], [`LinkError::Frame`].
    pub async fn next(&mut self) -> Result<Option<(Frame, u64)>, LinkError> {
        let Incoming { lanes, turn, over, peer, .. } = self;
        let straggling = async {
            if over.wait_for(|over| *over).await.is_err() {
                // Whoever would tell is gone, and with it the lanes.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            biased;
            next = lanes[*turn].next() => {
                *turn = (*turn + 1) % lanes.len();
                next
            }
            () = straggling => Err(LinkError::Io { peer: peer.clone(), source: std::io::ErrorKind::ConnectionReset.into() }),
        }
    }

    /// The next frame as a control message.
    ///
    /// # Errors
    /// Those of [`Incoming::next`]; [`LinkError::Refused`] when the peer refuses; [`LinkError::OutOfTurn`] for a data
    /// frame or the end of the stream, named by `wanted`.
    pub async fn message(&mut self, wanted: &'static str) -> Result<Message, LinkError> {
        let next = self.next().await?;
        message(next, &self.peer, wanted)
    }

    /// The other end's address.
    pub fn peer(&self) -> &str {
        &self.peer
    }
}

fn message(next: Option<(Frame, u64)>, peer: &str, wanted: &'static str) -> Result<Message, LinkError> {
    match next {
        Some((Frame::Message(Message::Refused { fault }), _)) => Err(LinkError::Refused(fault)),
        Some((Frame::Message(message), _)) => Ok(message),
        Some(_) => Err(LinkError::OutOfTurn { peer: peer.into(), got: "a data frame".into(), wanted }),
        None => Err(LinkError::Io { peer: peer.into(), source: std::io::ErrorKind::UnexpectedEof.into() }),
    }
}

impl Outgoing {
    /// Sends a frame as soon as those before it are gone, and gives its payload's checksum: it is the same whether the frame
    /// will be compressed or not. Waits while the lane whose
    /// turn it is holds enough already.
    ///
    /// # Errors
    /// [`LinkError::Io`].
    pub async fn send(&mut self, frame: &Frame) -> Result<u64, LinkError> {
        let sent = self.lanes[self.turn].send(frame).await;
        let checksum = sent.map_err(|source| LinkError::Io { peer: self.peer.clone(), source })?;
        self.turn = (self.turn + 1) % self.lanes.len();
        Ok(checksum)
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`LinkError::Io`].
    pub async fn say(&mut self, message: Message) -> Result<(), LinkError> {
        self.send(&message.into()).await.map(drop)
    }

    /// Has everything that is sent from now on keep to these caps, for ever.
    pub fn keep_to(&self, throttle: Arc<Throttle>) {
        // A link is of one session: nobody says it twice.
        let _ = self.throttled.set(throttle);
    }

    /// What went over the link so far.
    pub fn traffic(&self) -> Traffic {
        self.tally.with(self.counted.iter().map(|count| count.load(Ordering::Relaxed)).sum())
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // What was said last still leaves: a refusal is an answer too.
        self.lanes.clear();
        let mut writers = std::mem::take(&mut self.writers);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(LAST_WORDS, async { while writers.join_next().await.is_some() {} }).await;
            });
        }
    }
}

#[cfg(test)]
mod tests;
