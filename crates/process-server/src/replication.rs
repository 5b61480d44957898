//! One item's replication: epoch after epoch, through broken links, lost cuts and restarts.
//!
//! ```text
//!   open capture ─► open session ─► settle what a predecessor left ─► ┌ cut ─► send ─► sealed ─► forget ┐ ─► …
//!        ▲                                                            └──────────────────────────────────┘
//!        └── after any failure: release the cut, merge its map back, wait, begin again
//! ```
//!
//! # Always true
//! - At most one cut is open. It is kept over a broken link for [`CUT_PATIENCE`], then given up: the changes wait in the
//!   hypervisor's map (design section 2), not here.
//! - `acknowledged` is called only with an attempt that the target itself called sealed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use component::cap::{Cap, Hurry, Limit, Throttle};
use component::clock::now_ms;
use component::link::LinkError;
use platforms::{Capture, Platform};
use protocol::epoch::{Point, PointKind};
use protocol::fault::code;
use protocol::machine::Power;
use protocol::order::{Moved, Outcome, Progress, Replication, ReplicationPhase, ReplicationStatus};
use protocol::position::{Changes, Distrust};
use protocol::replication::{CapOf, Capped};
use protocol::{Attempt, Fault};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;
use transfer::Stopped;

use crate::app::{Apps, Waiting};
use crate::choice::Choice;
use crate::epoch::Epoch;
use crate::keep::Keep;
use crate::pace::{Lap, Laps, Parts};
use crate::reach::Reach;
use crate::session::{Session, said_by_target};
use crate::status::{self, lock, note_age, note_pause};

/// How long an open cut waits for a broken link. Guessed: a switch that reboots takes longer, a lost packet does not.
const CUT_PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two tries: from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// What a running replication can be asked.
pub(crate) enum Ask {
    /// Send the last epoch of a machine that stands still.
    Final(Final),
    /// Make the next epoch application-consistent.
    App(Waiting),
}

/// Somebody waits for the last epoch, and a machine with him: until then no cap holds the replication up (decision 0018).
pub(crate) struct Final {
    /// Dropped if nobody waits any more.
    answer: oneshot::Sender<Result<Outcome, Fault>>,
    _hurry: Hurry,
}

/// What all replications of a process server have in common.
#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) platform: Arc<dyn Platform>,
    pub(crate) keep: Arc<Keep>,
    pub(crate) reach: Reach,
    /// What they all may send together.
    pub(crate) cap: Arc<Cap>,
    /// Has control told of what is new.
    pub(crate) news: Arc<Notify>,
}

/// A replication at work.
pub(crate) struct Running {
    wish: watch::Sender<Replication>,
    throttle: Arc<Throttle>,
    asks: mpsc::Sender<Ask>,
    status: Arc<Mutex<ReplicationStatus>>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub(crate) fn begin(wish: Replication, means: Means) -> Running {
        let status = Arc::new(Mutex::new(status::fresh(&wish)));
        let throttle = Arc::new(Throttle::new(wish.bandwidth.clone(), means.cap.clone()));
        let (wishes, wished) = watch::channel(wish);
        let (asks, asked) = mpsc::channel(8);
        let (stop, stopped) = watch::channel(false);
        let worker = Worker {
            wish: wished,
            asks: asked,
            status: status.clone(),
            throttle: throttle.clone(),
            means,
            finals: Vec::new(),
            apps: Apps::default(),
            laps: Laps::default(),
            compared: false,
            cut_at: None,
        };
        let task = tokio::spawn(worker.run(stopped));
        Running { wish: wishes, throttle, asks, status, stop, task }
    }

    /// Whether `wish` can be taken over without a new beginning.
    pub(crate) fn continues(&self, wish: &Replication) -> bool {
        let now = self.wish.borrow();
        (&now.item, now.lineage, now.generation, &now.token, &now.target, &now.machine)
            == (&wish.item, wish.lineage, wish.generation, &wish.token, &wish.target, &wish.machine)
    }

    /// Whether it replicates this machine.
    pub(crate) fn is_of(&self, machine: &str) -> bool {
        self.wish.borrow().machine == machine
    }

    pub(crate) fn take_over(&self, wish: Replication) {
        self.throttle.set(wish.bandwidth.clone());
        self.wish.send_replace(wish);
    }

    pub(crate) fn status(&self) -> ReplicationStatus {
        let capped = self.throttle.limit().map(|limit| match limit {
            Limit::Own(bits_per_second) => Capped { by: CapOf::Policy, bits_per_second },
            Limit::Shared(bits_per_second) => Capped { by: CapOf::Component, bits_per_second },
        });
        ReplicationStatus { capped, ..lock(&self.status).clone() }
    }

