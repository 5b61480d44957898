//! The end of a copy with the target.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use component::link::{Incoming, Link, LinkError, Outgoing, refuse};
use protocol::epoch::EpochTotals;
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::leaf::{Leaf, LeafKey, Recipe};
use protocol::session::{MOST_ASKED, Message};
use protocol::{Extent, Fault};
use replica::Disk;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::Mark;
use super::send::Copied;
use crate::reader::leaves_of;
use crate::{Hashed, Question, Trees};

/// Frames that wait for being written: at most 1 MiB each.
const QUEUE: usize = 16;
/// The sender hears about what was written at least each so many frames.
const NOTICE: u64 = 64;

/// Opens the target for a source of that many bytes, to be read only for a dry run.
type Open = Box<dyn Fn(u64, bool) -> Result<Arc<dyn Disk>, Fault> + Send + Sync>;

/// Hears how many bytes of a disk will be looked at, and how many were.
type Progress = Box<dyn Fn(u64, u64) + Send + Sync>;

/// How a session of a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The target is whole, durably.
    Whole,
    /// The sender left; nothing was written, or the mark says so.
    Left,
}

/// A target that takes a copy.
pub struct Receiving {
    open: Open,
    mark: Mark,
    /// How many frames are written at once.
    writers: usize,
    key: LeafKey,
    now: Option<Now>,
    progress: Progress,
    /// Nothing may be written, whatever the sender says.
    only_asked: bool,
    /// What the sender said at the end, if it was asked to.
    fetched: Option<Copied>,
}

/// The copy that is under way: it outlives its links.
struct Now {
    id: Uuid,
    disk: Arc<dyn Disk>,
    size: u64,
    written: Written,
}

/// What came of it so far.
#[derive(Clone, Default)]
struct Written {
    taken: u64,
    totals: EpochTotals,
}

struct Leaves {
    disk: Arc<dyn Disk>,
    size: u64,
    recipe: Recipe,
}

impl Hashed for Leaves {
    fn recipe(&self) -> Recipe {
        self.recipe
    }

    fn size(&self, disk: u16) -> Option<u64> {
        (disk == 0).then_some(self.size)
    }

    fn leaves(&self, _: u16, extent: Extent) -> Result<(Vec<Leaf>, u64), Fault> {
        leaves_of(self.disk.as_ref(), extent, &self.recipe).map_err(|error| unusable("read", &error))
    }
}

impl Receiving {
    /// A target that `open` opens, once the size is known, and that `mark` marks while it is half written.
    pub fn new(open: Open, mark: Mark) -> Receiving {
        let random = [Uuid::new_v4(), Uuid::new_v4()].map(Uuid::into_bytes);
        let key = std::array::from_fn(|n| random[n / 16][n % 16]);
        let (now, fetched, progress) = (None, None, Box::new(|_, _| ()));
        Receiving { open, mark, writers: 1, key, now, progress, only_asked: false, fetched }
    }

