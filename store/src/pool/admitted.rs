//! Who may store to a shard of a shared pool.

/// Members of a shared pool that may store to a shard: a bit for each.
#[derive(Debug, Default)]
pub(super) struct Admitted([u64; 4]);

impl Admitted {
    fn bit(member: u8) -> (usize, u64) {
        (usize::from(member / 64), 1 << (member % 64))
    }

    pub(super) fn set(&mut self, member: u8, admitted: bool) {
        let (word, bit) = Self::bit(member);
        if admitted {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    pub(super) fn has(&self, member: u8) -> bool {
        let (word, bit) = Self::bit(member);
        self.0[word] & bit != 0
    }
}
