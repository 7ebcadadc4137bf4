//! SIEVE (Zhang et al., NSDI 2024): a queue in order of arrival, a hand that walks from the oldest to
//! the newest, spares what was visited since it last came by, and takes the first that was not.

use super::{END, Policy};
use crate::index::{Node, Slab};

/// Visited pages that one search spares: it runs under the shard's lock.
const MOST_SPARED: usize = 64;

/// A SIEVE queue. `newest` is the head; `previous` points to newer pages.
#[derive(Debug)]
pub(crate) struct Sieve {
    newest: u32,
    oldest: u32,
    hand: u32,
}

impl Default for Sieve {
    fn default() -> Self {
        Self {
            newest: END,
            oldest: END,
            hand: END,
        }
    }
}

impl Policy for Sieve {
    fn insert(&mut self, nodes: &mut Slab<Node>, node: u32) {
        if let Some(node) = nodes.get_mut(node) {
            node.links.previous = END;
            node.links.next = self.newest;
            node.links.visited = false;
        }
        match nodes.get_mut(self.newest) {
            Some(newest) => newest.links.previous = node,
            None => self.oldest = node,
        }
        self.newest = node;
    }

    fn touch(&mut self, nodes: &mut Slab<Node>, node: u32) {
        if let Some(node) = nodes.get_mut(node) {
            node.links.visited = true;
        }
    }

    fn remove(&mut self, nodes: &mut Slab<Node>, node: u32) {
        let Some(links) = nodes.get(node).map(|node| node.links) else {
            return;
        };
        if self.hand == node {
            self.hand = links.previous;
        }
        match nodes.get_mut(links.previous) {
            Some(newer) => newer.links.next = links.next,
            None => self.newest = links.next,
        }
        match nodes.get_mut(links.next) {
            Some(older) => older.links.previous = links.previous,
            None => self.oldest = links.previous,
        }
    }

    fn victim(&mut self, nodes: &mut Slab<Node>) -> Option<u32> {
        for _ in 0..MOST_SPARED {
            if self.hand == END {
                self.hand = self.oldest;
            }
            let node = nodes.get_mut(self.hand)?;
            if !node.links.visited {
                return Some(self.hand);
            }
            node.links.visited = false;
            self.hand = node.links.previous;
        }
        if self.hand == END {
            self.hand = self.oldest;
        }
        (self.hand != END).then_some(self.hand)
    }
}
