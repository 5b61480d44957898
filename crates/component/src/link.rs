//! A framed link between two movers: frames of `protocol::frame` over one byte stream.
//!
//! The stream is split: one half is read by whoever follows the session, the other written by whoever feeds it, so that
//! data can flow while answers arrive. Bytes are counted in both directions (a failback's quote and its figures need
//! them).
//!
//! # Always true
//! - A frame is checked (bounds, then checksum) before it is handed on.
//! - Nothing is sent before `flush`, and nothing that was flushed is reordered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use protocol::Fault;
use protocol::fault::code;
use protocol::frame::{BadFrame, Frame, HEADER, Header};
use protocol::session::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpStream;

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
            LinkError::Io { source, .. } => Fault::new(code::LINK, self.to_string(), source.to_string()),
            LinkError::Frame { source, .. } => Fault::new(code::PROTOCOL, self.to_string(), source.to_string()),
            LinkError::OutOfTurn { .. } => {
                Fault::new(code::PROTOCOL, self.to_string(), "the session's order of messages was not kept")
            }
            LinkError::Refused(fault) => fault.clone(),
        }
    }
}

/// Both halves of a link.
pub struct Link {
    /// What comes.
    pub incoming: Incoming,
    /// What goes.
    pub outgoing: Outgoing,
}

/// The half that reads.
pub struct Incoming {
    stream: BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    peer: String,
    counted: Arc<AtomicU64>,
}

/// The half that writes.
pub struct Outgoing {
    stream: BufWriter<Box<dyn AsyncWrite + Send + Sync + Unpin>>,
    peer: String,
    counted: Arc<AtomicU64>,
}

/// How many frames' worth of bytes are gathered before the system is called.
const BUFFER: usize = 256 * 1024;

impl Link {
    /// Wraps a connected stream.
    pub fn new(stream: TcpStream) -> Link {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection could not be tuned");
        }
        let peer = stream.peer_addr().map_or_else(|_| "the peer".to_string(), |address| address.to_string());
        let (read, write) = stream.into_split();
        let counted = Arc::new(AtomicU64::new(0));
        Link {
            incoming: Incoming {
                stream: BufReader::with_capacity(BUFFER, Box::new(read)),
                peer: peer.clone(),
                counted: counted.clone(),
            },
            outgoing: Outgoing { stream: BufWriter::with_capacity(BUFFER, Box::new(write)), peer, counted },
        }
    }

    /// Dials `address` (`host:port`).
    ///
    /// # Errors
    /// [`LinkError::Io`] when nobody answers there within ten seconds.
    pub async fn dial(address: &str) -> Result<Link, LinkError> {
        let failed = |source| LinkError::Io { peer: address.to_string(), source };
        let dialled = tokio::time::timeout(std::time::Duration::from_secs(10), TcpStream::connect(address)).await;
        match dialled {
            Ok(stream) => stream.map(Link::new).map_err(failed),
            Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
        }
    }
}

/// How long a peer may be silent, or leave what was sent unacknowledged, before the link counts as broken. Guessed:
/// longer than a switch needs to converge, shorter than an operator's patience.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(15);

fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    // Latency matters more than packet count: seal and answer are single small frames.
    stream.set_nodelay(true)?;
    // A site that burns sends no goodbye: without these a write would hang for a quarter of an hour.
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / 3)?;
    sockopt::set_tcp_keepcnt(stream, 2)?;
    sockopt::set_tcp_user_timeout(stream, SILENCE.as_millis() as u32)?;
    Ok(())
}

impl Incoming {
    /// The next frame and its payload's checksum; none when the peer closed the stream between two frames.
    ///
    /// # Errors
    /// [`LinkError::Io`], [`LinkError::Frame`].
    pub async fn next(&mut self) -> Result<Option<(Frame, u64)>, LinkError> {
        let peer = self.peer.clone();
        let io = |source| LinkError::Io { peer: peer.clone(), source };
        let mut header = [0; HEADER];
        match self.stream.read(&mut header[..1]).await.map_err(io)? {
            0 => return Ok(None),
            _ => self.stream.read_exact(&mut header[1..]).await.map_err(io)?,
        };
        let bad = |source| LinkError::Frame { peer: peer.clone(), source };
        let header = Header::decode(&header).map_err(bad)?;
        let mut payload = BytesMut::zeroed(header.length as usize);
        self.stream.read_exact(&mut payload).await.map_err(io)?;
        self.counted.fetch_add(u64::from(header.length) + HEADER as u64, Ordering::Relaxed);
        let frame = header.frame(payload.freeze()).map_err(bad)?;
        Ok(Some((frame, header.checksum())))
    }

