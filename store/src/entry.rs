//! The 8 bytes that the index keeps of a page. `docs/store.md` has the byte map.

/// How the bytes of a slot are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The page itself.
    Raw,
    /// The codec of the store path.
    Hot,
    /// The codec of the cold tier.
    Cold,
}

/// Names a slot in the segments of an owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SlotId {
    /// Below 2^22.
    pub(crate) segment: u32,
    /// Index of the slot in its segment, below 4096.
    pub(crate) index: u16,
}

/// A slot in use, and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) segment: u32,
    /// Index of the slot in its segment.
    pub(crate) index: u16,
    /// Bytes of the payload, 1 to 4096; it gives the size class.
    pub(crate) len: u16,
    pub(crate) encoding: Encoding,
    /// Ten bits of a digest of the payload.
    pub(crate) check: u16,
}

impl Slot {
    pub(crate) fn id(self) -> SlotId {
        SlotId {
            segment: self.segment,
            index: self.index,
        }
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Empty,
    /// A page that repeats this word.
    Fill(u64),
    /// A page in a slot.
    Slot(Slot),
    /// Page of an ephemeral pool: the node of the shard that knows the rest.
    Node(u32),
    /// Page whose bytes are shared: the record of the pool's dedup table.
    Record(u32),
}

/// One packed entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Entry(pub(crate) u64);

const TAG_FILL: u64 = 1;
const TAG_FILL32: u64 = 2;
const TAG_SLOT: u64 = 3;
const TAG_NODE: u64 = 4;
const TAG_RECORD: u64 = 5;

const ENCODING_SHIFT: u32 = 3;
const AGE_SHIFT: u32 = 5;
const TRIED: u64 = 1 << 7;
const LEN_SHIFT: u32 = 8;
const INDEX_SHIFT: u32 = 20;
const SEGMENT_SHIFT: u32 = 32;
const CHECK_SHIFT: u32 = 54;

/// Segments that an arena can have.
pub(crate) const MAX_SEGMENTS: u32 = 1 << 22;
/// Oldest age.
pub(crate) const OLDEST: u8 = 3;

impl Entry {
    pub(crate) const EMPTY: Entry = Entry(0);

    /// The entry of a page that repeats `word`, if the word fits.
    pub(crate) fn fill(word: u64) -> Option<Entry> {
        if word >> 61 == 0 {
            Some(Entry(word << 3 | TAG_FILL))
        } else if word >> 32 == word & 0xffff_ffff {
            Some(Entry(word >> 32 << 3 | TAG_FILL32))
        } else {
            None
        }
    }

    pub(crate) fn slot(slot: Slot) -> Entry {
        let encoding = match slot.encoding {
            Encoding::Raw => 0,
            Encoding::Hot => 1,
            Encoding::Cold => 2,
        };
        Entry(
            TAG_SLOT
                | encoding << ENCODING_SHIFT
                | u64::from(slot.len - 1) << LEN_SHIFT
                | u64::from(slot.index) << INDEX_SHIFT
                | u64::from(slot.segment) << SEGMENT_SHIFT
                | u64::from(slot.check) << CHECK_SHIFT,
        )
    }

    pub(crate) fn node(node: u32) -> Entry {
        Entry(u64::from(node) << 3 | TAG_NODE)
    }

    pub(crate) fn record(record: u32) -> Entry {
        Entry(u64::from(record) << 3 | TAG_RECORD)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "each field is masked to its width"
    )]
    pub(crate) fn kind(self) -> Kind {
        match self.0 & 7 {
            TAG_FILL => Kind::Fill(self.0 >> 3),
            TAG_FILL32 => {
                let half = self.0 >> 3;
                Kind::Fill(half << 32 | half)
            }
            TAG_SLOT => Kind::Slot(Slot {
                segment: (self.0 >> SEGMENT_SHIFT) as u32 & (MAX_SEGMENTS - 1),
                index: (self.0 >> INDEX_SHIFT) as u16 & 0xfff,
                len: ((self.0 >> LEN_SHIFT) as u16 & 0xfff) + 1,
                encoding: match self.0 >> ENCODING_SHIFT & 3 {
                    0 => Encoding::Raw,
                    1 => Encoding::Hot,
                    _ => Encoding::Cold,
                },
                check: (self.0 >> CHECK_SHIFT) as u16,
            }),
            TAG_NODE => Kind::Node((self.0 >> 3) as u32),
            TAG_RECORD => Kind::Record((self.0 >> 3) as u32),
            _ => Kind::Empty,
        }
    }

    /// Sweeps that went by since the page was touched, up to [`OLDEST`]. Slots only.
    pub(crate) fn age(self) -> u8 {
        (self.0 >> AGE_SHIFT & 3) as u8
    }

    pub(crate) fn with_age(self, age: u8) -> Entry {
        Entry(self.0 & !(3 << AGE_SHIFT) | u64::from(age & 3) << AGE_SHIFT)
    }

    /// The cold tier tried the page's bytes, and need not again.
    pub(crate) fn is_tried(self) -> bool {
        self.0 & TRIED != 0
    }

    pub(crate) fn with_tried(self) -> Entry {
        Entry(self.0 | TRIED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_say_what_was_packed() {
        for encoding in [Encoding::Raw, Encoding::Hot, Encoding::Cold] {
            for (segment, index, len, check) in [(0, 0, 1, 0), (MAX_SEGMENTS - 1, 4095, 4096, 1023)]
            {
                let slot = Slot {
                    segment,
                    index,
                    len,
                    encoding,
                    check,
                };
                let entry = Entry::slot(slot);
                assert_eq!(entry.kind(), Kind::Slot(slot));
                let aged = entry.with_age(OLDEST).with_tried();
                assert_eq!((aged.age(), aged.is_tried()), (OLDEST, true));
                assert_eq!(aged.kind(), Kind::Slot(slot));
                assert_eq!((entry.age(), entry.is_tried()), (0, false));
            }
        }
        assert_eq!(Entry::node(u32::MAX).kind(), Kind::Node(u32::MAX));
        assert_eq!(Entry::record(7).kind(), Kind::Record(7));
        assert_eq!(Entry::EMPTY.kind(), Kind::Empty);
    }

    #[test]
    fn a_word_is_an_entry_when_it_fits() {
        for word in [0, 1, 0x7fff_ffff_ffff, u64::MAX, 0xaaaa_aaaa_aaaa_aaaa] {
            assert_eq!(Entry::fill(word).map(Entry::kind), Some(Kind::Fill(word)));
        }
        assert_eq!(Entry::fill(0xffff_8000_0000_0000), None);
        assert!(!Entry::fill(0).unwrap_or_default().is_empty());
    }
}
