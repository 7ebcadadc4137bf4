//! The cost of an allocation.

/// Bytes that the heap spends on an allocation of `bytes`.
pub(crate) fn heap_bytes(bytes: usize) -> u64 {
    if bytes == 0 {
        0
    } else {
        ((bytes + 8).next_multiple_of(16)).max(32) as u64
    }
}
