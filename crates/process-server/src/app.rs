//! Which epochs of a replication are to be application-consistent: one every so often by the policy, and those that somebody waits for.
//!
//! ```text
//!   policy's interval ─┐
//!   AppPoint orders ───┴─► wanted ─► cut, frozen ─┬─ sealed: told, due again after the interval
//!                                                 └─ not frozen: told why; tried again, sooner than that
//! ```
//! The plan is only in memory: a process server that is started again makes one at once.

use std::time::Duration;

use protocol::epoch::Point;
use protocol::fault::{self, code};
use protocol::order::{AppStatus, Outcome};
use protocol::{Fault, Freeze, ItemId, PointKind, Quiesce};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long the guest's agent may take until everything is frozen. Guessed: a database's checkpoint takes seconds, and as long as
/// it takes nothing is replicated.
const WITHIN: Duration = Duration::from_secs(30);
/// After a failure it is tried again after this part of the interval, but not sooner than the least.
const PART: u32 = 10;
const LEAST: Duration = Duration::from_secs(60);

/// Somebody waits for an application-consistent point.
pub(crate) type Waiting = oneshot::Sender<Result<Outcome, Fault>>;

/// What is to be application-consistent next.
#[derive(Default)]
pub(crate) struct Apps {
    waiting: Vec<Waiting>,
    /// When the last one was made, or failed.
    last: Option<(Instant, bool)>,
}

impl Apps {
    /// Somebody asks for one.
    pub(crate) fn ask(&mut self, waiting: Waiting) {
        self.waiting.push(waiting);
    }

    /// Whether somebody waits for one.
    pub(crate) fn is_asked(&mut self) -> bool {
        self.waiting.retain(|waiting| !waiting.is_closed());
        !self.waiting.is_empty()
    }

    /// How the next cut is to be made.
    pub(crate) fn wish(&mut self, interval_ms: u64, now: Instant) -> Option<Quiesce> {
        let interval = Duration::from_millis(interval_ms);
        let due = match self.last {
            _ if interval.is_zero() => false,
            None => true,
            Some((at, true)) => now - at >= interval,
            Some((at, false)) => now - at >= (interval / PART).max(LEAST).min(interval),
        };
        (due || self.is_asked()).then_some(Quiesce { within: WITHIN })
    }

    /// A cut was made, and this came of the wish. Whoever waits hears at once that it is not what he waits for.
    pub(crate) fn cut(&mut self, item: &ItemId, freeze: &Freeze, status: &mut AppStatus) {
        let Freeze::Failed { code, cause } = freeze else { return };
        let entry = fault::explain(code).unwrap_or(code::GUEST_NOT_FROZEN);
        let fault = Fault::new(entry, format!("no app-consistent point of {item} was made"), cause);
        self.last = Some((Instant::now(), false));
        // An absent agent is said once: most guests without one will never have one.
        if status.fault.as_ref() != Some(&fault) {
            tracing::warn!(%item, %fault, cause, "the point is crash-consistent");
        }
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Err(fault.clone()));
        }
        status.fault = Some(fault);
    }

    /// A point was sealed. Whether it is news.
    pub(crate) fn sealed(&mut self, point: &Point, status: &mut AppStatus) -> bool {
        if point.kind != PointKind::AppConsistent {
            return point.freeze.is_some();
        }
        self.last = Some((Instant::now(), true));
        for waiting in self.waiting.drain(..) {
            let _ = waiting.send(Ok(Outcome::Added { point: point.clone() }));
        }
        *status = AppStatus { newest: Some(point.clone()), fault: None };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn failed(code: &str) -> Freeze {
        Freeze::Failed { code: code.into(), cause: "it says no".into() }
    }

    fn point(kind: PointKind) -> Point {
        let attempt = "1.2".parse().unwrap();
        Point { attempt, cut_at_ms: 1, sealed_at_ms: 2, kind, changed_bytes: 3, freeze: None }
    }

    #[test]
    fn one_is_due_at_once_then_every_interval_and_sooner_after_a_failure() {
        let (mut apps, mut status) = (Apps::default(), AppStatus::default());
        let after = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(apps.wish(0, after(0)), None, "the policy wants none");
        assert!(apps.wish(HOUR, after(0)).is_some());
        assert!(!apps.sealed(&point(PointKind::CrashConsistent), &mut status));
        assert!(apps.wish(HOUR, after(0)).is_some(), "one that was cut and never sealed is none");
        assert!(apps.sealed(&point(PointKind::AppConsistent), &mut status));
        assert_eq!(apps.wish(HOUR, after(3500)), None);
        assert!(apps.wish(HOUR, after(3600)).is_some());
        apps.cut(&"web01".parse().unwrap(), &failed("PLT-016"), &mut status);
        assert!(status.fault.as_ref().unwrap().is(code::GUEST_NOT_FROZEN) && status.newest.is_some());
        assert_eq!(apps.wish(HOUR, after(300)), None);
        assert!(apps.wish(HOUR, after(360)).is_some());
        assert!(apps.sealed(&point(PointKind::AppConsistent), &mut status));
        assert_eq!(status.fault, None);
    }

    #[tokio::test]
    async fn who_waits_hears_of_the_point_or_why_there_is_none() {
        let (mut apps, mut status) = (Apps::default(), AppStatus::default());
        let ask = |apps: &mut Apps| {
            let (waiting, answer) = oneshot::channel();
            apps.ask(waiting);
            answer
        };
        let answer = ask(&mut apps);
        assert!(apps.wish(0, Instant::now()).is_some(), "whatever the policy says");
        apps.cut(&"web01".parse().unwrap(), &failed("PLT-015"), &mut status);
        assert!(answer.await.unwrap().unwrap_err().is(code::NO_GUEST_AGENT));
        let answer = ask(&mut apps);
        apps.sealed(&point(PointKind::AppConsistent), &mut status);
        assert!(matches!(answer.await.unwrap(), Ok(Outcome::Added { .. })));
        drop(ask(&mut apps));
        assert_eq!(apps.wish(0, Instant::now()), None, "who waits no longer gets none");
    }
}
