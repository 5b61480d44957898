//! Copying one disk onto another (`sockeye copy`): the engine of replication without an item, a history or control.
//!
//! ```text
//!   source ─ Reader ─ send ═══ link, or both ends in one process ═══► Receiving ─ disk
//!                                                                         └─ mark: "half written", until it is whole
//! ```
//! Either end may dial: the sender ([`send`]), or the target, which then says how it wants the copy ([`fetch`], [`give`]).
//!
//! # Always true
//! - Before the first byte is written the mark says that the target is half written; it goes when all is durable.
//! - A target that is marked is compared, whatever was asked for: what had arrived does not travel again.
//! # If power fails
//! - the mark is there, and the same command goes on.

mod fetch;
mod mark;
mod receive;
mod send;

pub use fetch::fetch;
pub use mark::Mark;
pub use receive::{Receiving, Taken};
pub use send::{Copied, Failure, Wish, give, send};