    /// The next frame as a control message.
    ///
    /// # Errors
    /// Those of [`Incoming::next`]; [`LinkError::Refused`] when the peer refuses; [`LinkError::OutOfTurn`] for a data
    /// frame or the end of the stream, named by `wanted`.
    pub async fn message(&mut self, wanted: &'static str) -> Result<Message, LinkError> {
        let out_of_turn = |peer: &str, got: &str| LinkError::OutOfTurn { peer: peer.into(), got: got.into(), wanted };
        match self.next().await? {
            Some((Frame::Message(Message::Refused { fault }), _)) => Err(LinkError::Refused(fault)),
            Some((Frame::Message(message), _)) => Ok(message),
            Some(_) => Err(out_of_turn(&self.peer, "a data frame")),
            None => Err(LinkError::Io { peer: self.peer.clone(), source: std::io::ErrorKind::UnexpectedEof.into() }),
        }
    }

    /// The other end's address.
    pub fn peer(&self) -> &str {
        &self.peer
    }
}

impl Outgoing {
    /// Queues a frame and gives its payload's checksum.
    ///
    /// # Errors
    /// [`LinkError::Io`].
    pub async fn queue(&mut self, frame: &Frame) -> Result<u64, LinkError> {
        let (bytes, checksum) = frame.encode();
        self.counted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.stream.write_all(&bytes).await.map_err(|source| LinkError::Io { peer: self.peer.clone(), source })?;
        Ok(checksum)
    }

    /// Sends everything that is queued.
    ///
    /// # Errors
    /// [`LinkError::Io`].
    pub async fn flush(&mut self) -> Result<(), LinkError> {
        self.stream.flush().await.map_err(|source| LinkError::Io { peer: self.peer.clone(), source })
    }

    /// Queues a control message and sends everything.
    ///
    /// # Errors
    /// [`LinkError::Io`].
    pub async fn say(&mut self, message: Message) -> Result<(), LinkError> {
        self.queue(&message.into()).await?;
        self.flush().await
    }

    /// Bytes that went over the link in both directions so far.
    pub fn bytes(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::net::TcpListener;

    async fn pair() -> (Link, Link) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (dialled, accepted) = tokio::join!(Link::dial(&address), listener.accept());
        (dialled.unwrap(), Link::new(accepted.unwrap().0))
    }

    #[tokio::test]
    async fn frames_arrive_in_order_and_are_counted_at_both_ends() {
        let (mut near, mut far) = pair().await;
        for sequence in 1..=3 {
            let bytes = Bytes::from(vec![sequence as u8; 65536]);
            near.outgoing.queue(&Frame::Data { sequence, disk: 0, offset: 0, bytes }).await.unwrap();
        }
        near.outgoing.say(Message::Ping { number: 4 }).await.unwrap();
        for wanted in 1..=3 {
            let got = far.incoming.next().await.unwrap().unwrap().0;
            assert!(matches!(got, Frame::Data { sequence, .. } if sequence == wanted));
        }
        assert_eq!(far.incoming.message("ping").await.unwrap(), Message::Ping { number: 4 });
        assert_eq!(near.outgoing.bytes(), far.outgoing.bytes());
        drop(near);
        assert!(far.incoming.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error_not_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut far = Link::new(listener.accept().await.unwrap().0);
        let (bytes, _) = Frame::Message(Message::Ping { number: 1 }).encode();
        stream.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
        drop(stream);
        assert!(matches!(far.incoming.next().await, Err(LinkError::Io { .. })));
    }

    #[tokio::test]
    async fn a_refusal_arrives_as_the_fault_that_was_sent() {
        let (near, mut far) = pair().await;
        let mut outgoing = near.outgoing;
        let fault = Fault::new(code::NOT_AUTHORISED, "no", "because");
        outgoing.say(Message::Refused { fault: fault.clone() }).await.unwrap();
        assert!(matches!(far.incoming.message("welcome").await, Err(LinkError::Refused(got)) if got == fault));
    }
}
