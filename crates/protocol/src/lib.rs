//! Everything two processes must agree on: ids, extents, positions, epochs, frames, orders, REST shapes and fault codes.
//!
//! ```text
//!   control ──orders──► process server ══frames══► master target          CLI ──REST──► api
//!      ▲                     │                          │
//!      └──────reports────────┴──────────────────────────┘
//! ```
//!
//! This room has no I/O and no policy: it says what the words are, how they are written down and which of them can be
//! true together. Two rules that everything else leans on live here because both ends must compute them alike:
//!
//! - [`position`]: when a delta may be sent, and when only a compare is honest (invariant 7, "no delta without a proven base");
//! - [`frame`]: how bytes are bounded and checked before anybody allocates or applies them.

pub mod bandwidth;
pub mod beside;
pub mod difference;
pub mod epoch;
pub mod extent;
pub mod fault;
pub mod frame;
pub mod freeze;
pub mod guest;
pub mod id;
pub mod keeping;
pub mod leaf;
pub mod machine;
pub mod operation;
pub mod order;
mod outcome;
pub mod pace;
pub mod packed;
pub mod position;
pub mod quote;
pub mod replication;
pub mod rest;
pub mod retention;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod session;
pub mod stage;
pub mod token;
pub mod uefi;
pub mod verified;

pub use bandwidth::Bandwidth;
pub use epoch::{EpochHeader, EpochTotals, Point, PointKind};
pub use extent::{BLOCK, BlockMap, Extent};
pub use fault::Fault;
pub use freeze::{Freeze, Quiesce};
pub use id::{Attempt, DiskKey, ItemId, Lineage, PolicyName, SiteName};
pub use position::{Changes, Delta, Position};
pub use retention::Retention;
pub use stage::Stage;
