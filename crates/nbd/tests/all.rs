//! The NBD client and server beside their peers: one program, so that it is linked once.

mod failures;
mod hostile;
mod model;
mod nbdkit;
mod peers;
mod qemu;
mod round_trip;
mod several;
mod their_clients;
