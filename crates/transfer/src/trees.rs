//! Answering questions for hashes, at the end with the target: in order, hashed in parallel, each stretch once.
//!
//! Whoever asks for the root of a stretch asks for its nodes and leaves next if it differs, so the leaves of stretches
//! that were asked for lately are kept: a tree costs one reading.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::leaf::{Leaf, Recipe};
use protocol::session::{MOST_HASHED, Message};
use protocol::{Extent, Fault};
use tokio_util::task::AbortOnDropHandle;

use crate::HASHERS;

/// Stretches whose leaves are kept: more than a sender has under way, 2 MiB.
const KEPT: usize = 256;

/// What is hashed: the disks of a target.
pub trait Hashed: Send + Sync + 'static {
    /// The size of a disk in bytes; none if there is no such disk.
    fn size(&self, disk: u16) -> Option<u64>;

    /// How they are hashed.
    fn recipe(&self) -> Recipe;

    /// The leaves of `extent`, which begins at a multiple of what one stands for and lies on the disk, and how much was read
    /// for them. Blocks; called from several threads at once.
    ///
    /// # Errors
    /// The disk cannot be read.
    fn leaves(&self, disk: u16, extent: Extent) -> Result<(Vec<Leaf>, u64), Fault>;
}

/// A question for hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Index of the disk in the target's order.
    pub disk: u16,
    /// 0 for leaves, up to [`Recipe::root`].
    pub level: u8,
    /// Of which range.
    pub extent: Extent,
}

impl Question {
    pub(crate) fn message(&self) -> Message {
        let Question { disk, level, extent: Extent { offset, length } } = *self;
        Message::HashRequest { disk, level, offset, length }
    }
}

/// The leaves of stretches that were asked for lately, the latest last.
type Kept = Mutex<VecDeque<(u16, Extent, Arc<[Leaf]>)>>;

/// The answers of one session.
pub struct Trees {
    of: Arc<dyn Hashed>,
    kept: Arc<Kept>,
    answers: FuturesOrdered<AbortOnDropHandle<Result<Frame, Fault>>>,
}

impl Trees {
    /// Answers from `of`.
    pub fn new(of: Arc<dyn Hashed>) -> Trees {
        Trees { of, kept: Arc::default(), answers: FuturesOrdered::new() }
    }

    /// Begins to answer.
    ///
    /// # Errors
    /// `MOV-005`: there is no answer to that.
    pub fn ask(&mut self, question: Question) -> Result<(), Fault> {
        let size = self.of.size(question.disk).unwrap_or_default();
        if !makes_sense(&question, &self.of.recipe(), size) {
            let cause = "hashes were asked for that do not exist";
            return Err(Fault::new(code::PROTOCOL, "the sender broke the session", cause));
        }
        let (of, kept) = (self.of.clone(), self.kept.clone());
        let answering = tokio::spawn(async move {
            // Never closed.
            let _permit = HASHERS.acquire().await;
            match tokio::task::spawn_blocking(move || answer(of.as_ref(), &kept, question)).await {
                Ok(answer) => answer,
                Err(error) => Err(Fault::new(code::REPLICA_IO, "a disk could not be hashed", error.to_string())),
            }
        });
        self.answers.push_back(AbortOnDropHandle::new(answering));
        Ok(())
    }

    /// The disks may have changed: what is kept is not believed any more.
    pub fn forget(&mut self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many questions are not answered yet.
    pub fn under_way(&self) -> usize {
        self.answers.len()
    }

    /// The next answer, in the order of the questions; for ever pending when there is none. Nothing is lost when the
    /// future is dropped.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub async fn next(&mut self) -> Result<Frame, Fault> {
        match self.answers.next().await {
            Some(Ok(answer)) => answer,
            Some(Err(error)) => Err(Fault::new(code::REPLICA_IO, "a disk could not be hashed", error.to_string())),
            None => std::future::pending().await,
        }
    }
}

fn makes_sense(question: &Question, recipe: &Recipe, size: u64) -> bool {
    let Question { level, extent: Extent { offset, length }, .. } = *question;
    let Some(end) = offset.checked_add(length).filter(|end| *end <= size) else { return false };
    let span = recipe.span(level);
    let whole = offset.is_multiple_of(span) && (level == 0 || end.is_multiple_of(span) || end == size);
    let one_stretch = length > 0 && stretch(recipe, offset, size).end() >= end;
    length > 0 && whole && if level == 0 { length <= MOST_HASHED } else { level <= recipe.root() && one_stretch }
}

/// The stretch that `offset` lies in.
fn stretch(recipe: &Recipe, offset: u64, size: u64) -> Extent {
    let span = recipe.span(recipe.root());
    let from = offset - offset % span;
    Extent::new(from, span.min(size - from))
}

fn answer(of: &dyn Hashed, kept: &Kept, question: Question) -> Result<Frame, Fault> {
    let Question { disk, level, extent } = question;
    let recipe = of.recipe();
    let known = {
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let covers = |of: &Extent| of.offset <= extent.offset && of.end() >= extent.end();
        kept.iter().rev().find(|(on, of, _)| *on == disk && covers(of)).map(|(_, of, leaves)| (*of, leaves.clone()))
    };
    let ((of_these, leaves), read) = match known {
        Some(known) => (known, 0),
        None => {
            let (leaves, read) = of.leaves(disk, extent)?;
            let leaves: Arc<[Leaf]> = leaves.into();
            if level > 0 {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back((disk, extent, leaves.clone()));
                if kept.len() > KEPT {
                    kept.pop_front();
                }
            }
            ((extent, leaves), read)
        }
    };
    let from = recipe.count(extent.offset - of_these.offset);
    let part = &leaves[from..from + recipe.count(extent.length)];
    Ok(Frame::Hashes { disk, level, offset: extent.offset, read, leaves: recipe.nodes(part, level) })
}
