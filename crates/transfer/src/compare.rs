//! Comparing: both ends hash the same stretches, and only blocks whose hashes differ travel (H6).
//!
//! ```text
//!   root of stretch i+1 ? ──►
//!   hash stretch i+1 here           target hashes stretch i+1
//!        ◄── root of stretch i      equal: nothing more is said about it
//!   nodes of stretch i ? ──►        differs: its 16 nodes, then the leaves below those that differ
//!        ◄── nodes … leaves
//!   blocks that differ ─► read ─► pieces, while the rest is compared
//! ```
//!
//! Where hashes of the source are known, they are asked for instead of read ([`Known`]).
//!
//! Holes are read on neither end. Only hashes are kept while answers are on the way: a block that differs is read once
//! more, which costs what changed, and what is in memory depends neither on the length of the line nor on the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use component::link::LinkError;
use futures::future::BoxFuture;
use protocol::leaf::{Leaf, Recipe, ZERO_LEAF};
use protocol::session::MOST_ASKED;
use protocol::{BlockMap, Extent, Fault};
use tokio_util::task::AbortOnDropHandle;

use crate::{Piece, Pieces, Question, Reader, Session, Stopped, begins_anew};

/// Whoever knows hashes of the source without reading it.
pub trait Known: Send + Sync + 'static {
    /// The leaves of `extent` of the sender's disk of that index, made as the compare makes them; none where
    /// it has to be read. [`protocol::leaf::SPOILT_LEAF`], which the target may have, too, is never among them.
    fn leaves(&self, disk: u16, extent: Extent) -> BoxFuture<'_, Option<Vec<Leaf>>>;
}

/// The leaves of a part of the source.
enum Here {
    Hashing(AbortOnDropHandle<Result<Vec<Leaf>, Fault>>),
    Known(Arc<[Leaf]>),
}

/// A question, and what it is compared with.
struct Asked {
    reader: Reader,
    question: Question,
    /// What the leaves are of: the question's range, or more.
    stretch: Extent,
    here: Here,
}

/// A compare of parts of disks.
pub struct Compare {
    left: VecDeque<(Reader, u16, Extent)>,
    /// Follows from an answer, and was not asked yet.
    further: VecDeque<Asked>,
    asked: VecDeque<Asked>,
    differs: Pieces,
    /// The target's: both ends hash like that.
    recipe: Recipe,
    known: Option<Arc<dyn Known>>,
    expected: u64,
    done: u64,
    read_there: u64,
}

impl Compare {
    /// Compares these parts of each reader's disk, and what else the leaves stand for that they touch, with the target's disk
    /// of that index; `recipe` is the target's, and that of what is `known`.
    pub fn new(parts: Vec<(Reader, u16, BlockMap)>, recipe: Recipe, known: Option<Arc<dyn Known>>) -> Compare {
        let (mut left, mut expected) = (VecDeque::new(), 0);
        for (reader, there, map) in parts {
            let map = map.aligned(recipe.bytes.bytes(), reader.size);
            expected += map.bytes();
            left.extend(map.pieces(recipe.span(recipe.root())).map(|stretch| (reader.clone(), there, stretch)));
        }
        let (further, asked, differs) = Default::default();
        Compare { left, further, asked, differs, recipe, known, expected, done: 0, read_there: 0 }
    }

    /// Bytes of the disks that will be compared.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// Bytes of the disks that were compared so far.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Bytes that the target read for its hashes.
    pub fn read_there(&self) -> u64 {
        self.read_there
    }

    /// A new session, in which the target hashes by `recipe`: what was asked for in the old one is asked for again.
    ///
    /// # Errors
    /// The session ended; the leaves are of another size, so that the compare has to begin anew.
    pub async fn resume(&mut self, session: &mut Session, recipe: Recipe) -> Result<(), Stopped> {
        if recipe.bytes != self.recipe.bytes {
            return Err(begins_anew("the target makes hashes of another size now"));
        }
        let same = std::mem::replace(&mut self.recipe, recipe) == recipe;
        if !same {
            self.known = None;
        }
        for asked in self.asked.iter_mut().chain(&mut self.further) {
            if !same {
                let extent = asked.question.extent;
                (asked.question.level, asked.stretch) = (0, extent);
                asked.here = hashing(&asked.reader, extent, recipe, None);
            }
        }
        for asked in &self.asked {
            session.say(asked.question.message()).await?;
        }
        Ok(())
    }

