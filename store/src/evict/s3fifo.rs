//! S3-FIFO (Yang et al., SOSP 2023): new pages pass through a small queue, and only those that are loaded
//! there, or stored again soon after they were evicted from it, get into the main one. On traces of page
//! caches it keeps more of what is asked for again than LRU and SIEVE (`cargo bench --bench eviction`).

use super::Policy;
use crate::account::heap::heap_bytes;
use crate::index::node::{END, Node};
use crate::index::slab::Slab;

/// Pages that one search passes on at most.
const MOST_SPARED: usize = 64;
/// The small queue's share is one in so many pages.
const SMALL_SHARE: usize = 10;
/// Fingerprints remembered at most.
const MOST_GHOSTS: usize = 1 << 16;

/// A queue linked through its nodes.
#[derive(Debug)]
struct Queue {
    newest: u32,
    oldest: u32,
    len: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            newest: END,
            oldest: END,
            len: 0,
        }
    }
}

impl Queue {
    fn push(&mut self, nodes: &mut Slab<Node>, node: u32) {
        if let Some(node) = nodes.get_mut(node) {
            node.links.newer = END;
            node.links.older = self.newest;
        }
        match nodes.get_mut(self.newest) {
            Some(newest) => newest.links.newer = node,
            None => self.oldest = node,
        }
        self.newest = node;
        self.len += 1;
    }

    fn unlink(&mut self, nodes: &mut Slab<Node>, node: u32) {
        let Some(links) = nodes.get(node).map(|node| node.links) else {
            return;
        };
        match nodes.get_mut(links.newer) {
            Some(newer) => newer.links.older = links.older,
            None => self.newest = links.older,
        }
        match nodes.get_mut(links.older) {
            Some(older) => older.links.newer = links.newer,
            None => self.oldest = links.newer,
        }
        self.len -= 1;
    }
}

/// The small queue, the main queue, and fingerprints of what left the small one.
#[derive(Debug, Default)]
pub(crate) struct S3Fifo {
    small: Queue,
    main: Queue,
    /// Direct-mapped: a later page takes the place of an earlier one. The length is a power of two.
    ghosts: Vec<u32>,
}

impl S3Fifo {
    fn ghost(&mut self, fingerprint: u32) -> Option<&mut u32> {
        let mask = self.ghosts.len().checked_sub(1)?;
        self.ghosts.get_mut(fingerprint as usize & mask)
    }
}

impl Policy for S3Fifo {
    fn is_empty(&self) -> bool {
        self.small.len + self.main.len == 0
    }

    fn insert(&mut self, nodes: &mut Slab<Node>, node: u32, fingerprint: u32) {
        let ghost = self.ghost(fingerprint);
        let known = ghost.is_some_and(|ghost| {
            let known = *ghost == fingerprint;
            if known {
                *ghost = 0;
            }
            known
        });
        if let Some(node) = nodes.get_mut(node) {
            node.links.visits = 0;
            node.links.main = known;
        }
        let queue = if known {
            &mut self.main
        } else {
            &mut self.small
        };
        queue.push(nodes, node);
    }

    fn touch(&mut self, nodes: &mut Slab<Node>, node: u32) {
        if let Some(node) = nodes.get_mut(node) {
            node.links.visits = (node.links.visits + 1).min(3);
        }
    }

    fn remove(&mut self, nodes: &mut Slab<Node>, node: u32) {
        let Some(found) = nodes.get(node) else {
            return;
        };
        let queue = if found.links.main {
            &mut self.main
        } else {
            &mut self.small
        };
        queue.unlink(nodes, node);
    }

    fn victim(&mut self, nodes: &mut Slab<Node>) -> Option<u32> {
        for _ in 0..MOST_SPARED {
            let pages = self.small.len + self.main.len;
            let small = self.main.len == 0 || self.small.len * SMALL_SHARE >= pages;
            let oldest = if small {
                self.small.oldest
            } else {
                self.main.oldest
            };
            let links = &mut nodes.get_mut(oldest)?.links;
            if small && links.visits > 1 {
                links.visits = 0;
                links.main = true;
                self.small.unlink(nodes, oldest);
                self.main.push(nodes, oldest);
            } else if !small && links.visits > 0 {
                links.visits -= 1;
                self.main.unlink(nodes, oldest);
                self.main.push(nodes, oldest);
            } else {
                return Some(oldest);
            }
        }
        [self.main.oldest, self.small.oldest]
            .into_iter()
            .find(|node| *node != END)
    }

    fn evicted(&mut self, nodes: &Slab<Node>, node: u32, fingerprint: u32) {
        if nodes.get(node).is_some_and(|node| !node.links.main)
            && let Some(ghost) = self.ghost(fingerprint)
        {
            *ghost = fingerprint;
        }
    }

    fn growth(&self) -> u64 {
        let len = self.ghosts.len();
        if self.small.len + self.main.len <= len || len >= MOST_GHOSTS {
            return 0;
        }
        heap_bytes((len * 2).max(16) * 4) - heap_bytes(len * 4)
    }

    fn bytes(&self) -> u64 {
        heap_bytes(self.ghosts.len() * 4)
    }

    fn grow(&mut self) {
        let len = (self.ghosts.len() * 2).max(16);
        // Remembered fingerprints can still be found: both halves start alike.
        let mut ghosts = Vec::new();
        if ghosts.try_reserve_exact(len).is_ok() {
            ghosts.extend_from_slice(&self.ghosts);
            ghosts.extend_from_slice(&self.ghosts);
            ghosts.resize(len, 0);
            self.ghosts = ghosts;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Entry;
    use crate::index::node::Links;

    fn node() -> Node {
        Node {
            entry: Entry::EMPTY,
            chunk: 0,
            links: Links::default(),
            member: 0,
            offset: 0,
        }
    }

    #[test]
    fn the_oldest_goes_first_and_what_was_loaded_twice_or_came_back_stays_longer() {
        let mut nodes = Slab::default();
        let mut policy = S3Fifo::default();
        for fingerprint in 1..=40 {
            let node = nodes.insert(node()).expect("memory");
            while policy.growth() > 0 {
                policy.grow();
            }
            policy.insert(&mut nodes, node, fingerprint);
        }
        policy.touch(&mut nodes, 0);
        policy.touch(&mut nodes, 0);
        let mut gone = Vec::new();
        for _ in 0..10 {
            let victim = policy.victim(&mut nodes).expect("a page");
            policy.evicted(&nodes, victim, victim + 1);
            policy.remove(&mut nodes, victim);
            nodes.remove(victim);
            gone.push(victim);
        }
        assert_eq!(gone, (1..=10).collect::<Vec<u32>>());
        let back = nodes.insert(node()).expect("memory");
        policy.insert(&mut nodes, back, 5);
        assert!(nodes.get(back).expect("inserted").links.main);
        let mut left = 0;
        while let Some(victim) = policy.victim(&mut nodes) {
            policy.remove(&mut nodes, victim);
            nodes.remove(victim);
            left += 1;
        }
        assert_eq!(left, 31);
    }
}
