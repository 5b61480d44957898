//! The process server and the master target, beside simulated machines and real QEMU: one program, so that it is linked once.

mod app_points;
mod beneath;
mod beside;
mod delays;
mod no_way_back;
mod outbound;
mod pace;
mod pressure;
mod replication;
mod sites;
mod slow;
mod throttle;
mod trust;
