//! A page that is encoded and not stored yet.

use crate::arena::size_class::class_of;
use crate::entry::{Encoding, Entry};

/// A page as it will be kept.
#[derive(Debug)]
pub(crate) enum Encoded<'a> {
    /// It needs no slot.
    Fill(Entry),
    /// It needs a slot for these bytes.
    Bytes {
        bytes: &'a [u8],
        encoding: Encoding,
        /// Set when other pages may share the slot.
        hash: Option<[u64; 2]>,
    },
    /// A record that is held has its bytes.
    Record { record: u32, len: u16 },
}

impl Encoded<'_> {
    /// The bytes that it needs a slot for.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Encoded::Bytes { bytes, .. } => Some(bytes),
            Encoded::Fill(_) | Encoded::Record { .. } => None,
        }
    }

    /// The size class of the slot that it needs.
    pub(crate) fn class(&self) -> Option<usize> {
        self.bytes().map(|bytes| class_of(bytes.len() as u16))
    }

    /// Bytes of the payload.
    pub(crate) fn len(&self) -> u16 {
        match self {
            Encoded::Fill(_) => 0,
            Encoded::Bytes { bytes, .. } => bytes.len() as u16,
            Encoded::Record { len, .. } => *len,
        }
    }
}
