//! Work on a page's bytes, in buffers of the thread, without a lock.

use std::cell::RefCell;

use crate::codec::{COMPRESS_BUFFER, Codec};
use crate::entry::{Encoding, Entry};
use crate::page::{Page, fill_word};

/// A page as it will be kept.
#[derive(Debug)]
pub(crate) enum Encoded<'a> {
    /// It needs no slot.
    Fill(Entry),
    /// It needs a slot for these bytes.
    Bytes { bytes: &'a [u8], encoding: Encoding },
}

impl Encoded<'_> {
    /// Bytes of the payload.
    pub(crate) fn len(&self) -> u16 {
        match self {
            Encoded::Fill(_) => 0,
            Encoded::Bytes { bytes, .. } => bytes.len() as u16,
        }
    }
}

thread_local! {
    static COMPRESSED: RefCell<[u8; COMPRESS_BUFFER]> = const { RefCell::new([0; COMPRESS_BUFFER]) };
    static SCRATCH: RefCell<[u8; COMPRESS_BUFFER]> = const { RefCell::new([0; COMPRESS_BUFFER]) };
}

/// Encodes a page for the store path and hands it to `act`.
pub(crate) fn with_encoded<R>(
    page: &Page,
    codec: &dyn Codec,
    act: impl FnOnce(&Encoded<'_>) -> R,
) -> R {
    if let Some(entry) = fill_word(page).and_then(Entry::fill) {
        return act(&Encoded::Fill(entry));
    }
    COMPRESSED.with_borrow_mut(|buffer| {
        let (bytes, encoding) = match codec.compress(page, buffer) {
            Some(len) if len > 0 && len < page.len() => (&buffer[..len], Encoding::Hot),
            _ => (&page[..], Encoding::Raw),
        };
        act(&Encoded::Bytes { bytes, encoding })
    })
}

/// Lends the buffer that a load copies a slot's bytes to.
pub(crate) fn with_scratch<R>(act: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| act(scratch))
}
