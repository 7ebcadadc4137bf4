//! Sixty-four neighbouring entries of an object, packed: only those that are there take memory.

use crate::account::heap::heap_bytes;
use crate::entry::Entry;

/// Entries by which a list grows once it is long, and by which it shrinks.
const STEP: usize = 8;
/// No neighbour in the object's list.
pub(crate) const NONE: u32 = u32::MAX;

/// A chunk of an object.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Index of the object in the shard.
    pub(crate) object: u32,
    /// Page index divided by 64.
    pub(crate) number: u32,
    /// Neighbours in the list of the object's chunks in this shard.
    pub(crate) previous: u32,
    pub(crate) next: u32,
    /// Bit per page that is there.
    present: u64,
    /// The entries of the pages that are there, in order, then unused room.
    entries: Box<[Entry]>,
}

impl Chunk {
    pub(crate) fn new(object: u32, number: u32) -> Self {
        Self {
            object,
            number,
            previous: NONE,
            next: NONE,
            present: 0,
            entries: Box::default(),
        }
    }

    pub(crate) fn present(&self) -> u64 {
        self.present
    }

    /// Bytes on the heap.
    pub(crate) fn bytes(&self) -> u64 {
        heap_bytes(self.entries.len() * 8)
    }

    fn rank(&self, offset: u8) -> usize {
        (self.present & !(u64::MAX << offset)).count_ones() as usize
    }

    pub(crate) fn get(&self, offset: u8) -> Entry {
        if self.present >> offset & 1 == 0 {
            return Entry::EMPTY;
        }
        self.entries[self.rank(offset)]
    }

    /// Bytes that [`Chunk::grow`] takes from the heap.
    pub(crate) fn growth(&self, offset: u8) -> u64 {
        if self.present >> offset & 1 == 1
            || self.present.count_ones() as usize != self.entries.len()
        {
            return 0;
        }
        heap_bytes(self.larger() * 8) - self.bytes()
    }

    fn larger(&self) -> usize {
        match self.entries.len() {
            0 => 4,
            len @ 1..16 => len * 2,
            len => len + STEP,
        }
    }

    /// Makes room for one more entry. `false` when there is no memory.
    pub(crate) fn grow(&mut self, offset: u8) -> bool {
        if self.growth(offset) == 0 {
            return true;
        }
        self.resize(self.larger())
    }

    fn resize(&mut self, len: usize) -> bool {
        let mut entries = Vec::new();
        if entries.try_reserve_exact(len).is_err() {
            return false;
        }
        entries.extend_from_slice(&self.entries[..len.min(self.entries.len())]);
        entries.resize(len, Entry::EMPTY);
        self.entries = entries.into_boxed_slice();
        true
    }

    /// Gives back room that many removals left. Returns the bytes.
    pub(crate) fn shrink(&mut self) -> u64 {
        let count = self.present.count_ones() as usize;
        if self.entries.len() < count + 2 * STEP {
            return 0;
        }
        let before = self.bytes();
        self.resize((count + STEP / 2).next_multiple_of(STEP));
        before - self.bytes()
    }

    /// Sets an entry; a new one needs room made by [`Chunk::grow`].
    pub(crate) fn set(&mut self, offset: u8, entry: Entry) {
        let rank = self.rank(offset);
        if self.present >> offset & 1 == 0 {
            let count = self.present.count_ones() as usize;
            self.entries.copy_within(rank..count, rank + 1);
            self.present |= 1 << offset;
        }
        self.entries[rank] = entry;
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, offset: u8) -> Entry {
        if self.present >> offset & 1 == 0 {
            return Entry::EMPTY;
        }
        let rank = self.rank(offset);
        let entry = self.entries[rank];
        let count = self.present.count_ones() as usize;
        self.entries.copy_within(rank + 1..count, rank);
        self.present &= !(1 << offset);
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_and_go_in_any_order() {
        let mut chunk = Chunk::new(0, 0);
        let offsets: Vec<u8> = (0..64u8).map(|i| i.wrapping_mul(29) % 64).collect();
        let mut charged = 0;
        for offset in &offsets {
            charged += chunk.growth(*offset);
            assert!(chunk.grow(*offset));
            chunk.set(*offset, Entry::node(u32::from(*offset)));
            assert_eq!(chunk.bytes(), charged);
        }
        assert_eq!(chunk.present(), u64::MAX);
        for offset in &offsets {
            assert_eq!(chunk.get(*offset), Entry::node(u32::from(*offset)));
            assert_eq!(chunk.remove(*offset), Entry::node(u32::from(*offset)));
            assert_eq!(chunk.get(*offset), Entry::EMPTY);
        }
        assert_eq!(chunk.present(), 0);
    }
}
