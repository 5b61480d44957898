//! One epoch on its way: what the cut carries is chosen, sent, and acknowledged as a whole.
//!
//! A link may break in the middle. The cut stays open for a while, a new session says how far the target had come, and
//! the epoch goes on from there (`transfer::Flow`).

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use platforms::Cut;
use protocol::epoch::{DiskSize, EpochHeader, Point, PointKind};
use protocol::fault::code;
use protocol::leaf::Recipe;
use protocol::order::{Moved, Replication};
use protocol::session::Message;
use protocol::{Attempt, BlockMap, Extent, Fault};
use transfer::{Compare, Flow, Known, Pieces, Reader, Source, Stopped, begins_anew};

use crate::beneath::Beneath;
use crate::choice::{Choice, choose};
use crate::cut;
use crate::pace::Parts;
use crate::reach::Reach;
use crate::session::Session;

/// An epoch that was cut and is being sent.
pub(crate) struct Epoch {
    header: EpochHeader,
    pub(crate) choice: Choice,
    flow: Flow,
    /// How the target has to hash, so that leaves that are known here can be compared.
    recipe: Option<Recipe>,
    /// The target has opened it.
    is_open: bool,
    /// What sealing it took, and what the target says that it worked on it.
    sealing: (Duration, Duration),
}

impl Epoch {
    /// Chooses what the cut carries, given where the target stands.
    pub(crate) async fn begin(
        wish: &Replication,
        attempt: Attempt,
        kind: PointKind,
        cut: &Cut,
        session: &mut Session,
        reach: &Reach,
    ) -> Result<Epoch, Fault> {
        let choice = choose(wish, cut, &session.target);
        let read = Arc::new(AtomicU64::new(0));
        let readers = cut::open(cut, read.clone()).await?;
        let known = match choice {
            Choice::Compare(_) => Beneath::consult(reach, wish, cut, &readers, read.clone()).await,
            _ => None,
        };
        let recipe = known.as_ref().map(|known| known.recipe);
        if let Some(recipe) = recipe {
            session.rekey(recipe).await.map_err(|error| error.fault())?;
        }
        // A target that keeps leaves made otherwise goes on with these.
        let known = known.filter(|known| known.recipe == session.leaves);
        let known = known.map(|known| Arc::new(known) as Arc<dyn Known>);
        let (source, expected) = source(&choice, &readers, session, known).await?;
        let disks = readers.iter().map(|reader| DiskSize { disk: reader.key.clone(), size: reader.size }).collect();
        let header = EpochHeader {
            lineage: wish.lineage,
            attempt,
            base: session.target.newest,
            basis: choice.basis(),
            cut_at_ms: cut.at_ms,
            disks,
            kind,
            freeze: cut.freeze.clone(),
            expected_bytes: expected,
        };
        let flow = Flow::new(readers, source, expected, read, session);
        Ok(Epoch { header, choice, flow, recipe, is_open: false, sealing: Default::default() })
    }

    /// Opens the epoch in a session (its first or a later one), sends what is missing and waits until it is sealed.
    /// `progress` hears expected and done bytes.
    pub(crate) async fn send(
        &mut self,
        session: &mut Session,
        progress: &(dyn Fn(u64, u64) + Send + std::marker::Sync),
    ) -> Result<Point, Stopped> {
        let attempt = self.header.attempt;
        let opened = session.ask(Message::OpenEpoch { header: self.header.clone() }, "epoch opened").await?;
        let Message::EpochOpened { attempt: got, known, resumed, resume_after } = opened else {
            return Err(out_of_turn(&opened));
        };
        if got != attempt {
            return Err(Stopped::Fault(protocol_fault("the target opened another attempt than was announced")));
        }
        match (self.is_open, known) {
            (true, true) => {
                if let Some(recipe) = self.recipe {
                    session.rekey(recipe).await?;
                }
                let recipe = session.leaves;
                self.flow.resume(session, recipe, resume_after).await?;
            }
            // The target was started again: it has what it wrote, but does not know which frames these were.
            (true, false) => return Err(begins_anew("the target was started again")),
            (false, _) if resumed => self.compare_first(session).map_err(Stopped::Fault)?,
            (false, _) => {}
        }
        self.is_open = true;
        let tell = |flow: &Flow| {
            let (expected, done) = flow.progress();
            progress(expected, done);
        };
        tell(&self.flow);
        while self.flow.step(session).await? {
            tell(&self.flow);
        }
        let (totals, waits) = (self.flow.totals(), Instant::now());
        match session.ask(Message::Seal { attempt, totals }, "sealed").await? {
            Message::Sealed { point, worked_us } if point.attempt == attempt => {
                self.sealing = (waits.elapsed(), Duration::from_micros(worked_us));
                let (expected, _) = self.flow.progress();
                progress(expected, expected);
                Ok(point)
            }
            other => Err(out_of_turn(&other)),
        }
    }

