//! The end of a copy with the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use component::link::{Link, LinkError};
use protocol::fault::code;
use protocol::leaf::LeafKey;
use protocol::order::{Moved, Sync};
use protocol::session::Message;
use protocol::{BlockMap, Extent, Fault};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Compare, Flow, Pieces, Reader, Session, Source, Stopped, begins_anew};

/// How long a broken link is dialled again. Guessed: a switch that reboots, an operator who plugs a cable back in.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// How a copy is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// [`Sync::Compare`] or [`Sync::Full`].
    pub sync: Sync,
    /// Whether both disks are compared when it is done.
    pub verify: bool,
    /// Whether only the bytes are counted that would travel.
    pub dry_run: bool,
}

/// What a copy did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// How the blocks were found.
    pub sync: Sync,
    /// Whether it went on with a copy that had not finished.
    pub resumed: bool,
    /// What was moved; of a dry run `changed` is what would be.
    pub moved: Moved,
}

/// What the target said.
struct Ready {
    has_content: bool,
    unfinished: bool,
    key: LeafKey,
    resume_after: Option<u64>,
}

/// Copies what `reader` reads, which counts in `read`, over links that `dial` makes: again, when one breaks. `progress` hears
/// how many bytes will be looked at and how many were.
///
/// # Errors
/// The source cannot be read, the target refuses, or nobody is reached for a minute.
pub async fn send(
    (reader, read): (Reader, Arc<AtomicU64>),
    dial: impl AsyncFn() -> Result<Link, LinkError>,
    wish: Wish,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<Copied, Fault> {
    let id = Uuid::new_v4();
    let (mut session, ready) = begin(&dial, (id, wish.dry_run), &reader, None).await?;
    let resumed = ready.unfinished;
    // What had arrived of another copy does not travel again; onto nothing there is nothing to compare with.
    let sync = match (wish.sync, &ready) {
        (_, Ready { unfinished: true, .. }) => Sync::Compare,
        (_, Ready { has_content: false, .. }) => Sync::Full,
        (sync, _) => sync,
    };
    let (source, expected) = source(&reader, sync, &ready).await?;
    if wish.dry_run {
        let (changed, read_target) = counted(source, &mut session, expected, progress).await?;
        let read_source = read.load(Ordering::Relaxed);
        let moved = Moved { changed, read_source, read_target, sent: session.traffic().bytes, ..Moved::default() };
        return Ok(Copied { sync, resumed, moved });
    }
    let mut flow = Flow::new(vec![reader.clone()], source, expected, read, &session);
    let mut resume = None;
    loop {
        let flowed = match resume.take() {
            None => flow_all(&mut flow, &mut session, progress).await,
            Some((key, after)) => match flow.resume(&mut session, key, after).await {
                Ok(()) => flow_all(&mut flow, &mut session, progress).await,
                stopped => stopped,
            },
        };
        match flowed {
            Ok(()) => break,
            Err(Stopped::Fault(fault)) => return Err(fault),
            Err(Stopped::Link(error @ LinkError::Refused(_))) => return Err(error.fault()),
            Err(Stopped::Link(error)) => {
                flow.leave(&session);
                let (again, ready) = begin(&dial, (id, wish.dry_run), &reader, Some(error)).await?;
                session = again;
                match ready.resume_after {
                    Some(after) => resume = Some((ready.key, after)),
                    None => {
                        let Stopped::Fault(fault) = begins_anew("the target was started again") else { continue };
                        return Err(fault.with_remedy("run the same command again: what arrived does not travel again"));
                    }
                }
            }
        }
    }
    let moved = flow.moved(&session);
    if wish.verify {
        verify(&reader, &mut session, ready.key, progress).await?;
    }
    Ok(Copied { sync, resumed, moved })
}

/// A session with a target that is ready, dialled again for a while after a link broke.
async fn begin(
    dial: &impl AsyncFn() -> Result<Link, LinkError>,
    (id, dry_run): (Uuid, bool),
    reader: &Reader,
    broken: Option<LinkError>,
) -> Result<(Session, Ready), Fault> {
    let begun = Instant::now();
    let patience = if broken.is_some() { PATIENCE } else { Duration::ZERO };
    loop {
        let ready = async {
            let mut session = Session::over(dial().await?);
            match session.ask(Message::Copy { id, size: reader.size, dry_run }, "the target's readiness").await? {
                Message::CopyReady { has_content, unfinished, leaf_key: key, resume_after } => {
                    Ok((session, Ready { has_content, unfinished, key, resume_after }))
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
        return Ok((Source::Compare(Compare::new(vec![(reader.clone(), 0, whole)], ready.key, None)), reader.size));
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
    key: LeafKey,
    progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
) -> Result<(), Fault> {
    let mut compare = Compare::new(vec![(reader.clone(), 0, BlockMap::whole(reader.size))], key, None);
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
