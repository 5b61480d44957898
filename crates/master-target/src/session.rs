//! The receiving end of a mover session.
//!
//! ```text
//!   link ─► reader ──────┬─► bounded queue ─► batches ─► item.apply (blocking) ─► Received
//!                        └─► questions ─► Trees ─► Hashes        beside the batches, which do not wait for it
//! ```
//! While a batch is being journalled and written the next one arrives and is prepared ([`crate::feed`]); the queue's bound
//! and two batches are the memory that a session may take. A control message is answered when all before it is applied.

use std::sync::Arc;
use std::time::Duration;

use component::link::{Door, Incoming, Link, LinkError, Outgoing, refuse};
use protocol::frame::Frame;
use protocol::session::{MOST_ASKED, Message};
use protocol::{Extent, Fault};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};
use transfer::{Hashed, Question, Trees};

use crate::beneath::Beneath;
use crate::feed::{Feed, Queued};
use crate::item::{Item, Opened, protocol_fault};
use crate::leaves::ItemLeaves;
use crate::shelf::{Shelf, blocking};

/// Frames that may wait: 64 of at most 1 MiB.
const QUEUE: usize = 64;
/// How long a stranger may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// Accepts sessions for ever.
pub(crate) async fn accept(door: Option<Door>, shelf: Arc<Shelf>) {
    let Some(mut door) = door else { return std::future::pending().await };
    while let Some(link) = door.next().await {
        let shelf = shelf.clone();
        tokio::spawn(async move { begin(link, &shelf, Some(HELLO)).await });
    }
}

/// Follows what comes over a link until it ends; its hello must come within `patience`, if that is given.
pub(crate) async fn begin(link: Link, shelf: &Arc<Shelf>, patience: Option<Duration>) {
    let shelf = shelf.clone();
    // A session knows how it can be ended: a later session of the same item takes its place.
    let (tell, told) = oneshot::channel();
    let session = Session(tokio::spawn(async move {
        let Ok(me) = told.await else { return };
        let peer = link.incoming.peer().to_string();
        if let Err(error) = greet(link, &shelf, me, patience).await {
            tracing::debug!(peer, %error, "a session ended");
        }
    }));
    let _ = tell.send(session.0.abort_handle());
    session.ended().await;
}

/// A session's task, which ends with whoever waits for it.
struct Session(JoinHandle<()>);

