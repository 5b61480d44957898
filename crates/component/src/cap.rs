//! Bandwidth caps: what is sent waits until there is room for it (H4).
//!
//! ```text
//!   session A, lanes ─► cap of its policy ─┐
//!   session B, lanes ─► cap of its policy ─┼─► cap of the process server ─► TLS
//! ```
//! A token bucket that may owe: whoever finds it not empty takes what it needs, and the next waits until the debt is paid.
//! Those who wait stand in line, so sessions share a cap evenly. What is waited for are [`PORTION`]s of a frame, so a
//! slow line carries a stream and no bursts; what is waiting stands in the lanes, whose queues are bounded.
//!
//! # Always true
//! - A cap that is changed, or whose hour ends, is felt at once by those who wait.
//! - Nobody who gives up waiting has taken anything.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::Bandwidth;
use tokio::sync::watch;
use tokio::time::Instant;

/// What is waited for at a time (bytes): one record of TLS.
pub(crate) const PORTION: usize = 16 * 1024;
/// What may be sent at once after a pause, as a time of sending. Guessed: less than a queue in a router holds.
const BURST: Duration = Duration::from_millis(20);
/// For how long a cap that was waited for counts as what limits.
const LATELY: Duration = Duration::from_secs(2);

/// Tells the time of day, ms since 1970.
type Clock = Box<dyn Fn() -> u64 + Send + Sync>;

/// A cap that any number of lanes share.
pub struct Cap {
    bandwidth: watch::Sender<Bandwidth>,
    clock: Clock,
    /// Whose turn it is to wait.
    turn: tokio::sync::Mutex<()>,
    level: Mutex<Level>,
}

struct Level {
    /// What may still be sent; below zero, what was sent ahead.
    bytes: f64,
    at: Instant,
    /// Until when somebody waits or has waited.
    felt: Option<Instant>,
}

impl Cap {
    /// A cap by the time of this host.
    pub fn new(bandwidth: Bandwidth) -> Cap {
        Cap::with_clock(bandwidth, Box::new(crate::clock::now_ms))
    }

    fn with_clock(bandwidth: Bandwidth, clock: Clock) -> Cap {
        let level = Mutex::new(Level { bytes: 0.0, at: Instant::now(), felt: None });
        Cap { bandwidth: watch::Sender::new(bandwidth), clock, turn: tokio::sync::Mutex::default(), level }
    }

    /// Changes it for everybody, also for those who wait.
    pub fn set(&self, bandwidth: Bandwidth) {
        self.bandwidth.send_if_modified(|now| std::mem::replace(now, bandwidth.clone()) != bandwidth);
    }

    /// The bits per second that somebody waits for, or has waited for lately.
    pub fn felt(&self) -> Option<u64> {
        let felt = self.level().felt.is_some_and(|until| until + LATELY > Instant::now());
        self.bandwidth.borrow().at((self.clock)()).0.filter(|_| felt)
    }

    fn level(&self) -> MutexGuard<'_, Level> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until so much may be sent.
    async fn take(&self, bytes: usize) {
        if self.bandwidth.borrow().is_free() {
            return;
        }
        let _turn = self.turn.lock().await;
        let mut changes = self.bandwidth.subscribe();
        loop {
            let (cap, lasts) = changes.borrow_and_update().at((self.clock)());
            let Some(wait) = cap.and_then(|cap| self.level().take(bytes, cap)) else { return };
            tokio::select! {
                () = tokio::time::sleep(wait.min(lasts)) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Counts what does not wait.
    fn owe(&self, bytes: usize) {
        let cap = self.bandwidth.borrow().at((self.clock)()).0;
        if let Some(cap) = cap {
            let mut level = self.level();
            level.refill(cap);
            level.bytes -= bytes as f64;
        }
    }
}

impl Level {
    fn refill(&mut self, cap: u64) {
        let (now, a_second) = (Instant::now(), cap as f64 / 8.0);
        let more = now.saturating_duration_since(self.at).as_secs_f64() * a_second;
        self.bytes = (self.bytes + more).min(BURST.as_secs_f64() * a_second);
        self.at = now;
    }

    /// Takes so much, or says how long that has to wait.
    fn take(&mut self, bytes: usize, cap: u64) -> Option<Duration> {
        self.refill(cap);
        if self.bytes >= 0.0 {
            self.bytes -= bytes as f64;
            return None;
        }
        // Rounded up: whoever has waited shall not find it just not paid.
        let wait = Duration::from_secs_f64(-self.bytes * 8.0 / cap as f64) + Duration::from_micros(1);
        self.felt = Some(self.at + wait);
        Some(wait)
    }
}

/// The caps that a session is under.
pub struct Throttle {
    own: Cap,
    shared: Arc<Cap>,
    /// How many want it to go as fast as it can.
    hurries: watch::Sender<usize>,
}

/// What limits a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// A cap of its own (bits per second).
    Own(u64),
    /// The cap that it shares with others (bits per second).
    Shared(u64),
}

impl Throttle {
    /// A session under a cap of its own and one that it shares.
    pub fn new(own: Bandwidth, shared: Arc<Cap>) -> Throttle {
        Throttle { own: Cap::new(own), shared, hurries: watch::Sender::new(0) }
    }

    /// Changes its own cap.
    pub fn set(&self, bandwidth: Bandwidth) {
        self.own.set(bandwidth);
    }

    /// Lifts both caps for the session, for as long as what is given back is kept.
    pub fn hurry(self: &Arc<Throttle>) -> Hurry {
        self.hurries.send_modify(|hurries| *hurries += 1);
        Hurry(self.clone())
    }

    /// The cap that is waited for, or was lately.
    pub fn limit(&self) -> Option<Limit> {
        if *self.hurries.borrow() > 0 {
            return None;
        }
        let shared = || self.shared.felt().map(Limit::Shared);
        self.own.felt().map(Limit::Own).or_else(shared)
    }

    /// Waits until so much may be sent.
    pub(crate) async fn pass(&self, bytes: usize) {
        let mut hurries = self.hurries.subscribe();
        tokio::select! {
            biased;
            _ = hurries.wait_for(|hurries| *hurries > 0) => {}
            () = async {
                self.own.take(bytes).await;
                self.shared.take(bytes).await;
            } => {}
        }
    }

    /// Counts a word, which does not wait: an answer may depend on it.
    pub(crate) fn note(&self, bytes: usize) {
        if *self.hurries.borrow() == 0 {
            self.own.owe(bytes);
            self.shared.owe(bytes);
        }
    }
}

/// Keeps a session's caps lifted.
pub struct Hurry(Arc<Throttle>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.hurries.send_modify(|hurries| *hurries -= 1);
    }
}

#[cfg(test)]
mod tests;
