//! One connection of a link: a task that reads and checks, one that compresses where that pays, one that encrypts and
//! writes as fast as its caps allow.
//!
//! ```text
//!   TLS ─► read, check, expand ─► inlet                outlet ─► compress ([`super::packing`]) ─► queue ─► caps ─► TLS
//! ```

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use protocol::frame::{Frame, HEADER, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsStream;

use super::counted::Counted;
use super::packing::{self, Speed, Tally};
use super::{LinkError, Throttled};
use crate::cap::PORTION;

/// Frames of at most 1 MiB that a lane holds in each direction; two more are about to be compressed.
const WAITING: usize = 4;
/// Small frames and headers are read through a buffer of this size; what is larger passes it by.
const BUFFER: usize = 16 * 1024;
/// How long a peer may be silent, or leave what was sent unacknowledged, before the link counts as broken. Guessed:
/// longer than a switch needs to converge, shorter than an operator's patience.
const SILENCE: Duration = Duration::from_secs(15);

pub(super) type Tls = TlsStream<Counted<TcpStream>>;
pub(super) type Got = Result<Option<(Frame, u64)>, LinkError>;

/// A connection whose ends have proven themselves.
pub(super) struct Connection {
    reader: BufReader<ReadHalf<Tls>>,
    writer: WriteHalf<Tls>,
    pub(super) peer: String,
    pub(super) count: Arc<AtomicU64>,
}

impl Connection {
    pub(super) fn new(stream: Tls, peer: String) -> Connection {
        let count = stream.get_ref().0.count.clone();
        let (reader, writer) = tokio::io::split(stream);
        Connection { reader: BufReader::with_capacity(BUFFER, reader), writer, peer, count }
    }

    /// The next frame, before the tasks have begun.
    pub(super) async fn next(&mut self) -> Got {
        next(&mut self.reader, &self.peer).await
    }

    /// Sends a frame, before the tasks have begun.
    pub(super) async fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let (bytes, _) = frame.encode();
        let written = async {
            self.writer.write_all(&bytes).await?;
            self.writer.flush().await
        };
        written.await.map_err(|source| LinkError::Io { peer: self.peer.clone(), source })
    }

    /// Begins to read and write. `over` is told when nothing more can come.
    pub(super) fn start(
        self,
        readers: &mut JoinSet<()>,
        writers: &mut JoinSet<()>,
        over: watch::Sender<bool>,
        (throttled, tally): (Throttled, Arc<Tally>),
    ) -> (Inlet, Outlet) {
        let Connection { mut reader, writer, peer, .. } = self;
        let (came, coming) = mpsc::channel(WAITING);
        readers.spawn(async move {
            loop {
                let got = next(&mut reader, &peer).await;
                let ends = !matches!(got, Ok(Some(_)));
                if came.send(got).await.is_err() || ends {
                    break;
                }
            }
            over.send_replace(true);
        });
        let (goes, packs) = mpsc::channel(1);
        let (packed, mut going) = mpsc::channel(WAITING);
        let speed = Arc::new(Speed::default());
        writers.spawn(packing::pack(packs, packed, speed.clone(), tally));
        let failure = Arc::new(Mutex::new(None));
        let failed = failure.clone();
        writers.spawn(async move {
            if let Err(error) = write(&mut going, writer, &throttled, &speed).await {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        (Inlet { coming }, Outlet::Wire { goes, failure })
    }
}

/// Where a lane's frames come out.
pub(super) struct Inlet {
    coming: mpsc::Receiver<Got>,
}

impl Inlet {
    pub(super) async fn next(&mut self) -> Got {
        self.coming.recv().await.unwrap_or(Ok(None))
    }
}

/// Where a lane's frames go in.
pub(super) enum Outlet {
    /// A connection.
    Wire { goes: mpsc::Sender<Queued>, failure: Arc<Mutex<Option<io::Error>>> },
    /// The other end is in this process.
    Near(mpsc::Sender<Got>),
}

/// An encoded frame.
pub(super) struct Queued {
    pub(super) bytes: Bytes,
    /// A control message: caps count it, but it waits for none.
    pub(super) is_word: bool,
}

impl Outlet {
    /// Sends a frame and gives its payload's checksum; between two ends of one process nothing is summed.
    pub(super) async fn send(&self, frame: &Frame) -> io::Result<u64> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        match self {
            Outlet::Near(goes) => goes.send(Ok(Some((frame.clone(), 0)))).await.map(|()| 0).map_err(|_| gone()),
            Outlet::Wire { goes, failure } => {
                let (bytes, checksum) = frame.encode();
                let sent = goes.send(Queued { bytes, is_word: matches!(frame, Frame::Message(_)) }).await;
                sent.map(|()| checksum).map_err(|_| {
                    let failure = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
                    failure.unwrap_or_else(gone)
                })
            }
        }
    }
}

/// Two ends of one lane in this process.
pub(super) fn near() -> (Inlet, Outlet) {
    let (came, coming) = mpsc::channel(WAITING);
    (Inlet { coming }, Outlet::Near(came))
}

async fn next(stream: &mut BufReader<ReadHalf<Tls>>, peer: &str) -> Got {
    let io = |source| LinkError::Io { peer: peer.into(), source };
    let mut header = [0; HEADER];
    match stream.read(&mut header[..1]).await {
        Ok(0) => return Ok(None),
        // A process that is killed takes no leave.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(_) => stream.read_exact(&mut header[1..]).await.map_err(io)?,
        Err(error) => return Err(io(error)),
    };
    let bad = |source| LinkError::Frame { peer: peer.into(), source };
    let header = Header::decode(&header).map_err(bad)?;
    let length = header.length as usize;
    let mut payload = BytesMut::with_capacity(length);
    let mut rest = stream.take(length as u64);
    while payload.len() < length {
        if rest.read_buf(&mut payload).await.map_err(io)? == 0 {
            return Err(io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    header.frame(payload.freeze()).map(Some).map_err(bad)
}

async fn write(
    going: &mut mpsc::Receiver<Queued>,
    mut stream: WriteHalf<Tls>,
    throttled: &Throttled,
    speed: &Speed,
) -> io::Result<()> {
    while let Some(queued) = going.recv().await {
        write_one(&queued, &mut stream, throttled, speed).await?;
        // Whoever has nothing more to say now may wait for an answer.
        while let Ok(queued) = going.try_recv() {
            write_one(&queued, &mut stream, throttled, speed).await?;
        }
        stream.flush().await?;
    }
    stream.shutdown().await
}

async fn write_one(
    Queued { bytes, is_word }: &Queued,
    stream: &mut WriteHalf<Tls>,
    throttled: &Throttled,
    speed: &Speed,
) -> io::Result<()> {
    let begun = Instant::now();
    match throttled.get() {
        Some(throttle) if !is_word => {
            for portion in bytes.chunks(PORTION) {
                throttle.pass(portion.len()).await;
                stream.write_all(portion).await?;
            }
        }
        Some(throttle) => {
            throttle.note(bytes.len());
            stream.write_all(bytes).await?;
        }
        None => stream.write_all(bytes).await?,
    }
    speed.wrote(bytes.len(), begun.elapsed());
    Ok(())
}

/// Tells the system how a lane is used.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
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
