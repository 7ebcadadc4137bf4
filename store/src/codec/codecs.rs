//! The codecs of a store: that of the store path and that of the cold tier.

use std::sync::Arc;

use super::Codec;
use super::lz4::Lz4;
use super::zstd::Zstd;

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
    use crate::codec::COMPRESS_BUFFER;
    use crate::page::{PAGE_SIZE, Page};

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
