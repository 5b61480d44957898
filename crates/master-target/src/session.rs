//! The receiving end of a mover session.
//!
//! ```text
//!   link ─► reader task ─► bounded queue ─► batches ─► item.apply (blocking) ─► Received
//! ```
//! While a batch is being journalled and written the next one arrives and is prepared ([`crate::feed`]); the queue's bound
//! and two batches are the memory that a session may take. A control message is answered when all before it is applied.

use std::sync::Arc;
use std::time::{Duration, Instant};

use component::link::{Door, Incoming, Link, LinkError, Outgoing};
use protocol::epoch::Basis;
use protocol::frame::Frame;
use protocol::leaf::{Leaf, LeafKey, SPOILT_LEAF, ZERO_LEAF, leaf};
use protocol::session::{MOST_HASHED, Message};
use protocol::{BLOCK, BlockMap, Extent, Fault};
use replica::DiskHome;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinHandle};

use crate::feed::{Feed, Queued};
use crate::item::{Item, Opened, protocol_fault};
use crate::shelf::{Shelf, blocking};

/// Frames that may wait: 64 of at most 1 MiB.
const QUEUE: usize = 64;
/// How long a stranger may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// How long kept leaves are brought up to date before the disks are read instead. A sender waits for two minutes.
const CATCHING_UP: Duration = Duration::from_secs(30);

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
    let Link { mut incoming, mut outgoing, .. } = link;
    let hello = match patience {
        None => incoming.message("hello").await,
        Some(patience) => match tokio::time::timeout(patience, incoming.message("hello")).await {
            Ok(hello) => hello,
            Err(_) => return Ok(()),
        },
    };
    let result = match hello? {
        Message::Hello { item, token, generation } => {
            shelf.must(&item).and_then(|item| item.admit(&token, generation, me).map(|()| item))
        }
        _ => Err(protocol_fault("the first message is not hello")),
    };
    match result {
        Ok(item) => serve(incoming, outgoing, item).await,
        Err(fault) => {
            tracing::warn!(peer = incoming.peer(), %fault, cause = %fault.cause, "a sender was not admitted");
            outgoing.say(Message::Refused { fault }).await
        }
    }
}

