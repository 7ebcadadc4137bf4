//! How a page is made smaller. A codec is chosen when the store is made; tests bring one that fails.

mod lz4;
mod zstd;

use std::sync::Arc;

pub use lz4::Lz4;
pub use zstd::Zstd;

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

/// The codecs of a store.
#[derive(Clone, Debug)]
pub struct Codecs {
    /// Of the store path.
    pub hot: Arc<dyn Codec>,
    /// Of the cold tier.
    pub cold: Arc<dyn Codec>,
}

impl Default for Codecs {
    fn default() -> Self {
        Self {
            hot: Arc::new(Lz4),
            cold: Arc::new(Zstd::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_SIZE;

    fn page(seed: u64) -> Page {
        let mut page = [0; PAGE_SIZE];
        let mut state = seed;
        for (i, byte) in page.iter_mut().enumerate() {
            if i % 3 == 0 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
            }
            *byte = (state >> 61) as u8;
        }
        page
    }

    #[test]
    fn every_codec_brings_back_what_it_took_and_survives_damaged_bytes() {
        let codecs = Codecs::default();
        for codec in [codecs.hot, codecs.cold] {
            for seed in 0..50 {
                let page = page(seed);
                let mut out = [0; COMPRESS_BUFFER];
                let len = codec.compress(&page, &mut out).expect("shrinks");
                let mut back = [0; PAGE_SIZE];
                assert!(codec.decompress(&out[..len], &mut back));
                assert_eq!(page, back);
                for cut in [0, 1, len / 2, len - 1] {
                    codec.decompress(&out[..cut], &mut back);
                }
                for at in 0..len {
                    let kept = out[at];
                    out[at] ^= 0x55;
                    codec.decompress(&out[..len], &mut back);
                    out[at] = kept;
                }
            }
        }
    }
}
