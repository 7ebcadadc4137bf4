//! Device feature bits. A device offers a bit only when what it stands for works.

/// Bit number: ephemeral pools can be created.
pub const EPHEMERAL: u32 = 0;
/// Bit number: shared pools can be created. Needs [`EPHEMERAL`].
pub const SHARED: u32 = 1;
/// Bit number: the device uses the event queue and the pressure field.
pub const EVENTS: u32 = 2;
/// Bit number, reserved: stores that are acknowledged before they are executed.
pub const CREDITS: u32 = 3;
/// Bit number: the last of the request queues are for stores, [`crate::Config::num_store_queues`].
pub const STORE_QUEUES: u32 = 4;

/// The feature word with only this bit set.
#[must_use]
pub const fn bit(number: u32) -> u64 {
    match 1u64.checked_shl(number) {
        Some(word) => word,
        None => 0,
    }
}

/// Every bit that this version of the ABI can offer.
pub const ALL: u64 = bit(EPHEMERAL) | bit(SHARED) | bit(EVENTS) | bit(STORE_QUEUES);
