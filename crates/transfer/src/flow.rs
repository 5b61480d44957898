//! Pieces on their way: numbered, sent, remembered until the target has taken them over, sent again over another link.
//!
//! ```text
//!   pieces ─► numbered ─► link ─► target          log: what was sent and not yet taken over
//!                                   │              ▲
//!                                   └── Received ──┘ shortens it
//! ```
//!
//! A link may break in the middle. The source stays as it is meanwhile, a new session says how far the target had come,
//! and it goes on from there: frames after that number are read again and sent again under the same numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use component::link::{LinkError, Traffic};
use protocol::epoch::EpochTotals;
use protocol::fault::code;
use protocol::leaf::Recipe;
use protocol::order::Moved;
use protocol::{Extent, Fault};

use crate::{Compare, Piece, Pieces, Reader, Session};

/// Why a flow does not go on: a link can be opened anew, all else ends it.
#[derive(Debug)]
pub enum Stopped {
    /// The link ended.
    Link(LinkError),
    /// The source cannot be read, or the target answered what cannot be.
    Fault(Fault),
}

impl From<LinkError> for Stopped {
    fn from(error: LinkError) -> Stopped {
        Stopped::Link(error)
    }
}

/// Where the pieces come from.
pub enum Source {
    /// They are known.
    Pieces(Pieces),
    /// They are found on the way.
    Compare(Compare),
}

/// How long a flow waited.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    /// For what is to be sent: reads of the source, and where both sides are compared, hashes of both.
    pub source: Duration,
    /// For the link to take it.
    pub link: Duration,
}

struct Sent {
    sequence: u64,
    disk: u16,
    extent: Extent,
    checksum: u64,
    is_zero: bool,
}

/// All pieces of an epoch or a copy, on their way.
pub struct Flow {
    readers: Vec<Reader>,
    source: Source,
    /// Bytes that will be looked at.
    expected: u64,
    /// Could not be sent when the link broke.
    ready: Option<Piece>,
    log: VecDeque<Sent>,
    /// Everything up to `taken` was taken over by the target and is folded in here.
    folded: EpochTotals,
    taken: u64,
    next_sequence: u64,
    read: Arc<AtomicU64>,
    sent_bytes: u64,
    /// What went over links that broke.
    earlier: Moved,
    /// What had gone over its session's link before.
    before: Traffic,
    waits: Waits,
}

impl Flow {
    /// What `source` gives of these readers, of which `expected` bytes will be looked at and which count in `read`, to be
    /// sent in `session` first.
    pub fn new(readers: Vec<Reader>, source: Source, expected: u64, read: Arc<AtomicU64>, session: &Session) -> Flow {
        Flow {
            readers,
            source,
            expected,
            ready: None,
            log: VecDeque::new(),
            folded: EpochTotals::default(),
            taken: 0,
            next_sequence: 1,
            read,
            sent_bytes: 0,
            earlier: Moved::default(),
            before: session.traffic(),
            waits: Waits::default(),
        }
    }

    /// What was not begun yet of known pieces, by disk, to be compared first; none if they are being compared already.
    pub fn waiting(&self) -> Option<Vec<(Reader, protocol::BlockMap)>> {
        match &self.source {
            Source::Pieces(pieces) => Some(pieces.waiting()),
            Source::Compare(_) => None,
        }
    }

    /// Goes on with a compare instead of what was not begun yet.
    pub fn compare(&mut self, compare: Compare) {
        self.expected = compare.expected();
        self.source = Source::Compare(compare);
    }

    /// Sends the next piece; false when there is none any more.
    ///
    /// # Errors
    /// [`Stopped`]; after a broken link it goes on with [`Flow::resume`].
    pub async fn step(&mut self, session: &mut Session) -> Result<bool, Stopped> {
        self.shorten(session.received());
        let begun = Instant::now();
        let piece = match (self.ready.take(), &mut self.source) {
            (Some(ready), _) => Some(ready),
            (None, Source::Pieces(pieces)) => pieces.next().await.map_err(Stopped::Fault)?,
            (None, Source::Compare(compare)) => compare.next(session).await?,
        };
        self.waits.source += begun.elapsed();
        let Some(piece) = piece else { return Ok(false) };
        let (sequence, begun) = (self.next_sequence, Instant::now());
        let sent = session.send(&piece.frame(sequence)).await;
        self.waits.link += begun.elapsed();
        let checksum = match sent {
            Ok(checksum) => checksum,
            Err(error) => {
                self.ready = Some(piece);
                return Err(error.into());
            }
        };
        let (disk, extent, is_zero) = match &piece {
            Piece::Data { disk, offset, bytes } => (*disk, Extent::new(*offset, bytes.len() as u64), false),
            Piece::Zero { disk, offset, length } => (*disk, Extent::new(*offset, *length), true),
        };
        self.next_sequence += 1;
        self.sent_bytes += extent.length;
        self.log.push_back(Sent { sequence, disk, extent, checksum, is_zero });
        Ok(true)
    }

