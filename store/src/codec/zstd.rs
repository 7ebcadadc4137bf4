//! Zstandard at its fastest level with entropy-coded literals, the codec of the cold tier.

use std::cell::RefCell;

use zstd::zstd_safe::CParameter;

use super::{Codec, LONGEST_COMPRESSED};
use crate::page::{PAGE_SIZE, Page};

/// Zstandard frames without checksum or content size.
#[derive(Debug)]
pub struct Zstd {
    /// Compression level; negative levels trade density for speed.
    pub level: i32,
}

impl Default for Zstd {
    fn default() -> Self {
        Self { level: 1 }
    }
}

thread_local! {
    static COMPRESSOR: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> =
        const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
}

fn compressor(level: i32) -> Option<zstd::bulk::Compressor<'static>> {
    let mut compressor = zstd::bulk::Compressor::new(level).ok()?;
    for parameter in [
        CParameter::ChecksumFlag(false),
        CParameter::ContentSizeFlag(false),
    ] {
        compressor.set_parameter(parameter).ok()?;
    }
    Some(compressor)
}

impl Codec for Zstd {
    fn compress(&self, page: &Page, out: &mut [u8]) -> Option<usize> {
        COMPRESSOR.with_borrow_mut(|slot| {
            if slot.as_ref().is_none_or(|(level, _)| *level != self.level) {
                *slot = Some((self.level, compressor(self.level)?));
            }
            let (_, compressor) = slot.as_mut()?;
            let len = compressor.compress_to_buffer(page, out).ok()?;
            (len <= LONGEST_COMPRESSED).then_some(len)
        })
    }

    fn decompress(&self, bytes: &[u8], page: &mut Page) -> bool {
        DECOMPRESSOR.with_borrow_mut(|slot| {
            if slot.is_none() {
                *slot = zstd::bulk::Decompressor::new().ok();
            }
            slot.as_mut().is_some_and(|decompressor| {
                decompressor
                    .decompress_to_buffer(bytes, &mut page[..])
                    .is_ok_and(|len| len == PAGE_SIZE)
            })
        })
    }
}
