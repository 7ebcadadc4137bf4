//! How a page is made smaller. A codec is chosen when the store is made; tests bring one that fails.

pub(crate) mod codecs;
pub(crate) mod lz4;
pub(crate) mod zstd;

use crate::page::Page;

/// Bytes that a codec may use while it compresses a page that does not shrink.
pub(crate) const COMPRESS_BUFFER: usize = 4608;
/// Longest payload that is kept compressed: above it a page saves no size class.
pub(crate) const LONGEST_COMPRESSED: usize = 4096 - 64;

/// Makes a page smaller and brings it back.
///
/// A codec MUST accept any bytes in `decompress`: they may be damaged, and damaged bytes are an error
/// or a wrong page, never a panic. It MUST be deterministic: the same page gives the same bytes.
pub trait Codec: Send + Sync + std::fmt::Debug {
    /// Compresses `page` into `out`, which holds any result. `None` when the page is to be kept as it
    /// is, because it would not shrink or because the codec failed.
    fn compress(&self, page: &Page, out: &mut [u8]) -> Option<usize>;

    /// Brings the page back. `false` when the bytes are not those of a page.
    fn decompress(&self, bytes: &[u8], page: &mut Page) -> bool;
}
