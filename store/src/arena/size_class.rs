//! Size classes of slots.

use crate::memory::SEGMENT_BYTES;

/// Bytes between two size classes.
pub(crate) const CLASS_STEP: usize = 64;
/// Size classes: 64, 128, ... 4096 bytes.
pub(crate) const CLASSES: usize = 64;

/// The class that holds a payload of `len` bytes (1 to 4096).
pub(crate) fn class_of(len: u16) -> usize {
    (usize::from(len) - 1) / CLASS_STEP
}

/// Bytes of the class's slots.
pub(crate) const fn slot_bytes(class: usize) -> usize {
    (class + 1) * CLASS_STEP
}

/// Slots of a segment of the class.
pub(crate) const fn slots_per_segment(class: usize) -> usize {
    SEGMENT_BYTES / slot_bytes(class)
}

/// Size classes, those of large slots first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Classes(pub(super) u64);

impl Iterator for Classes {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let class = self.0.checked_ilog2()?;
        self.0 &= !(1 << class);
        Some(class as usize)
    }
}