    /// Asks for the last epoch. The receiver hears the outcome; it may take as long as the link needs.
    pub(crate) async fn final_delta(&self) -> oneshot::Receiver<Result<Outcome, Fault>> {
        let (answer, answered) = oneshot::channel();
        // A worker that is gone drops the sender, which the receiver notices.
        let _ = self.asks.send(Ask::Final(Final { answer, _hurry: self.throttle.hurry() })).await;
        answered
    }

    /// Asks for an application-consistent point. The receiver hears of it, or why there is none.
    pub(crate) async fn app_point(&self) -> oneshot::Receiver<Result<Outcome, Fault>> {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send(Ask::App(answer)).await;
        answered
    }

    /// Ends it. An open cut is released; the change maps stay.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        let abort = self.task.abort_handle();
        if tokio::time::timeout(Duration::from_secs(10), self.task).await.is_err() {
            abort.abort();
        }
    }
}

type Slot = Option<Box<dyn Capture>>;

struct Worker {
    wish: watch::Receiver<Replication>,
    asks: mpsc::Receiver<Ask>,
    status: Arc<Mutex<ReplicationStatus>>,
    throttle: Arc<Throttle>,
    means: Means,
    finals: Vec<Final>,
    apps: Apps,
    laps: Laps,
    /// Whether the last epoch was a compare.
    compared: bool,
    /// When the newest sealed epoch was cut, in this worker's life.
    cut_at: Option<Instant>,
}

impl Worker {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut capture: Slot = None;
        tokio::select! {
            () = self.replicate(&mut capture) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        if let Some(capture) = &mut capture
            && let Err(fault) = capture.release().await
        {
            tracing::warn!(%fault, "an open cut could not be released; the next start cleans it up");
        }
    }