    /// Tells how far it is.
    #[must_use]
    pub fn with_progress(self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Receiving {
        Receiving { progress: Box::new(progress), ..self }
    }

    /// From now on takes only what asks, if `only_asked`.
    pub(super) fn is_only_asked(&mut self, only_asked: bool) {
        self.only_asked = only_asked;
    }

    /// What the sender said at the end.
    pub(super) fn fetched(&mut self) -> Option<Copied> {
        self.fetched.take()
    }

    /// How many frames of the copy that is under way were taken; none if none is.
    pub(super) fn taken(&self) -> Option<u64> {
        self.now.as_ref().map(|now| now.written.taken)
    }

    /// Whether the mark is there, or cannot be looked for.
    pub(super) fn is_half_written(&self) -> bool {
        self.mark.is_set().unwrap_or(true)
    }

    /// Writes so many frames at once: for a target that takes longer to answer than to write.
    #[must_use]
    pub fn with_writers(self, writers: usize) -> Receiving {
        Receiving { writers: writers.clamp(1, QUEUE), ..self }
    }

    /// Takes what comes over a link, until the target is whole or the sender leaves. A copy that a broken link cut off goes
    /// on in the next.
    ///
    /// # Errors
    /// The target cannot be used or the sender breaks the rules (it was told), or the link ended in the middle.
    pub async fn take(&mut self, link: Link) -> Result<Taken, Fault> {
        let Link { mut incoming, mut outgoing, .. } = link;
        match self.follow(&mut incoming, &mut outgoing).await {
            Ok(taken) => Ok(taken),
            Err(Ended::Link(error)) => Err(error.fault()),
            Err(Ended::Fault(fault)) => {
                // Whether it hears that or not.
                let _ = refuse(&mut incoming, outgoing, fault.clone()).await;
                Err(fault)
            }
        }
    }

    async fn follow(&mut self, incoming: &mut Incoming, outgoing: &mut Outgoing) -> Result<Taken, Ended> {
        let Message::Copy { id, size, dry_run, leaf_bytes } = incoming.message("the announcement of a copy").await?
        else {
            return Err(broken("it does not begin with the announcement of a copy").into());
        };
        if self.only_asked && !dry_run {
            // Dialled anew it is asked as it should be.
            let cause = "it would write, perhaps to go on with an earlier copy, and was only asked what would travel";
            return Err(Fault::new(code::LINK, "the sender goes on with another copy", cause).into());
        }
        // Another copy's disk is let go of before it is opened anew: it is locked.
        let same = self.now.take().filter(|now| now.id == id && now.size == size);
        let resume_after = same.as_ref().map(|now| now.written.taken);
        let now = match same {
            Some(now) => now,
            None => Now { id, disk: (self.open)(size, dry_run)?, size, written: Written::default() },
        };
        let (disk, mark) = (now.disk.clone(), self.mark.clone());
        let now = self.now.insert(now);
        let unfinished = mark.is_set().map_err(|error| unusable("marked", &error))?;
        let has_content = unfinished || {
            let disk = disk.clone();
            let data = tokio::task::spawn_blocking(move || disk.data(0, size)).await.map_err(io::Error::other);
            !data.flatten().map_err(|error| unusable("read", &error))?.is_empty()
        };
        let recipe = Recipe { key: self.key, bytes: leaf_bytes };
        outgoing.say(Message::CopyReady { has_content, unfinished, leaves: recipe, resume_after }).await?;

        let mut trees = Trees::new(Arc::new(Leaves { disk: disk.clone(), size, recipe }));
        let (queue, queued) = mpsc::channel(QUEUE);
        let through = Arc::new(AtomicU64::new(now.written.taken));
        let (news, mut newly) = watch::channel(());
        let (mark_of, writers) = (mark.clone(), self.writers);
        let writer = Writer { disk: disk.clone(), size, mark: mark_of, writers, through: through.clone(), news };
        let written = now.written.clone();
        let writing = tokio::task::spawn_blocking(move || writer.write(queued, written));
        let mut heard = Heard { size, reached: 0, progress: &self.progress, fetched: &mut self.fetched };
        let end = relay(incoming, outgoing, &mut trees, queue, (&mut newly, &through), &mut heard).await;
        let (written, failed) = writing.await.map_err(|error| broken_off("written", &io::Error::other(error)))?;
        let began = written.taken > 0;
        now.written = written;
        if let Some(fault) = failed {
            self.now = None;
            return Err(fault.into());
        }
        let Some(totals) = end? else { return Ok(Taken::Left) };
        if totals != now.written.totals {
            let cause = format!("sent: {totals:?}; arrived: {:?}", now.written.totals);
            self.now = None;
            return Err(Fault::new(code::TOTALS, "the copy is incomplete", cause).into());
        }
        self.now = None;
        tokio::task::spawn_blocking(move || {
            if began || unfinished {
                disk.flush()?;
                mark.clear()?;
            }
            disk.forget();
            Ok(())
        })
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(|error| broken_off("made durable", &error))?;
        outgoing.say(Message::Copied).await?;
        self.verify(incoming, outgoing, trees).await
    }

    /// Answers questions about the finished target, if the sender has any.
    async fn verify(
        &mut self,
        incoming: &mut Incoming,
        outgoing: &mut Outgoing,
        mut trees: Trees,
    ) -> Result<Taken, Ended> {
        trees.forget();
        loop {
            tokio::select! {
                next = incoming.next(), if trees.under_way() < MOST_ASKED => match next {
                    Ok(Some((Frame::Message(Message::HashRequest { disk, level, offset, length }), _))) => {
                        trees.ask(Question { disk, level, extent: Extent::new(offset, length) })?;
                    }
                    Ok(Some((Frame::Message(Message::Fetched { size, sync, resumed, moved }), _))) => {
                        self.fetched = Some(Copied { size, sync, resumed, moved });
                        return Ok(Taken::Whole);
                    }
                    Ok(Some((Frame::Message(Message::Refused { fault }), _))) => return Err(fault.into()),
                    _ => return Ok(Taken::Whole),
                },
                answer = trees.next() => outgoing.send(&answer?).await.map(drop)?,
            }
        }
    }
}

/// Hands frames to the writer and answers, until the sender has sent everything, or leaves. The writer ends with it.
async fn relay(
    incoming: &mut Incoming,
    outgoing: &mut Outgoing,
    trees: &mut Trees,
    queue: mpsc::Sender<(Frame, u64)>,
    (news, through): (&mut watch::Receiver<()>, &AtomicU64),
    heard: &mut Heard<'_>,
) -> Result<Option<EpochTotals>, Ended> {
    let mut waiting = None;
    loop {
        tokio::select! {
            next = incoming.next(), if waiting.is_none() && trees.under_way() < MOST_ASKED => match next? {
                Some((Frame::Message(Message::HashRequest { disk, level, offset, length }), _)) => {
                    trees.ask(Question { disk, level, extent: Extent::new(offset, length) })?;
                    heard.reaches(offset.saturating_add(length));
                }
                Some((Frame::Message(Message::Fetched { size, sync, resumed, moved }), _)) => {
                    *heard.fetched = Some(Copied { size, sync, resumed, moved });
                    return Ok(None);
                }
                Some((Frame::Message(Message::Refused { fault }), _)) => return Err(fault.into()),
                Some((Frame::Message(Message::CopyEnd { totals }), _)) => return Ok(Some(totals)),
                Some((Frame::Message(_) | Frame::Hashes { .. }, _)) => {
                    return Err(broken("a message came that is not a sender's").into());
                }
                Some(frame) => {
                    if let Frame::Data { offset, .. } | Frame::Zero { offset, .. } = &frame.0 {
                        heard.reaches(*offset);
                    }
                    waiting = Some(frame);
                }
                None => return Ok(None),
            },
            permit = queue.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                (Ok(permit), Some(frame)) => permit.send(frame),
                // Why the writer ended, it says itself.
                _ => return Ok(None),
            },
            answer = trees.next() => outgoing.send(&answer?).await.map(drop)?,
            Ok(()) = news.changed() => {
                outgoing.say(Message::Received { through: through.load(Ordering::Relaxed) }).await?;
            }
        }
    }
}

