//! One session with a master target: hello, then frames one way and answers the other.
//!
//! Answers are read by a task of their own, so that data can flow while they arrive; what the receiver took over is a
//! number that only grows. When a write fails, the peer's last words are looked for first: "refused, because" is a
//! better answer than "connection reset".

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use component::link::{Incoming, Link, LinkError, Outgoing};
use protocol::Fault;
use protocol::epoch::DiskSize;
use protocol::frame::Frame;
use protocol::leaf::{Leaf, LeafKey};
use protocol::order::Replication;
use protocol::session::Message;
use tokio::sync::mpsc;

use crate::choice::Target;
use crate::reach::Reach;

/// How long the target may take to answer hello, or to roll an unfinished epoch back.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take to make an epoch durable.
const SEAL_PATIENCE: Duration = Duration::from_secs(600);

enum Answer {
    Message(Message),
    Hashes { disk: u16, offset: u64, leaves: Vec<Leaf>, read: u64 },
}

/// A session that was welcomed.
pub(crate) struct Session {
    outgoing: Outgoing,
    answers: mpsc::Receiver<Result<Answer, LinkError>>,
    received: Arc<AtomicU64>,
    reader: tokio::task::JoinHandle<()>,
    pub(crate) target: Target,
    pub(crate) disks: Vec<DiskSize>,
    pub(crate) leaf_key: LeafKey,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Session {
    /// Comes by a link to the target and introduces itself.
    pub(crate) async fn open(reach: &Reach, wish: &Replication) -> Result<Session, LinkError> {
        let Link { incoming, mut outgoing, .. } = reach.link(&wish.item, &wish.target).await?;
        let hello = Message::Hello { item: wish.item.clone(), token: wish.token.clone(), generation: wish.generation };
        outgoing.say(hello).await?;
        let (answer, answers) = mpsc::channel(64);
        let received = Arc::new(AtomicU64::new(0));
        let reader = tokio::spawn(read_answers(incoming, answer, received.clone()));
        let target = Target { position: None, newest: None, has_content: true };
        let mut session = Session { outgoing, answers, received, reader, target, disks: Vec::new(), leaf_key: [0; 32] };
        match session.answer("welcome", PATIENCE).await? {
            Message::Welcome { position, newest, disks, has_content, leaf_key, .. } => {
                session.target = Target { position, newest, has_content };
                (session.disks, session.leaf_key) = (disks, leaf_key);
                Ok(session)
            }
            other => Err(session.out_of_turn(&other, "welcome")),
        }
    }

    /// Bytes on the wire so far, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.outgoing.bytes()
    }

    /// Sequence number up to which the target has taken frames over.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Sends a data or zero frame and gives its checksum.
    pub(crate) async fn send(&mut self, frame: &Frame) -> Result<u64, LinkError> {
        match self.outgoing.send(frame).await {
            Ok(checksum) => Ok(checksum),
            Err(error) => Err(self.last_words(error).await),
        }
    }

    /// Sends a message at once.
    pub(crate) async fn say(&mut self, message: Message) -> Result<(), LinkError> {
        match self.outgoing.say(message).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.last_words(error).await),
        }
    }

    /// Says `message` and waits for the answer to it.
    pub(crate) async fn ask(&mut self, message: Message, wanted: &'static str) -> Result<Message, LinkError> {
        let patience = if matches!(message, Message::Seal { .. }) { SEAL_PATIENCE } else { PATIENCE };
        self.say(message).await?;
        self.answer(wanted, patience).await
    }

    /// The hashes that were asked for next, of `disk` from `offset`, and how much the target read for them.
    pub(crate) async fn hashes(&mut self, disk: u16, offset: u64) -> Result<(Vec<Leaf>, u64), LinkError> {
        match self.next(PATIENCE).await? {
            Answer::Hashes { disk: of, offset: from, leaves, read } if (of, from) == (disk, offset) => {
                Ok((leaves, read))
            }
            Answer::Hashes { .. } => Err(self.out_of_turn_words("other hashes", "hashes")),
            Answer::Message(message) => Err(self.out_of_turn(&message, "hashes")),
        }
    }

    async fn answer(&mut self, wanted: &'static str, patience: Duration) -> Result<Message, LinkError> {
        match self.next(patience).await? {
            Answer::Message(message) => Ok(message),
            Answer::Hashes { .. } => Err(self.out_of_turn_words("hashes", wanted)),
        }
    }

    async fn next(&mut self, patience: Duration) -> Result<Answer, LinkError> {
        match tokio::time::timeout(patience, self.answers.recv()).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(self.gone(std::io::ErrorKind::UnexpectedEof)),
            Err(_) => Err(self.gone(std::io::ErrorKind::TimedOut)),
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

    fn gone(&self, kind: std::io::ErrorKind) -> LinkError {
        LinkError::Io { peer: "the master target".into(), source: kind.into() }
    }

    fn out_of_turn(&self, got: &Message, wanted: &'static str) -> LinkError {
        self.out_of_turn_words(&format!("{got:?}").chars().take(40).collect::<String>(), wanted)
    }

    fn out_of_turn_words(&self, got: &str, wanted: &'static str) -> LinkError {
        LinkError::OutOfTurn { peer: "the master target".into(), got: got.into(), wanted }
    }
}

/// A refusal or failure of a session as people see it, and whether the target itself said it.
pub(crate) fn said_by_target(error: &LinkError) -> Option<&Fault> {
    match error {
        LinkError::Refused(fault) => Some(fault),
        _ => None,
    }
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
            Ok(Some((Frame::Hashes { disk, offset, read, leaves }, _))) => {
                Ok(Answer::Hashes { disk, offset, read, leaves })
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