    async fn replicate(&mut self, capture: &mut Slot) {
        let mut backoff = BACKOFF.0;
        loop {
            let began = Instant::now();
            let fault = match self.round(capture).await {
                Ok(never) => match never {},
                Err(fault) => fault,
            };
            if began.elapsed() > BACKOFF.1 {
                backoff = BACKOFF.0;
            }
            tracing::warn!(item = %self.wish.borrow().item, %fault, cause = %fault.cause, "replication waits");
            {
                let mut status = lock(&self.status);
                status.phase = ReplicationPhase::Waiting;
                status.fault = Some(fault);
            }
            self.means.news.notify_one();
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Opens everything and sends epochs until something fails.
    async fn round(&mut self, slot: &mut Slot) -> Result<std::convert::Infallible, Fault> {
        let wish = self.wish.borrow().clone();
        let mut session = self.open(&wish).await.map_err(|error| error.fault())?;
        *slot = None;
        let capture = slot.insert(self.means.platform.capture(&wish.machine, wish.lineage).await?);
        settle_predecessor(capture.as_mut(), session.target.newest).await?;
        self.phase_of(&session);
        let mut last_cut = None;
        loop {
            let is_final = self.wait_for_turn(last_cut).await;
            last_cut = Some(Instant::now());
            let result = self.epoch(capture.as_mut(), &mut session, is_final).await;
            match result {
                Ok(Some(outcome)) => self.answer_finals(outcome),
                Ok(None) => {}
                Err(fault) => return Err(fault),
            }
        }
    }

    fn phase_of(&self, session: &Session) {
        let wish = self.wish.borrow();
        let mut status = lock(&self.status);
        let ours = session.target.newest.is_some_and(|newest| newest.generation == wish.generation);
        status.phase = if ours { ReplicationPhase::Epochs } else { ReplicationPhase::FirstEpoch };
        status.fault = None;
    }

    /// Returns when the next epoch is due: an interval after the last one began, or at once if somebody waits for it: true for the last one.
    async fn wait_for_turn(&mut self, last: Option<Instant>) -> bool {
        loop {
            self.finals.retain(|wanted| !wanted.answer.is_closed());
            if !self.finals.is_empty() {
                return true;
            }
            // Looked at each time: the interval may become another one while it is waited for.
            let (quiesced, interval) = {
                let wish = self.wish.borrow_and_update();
                let copied = wish.offline && lock(&self.status).newest.is_some();
                (wish.quiesced || copied, Duration::from_millis(wish.interval_ms))
            };
            let due = last.map_or_else(Instant::now, |last| last + interval);
            if quiesced {
                lock(&self.status).phase = ReplicationPhase::Quiesced;
            } else if self.apps.is_asked() {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due), if !quiesced => return false,
                asked = self.asks.recv() => match asked {
                    Some(Ask::Final(wanted)) => self.finals.push(wanted),
                    Some(Ask::App(waiting)) => self.apps.ask(waiting),
                    None => std::future::pending().await,
                },
                changed = self.wish.changed() => if changed.is_err() { std::future::pending().await },
            }
        }
    }

    /// One epoch from cut to acknowledgement. The outcome is given for a last epoch.
    async fn epoch(
        &mut self,
        capture: &mut dyn Capture,
        session: &mut Session,
        is_final: bool,
    ) -> Result<Option<Outcome>, Fault> {
        let (wish, began) = (self.wish.borrow().clone(), Instant::now());
        if is_final {
            self.must_stand_still(&wish).await?;
        }
        let held = capture.held().await?;
        let seen = held.iter().map(|held| held.since).chain(session.target.newest);
        let since = held.first().map(|held| (wish.lineage, held.since));
        let honest = since.is_none_or(|(lineage, since)| self.means.keep.may_count(&wish.item, lineage, since));
        let attempt = self.means.keep.next_attempt(&wish.item, wish.generation, seen, since).map_err(|error| {
            Fault::new(code::REPLICA_IO, "the number of an attempt could not be written down", error.to_string())
        })?;
        let quiesce = if is_final { None } else { self.apps.wish(wish.app_interval_ms, began) };
        let mut cut = capture.cut_as(attempt, quiesce).await?;
        if !honest {
            (cut.since, cut.changes) = (None, Changes::Unknown(Distrust::MapMismatch));
        }
        {
            let mut status = lock(&self.status);
            note_pause(&mut status, cut.paused);
            if let Some(freeze) = &cut.freeze {
                self.apps.cut(&wish.item, freeze, &mut status.app);
            }
        }
        let kind = match &cut.freeze {
            _ if is_final => PointKind::Final,
            Some(freeze) => freeze.kind(),
            None => PointKind::CrashConsistent,
        };
        let sent = self.send(&wish, attempt, kind, &cut, session).await;
        match sent {
            Ok(Sent { point, moved, choice, compared, parts }) => {
                capture.acknowledged(attempt).await?;
                let since =
                    self.cut_at.replace(began).filter(|_| matches!(choice, Choice::Tracked(_)) && compared.is_none());
                let since = since.map(|before| began - before);
                self.laps.note(Lap { carried: moved.changed, compared, since, took: began.elapsed(), parts });
                session.target.newest = Some(point.attempt);
                session.target.position = Some(protocol::Position {
                    lineage: wish.lineage,
                    base: point.attempt,
                    authored: None,
                    changes: Changes::none(),
                });
                session.target.has_content = true;
                self.sealed(&point, moved);
                if !is_final {
                    return Ok(None);
                }
                let stamps = self.means.platform.stamps(&wish.machine).await?;
                let seal_ms = u64::try_from(parts.sealing.as_millis()).unwrap_or(u64::MAX);
                Ok(Some(Outcome::Final { point, moved, stamps, seal_ms }))
            }
            #[cfg(feature = "sabotage")]
            Err(fault) if protocol::sabotage::is("given-up-epoch-forgotten") => {
                capture.acknowledged(attempt).await?;
                Err(fault)
            }
            Err(fault) => {
                capture.failed().await?;
                Err(fault)
            }
        }
    }

    /// Sends the epoch of an open cut, over as many sessions as it takes while the cut is worth keeping.
    async fn send(
        &mut self,
        wish: &Replication,
        attempt: Attempt,
        kind: PointKind,
        cut: &platforms::Cut,
        session: &mut Session,
    ) -> Result<Sent, Fault> {
        let mut epoch = Epoch::begin(wish, attempt, kind, cut, session, &self.means.reach).await?;
        self.chosen(&epoch.choice, session);
        let status = self.status.clone();
        let began = Instant::now();
        let progress = move |expected, done| {
            let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            lock(&status).first = Progress { expected, done, elapsed_ms };
        };
        let quiet = |_, _| {};
        let first = session.target.newest.is_none_or(|newest| newest.generation != wish.generation);
        let progress: &(dyn Fn(u64, u64) + Send + Sync) = if first { &progress } else { &quiet };
        let mut broken_since: Option<Instant> = None;
        loop {
            let fault = match epoch.send(session, progress).await {
                Ok(point) => return Ok(Sent::of(epoch, point, session)),
                // What arrived is not undone: the next attempt goes on with it.
                Err(Stopped::Fault(fault)) => return Err(fault),
                Err(Stopped::Link(error)) if said_by_target(&error).is_some() => {
                    return Err(error.fault());
                }
                Err(Stopped::Link(error)) => error.fault(),
            };
            epoch.leave(session);
            let since = *broken_since.get_or_insert_with(Instant::now);
            lock(&self.status).fault = Some(fault.clone());
            match self.reopen(wish, since).await {
                Some(fresh) if fresh.target.newest == Some(attempt) => {
                    // Sealed, but the answer was lost on the way: the target is the one who knows.
                    *session = fresh;
                    let point = Point {
                        attempt,
                        cut_at_ms: cut.at_ms,
                        sealed_at_ms: now_ms(),
                        kind,
                        changed_bytes: epoch.moved(session).changed,
                        freeze: cut.freeze.clone(),
                    };
                    return Ok(Sent::of(epoch, point, session));
                }
                Some(fresh) if fresh.target.newest == session.target.newest => *session = fresh,
                _ => return Err(fault),
            }
            lock(&self.status).fault = None;
        }
    }

    async fn open(&self, wish: &Replication) -> Result<Session, LinkError> {
        Session::open(&self.means.reach, wish, self.throttle.clone()).await
    }

    /// A new session within the patience that an open cut has.
    async fn reopen(&self, wish: &Replication, since: Instant) -> Option<Session> {
        while since.elapsed() < CUT_PATIENCE {
            match self.open(wish).await {
                Ok(session) => return Some(session),
                Err(LinkError::Refused(_)) => return None,
                Err(_) => tokio::time::sleep(BACKOFF.0 * 2).await,
            }
        }
        None
    }

    async fn must_stand_still(&self, wish: &Replication) -> Result<(), Fault> {
        match self.means.platform.machine(&wish.machine).await? {
            Some(machine) if machine.power == Power::Held => Ok(()),
            found => {
                let message =
                    format!("the last epoch of {} cannot be taken: the machine does not stand still", wish.item);
                Err(Fault::new(
                    code::MACHINE_RUNNING,
                    message,
                    format!("it is {:?}", found.map(|machine| machine.power)),
                ))
            }
        }
    }

    fn chosen(&mut self, choice: &Choice, session: &Session) {
        let again = std::mem::replace(&mut self.compared, matches!(choice, Choice::Compare(_)));
        let mut status = lock(&self.status);
        let first = session.target.newest.is_none_or(|newest| newest.generation != status.generation);
        if first {
            status.sync = Some(choice.sync());
            status.distrust = match choice {
                Choice::Compare(why) => Some(*why),
                _ => None,
            };
        } else if let Choice::Compare(why) = choice {
            status.distrust = Some(*why);
            // Where nothing ever tells what changes it would be said at each epoch.
            if !again {
                tracing::warn!(item = %status.item, %why, "the base of an epoch is not proven: comparing");
            }
        }
    }

    fn sealed(&mut self, point: &Point, moved: Moved) {
        let mut status = lock(&self.status);
        if self.apps.sealed(point, &mut status.app) {
            self.means.news.notify_one();
        }
        if let Some(before) = &status.newest {
            let age = now_ms().saturating_sub(before.cut_at_ms);
            note_age(&mut status, age);
        }
        if status.first_moved.is_none() {
            status.first_moved = Some(moved);
            self.means.news.notify_one();
        }
        status.newest = Some(point.clone());
        status.pace = self.laps.pace();
        status.moved += moved;
        status.epochs += 1;
        status.phase = ReplicationPhase::Epochs;
        status.fault = None;
    }

    fn answer_finals(&mut self, outcome: Outcome) {
        for wanted in self.finals.drain(..) {
            let _ = wanted.answer.send(Ok(outcome.clone()));
        }
    }
}

/// An epoch that was sealed.
struct Sent {
    point: Point,
    moved: Moved,
    choice: Choice,
    compared: Option<u64>,
    parts: Parts,
}

impl Sent {
    fn of(epoch: Epoch, point: Point, session: &Session) -> Sent {
        let (moved, compared) = (epoch.moved(session), epoch.compared());
        Sent { point, moved, compared, parts: epoch.parts(), choice: epoch.choice }
    }
}

/// Settles the fate of a cut that a predecessor made: the target knows whether it became a point.
async fn settle_predecessor(capture: &mut dyn Capture, newest: Option<Attempt>) -> Result<(), Fault> {
    let held = capture.held().await?;
    let (Some(last), true) = (held.last(), held.len() > 1) else { return capture.release().await };
    if newest == Some(last.since) { capture.acknowledged(last.since).await } else { capture.failed().await }
}
