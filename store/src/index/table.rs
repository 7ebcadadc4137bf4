//! A hash table of 8-byte items that grows and shrinks a leaf at a time.
//!
//! A table that doubles as a whole moves every item while its shard is locked, which at a million items is
//! milliseconds. Here linear hashing (Litwin, VLDB 1980) splits one leaf of a few hundred items at each growth.

use hashbrown::HashTable;

use crate::account::heap::heap_bytes;
use crate::account::quota::{AllocError, Quota};

/// Items that a leaf has on average before another one is added: twice as many, and the spread of a hash, still fit
/// into a leaf of 512 places.
const LEAF: usize = 200;
/// Leaves are removed when they have fewer items than this on average.
const SPARSE: usize = LEAF / 4;

/// Item of a table: 32 bits of a hash, and the index that is looked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub(crate) hash: u32,
    pub(crate) index: u32,
}

/// The hash of an item in a leaf. A leaf takes the cell from the low bits and compares the high ones.
fn hash_of(item: &Item) -> u64 {
    u64::from(item.hash) << 32 | u64::from(item.hash)
}

/// Most bytes of a leaf with room for so many items: at most 16/7 places of 9 bytes each, and a row of control bytes.
fn most_bytes(items: usize) -> u64 {
    heap_bytes(items.max(4) * 16 / 7 * 9 + 64)
}

/// Items by their hashes. What it takes from the heap is charged.
#[derive(Debug, Default)]
pub(crate) struct Table {
    leaves: Vec<HashTable<Item>>,
    len: usize,
    /// Bytes charged.
    charged: u64,
}

impl Table {
    /// Bytes on the heap, all of them charged.
    pub(crate) fn charged(&self) -> u64 {
        self.charged
    }

    /// The leaf of a hash among so many (not 0).
    fn leaf(hash: u32, leaves: usize) -> usize {
        let half = 1 << leaves.ilog2();
        let at = (hash >> 10) as usize & (2 * half - 1);
        if at < leaves { at } else { at & (half - 1) }
    }

    /// The leaf that becomes two when there are so many, and the one that the last of one more would join.
    fn buddy(leaves: usize) -> usize {
        leaves - (1 << leaves.ilog2())
    }

    /// The index of the item with this hash that is `right`.
    pub(crate) fn find(&self, hash: u32, mut right: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.leaves.is_empty() {
            return None;
        }
        let leaf = &self.leaves[Self::leaf(hash, self.leaves.len())];
        let item = Item { hash, index: 0 };
        leaf.find(hash_of(&item), |item| {
            item.hash == hash && right(item.index)
        })
        .map(|item| item.index)
    }

    /// Makes room for an item of this hash and charges it.
    pub(crate) fn reserve(&mut self, quota: &Quota, hash: u32) -> Result<(), AllocError> {
        if self.leaves.is_empty() {
            self.add_leaf(quota, HashTable::new())?;
        } else if self.len >= self.leaves.len() * LEAF {
            // Without memory for another the leaves get longer.
            let _ = self.split(quota);
        }
        let at = Self::leaf(hash, self.leaves.len());
        let leaf = &mut self.leaves[at];
        if leaf.len() < leaf.capacity() {
            return Ok(());
        }
        let before = bytes(leaf);
        let most = most_bytes(leaf.len() * 2);
        quota.charge(most)?;
        let grown = leaf.try_reserve(1, hash_of).is_ok();
        let growth = bytes(leaf).saturating_sub(before).min(most);
        quota.uncharge(most - growth);
        self.charged += growth;
        if grown {
            Ok(())
        } else {
            Err(AllocError::NoMemory)
        }
    }

    /// Adds an item, for which there is room.
    pub(crate) fn insert(&mut self, item: Item) {
        let at = Self::leaf(item.hash, self.leaves.len());
        self.leaves[at].insert_unique(hash_of(&item), item, hash_of);
        self.len += 1;
    }

    /// Takes an item out. Returns whether it was there.
    pub(crate) fn remove(&mut self, quota: &Quota, item: Item) -> bool {
        if self.leaves.is_empty() {
            return false;
        }
        let at = Self::leaf(item.hash, self.leaves.len());
        let found = self.leaves[at].find_entry(hash_of(&item), |other| other.index == item.index);
        let Ok(found) = found else {
            return false;
        };
        found.remove();
        self.len -= 1;
        if self.len == 0 {
            quota.uncharge(std::mem::take(self).charged);
        } else if self.leaves.len() > 1 && self.len < self.leaves.len() * SPARSE {
            self.merge(quota);
        }
        true
    }

    /// Puts a leaf at the end and charges its place.
    fn add_leaf(&mut self, quota: &Quota, leaf: HashTable<Item>) -> Result<(), AllocError> {
        let list = |leaves: usize| heap_bytes(leaves * size_of::<HashTable<Item>>());
        let capacity = self.leaves.capacity();
        if self.leaves.len() == capacity {
            let growth = list((capacity * 2).max(1)) - list(capacity);
            quota.charge(growth)?;
            if self.leaves.try_reserve_exact(capacity.max(1)).is_err() {
                quota.uncharge(growth);
                return Err(AllocError::NoMemory);
            }
            self.charged += growth;
        }
        self.leaves.push(leaf);
        Ok(())
    }