    /// What the epoch moved so far.
    pub(crate) fn moved(&self, session: &Session) -> Moved {
        self.flow.moved(session)
    }

    /// The session broke, and another will take its place.
    pub(crate) fn leave(&mut self, session: &Session) {
        self.flow.leave(session);
    }

    /// How long it waited for what.
    pub(crate) fn parts(&self) -> Parts {
        let transfer::Waits { source, link } = self.flow.waits();
        let (sealing, taking) = self.sealing;
        Parts { reading: source, sending: link, sealing, taking }
    }

    /// Bytes of both sides that were compared for it, if that is how its blocks were found.
    pub(crate) fn compared(&self) -> Option<u64> {
        self.flow.compared()
    }

    /// The target goes on with what an earlier attempt had brought: what it already has does not travel again.
    fn compare_first(&mut self, session: &Session) -> Result<(), Fault> {
        if let Some(waiting) = self.flow.waiting() {
            self.flow.compare(compare(waiting, session, None)?);
        }
        Ok(())
    }
}

/// Where the pieces come from, and how many bytes will be looked at.
async fn source(
    choice: &Choice,
    readers: &[Reader],
    session: &Session,
    known: Option<Arc<dyn Known>>,
) -> Result<(Source, u64), Fault> {
    match choice {
        Choice::Tracked(maps) => {
            let (mut pieces, mut expected) = (Pieces::default(), 0);
            for reader in readers {
                let map = maps.get(&reader.key).cloned().unwrap_or_default().aligned(protocol::BLOCK, reader.size);
                #[cfg(feature = "sabotage")]
                let map = match map.extents() {
                    [first, ..] if protocol::sabotage::is("extent-dropped") => {
                        map.difference(&[*first].into_iter().collect())
                    }
                    _ => map,
                };
                expected += map.bytes();
                pieces.push(reader, &map, &BlockMap::new());
            }
            Ok((Source::Pieces(pieces), expected))
        }
        Choice::Full { target_is_empty } => {
            let (mut pieces, mut expected) = (Pieces::default(), 0);
            for reader in readers {
                let whole = BlockMap::whole(reader.size);
                let data = reader.data(Extent::new(0, reader.size)).await?;
                let zero = if *target_is_empty { BlockMap::new() } else { whole.difference(&data) };
                expected += data.bytes() + zero.bytes();
                pieces.push(reader, &data, &zero);
            }
            Ok((Source::Pieces(pieces), expected))
        }
        Choice::Compare(_) => {
            let whole = readers.iter().map(|reader| (reader.clone(), BlockMap::whole(reader.size))).collect();
            let compare = compare(whole, session, known)?;
            let expected = compare.expected();
            Ok((Source::Compare(compare), expected))
        }
    }
}

/// A compare of these parts of the disks.
fn compare(parts: Vec<(Reader, BlockMap)>, session: &Session, known: Option<Arc<dyn Known>>) -> Result<Compare, Fault> {
    let mut found = Vec::new();
    for (reader, map) in parts {
        let there = session.disks.iter().position(|disk| disk.disk == reader.key);
        let there = there.and_then(|index| u16::try_from(index).ok()).ok_or_else(|| {
            let message = format!("the replica has no disk {}", reader.key);
            Fault::new(code::DISK_MISMATCH, message, "the machine's disks changed since it was protected")
        })?;
        found.push((reader, there, map));
    }
    Ok(Compare::new(found, session.leaves, known))
}

fn protocol_fault(why: &str) -> Fault {
    Fault::new(code::PROTOCOL, "an epoch could not be continued", why)
}

fn out_of_turn(got: &Message) -> Stopped {
    Stopped::Fault(protocol_fault(&format!("the target answered {got:?}")))
}
