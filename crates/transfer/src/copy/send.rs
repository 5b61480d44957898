//! The end of a copy with the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use component::link::{Link, LinkError};
use protocol::fault::code;
use protocol::leaf::{LeafSize, Recipe};
use protocol::order::{Moved, Sync};
use protocol::session::Message;
use protocol::{BlockMap, Extent, Fault};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Compare, Flow, Pieces, Reader, Session, Source, Stopped, begins_anew};

/// How long a broken link is dialled again. Guessed: a switch that reboots, an operator who plugs a cable back in.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const PAUSE: Duration = Duration::from_millis(500);

/// How a copy is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// [`Sync::Compare`] or [`Sync::Full`].
    pub sync: Sync,
    /// Whether both disks are compared when it is done.
    pub verify: bool,
    /// Whether only the bytes are counted that would travel.
    pub dry_run: bool,
    /// What one hash stands for.
    pub leaf_bytes: LeafSize,
}

/// What a copy did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of the disk.
    pub size: u64,
    /// How the blocks were found.
    pub sync: Sync,
    /// Whether it went on with a copy that had not finished.
    pub resumed: bool,
    /// What was moved; of a dry run `changed` is what would be.
    pub moved: Moved,
}

/// Why a copy did not come about, or broke off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// One of the ends said no; nothing was written.
    Refused(Fault),
    /// Nobody was reached; nothing was written.
    Unreached(Fault),
    /// It failed. The fault says so where the target is half written.
    Failed(Fault),
}

/// What the target said.
struct Ready {
    has_content: bool,
    unfinished: bool,
    leaves: Recipe,
    resume_after: Option<u64>,
}

