//! One epoch on its way: the cut's pieces are numbered, sent, and acknowledged as a whole.
//!
//! ```text
//!   pieces ─► numbered ─► link ─► target          log: what was sent and not yet taken over
//!                                   │              ▲
//!                                   └── Received ──┘ shortens it
//! ```
//!
//! A link may break in the middle. The cut stays open for a while, a new session says how far the target had come, and
//! the epoch goes on from there: frames after that number are read again from the cut (which has not changed) and sent
//! again under the same numbers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use component::link::LinkError;
use platforms::Cut;
use protocol::epoch::{DiskSize, EpochHeader, EpochTotals, Point, PointKind};
use protocol::fault::code;
use protocol::order::{Moved, Replication};
use protocol::session::Message;
use protocol::{Attempt, BlockMap, Extent, Fault};

use crate::choice::{Choice, choose};
use crate::compare::{Compare, Stopped};
use crate::pieces::{self, CutReader, Piece, Pieces};
use crate::session::Session;

/// Why an epoch did not become a point.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The link failed: a new session can go on with the same cut.
    Link(LinkError),
    /// The attempt is to be given up.
    Attempt(Fault),
}

impl From<LinkError> for Broken {
    fn from(error: LinkError) -> Broken {
        Broken::Link(error)
    }
}

enum Source {
    Pieces(Pieces),
    Compare(Compare),
}

struct Sent {
    sequence: u64,
    disk: u16,
    extent: Extent,
    checksum: u64,
    is_zero: bool,
}

/// An epoch that was cut and is being sent.
pub(crate) struct Epoch {
    header: EpochHeader,
    pub(crate) choice: Choice,
    readers: Vec<CutReader>,
    source: Source,
    /// The target has opened it.
    is_open: bool,
    ready: VecDeque<Piece>,
    log: VecDeque<Sent>,
    /// Everything up to `taken` was taken over by the target and is folded in here.
    folded: EpochTotals,
    taken: u64,
    next_sequence: u64,
    read: Arc<AtomicU64>,
    expected: u64,
    sent_bytes: u64,
    wire_before: u64,
}

impl Epoch {
    /// Chooses what the cut carries, given where the target stands.
    pub(crate) async fn begin(
        wish: &Replication,
        attempt: Attempt,
        kind: PointKind,
        cut: &Cut,
        session: &Session,
    ) -> Result<Epoch, Fault> {
        let choice = choose(wish, cut, &session.target);
        let read = Arc::new(AtomicU64::new(0));
        let readers = pieces::open(cut, read.clone()).await?;
        let (source, expected) = source(&choice, &readers, session).await?;
        let disks = readers.iter().map(|reader| DiskSize { disk: reader.key.clone(), size: reader.size }).collect();
        let header = EpochHeader {
            lineage: wish.lineage,
            attempt,
            base: session.target.newest,
            basis: choice.basis(),
            cut_at_ms: cut.at_ms,
            disks,
            kind,
            expected_bytes: expected,
        };
        Ok(Epoch {
            header,
            choice,
            readers,
            source,
            is_open: false,
            ready: VecDeque::new(),
            log: VecDeque::new(),
            folded: EpochTotals::default(),
            taken: 0,
            next_sequence: 1,
            read,
            expected,
            sent_bytes: 0,
            wire_before: session.bytes(),
        })
    }

    /// Opens the epoch in a session (its first or a later one), sends what is missing and waits until it is sealed.
    /// `progress` hears expected and done bytes.
    pub(crate) async fn send(
        &mut self,
        session: &mut Session,
        progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
    ) -> Result<Point, Broken> {
        let attempt = self.header.attempt;
        let opened = session.ask(Message::OpenEpoch { header: self.header.clone() }, "epoch opened").await?;
        let Message::EpochOpened { attempt: got, known, resumed, resume_after } = opened else {
            return Err(out_of_turn(&opened));
        };
        if got != attempt {
            return Err(Broken::Attempt(protocol_fault("the target opened another attempt than was announced")));
        }
        match (self.is_open, known) {
            (true, true) => self.resume(session, resume_after).await?,
            // The target was started again: it has what it wrote, but does not know which frames these were.
            (true, false) => return Err(begins_anew("the target was started again")),
            (false, _) if resumed => self.compare_first(session).map_err(Broken::Attempt)?,
            (false, _) => {}
        }
        self.is_open = true;
        loop {
            while let Some(piece) = self.ready.pop_front() {
                self.send_piece(session, piece).await?;
            }
            self.shorten(session.received());
            progress(self.expected, self.done());
            match self.more(session).await? {
                Some(pieces) => self.ready.extend(pieces),
                None => break,
            }
        }
        let totals = self.totals();
        match session.ask(Message::Seal { attempt, totals }, "sealed").await? {
            Message::Sealed { point } if point.attempt == attempt => {
                progress(self.expected, self.expected);
                Ok(point)
            }
            other => Err(out_of_turn(&other)),
        }
    }

    /// What the epoch moved so far.
    pub(crate) fn moved(&self, session: &Session) -> Moved {
        let read_target = match &self.source {
            Source::Compare(compare) => compare.read_there(),
            Source::Pieces(_) => 0,
        };
        Moved {
            changed: self.sent_bytes,
            read_source: self.read.load(Ordering::Relaxed),
            read_target,
            sent: session.bytes().saturating_sub(self.wire_before),
        }
    }

    fn done(&self) -> u64 {
        match &self.source {
            Source::Compare(compare) => compare.done(),
            Source::Pieces(_) => self.sent_bytes,
        }
    }