/// What the sender says beside its frames, and how far on the disk it was.
struct Heard<'a> {
    size: u64,
    reached: u64,
    progress: &'a Progress,
    fetched: &'a mut Option<Copied>,
}

impl Heard<'_> {
    fn reaches(&mut self, offset: u64) {
        self.reached = self.reached.max(offset).min(self.size);
        (self.progress)(self.size, self.reached);
    }
}

enum Ended {
    Link(LinkError),
    Fault(Fault),
}

impl From<LinkError> for Ended {
    fn from(error: LinkError) -> Ended {
        Ended::Link(error)
    }
}

impl From<Fault> for Ended {
    fn from(fault: Fault) -> Ended {
        Ended::Fault(fault)
    }
}

/// Writes frames, on a thread of its own.
struct Writer {
    disk: Arc<dyn Disk>,
    size: u64,
    mark: Mark,
    writers: usize,
    through: Arc<AtomicU64>,
    news: watch::Sender<()>,
}

/// A frame that is in its place.
struct Placed {
    frame: Frame,
    checksum: u64,
    sequence: u64,
    extent: Extent,
}

impl Writer {
    fn write(self, mut queued: mpsc::Receiver<(Frame, u64)>, mut written: Written) -> (Written, Option<Fault>) {
        let mut told = written.taken;
        let mut next = None;
        while let Some(first) = next.take().or_else(|| queued.blocking_recv()) {
            let mut batch = Vec::new();
            next = match self.gather(first, &mut queued, written.taken, &mut batch) {
                Ok(next) => next,
                Err(fault) => return (written, Some(fault)),
            };
            if let Err(fault) = self.all(&batch, &mut written) {
                return (written, Some(fault));
            }
            self.through.store(written.taken, Ordering::Relaxed);
            if queued.is_empty() || written.taken - told >= NOTICE {
                told = written.taken;
                self.news.send_replace(());
            }
        }
        (written, None)
    }