    /// The next pieces that differ; none at the end.
    ///
    /// # Errors
    /// [`Stopped`]; after a broken link it goes on with [`Compare::resume`].
    pub async fn next(&mut self, session: &mut Session) -> Result<Option<Piece>, Stopped> {
        loop {
            self.ask(session).await?;
            let Some(first) = self.asked.front() else { return self.differs.next().await.map_err(Stopped::Fault) };
            let question = first.question;
            tokio::select! {
                biased;
                piece = self.differs.next(), if !self.differs.is_empty() => {
                    return piece.map_err(Stopped::Fault);
                }
                there = session.hashes(&question) => {
                    let (there, read) = there?;
                    self.read_there += read;
                    if let Some(asked) = self.asked.pop_front() {
                        self.settle(asked, &there).await.map_err(Stopped::Fault)?;
                    }
                }
            }
        }
    }

    /// Keeps as many questions under way as the target takes.
    async fn ask(&mut self, session: &mut Session) -> Result<(), LinkError> {
        while self.asked.len() < MOST_ASKED {
            let next = match self.further.pop_front() {
                Some(further) => further,
                None => {
                    let Some((reader, disk, extent)) = self.left.pop_front() else { return Ok(()) };
                    let root = self.recipe.root();
                    let span = self.recipe.span(root);
                    let ends = extent.length == span || extent.end() == reader.size;
                    let is_whole = extent.offset.is_multiple_of(span) && ends;
                    let here = hashing(&reader, extent, self.recipe, self.known.clone());
                    let question = Question { disk, level: if is_whole { root } else { 0 }, extent };
                    Asked { reader, question, stretch: extent, here }
                }
            };
            let message = next.question.message();
            self.asked.push_back(next);
            session.say(message).await?;
        }
        Ok(())
    }

    /// Compares an answer: what is equal is done, what differs is asked for in more detail, or travels.
    async fn settle(&mut self, asked: Asked, there: &[Leaf]) -> Result<(), Fault> {
        let Asked { reader, question: Question { disk, level, extent }, stretch, here } = asked;
        let here: Arc<[Leaf]> = match here {
            Here::Known(leaves) => leaves,
            Here::Hashing(task) => task.await.map_err(|error| broken(&error.to_string()))??.into(),
        };
        let part = &here[self.recipe.count(extent.offset - stretch.offset)..];
        let ours = self.recipe.nodes(&part[..self.recipe.count(extent.length)], level);
        if there.len() != ours.len() {
            return Err(broken("the target sent another number of hashes than it was asked for"));
        }
        let (mut differs, mut zero) = (BlockMap::new(), BlockMap::new());
        for (n, (here, there)) in ours.iter().zip(there).enumerate() {
            let span = self.recipe.span(level);
            let offset = extent.offset + n as u64 * span;
            let part = Extent::new(offset, span.min(extent.end() - offset));
            match here == there {
                true => self.done += part.length,
                false if *here == ZERO_LEAF => zero.insert(part),
                false => differs.insert(part),
            }
        }
        self.done += zero.bytes();
        match level.checked_sub(1) {
            None => self.done += differs.bytes(),
            Some(level) => {
                self.further.extend(differs.extents().iter().map(|extent| Asked {
                    reader: reader.clone(),
                    question: Question { disk, level, extent: *extent },
                    stretch,
                    here: Here::Known(here.clone()),
                }));
                differs = BlockMap::new();
            }
        }
        self.differs.push(&reader, &differs, &zero);
        Ok(())
    }
}

fn hashing(reader: &Reader, extent: Extent, recipe: Recipe, known: Option<Arc<dyn Known>>) -> Here {
    let reader = reader.clone();
    Here::Hashing(AbortOnDropHandle::new(tokio::spawn(async move {
        if let Some(known) = known
            && let Some(leaves) = known.leaves(reader.disk, extent).await
        {
            return Ok(leaves);
        }
        reader.leaves(extent, recipe).await
    })))
}

fn broken(why: &str) -> Fault {
    Fault::new(protocol::fault::code::PROTOCOL, "a compare could not be carried out", why)
}
