//! The whole system under a seeded clock, network and disk: where its seams are.
//!
//! | what | the seam | who stands in today |
//! |---|---|---|
//! | disk of a replica | `replica::Disk` | a disk that loses unsynced writes at a power cut (`crates/replica/tests`) |
//! | journal volume | `replica::Volume` | the same |
//! | hypervisor | `platforms::Platform` | `platforms::simulated` |
//! | sites, as control sees them | `protocol::order` | model sites that answer orders (`crates/control/tests`) |
//! | byte streams | `component::link`, `nbd::Client::over` | streams in memory and through a cutting proxy |
//! | time | `component::clock` | – |
//!
//! Each seam has its stand-in beside the room that owns it. Running all rooms together on one seed is a later issue; until
//! then this crate holds nothing but this page.
