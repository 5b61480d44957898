//! The guest program under QEMU and its verifiers: one program, so that it is linked once.

mod guest_boots;
mod memory;
mod verifiers;
