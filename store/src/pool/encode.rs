//! Work on a page's bytes, in buffers of the thread, without a lock.

use std::cell::RefCell;

use super::Pool;
use super::encoded::Encoded;
use crate::codec::{COMPRESS_BUFFER, LONGEST_COMPRESSED};
use crate::entry::{Encoding, Entry};
use crate::page::{Page, fill_word};
use crate::sync::thread_local;

thread_local! {
    static COMPRESSED: RefCell<[u8; COMPRESS_BUFFER]> = const { RefCell::new([0; COMPRESS_BUFFER]) };
    static SCRATCH: RefCell<[u8; COMPRESS_BUFFER]> = const { RefCell::new([0; COMPRESS_BUFFER]) };
}

impl Pool {
    /// Encodes a page for the store path and hands it to `act`.
    pub(crate) fn with_encoded<R>(&self, page: &Page, act: impl FnOnce(&Encoded<'_>) -> R) -> R {
        if let Some(entry) = fill_word(page).and_then(Entry::fill) {
            return act(&Encoded::Fill(entry));
        }
        let mut hash = None;
        if let Some(dedup) = &self.dedup {
            hash = dedup.hash(page);
            if let Some(looked_up) = hash {
                let found = with_scratch(|scratch| {
                    dedup.find(looked_up, page, (&self.arena, &self.codecs), scratch)
                });
                match found {
                    Ok(Some((record, len))) => {
                        let result = act(&Encoded::Record { record, len });
                        dedup.release(record, &self.arena);
                        return result;
                    }
                    Ok(None) => {}
                    Err(()) => hash = None,
                }
            }
        }
        COMPRESSED.with(|buffer| {
            let buffer = &mut *buffer.borrow_mut();
            let (bytes, encoding) = match self.codecs.hot.compress(page, buffer) {
                Some(len) if len > 0 && len <= LONGEST_COMPRESSED => {
                    (&buffer[..len], Encoding::Hot)
                }
                _ => (&page[..], Encoding::Raw),
            };
            act(&Encoded::Bytes {
                bytes,
                encoding,
                hash,
            })
        })
    }
}

/// Lends the buffer that a load copies a slot's bytes to.
pub(crate) fn with_scratch<R>(act: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with(|scratch| act(&mut *scratch.borrow_mut()))
}
