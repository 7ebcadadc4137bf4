//! Lets a test act while the kernel would read a slot from a disk.

use std::cell::Cell;

std::thread_local! {
    /// What this thread does when it touches a slot next, where the kernel might read a disk.
    pub(crate) static SWAP_IN: Cell<Option<Box<dyn FnOnce()>>> = const { Cell::new(None) };
}

/// The kernel reads a slot's page from a disk.
pub(super) fn swap_in() {
    if let Some(meanwhile) = SWAP_IN.take() {
        meanwhile();
    }
}