    /// Brings a session to where the last one ended: frames after `resume_after` are sent again. The target hashes by
    /// `recipe` now.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn resume(&mut self, session: &mut Session, recipe: Recipe, resume_after: u64) -> Result<(), Stopped> {
        if resume_after < self.taken || resume_after >= self.next_sequence {
            // It counts differently: only a new beginning is honest.
            let known = (self.taken, self.next_sequence - 1);
            let cause = format!("it took frames up to {resume_after}, this side knows of {} to {}", known.0, known.1);
            return Err(begins_anew(&cause));
        }
        self.shorten(resume_after);
        for Sent { sequence, disk, extent, is_zero, .. } in &self.log {
            let (disk, Extent { offset, length }) = (*disk, *extent);
            let piece = match is_zero {
                true => Piece::Zero { disk, offset, length },
                false => {
                    let read = self.readers[usize::from(disk)].read(*extent).await;
                    Piece::Data { disk, offset, bytes: read.map_err(Stopped::Fault)? }
                }
            };
            session.send(&piece.frame(*sequence)).await?;
        }
        if let Source::Compare(compare) = &mut self.source {
            compare.resume(session, recipe).await?;
        }
        Ok(())
    }

    /// Bytes that will be looked at, and that were.
    pub fn progress(&self) -> (u64, u64) {
        let done = match &self.source {
            Source::Compare(compare) => compare.done(),
            Source::Pieces(_) => self.sent_bytes,
        };
        (self.expected, done)
    }

    /// How long it waited so far.
    pub fn waits(&self) -> Waits {
        self.waits
    }

    /// Bytes of both sides that were compared so far, if that is where its pieces come from.
    pub fn compared(&self) -> Option<u64> {
        match &self.source {
            Source::Compare(compare) => Some(compare.done()),
            Source::Pieces(_) => None,
        }
    }

    /// What was moved so far.
    pub fn moved(&self, session: &Session) -> Moved {
        let read_target = match &self.source {
            Source::Compare(compare) => compare.read_there(),
            Source::Pieces(_) => 0,
        };
        let mut moved = self.earlier;
        moved += self.travelled(session);
        Moved { changed: self.sent_bytes, read_source: self.read.load(Ordering::Relaxed), read_target, ..moved }
    }

    /// Takes note of what was moved in a session that broke; all that its successor moves counts too.
    pub fn leave(&mut self, session: &Session) {
        self.earlier += self.travelled(session);
        self.before = Traffic::default();
    }

    /// What went over a session's link on its account.
    fn travelled(&self, session: &Session) -> Moved {
        let (now, before) = (session.traffic(), &self.before);
        Moved {
            sent: now.bytes.saturating_sub(before.bytes),
            blocks_compressed: now.blocks_compressed.saturating_sub(before.blocks_compressed),
            blocks_plain: now.blocks_plain.saturating_sub(before.blocks_plain),
            saved: now.saved.saturating_sub(before.saved),
            ..Moved::default()
        }
    }

    /// What was sent, for the target to compare with what arrived.
    pub fn totals(&self) -> EpochTotals {
        let mut totals = self.folded;
        self.log.iter().for_each(|sent| count(&mut totals, sent));
        totals
    }

    fn shorten(&mut self, taken: u64) {
        while self.log.front().is_some_and(|sent| sent.sequence <= taken) {
            if let Some(sent) = self.log.pop_front() {
                count(&mut self.folded, &sent);
                self.taken = sent.sequence;
            }
        }
    }
}

/// The end of a flow whose target lost count.
pub fn begins_anew(cause: &str) -> Stopped {
    Stopped::Fault(Fault::new(code::LINK, "what was cut off begins anew", cause))
}

fn count(totals: &mut EpochTotals, sent: &Sent) {
    let (data, zero) = if sent.is_zero { (0, sent.extent.length) } else { (sent.extent.length, 0) };
    totals.count(data, zero, sent.checksum);
}
