//! `sockeye demo`: two sites, a real guest, the whole circle, verified; and the arrangement that tests share with it.
//!
//! ```text
//!   home ══ protect ══► cloud      tested beside it · home burns ─► failover ─► commit
//!        ◄═ reprotect ═            home is back (compare) ─► failback (tracked) ─► commit ─► reverse
//!        ══► … cut off, failed over, its point changed, home again (tracked, no scan) … compare … full, offline
//! ```
//! The demo uses the program as an operator does: processes of their own, the command line, files. What the guest wrote is
//! judged by the guest itself at every boot (its console says what it found), and can be judged afterwards by forty lines
//! of Python that share no code with this.

pub mod circle;
pub mod console;
pub mod content;
mod keeping;
pub mod net;
pub mod report;
pub mod world;

use std::time::Duration;

/// Waits. The demo is a person's hands: it has no event loop to give back to.
#[allow(clippy::disallowed_methods)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
