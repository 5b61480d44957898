//! What every component at a site has: its line to control, and framed links to other components.
//!
//! ```text
//!   control ◄── line: register, exchange (orders in, reports out) ── component ── link: frames ──► component
//! ```
//!
//! Process server and master target would otherwise each own a copy of both. The room knows neither hypervisors nor
//! disks: what an order means is its owner's [`Duty`].

pub mod cap;
pub mod clock;
pub mod line;
pub mod link;

pub use line::{Duty, Heartbeat, Membership, Ticket};
pub use link::{CONNECTIONS, Dialler, Door, Link, LinkError, Listen};
