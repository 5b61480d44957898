//! The replica from outside: one program, so that it is linked once.

mod damage;
mod difference;
mod half_written;
mod kept;
mod museum;
mod power_cut;
mod qemu_locks;
mod readers;
mod resume;
mod rules;
mod simulated;
mod trust;
mod unbroken;
