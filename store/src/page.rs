//! Pages and the keys they are stored under.

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// One guest page.
pub type Page = [u8; PAGE_SIZE];

/// Names an object of a pool: 192 bits, wide enough for a file handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u64; 3]);

/// Names a pool of a domain. Ids are not used twice in a domain's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub u32);

/// A page of an object of the pool at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) object: ObjectId,
    pub(crate) index: u32,
}

impl Key {
    /// The chunk of the object that holds the page, and its offset there.
    pub(crate) fn chunk(self) -> (u32, u8) {
        (self.index >> 6, (self.index & 63) as u8)
    }
}

/// The word that the page repeats, when it does.
pub(crate) fn fill_word(page: &Page) -> Option<u64> {
    let (words, _) = page.as_chunks::<8>();
    let first = words[0];
    // The last word first: a page that ends as it begins is rare unless it is filled.
    if words[words.len() - 1] != first {
        return None;
    }
    words
        .iter()
        .all(|word| *word == first)
        .then(|| u64::from_ne_bytes(first))
}

/// Writes a page that repeats one word.
pub(crate) fn fill_page(page: &mut Page, word: u64) {
    let (words, _) = page.as_chunks_mut::<8>();
    words.fill(word.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_one_word_is_seen_and_written_back() {
        let mut page = [0u8; PAGE_SIZE];
        assert_eq!(fill_word(&page), Some(0));
        fill_page(&mut page, 0x0123_4567_89ab_cdef);
        assert_eq!(fill_word(&page), Some(0x0123_4567_89ab_cdef));
        page[2000] ^= 1;
        assert_eq!(fill_word(&page), None);
        page[2000] ^= 1;
        page[4095] ^= 1;
        assert_eq!(fill_word(&page), None);
    }
}