impl Session {
    async fn ended(mut self) {
        if let Err(error) = (&mut self.0).await
            && error.is_panic()
        {
            tracing::error!(%error, "a session failed");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn greet(link: Link, shelf: &Shelf, me: AbortHandle, patience: Option<Duration>) -> Result<(), LinkError> {
    let Link { mut incoming, outgoing, .. } = link;
    let hello = match patience {
        None => incoming.message("hello").await,
        Some(patience) => match tokio::time::timeout(patience, incoming.message("hello")).await {
            Ok(hello) => hello,
            Err(_) => return Ok(()),
        },
    };
    let result = match hello? {
        Message::Hello { item, token, generation } => {
            shelf.must(&item).and_then(|item| item.admit(&token, generation, me).map(|()| (item, None)))
        }
        Message::Consult { item, token, generation } => {
            shelf.must(&item).and_then(|item| Ok((item.clone(), Some(Beneath::of(item, &token, generation)?))))
        }
        _ => Err(protocol_fault("the first message is not hello")),
    };
    match result {
        Ok((item, None)) => serve(incoming, outgoing, item).await,
        Ok((_, Some(beneath))) => beneath.tell(incoming, outgoing).await,
        Err(fault) => {
            tracing::warn!(peer = incoming.peer(), %fault, cause = %fault.cause, "a sender was not admitted");
            refuse(&mut incoming, outgoing, fault).await
        }
    }
}

async fn serve(mut incoming: Incoming, mut outgoing: Outgoing, item: Arc<Item>) -> Result<(), LinkError> {
    let of = item.clone();
    let leaves = match blocking(move || ItemLeaves::of(of)).await {
        Ok(leaves) => Arc::new(leaves),
        Err(fault) => return refuse(&mut incoming, outgoing, fault).await,
    };
    outgoing
        .say(Message::Welcome {
            position: item.position(),
            newest: item.newest(),
            disks: item.disks(),
            has_content: item.replica.has_content(),
            leaves: leaves.recipe(),
        })
        .await?;
    let trees = Trees::new(leaves.clone());
    let (queue, mut queued) = mpsc::channel(QUEUE);
    let (ask, asked) = mpsc::channel(MOST_ASKED);
    let outgoing = Mutex::new(outgoing);
    let reading = async {
        read(&mut incoming, queue, ask).await;
        // What it handed on is still to be done.
        std::future::pending::<std::convert::Infallible>().await
    };
    let result = tokio::select! {
        result = follow(&mut queued, &outgoing, &item, &leaves) => result,
        result = hash(trees, asked, &outgoing) => result,
        never = reading => match never {},
    };
    match result {
        Err(Ended::Refuse(fault)) => {
            tracing::warn!(item = %item.id(), %fault, cause = %fault.cause, "a session is refused");
            refuse(&mut incoming, outgoing.into_inner(), fault).await
        }
        Err(Ended::Link(error)) => Err(error),
        Ok(()) => Ok(()),
    }
}

enum Ended {
    Link(LinkError),
    Refuse(Fault),
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Ended {
        Ended::Link(error)
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Ended {
        Ended::Refuse(fault)
    }
}

/// Hands on what comes: questions for hashes to `ask`, all else to `queue`.
async fn read(incoming: &mut Incoming, queue: mpsc::Sender<Queued>, ask: mpsc::Sender<Question>) {
    loop {
        let next = match incoming.next().await {
            Ok(Some((Frame::Message(Message::HashRequest { disk, level, offset, length }), _))) => {
                let question = Question { disk, level, extent: Extent::new(offset, length) };
                if ask.send(question).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Some(frame)) => Ok(frame),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let over = next.is_err();
        if queue.send(next).await.is_err() || over {
            return;
        }
    }
}

/// Answers questions for hashes until the session ends otherwise.
async fn hash(mut trees: Trees, mut asked: mpsc::Receiver<Question>, outgoing: &Mutex<Outgoing>) -> Result<(), Ended> {
    loop {
        tokio::select! {
            Some(question) = asked.recv(), if trees.under_way() < MOST_ASKED => trees.ask(question)?,
            answer = trees.next() => {
                let answer = answer?;
                outgoing.lock().await.send(&answer).await?;
            }
        }
    }
}

async fn follow(
    queue: &mut mpsc::Receiver<Queued>,
    outgoing: &Mutex<Outgoing>,
    item: &Arc<Item>,
    leaves: &Arc<ItemLeaves>,
) -> Result<(), Ended> {
    let mut feed = Feed::default();
    let mut after_batch = None;
    loop {
        let next = match after_batch.take() {
            Some(next) => Some(next),
            None => feed.next(queue).await?,
        };
        let (applied, message) = match next {
            None if feed.is_idle() => return Ok(()),
            None => (feed.finish().await?, None),
            Some((Frame::Message(message), _)) => (feed.finish().await?, Some(message)),
            Some((Frame::Hashes { .. }, _)) => return Err(protocol_fault("hashes came from the sender").into()),
            Some(first) => {
                let (batch, next) = feed.gather(first, queue).await?;
                after_batch = next;
                (feed.start(item, batch).await?, None)
            }
        };
        if let Some(through) = applied {
            outgoing.lock().await.say(Message::Received { through }).await?;
        }
        if let Some(message) = message {
            let answer = answer(message, item, leaves).await?;
            outgoing.lock().await.say(answer).await?;
        }
    }
}

async fn answer(message: Message, item: &Arc<Item>, leaves: &Arc<ItemLeaves>) -> Result<Message, Fault> {
    let of = item.clone();
    match message {
        Message::OpenEpoch { header } => {
            let attempt = header.attempt;
            let Opened { known, resumed, resume_after } = blocking(move || of.open_epoch(&header)).await?;
            Ok(Message::EpochOpened { attempt, known, resumed, resume_after })
        }
        Message::Seal { attempt, totals } => {
            let (point, worked) = blocking(move || of.seal(attempt, totals)).await?;
            item.tend();
            let worked_us = worked.as_micros().try_into().unwrap_or(u64::MAX);
            Ok(Message::Sealed { point, worked_us })
        }
        Message::Rekey { leaves: recipe } => {
            let leaves = leaves.clone();
            Ok(Message::Rekeyed { leaves: blocking(move || leaves.rekey(recipe)).await? })
        }
        Message::Ping { number } => Ok(Message::Pong { number }),
        _ => Err(protocol_fault("a message came that is not a sender's")),
    }
}