    /// Frames that are written at once: `first` and what is queued behind it, as long as none touches what another one
    /// writes. Gives the frame that did.
    fn gather(
        &self,
        first: (Frame, u64),
        queued: &mut mpsc::Receiver<(Frame, u64)>,
        taken: u64,
        batch: &mut Vec<Placed>,
    ) -> Result<Option<(Frame, u64)>, Fault> {
        let mut next = Some(first);
        while let Some((frame, checksum)) = next.take() {
            let after = taken + batch.len() as u64;
            if let Some((sequence, extent)) = self.place(&frame, after)? {
                if batch.iter().any(|other| other.extent.offset < extent.end() && extent.offset < other.extent.end()) {
                    return Ok(Some((frame, checksum)));
                }
                batch.push(Placed { frame, checksum, sequence, extent });
            }
            if batch.len() < self.writers {
                next = queued.try_recv().ok();
            }
        }
        Ok(None)
    }

    /// Where a frame belongs that comes after those up to `after`; none if it was taken over already.
    fn place(&self, frame: &Frame, after: u64) -> Result<Option<(u64, Extent)>, Fault> {
        let (sequence, disk, offset, length) = match frame {
            Frame::Data { sequence, disk, offset, bytes } => (*sequence, *disk, *offset, bytes.len() as u64),
            Frame::Zero { sequence, disk, offset, length } => (*sequence, *disk, *offset, *length),
            Frame::Message(_) | Frame::Hashes { .. } => return Err(broken("a message came in the place of data")),
        };
        if sequence <= after {
            return Ok(None);
        }
        let fits = offset.checked_add(length).is_some_and(|end| end <= self.size);
        if sequence != after + 1 || disk != 0 || !fits {
            return Err(broken("a frame is missing, or beyond the disk"));
        }
        Ok(Some((sequence, Extent::new(offset, length))))
    }

    fn all(&self, batch: &[Placed], written: &mut Written) -> Result<(), Fault> {
        if written.taken == 0 && !batch.is_empty() {
            self.mark.set().map_err(|error| unusable("marked", &error))?;
        }
        let done: Vec<io::Result<()>> = match batch {
            [alone] => vec![self.one(alone)],
            several => std::thread::scope(|scope| {
                let begun: Vec<_> = several.iter().map(|placed| scope.spawn(|| self.one(placed))).collect();
                let lost = || Err(io::Error::other("a write was not carried out"));
                begun.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
            }),
        };
        for (Placed { frame, checksum, sequence, extent }, done) in batch.iter().zip(done) {
            done.map_err(|error| broken_off("written", &error))?;
            let (data, zero) =
                if matches!(frame, Frame::Data { .. }) { (extent.length, 0) } else { (0, extent.length) };
            written.taken = *sequence;
            written.totals.count(data, zero, *checksum);
        }
        Ok(())
    }

    fn one(&self, Placed { frame, extent, .. }: &Placed) -> io::Result<()> {
        match frame {
            Frame::Data { bytes, .. } => self.disk.write_at(extent.offset, bytes),
            _ => self.disk.write_zeroes(extent.offset, extent.length),
        }
    }
}

/// Nothing was written yet.
fn unusable(what: &str, error: &io::Error) -> Fault {
    Fault::new(code::COPY_TARGET, format!("the target cannot be {what}"), error.to_string())
}

/// The mark is there.
fn broken_off(what: &str, error: &io::Error) -> Fault {
    Fault::new(code::COPY_BROKEN_OFF, format!("the target cannot be {what}"), error.to_string())
}

fn broken(why: &str) -> Fault {
    Fault::new(code::PROTOCOL, "the copy was broken off", why)
}
