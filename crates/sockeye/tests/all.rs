//! The command line and whole circles: one program, so that it is linked once.

mod app_points;
mod cancel;
mod canned;
mod caps;
mod circle;
mod contract;
mod copying;
mod freeze;
mod guest_network;
mod install;
mod joining;
mod kill;
mod libvirt;
mod long;
mod outbound;
mod pages;
mod plain;
mod points;
mod scene;
mod served;
mod terminal;
mod typed;