    async fn more(&mut self, session: &mut Session) -> Result<Option<Vec<Piece>>, Broken> {
        match &mut self.source {
            Source::Pieces(pieces) => Ok(pieces.next().await.map_err(Broken::Attempt)?.map(|piece| vec![piece])),
            Source::Compare(compare) => compare.next(session).await.map_err(|stopped| match stopped {
                Stopped::Link(error) => Broken::Link(error),
                Stopped::Cut(fault) => Broken::Attempt(fault),
            }),
        }
    }

    async fn send_piece(&mut self, session: &mut Session, piece: Piece) -> Result<(), Broken> {
        let sequence = self.next_sequence;
        let checksum = match session.send(&piece.frame(sequence)).await {
            Ok(checksum) => checksum,
            Err(error) => {
                self.ready.push_front(piece);
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
        Ok(())
    }

    /// Brings a session to where the last one ended: frames after `resume_after` are sent again.
    async fn resume(&mut self, session: &mut Session, resume_after: u64) -> Result<(), Broken> {
        if resume_after < self.taken || resume_after >= self.next_sequence {
            // It counts differently: only a new attempt is honest.
            let known = (self.taken, self.next_sequence - 1);
            let cause = format!("it took frames up to {resume_after}, this side knows of {} to {}", known.0, known.1);
            return Err(begins_anew(&cause));
        }
        self.shorten(resume_after);
        for sent in &self.log {
            let bytes = match sent.is_zero {
                true => None,
                false => Some(self.readers[usize::from(sent.disk)].read(sent.extent).await.map_err(Broken::Attempt)?),
            };
            let piece = match bytes {
                None => Piece::Zero { disk: sent.disk, offset: sent.extent.offset, length: sent.extent.length },
                Some(bytes) => Piece::Data { disk: sent.disk, offset: sent.extent.offset, bytes },
            };
            session.send(&piece.frame(sent.sequence)).await?;
        }
        if let Source::Compare(compare) = &mut self.source {
            compare.resume(session).await?;
        }
        Ok(())
    }

    /// The target goes on with what an earlier attempt had brought: what it already has does not travel again.
    fn compare_first(&mut self, session: &Session) -> Result<(), Fault> {
        if let Source::Pieces(pieces) = &self.source {
            let waiting = pieces.waiting();
            self.expected = waiting.iter().map(|(_, map)| map.bytes()).sum();
            self.source = Source::Compare(compare(waiting, session)?);
        }
        Ok(())
    }

    fn shorten(&mut self, taken: u64) {
        while self.log.front().is_some_and(|sent| sent.sequence <= taken) {
            if let Some(sent) = self.log.pop_front() {
                count(&mut self.folded, &sent);
                self.taken = sent.sequence;
            }
        }
    }

    fn totals(&self) -> EpochTotals {
        let mut totals = self.folded;
        self.log.iter().for_each(|sent| count(&mut totals, sent));
        totals
    }
}

fn count(totals: &mut EpochTotals, sent: &Sent) {
    let (data, zero) = if sent.is_zero { (0, sent.extent.length) } else { (sent.extent.length, 0) };
    totals.count(data, zero, sent.checksum);
}

/// Where the pieces come from, and how many bytes will be looked at.
async fn source(choice: &Choice, readers: &[CutReader], session: &Session) -> Result<(Source, u64), Fault> {
    match choice {
        Choice::Tracked(maps) => {
            let mut expected = 0;
            let parts = readers.iter().map(|reader| {
                let map = maps.get(&reader.key).cloned().unwrap_or_default().aligned(protocol::BLOCK, reader.size);
                #[cfg(feature = "sabotage")]
                let map = match map.extents() {
                    [first, ..] if protocol::sabotage::is("extent-dropped") => {
                        map.difference(&[*first].into_iter().collect())
                    }
                    _ => map,
                };
                expected += map.bytes();
                (reader.clone(), map, BlockMap::new())
            });
            let parts = parts.collect();
            Ok((Source::Pieces(Pieces::new(parts)), expected))
        }
        Choice::Full { target_is_empty } => {
            let mut parts = Vec::new();
            let mut expected = 0;
            for reader in readers {
                let whole = BlockMap::whole(reader.size);
                let data = reader.data(Extent::new(0, reader.size)).await?;
                let zero = if *target_is_empty { BlockMap::new() } else { whole.difference(&data) };
                expected += data.bytes() + zero.bytes();
                parts.push((reader.clone(), data, zero));
            }
            Ok((Source::Pieces(Pieces::new(parts)), expected))
        }
        Choice::Compare(_) => {
            let expected = readers.iter().map(|reader| reader.size).sum();
            let whole = readers.iter().map(|reader| (reader.clone(), BlockMap::whole(reader.size))).collect();
            Ok((Source::Compare(compare(whole, session)?), expected))
        }
    }
}

/// A compare of these parts of the disks.
fn compare(parts: Vec<(CutReader, BlockMap)>, session: &Session) -> Result<Compare, Fault> {
    let mut found = Vec::new();
    for (reader, map) in parts {
        let there = session.disks.iter().position(|disk| disk.disk == reader.key);
        let there = there.and_then(|index| u16::try_from(index).ok()).ok_or_else(|| {
            let message = format!("the replica has no disk {}", reader.key);
            Fault::new(code::DISK_MISMATCH, message, "the machine's disks changed since it was protected")
        })?;
        found.push((reader, there, map));
    }
    Ok(Compare::new(found, session.leaf_key))
}

fn begins_anew(cause: &str) -> Broken {
    Broken::Attempt(Fault::new(code::LINK, "an epoch that was cut off begins anew", cause))
}

fn protocol_fault(why: &str) -> Fault {
    Fault::new(code::PROTOCOL, "an epoch could not be continued", why)
}

fn out_of_turn(got: &Message) -> Broken {
    Broken::Attempt(protocol_fault(&format!("the target answered {got:?}")))
}
