//! The sending end of a session: frames and questions one way, answers the other.
//!
//! Answers are read by a task of their own, so that data can flow while they arrive; what the receiver took over is a
//! number that only grows. A target that is silent is waited for while bytes still go to it: neither a slow line nor a
//! bandwidth cap ends a session. When a write fails, the peer's last words are looked for first: "refused, because" is a
//! better answer than "connection reset".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use component::link::{Incoming, Link, LinkError, Outgoing, Traffic};
use protocol::Extent;
use protocol::frame::Frame;
use protocol::leaf::Leaf;
use protocol::session::{MOST_ASKED, Message};
use tokio::sync::mpsc;

use crate::Question;

/// How long the target may take to answer, or to roll an unfinished epoch back.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to make durable what it took.
const SEAL_PATIENCE: Duration = Duration::from_secs(600);
/// How long it may take to hear why a session ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

enum Answer {
    Message(Message),
    Hashes { disk: u16, level: u8, offset: u64, leaves: Vec<Leaf>, read: u64 },
}

/// A session with whoever has the target.
pub struct Session {
    outgoing: Outgoing,
    answers: mpsc::Receiver<Result<Answer, LinkError>>,
    received: Arc<AtomicU64>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Session {
    /// A session over a link that is otherwise unused.
    pub fn over(link: Link) -> Session {
        let Link { incoming, outgoing, .. } = link;
        let (answer, answers) = mpsc::channel(MOST_ASKED);
        let received = Arc::new(AtomicU64::new(0));
        let reader = tokio::spawn(read_answers(incoming, answer, received.clone()));
        Session { outgoing, answers, received, reader }
    }

    /// What went over the wire so far.
    pub fn traffic(&self) -> Traffic {
        self.outgoing.traffic()
    }

    /// Sequence number up to which the target has taken frames over.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends a data or zero frame and gives its checksum.
    ///
    /// # Errors
    /// The link ended; if the target said why, that.
    pub async fn send(&mut self, frame: &Frame) -> Result<u64, LinkError> {
        if self.reader.is_finished() {
            return Err(self.last_words(gone(std::io::ErrorKind::BrokenPipe)).await);
        }
        match self.outgoing.send(frame).await {
            Ok(checksum) => Ok(checksum),
            Err(error) => Err(self.last_words(error).await),
        }
    }

    /// Sends a message at once.
    ///
    /// # Errors
    /// As for [`Session::send`].
    pub async fn say(&mut self, message: Message) -> Result<(), LinkError> {
        match self.outgoing.say(message).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.last_words(error).await),
        }
    }

    /// Says `message` and waits for the answer to it, which `wanted` names.
    ///
    /// # Errors
    /// As for [`Session::send`]; none came in time, or another than an answer.
    pub async fn ask(&mut self, message: Message, wanted: &'static str) -> Result<Message, LinkError> {
        let patience = if matches!(message, Message::Seal { .. }) { SEAL_PATIENCE } else { PATIENCE };
        self.say(message).await?;
        match self.next(patience).await? {
            Answer::Message(message) => Ok(message),
            Answer::Hashes { .. } => Err(self.out_of_turn("hashes", wanted)),
        }
    }

    /// An error for an answer that should have been `wanted`.
    pub fn other_than(&self, got: &Message, wanted: &'static str) -> LinkError {
        self.out_of_turn(&format!("{got:?}").chars().take(40).collect::<String>(), wanted)
    }

    /// The hashes that were asked for next, and how much the target read for them. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn hashes(&mut self, asked: &Question) -> Result<(Vec<Leaf>, u64), LinkError> {
        match self.next(PATIENCE).await? {
            Answer::Hashes { disk, level, offset, leaves, read }
                if (disk, level, offset) == (asked.disk, asked.level, asked.extent.offset) =>
            {
                Ok((leaves, read))
            }
            Answer::Hashes { .. } => Err(self.out_of_turn("other hashes", "hashes")),
            Answer::Message(message) => Err(self.other_than(&message, "hashes")),
        }
    }

    /// Asks for leaves and waits for them; nothing else may be asked meanwhile. Gives how much was read for them, too.
    ///
    /// # Errors
    /// As for [`Session::ask`].
    pub async fn leaves(&mut self, disk: u16, extent: Extent) -> Result<(Vec<Leaf>, u64), LinkError> {
        let question = Question { disk, level: 0, extent };
        self.say(question.message()).await?;
        self.hashes(&question).await
    }

    /// Says this last, and waits a while for the other end to leave: a connection that is closed with unread bytes is reset,
    /// and what was said lost with it.
    pub(crate) async fn end(mut self, message: Message) {
        if self.say(message).await.is_ok() {
            let _ = tokio::time::timeout(LAST_WORDS, async { while self.answers.recv().await.is_some() {} }).await;
        }
    }

    async fn next(&mut self, patience: Duration) -> Result<Answer, LinkError> {
        loop {
            let before = self.traffic().bytes;
            match tokio::time::timeout(patience, self.answers.recv()).await {
                Ok(Some(answer)) => return answer,
                Ok(None) => return Err(gone(std::io::ErrorKind::UnexpectedEof)),
                // The question may still stand behind what was sent before it.
                Err(_) if self.traffic().bytes > before => {}
                Err(_) => return Err(gone(std::io::ErrorKind::TimedOut)),
            }
        }
    }

    async fn last_words(&mut self, error: LinkError) -> LinkError {
        while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_millis(500), self.answers.recv()).await {
            if let Err(refused @ LinkError::Refused(_)) = answer {
                return refused;
            }
        }
        error
    }

    fn out_of_turn(&self, got: &str, wanted: &'static str) -> LinkError {
        LinkError::OutOfTurn { peer: "the target".into(), got: got.into(), wanted }
    }
}

fn gone(kind: std::io::ErrorKind) -> LinkError {
    LinkError::Io { peer: "the target".into(), source: kind.into() }
}

async fn read_answers(
    mut incoming: Incoming,
    answer: mpsc::Sender<Result<Answer, LinkError>>,
    received: Arc<AtomicU64>,
) {
    loop {
        let got = match incoming.next().await {
            Ok(None) => return,
            Ok(Some((Frame::Message(Message::Received { through }), _))) => {
                received.fetch_max(through, Ordering::Relaxed);
                continue;
            }
            Ok(Some((Frame::Message(Message::Refused { fault }), _))) => Err(LinkError::Refused(fault)),
            Ok(Some((Frame::Message(message), _))) => Ok(Answer::Message(message)),
            Ok(Some((Frame::Hashes { disk, level, offset, read, leaves }, _))) => {
                Ok(Answer::Hashes { disk, level, offset, read, leaves })
            }
            Ok(Some((Frame::Data { .. } | Frame::Zero { .. }, _))) => {
                Err(LinkError::OutOfTurn { peer: incoming.peer().into(), got: "data".into(), wanted: "an answer" })
            }
            Err(error) => Err(error),
        };
        let over = got.is_err();
        if answer.send(got).await.is_err() || over {
            return;
        }
    }
}