/// Copies what `reader` reads, which counts in `read`, over links that `dial` makes: again, when one breaks. `progress` hears
/// how many bytes will be looked at and how many were.
///
/// # Errors
/// The source cannot be read, the target refuses, or nobody is reached: for a minute, once the copy has begun.
pub async fn send(
    (reader, read): (Reader, Arc<AtomicU64>),
    dial: impl AsyncFn() -> Result<Link, LinkError>,
    wish: Wish,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<Copied, Failure> {
    sent((reader, read), dial, wish, progress, &mut None).await
}

/// As [`send`], to a target that fetches it: over links that it dials, and at the end it hears what was done.
///
/// # Errors
/// As for [`send`]; the target was told, if it is still there.
pub async fn give(
    source: (Reader, Arc<AtomicU64>),
    dialled: impl AsyncFn() -> Result<Link, LinkError>,
    wish: Wish,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<Copied, Failure> {
    let mut session = None;
    let result = sent(source, dialled, wish, progress, &mut session).await;
    if let Some(session) = session {
        session
            .end(match &result {
                Ok(Copied { size, sync, resumed, moved }) => {
                    Message::Fetched { size: *size, sync: *sync, resumed: *resumed, moved: *moved }
                }
                Err(Failure::Refused(fault) | Failure::Unreached(fault) | Failure::Failed(fault)) => {
                    Message::Refused { fault: fault.clone() }
                }
            })
            .await;
    }
    result
}

/// Leaves the last session in `slot`.
async fn sent(
    (reader, read): (Reader, Arc<AtomicU64>),
    dial: impl AsyncFn() -> Result<Link, LinkError>,
    wish: Wish,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
    slot: &mut Option<Session>,
) -> Result<Copied, Failure> {
    let id = Uuid::new_v4();
    let (session, ready) = begin(&dial, (id, wish), &reader, None).await.map_err(nothing_written)?;
    let session = slot.insert(session);
    let resumed = ready.unfinished;
    // What had arrived of another copy does not travel again; onto nothing there is nothing to compare with.
    let sync = match (wish.sync, &ready) {
        (_, Ready { unfinished: true, .. }) => Sync::Compare,
        (_, Ready { has_content: false, .. }) => Sync::Full,
        (sync, _) => sync,
    };
    let (source, expected) = source(&reader, sync, &ready).await.map_err(nothing_written)?;
    if wish.dry_run {
        let counted = counted(source, session, expected, progress).await;
        let (changed, read_target) = counted.map_err(nothing_written)?;
        let read_source = read.load(Ordering::Relaxed);
        let moved = Moved { changed, read_source, read_target, sent: session.traffic().bytes, ..Moved::default() };
        return Ok(Copied { size: reader.size, sync, resumed, moved });
    }
    let mut flow = Flow::new(vec![reader.clone()], source, expected, read, session);
    let again = async |error| begin(&dial, (id, wish), &reader, Some(error)).await;
    carry(&mut flow, session, again, progress).await?;
    let moved = flow.moved(session);
    if wish.verify {
        verify(&reader, session, ready.leaves, progress).await.map_err(Failure::Failed)?;
    }
    Ok(Copied { size: reader.size, sync, resumed, moved })
}

/// Sends all of it, in the session that `again` makes when one breaks.
async fn carry(
    flow: &mut Flow,
    session: &mut Session,
    again: impl AsyncFn(LinkError) -> Result<(Session, Ready), Fault>,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<(), Failure> {
    let (mut resume, mut is_first) = (None, true);
    loop {
        let flowed = match resume.take() {
            None => flow_all(flow, session, progress).await,
            Some((recipe, after)) => match flow.resume(session, recipe, after).await {
                Ok(()) => flow_all(flow, session, progress).await,
                stopped => stopped,
            },
        };
        match flowed {
            Ok(()) => return Ok(()),
            Err(Stopped::Fault(fault)) => return Err(broken_off(flow, fault)),
            // Its own word for it: it could not even be marked.
            Err(Stopped::Link(LinkError::Refused(fault))) if is_first && fault.is(code::COPY_TARGET) => {
                return Err(Failure::Refused(fault));
            }
            Err(Stopped::Link(error @ LinkError::Refused(_))) => return Err(broken_off(flow, error.fault())),
            Err(Stopped::Link(error)) => {
                flow.leave(session);
                let (next, ready) = again(error).await.map_err(|fault| broken_off(flow, fault))?;
                (*session, is_first) = (next, false);
                match ready.resume_after {
                    Some(after) => resume = Some((ready.leaves, after)),
                    None => {
                        let Stopped::Fault(fault) = begins_anew("the target was started again") else { continue };
                        return Err(broken_off(flow, fault));
                    }
                }
            }
        }
    }
}

/// A failure in the middle, which says what became of the target.
fn broken_off(flow: &Flow, fault: Fault) -> Failure {
    if flow.totals().frames > 0 { Failure::Failed(half_written(fault)) } else { nothing_written(fault) }
}

/// A failure before anything was written.
fn nothing_written(fault: Fault) -> Failure {
    match () {
        () if fault.is(code::LINK) => Failure::Unreached(fault),
        () if fault.is(code::CAPTURE_LOST) => {
            Failure::Refused(fault.with_remedy("run the same command again when it can"))
        }
        () => Failure::Refused(fault),
    }
}

/// Says that the target is half written, unless that was said.
pub(super) fn half_written(mut fault: Fault) -> Fault {
    const SAYS: &str = "; the target is half written, and marked so";
    if !fault.cause.ends_with(SAYS) {
        fault.cause.push_str(SAYS);
        if !fault.is(code::COPY_BROKEN_OFF) {
            fault.remedy = "run the same command again: it goes on, and what arrived does not travel again".into();
        }
    }
    fault
}

/// A session with a target that is ready, dialled again for a while after a link broke.
async fn begin(
    dial: &impl AsyncFn() -> Result<Link, LinkError>,
    (id, wish): (Uuid, Wish),
    reader: &Reader,
    broken: Option<LinkError>,
) -> Result<(Session, Ready), Fault> {
    let announced = Message::Copy { id, size: reader.size, dry_run: wish.dry_run, leaf_bytes: wish.leaf_bytes };
    let begun = Instant::now();
    let patience = if broken.is_some() { PATIENCE } else { Duration::ZERO };
    loop {
        let ready = async {
            let mut session = Session::over(dial().await?);
            match session.ask(announced.clone(), "the target's readiness").await? {
                Message::CopyReady { has_content, unfinished, leaves, resume_after } => {
                    Ok((session, Ready { has_content, unfinished, leaves, resume_after }))
                }
                other => Err(session.other_than(&other, "the target's readiness")),
            }
        };
        match ready.await {
            Ok(ready) => return Ok(ready),
            Err(error @ LinkError::Refused(_)) => return Err(error.fault()),
            Err(error) if begun.elapsed() >= patience => return Err(error.fault()),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// What is to be sent, and how many bytes will be looked at for it.
async fn source(reader: &Reader, sync: Sync, ready: &Ready) -> Result<(Source, u64), Fault> {
    let whole = BlockMap::whole(reader.size);
    if sync == Sync::Compare {
        return Ok((Source::Compare(Compare::new(vec![(reader.clone(), 0, whole)], ready.leaves, None)), reader.size));
    }
    let data = reader.data(Extent::new(0, reader.size)).await?;
    let zero = if ready.has_content { whole.difference(&data) } else { BlockMap::new() };
    let mut pieces = Pieces::default();
    pieces.push(reader, &data, &zero);
    Ok((Source::Pieces(pieces), data.bytes() + zero.bytes()))
}

/// How many bytes would travel, and how many the target read to find out.
async fn counted(
    source: Source,
    session: &mut Session,
    expected: u64,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<(u64, u64), Fault> {
    let Source::Compare(mut compare) = source else { return Ok((expected, 0)) };
    let mut changed = 0;
    while let Some(piece) = compare.next(session).await.map_err(fault)? {
        changed += piece.length();
        progress(expected, compare.done());
    }
    Ok((changed, compare.read_there()))
}

/// Sends everything and has it made durable.
async fn flow_all(
    flow: &mut Flow,
    session: &mut Session,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<(), Stopped> {
    while flow.step(session).await? {
        let (expected, done) = flow.progress();
        progress(expected, done);
    }
    match session.ask(Message::CopyEnd { totals: flow.totals() }, "that it is durable").await? {
        Message::Copied => Ok(()),
        other => Err(session.other_than(&other, "that it is durable").into()),
    }
}

/// Compares both disks as they are now.
async fn verify(
    reader: &Reader,
    session: &mut Session,
    recipe: Recipe,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<(), Fault> {
    let mut compare = Compare::new(vec![(reader.clone(), 0, BlockMap::whole(reader.size))], recipe, None);
    if let Some(piece) = compare.next(session).await.map_err(fault)? {
        let cause = format!("from byte {} on", piece.offset());
        return Err(Fault::new(code::COPY_DIFFERS, "the copy is not what its source is", cause));
    }
    progress(reader.size, reader.size);
    Ok(())
}

fn fault(stopped: Stopped) -> Fault {
    match stopped {
        Stopped::Link(error) => error.fault(),
        Stopped::Fault(fault) => fault,
    }
}