async fn serve(incoming: Incoming, mut outgoing: Outgoing, item: Arc<Item>) -> Result<(), LinkError> {
    let of = item.clone();
    let leaves = match blocking(move || of.leaves().map_err(|error| of.fault(&error))).await {
        Ok(leaves) => leaves,
        Err(fault) => return outgoing.say(Message::Refused { fault }).await,
    };
    outgoing
        .say(Message::Welcome {
            position: item.position(),
            newest: item.newest(),
            disks: item.disks(),
            has_content: item.replica.has_content(),
            leaf_key: leaves.key(),
        })
        .await?;
    drop(leaves);
    let (queue, mut queued) = mpsc::channel(QUEUE);
    let reader = tokio::spawn(read(incoming, queue));
    let result = follow(&mut queued, &mut outgoing, &item).await;
    reader.abort();
    match result {
        Err(Ended::Refuse(fault)) => {
            tracing::warn!(item = %item.id(), %fault, cause = %fault.cause, "a session is refused");
            outgoing.say(Message::Refused { fault }).await
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

async fn read(mut incoming: Incoming, queue: mpsc::Sender<Queued>) {
    loop {
        let next = match incoming.next().await {
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

async fn follow(queue: &mut mpsc::Receiver<Queued>, outgoing: &mut Outgoing, item: &Arc<Item>) -> Result<(), Ended> {
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
            outgoing.say(Message::Received { through }).await?;
        }
        if let Some(message) = message {
            answer(message, outgoing, item).await?;
        }
    }
}

async fn answer(message: Message, outgoing: &mut Outgoing, item: &Arc<Item>) -> Result<(), Ended> {
    let of = item.clone();
    match message {
        Message::OpenEpoch { header } => {
            let attempt = header.attempt;
            let Opened { known, resumed, resume_after } = blocking(move || of.open_epoch(&header)).await?;
            outgoing.say(Message::EpochOpened { attempt, known, resumed, resume_after }).await?;
        }
        Message::Seal { attempt, totals } => {
            let point = blocking(move || of.seal(attempt, totals)).await?;
            outgoing.say(Message::Sealed { point }).await?;
            item.tend();
        }
        Message::HashRequest { disk, offset, length } => {
            let (leaves, read) = blocking(move || hash(&of, disk, offset, length)).await?;
            outgoing.send(&Frame::Hashes { disk, offset, read, leaves }).await?;
        }
        Message::Ping { number } => outgoing.say(Message::Pong { number }).await?,
        _ => return Err(protocol_fault("a message came that is not a sender's").into()),
    }
    Ok(())
}

/// The leaves of a stretch of a replica disk, and how much was read for them: nothing where they are kept, else all but holes.
/// While an epoch is resumed: of what it inherited the leaves of what is there now; of the rest those of the newest point,
/// if that is what the epoch is compared with, and otherwise such as equal no block's.
fn hash(item: &Item, disk: u16, offset: u64, length: u64) -> Result<(Vec<Leaf>, u64), Fault> {
    let disks = item.replica.disks();
    let size = disks.get(usize::from(disk)).map(|disk| disk.size);
    let fits = size.is_some_and(|size| offset.checked_add(length).is_some_and(|end| end <= size));
    if !fits || length == 0 || length > MOST_HASHED || !offset.is_multiple_of(BLOCK) {
        return Err(protocol_fault("hashes were asked for that do not exist"));
    }
    let key = item.leaves().map_err(|error| item.fault(&error))?.key();
    let stretch = Stretch { item, disk: usize::from(disk), extent: Extent::new(offset, length), key };
    let Some(basis) = item.resumed() else { return stretch.newest(&[]) };
    let (mut leaves, mut read) = (Vec::new(), 0);
    let mut buffer = vec![0; BLOCK as usize];
    for block in stretch.blocks() {
        let bytes = &mut buffer[..block.length as usize];
        let written = item.look(stretch.disk, block.offset, bytes)?;
        read += if written { block.length } else { 0 };
        leaves.push(written.then(|| leaf(&key, bytes)));
    }
    if basis == Basis::Compared && leaves.iter().any(Option::is_none) {
        let (newest, more) = stretch.newest(&leaves)?;
        let both = leaves.into_iter().zip(newest);
        return Ok((both.map(|(now, newest)| now.unwrap_or(newest)).collect(), read + more));
    }
    Ok((leaves.into_iter().map(|leaf| leaf.unwrap_or(SPOILT_LEAF)).collect(), read))
}

/// A part of a replica's disk that hashes are asked for.
struct Stretch<'a> {
    item: &'a Item,
    disk: usize,
    extent: Extent,
    key: LeafKey,
}

impl Stretch<'_> {
    fn blocks(&self) -> impl Iterator<Item = Extent> + use<> {
        let (offset, end) = (self.extent.offset, self.extent.end());
        (offset..end).step_by(BLOCK as usize).map(move |at| Extent::new(at, BLOCK.min(end - at)))
    }

    /// The leaves of the newest point, not of what the open epoch has made of it: the same question then always has the
    /// same answer, also when a link broke and a stretch is asked for again. Those that are `known` need not be right.
    fn newest(&self, known: &[Option<Leaf>]) -> Result<(Vec<Leaf>, u64), Fault> {
        let Stretch { item, disk, extent, key } = self;
        let failed = |error: replica::ReplicaError| item.fault(&error);
        // Without a way back there is no point; but nothing of a stretch is written before its hashes were told.
        let (replica, kept) = (&item.replica, item.leaves().map_err(failed)?);
        let newest = replica.newest();
        if newest.is_none() && item.newest().is_none() {
            return Err(protocol_fault("hashes were asked of a replica without a point"));
        }
        let mut read = 0;
        // Only what is inside nobody else writes. Another disk may have been put back from a backup: that is what a compare
        // is for.
        let inside = replica.disks().get(*disk).is_some_and(|disk| disk.home == DiskHome::Inside);
        if let Some(newest) = newest.as_ref().filter(|_| inside) {
            if kept.at().is_some_and(|at| at != newest.attempt) {
                // What changed in the last minute or so. Where it is more than that, the sender is not kept waiting for it.
                let begun = Instant::now();
                read = kept.update(&|| begun.elapsed() > CATCHING_UP).map_err(failed)?.read;
            }
            if let Some(leaves) = kept.kept(newest.attempt, *disk, extent.offset, extent.length) {
                return Ok((leaves, read));
            }
        }
        let view = newest.map(|newest| replica.view(newest.attempt)).transpose().map_err(failed)?;
        let data = match &view {
            Some(view) => view.data(*disk, extent.offset, extent.length),
            None => replica.data_present(*disk, extent.offset, extent.length),
        };
        let data = data.map_err(failed)?;
        let mut buffer = vec![0; BLOCK as usize];
        let mut leaves = Vec::with_capacity(extent.length.div_ceil(BLOCK) as usize);
        for (n, block) in self.blocks().enumerate() {
            let one: BlockMap = [block].into_iter().collect();
            if data.intersection(&one).is_empty() || known.get(n).is_some_and(Option::is_some) {
                leaves.push(ZERO_LEAF);
                continue;
            }
            let bytes = &mut buffer[..block.length as usize];
            match &view {
                Some(view) => view.read(*disk, block.offset, bytes),
                None => replica.read_present(*disk, block.offset, bytes),
            }
            .map_err(failed)?;
            read += block.length;
            leaves.push(leaf(key, bytes));
        }
        Ok((leaves, read))
    }
}
