//! LZ4 block format, the codec of the store path.

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};

use super::{Codec, LONGEST_COMPRESSED};
use crate::page::{PAGE_SIZE, Page};

/// LZ4 blocks by `lz4_flex`.
#[derive(Debug)]
pub struct Lz4;

thread_local! {
    static TABLE: RefCell<CompressTable> = RefCell::new(CompressTable::small());
}

impl Codec for Lz4 {
    fn compress(&self, page: &Page, out: &mut [u8]) -> Option<usize> {
        TABLE
            .with_borrow_mut(|table| compress_into_with_table(page, out, table))
            .ok()
            .filter(|len| *len <= LONGEST_COMPRESSED)
    }

    fn decompress(&self, bytes: &[u8], page: &mut Page) -> bool {
        decompress_into(bytes, page).is_ok_and(|len| len == PAGE_SIZE)
    }
}
