//! Two model sites for the tests of control: they answer orders as real components would, and check that what control
//! asks for is sane.
//!
//! ```text
//!   site:  vm (24 cells, a change map) ── own disks, or an overlay on a replica
//!          replica (24 cells, points, position) ◄── epochs chosen by protocol::position::delta
//! ```
//!
//! The real components are tested end to end above this room; here the question is what *control* says. The model notes
//! a breach when two copies run at once though nobody cut the link, when blocks called a delta do not make the copies
//! equal, when an attempt is used twice, or when a replica is raised while it is open.
#![allow(dead_code, clippy::unwrap_used)]

pub mod drive;
pub mod model;
pub mod orders;