    /// Divides the items of a leaf between it and a new one.
    fn split(&mut self, quota: &Quota) -> Result<(), AllocError> {
        let (last, from) = (self.leaves.len(), Self::buddy(self.leaves.len()));
        let goes = |item: &Item| Self::leaf(item.hash, last + 1) == last;
        let old = &self.leaves[from];
        let going = old.iter().filter(|item| goes(item)).count();
        let staying = old.len() - going;
        let most = most_bytes(going) + most_bytes(staying);
        quota.charge(most)?;
        let [mut stay, mut go] = [HashTable::new(), HashTable::new()];
        let made = stay.try_reserve(staying, hash_of).is_ok()
            && go.try_reserve(going, hash_of).is_ok()
            && self.add_leaf(quota, HashTable::new()).is_ok();
        if !made {
            quota.uncharge(most);
            return Err(AllocError::NoMemory);
        }
        for item in &self.leaves[from] {
            let to = if goes(item) { &mut go } else { &mut stay };
            to.insert_unique(hash_of(item), *item, hash_of);
        }
        let now = bytes(&stay) + bytes(&go);
        self.leaves[last] = go;
        let old = std::mem::replace(&mut self.leaves[from], stay);
        self.charged += now;
        self.charged -= bytes(&old);
        quota.uncharge(most.saturating_sub(now) + bytes(&old));
        Ok(())
    }

    /// Moves the items of the last leaf to the one that they were split from, if it has room.
    fn merge(&mut self, quota: &Quota) {
        let Some(last) = self.leaves.pop() else {
            return;
        };
        let to = Self::buddy(self.leaves.len());
        let leaf = &mut self.leaves[to];
        if leaf.capacity() - leaf.len() < last.len() {
            self.leaves.push(last);
            return;
        }
        for item in &last {
            leaf.insert_unique(hash_of(item), *item, hash_of);
        }
        self.charged -= bytes(&last);
        quota.uncharge(bytes(&last));
    }
}

fn bytes(leaf: &HashTable<Item>) -> u64 {
    heap_bytes(leaf.allocation_size())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::account::allotment::Allotment;
    use crate::account::ledger::{Account, Ledger};
    use crate::wake::Wakes;

    fn quota() -> Quota {
        let ledger = Arc::new(Ledger::new(1 << 30));
        let account = Arc::new(Account::default());
        ledger
            .configure(&account, Allotment::of(0, u64::MAX))
            .expect("fits");
        Quota::new(ledger, account, None, Arc::new(Wakes::default()))
    }

    fn hash(index: u32) -> u32 {
        index.wrapping_mul(0x9e37_79b9)
    }

    impl Table {
        fn heap(&self) -> u64 {
            heap_bytes(self.leaves.capacity() * size_of::<HashTable<Item>>())
                + self.leaves.iter().map(bytes).sum::<u64>()
        }

        fn longest(&self) -> usize {
            self.leaves.iter().map(HashTable::len).max().unwrap_or(0)
        }
    }

    #[test]
    fn items_are_found_until_they_are_taken_out_and_every_byte_is_paid_for() {
        let quota = quota();
        let mut table = Table::default();
        for index in 0..50_000 {
            table.reserve(&quota, hash(index)).expect("room");
            table.insert(Item {
                hash: hash(index),
                index,
            });
            if index % 1000 == 0 {
                assert_eq!(table.charged(), table.heap());
                assert_eq!(quota.ledger.used(), table.charged());
            }
        }
        for index in 0..50_000 {
            assert_eq!(table.find(hash(index), |n| n == index), Some(index));
        }
        for index in (0..50_000).rev() {
            let item = Item {
                hash: hash(index),
                index,
            };
            assert!(table.remove(&quota, item));
            assert!(!table.remove(&quota, item));
            assert_eq!(quota.ledger.used(), table.charged());
            if index % 1000 == 0 {
                assert_eq!(table.charged(), table.heap());
                for index in (0..index).step_by(97) {
                    assert_eq!(table.find(hash(index), |n| n == index), Some(index));
                }
            }
        }
        assert_eq!(quota.ledger.used(), 0);
    }

    #[test]
    fn no_item_costs_more_than_a_leaf_however_many_there_are() {
        let quota = quota();
        let mut table = Table::default();
        for index in 0..300_000 {
            let charged = table.charged();
            let leaves = table.leaves.len();
            table.reserve(&quota, hash(index)).expect("room");
            table.insert(Item {
                hash: hash(index),
                index,
            });
            // One leaf is divided, or one grows; beside that the list of leaves, which moves as it is.
            let list = heap_bytes(table.leaves.capacity() * size_of::<HashTable<Item>>());
            assert!(table.leaves.len() <= leaves + 1);
            assert!(table.charged() <= charged + list + 3 * most_bytes(2 * LEAF));
        }
        assert!(table.longest() < 3 * LEAF, "{}", table.longest());
        let least = 300_000 * 9 * 8 / 7;
        assert!(
            table.charged() < least * 2,
            "{} for {least}",
            table.charged()
        );
    }
}
