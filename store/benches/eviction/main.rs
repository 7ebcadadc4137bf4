//! `cargo bench -p tmem-store --bench eviction`: which policy keeps the pages that are asked for again.
//!
//! `trace.zst` was recorded with strace from compilers, Python, git, grep and find at work on source
//! trees: per read or mapping of a file the file's number, its first page and the count, as LEB128
//! numbers. Four guests replay it, an eighth of the trace apart. Each has a page cache of its
//! own (LRU); what falls out of it is stored, what it misses is loaded. A shared pool keeps a page that is
//! loaded, a private one gives it up.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "measured numbers are small"
)]

use std::collections::{HashMap, HashSet, VecDeque};

type Key = u64;

/// Pages of a guest's own cache.
const GUEST: usize = 600;

trait Policy {
    fn touch(&mut self, key: Key);
    fn insert(&mut self, key: Key);
    fn remove(&mut self, key: Key);
    fn victim(&mut self) -> Key;
}

/// Least recently used, by time stamps.
#[derive(Default)]
struct Lru {
    order: VecDeque<(Key, u64)>,
    stamps: HashMap<Key, u64>,
    now: u64,
}

impl Policy for Lru {
    fn touch(&mut self, key: Key) {
        self.insert(key);
    }
    fn insert(&mut self, key: Key) {
        self.now += 1;
        self.stamps.insert(key, self.now);
        self.order.push_back((key, self.now));
    }
    fn remove(&mut self, key: Key) {
        self.stamps.remove(&key);
    }
    fn victim(&mut self) -> Key {
        loop {
            let (key, stamp) = self.order.pop_front().expect("a page");
            if self.stamps.get(&key) == Some(&stamp) {
                self.stamps.remove(&key);
                return key;
            }
        }
    }
}

/// First in, first out.
#[derive(Default)]
struct Fifo(Lru);

impl Policy for Fifo {
    fn touch(&mut self, _key: Key) {}
    fn insert(&mut self, key: Key) {
        self.0.insert(key);
    }
    fn remove(&mut self, key: Key) {
        self.0.remove(key);
    }
    fn victim(&mut self) -> Key {
        self.0.victim()
    }
}

/// SIEVE: the hand walks from old to new and spares what was visited.
#[derive(Default)]
struct Sieve {
    /// Oldest first, with the mark of a visit.
    queue: Vec<(Key, bool)>,
    hand: usize,
    places: HashSet<Key>,
}

impl Policy for Sieve {
    fn touch(&mut self, key: Key) {
        if let Some(entry) = self.queue.iter_mut().find(|entry| entry.0 == key) {
            entry.1 = true;
        }
    }
    fn insert(&mut self, key: Key) {
        self.places.insert(key);
        self.queue.push((key, false));
    }
    fn remove(&mut self, key: Key) {
        if self.places.remove(&key)
            && let Some(at) = self.queue.iter().position(|entry| entry.0 == key)
        {
            self.queue.remove(at);
            if at < self.hand {
                self.hand -= 1;
            }
        }
    }
    fn victim(&mut self) -> Key {
        loop {
            if self.hand >= self.queue.len() {
                self.hand = 0;
            }
            if self.queue[self.hand].1 {
                self.queue[self.hand].1 = false;
                self.hand += 1;
            } else {
                let (key, _) = self.queue.remove(self.hand);
                self.places.remove(&key);
                return key;
            }
        }
    }
}

/// S3-FIFO: a small queue for what came once, a main queue, a ghost of what left the small one.
struct S3Fifo {
    capacity: usize,
    small: VecDeque<Key>,
    main: VecDeque<Key>,
    ghost: VecDeque<Key>,
    ghosts: HashSet<Key>,
    visits: HashMap<Key, u8>,
    in_small: usize,
    small_keys: HashSet<Key>,
}

impl S3Fifo {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            ghosts: HashSet::new(),
            visits: HashMap::new(),
            in_small: 0,
            small_keys: HashSet::new(),
        }
    }
}

impl Policy for S3Fifo {
    fn touch(&mut self, key: Key) {
        if let Some(visits) = self.visits.get_mut(&key) {
            *visits = (*visits + 1).min(3);
        }
    }
    fn insert(&mut self, key: Key) {
        self.visits.insert(key, 0);
        if self.ghosts.remove(&key) {
            self.main.push_back(key);
        } else {
            self.small.push_back(key);
            self.small_keys.insert(key);
            self.in_small += 1;
        }
    }
    fn remove(&mut self, key: Key) {
        if self.visits.remove(&key).is_some() {
            if self.small_keys.remove(&key) {
                self.in_small -= 1;
                self.small.retain(|other| *other != key);
            } else {
                self.main.retain(|other| *other != key);
            }
        }
    }
    fn victim(&mut self) -> Key {
        loop {
            if self.in_small * 10 >= self.capacity || self.main.is_empty() {
                let key = self.small.pop_front().expect("a page");
                self.small_keys.remove(&key);
                self.in_small -= 1;
                if self.visits[&key] > 1 {
                    self.visits.insert(key, 0);
                    self.main.push_back(key);
                    continue;
                }
                self.visits.remove(&key);
                self.ghost.push_back(key);
                self.ghosts.insert(key);
                if self.ghost.len() > self.capacity
                    && let Some(old) = self.ghost.pop_front()
                {
                    self.ghosts.remove(&old);
                }
                return key;
            }
            let key = self.main.pop_front().expect("a page");
            match self.visits[&key] {
                0 => {
                    self.visits.remove(&key);
                    return key;
                }
                visits => {
                    self.visits.insert(key, visits - 1);
                    self.main.push_back(key);
                }
            }
        }
    }
}

/// The store: pages that are there, and who goes next.
struct Host {
    pages: HashSet<Key>,
    policy: Box<dyn Policy>,
    capacity: usize,
    shared: bool,
    loads: u64,
    hits: u64,
}

impl Host {
    fn load(&mut self, key: Key) {
        self.loads += 1;
        if !self.pages.contains(&key) {
            return;
        }
        self.hits += 1;
        if self.shared {
            self.policy.touch(key);
        } else {
            self.pages.remove(&key);
            self.policy.remove(key);
        }
    }

    fn store(&mut self, key: Key) {
        if self.pages.contains(&key) {
            self.policy.remove(key);
        } else if self.pages.len() == self.capacity {
            let victim = self.policy.victim();
            self.pages.remove(&victim);
        }
        self.pages.insert(key);
        self.policy.insert(key);
    }
}

fn hit_ratio(trace: &[Key], policy: Box<dyn Policy>, capacity: usize, shared: bool) -> f64 {
    let mut host = Host {
        pages: HashSet::new(),
        policy,
        capacity,
        shared,
        loads: 0,
        hits: 0,
    };
    let mut guests: [Lru; 4] = std::array::from_fn(|_| Lru::default());
    for at in 0..trace.len() {
        for (number, guest) in guests.iter_mut().enumerate() {
            let key = trace[(at + number * trace.len() / 8) % trace.len()];
            // Keys of a private pool are the guest's own.
            let key = if shared {
                key
            } else {
                key | (number as u64) << 60
            };
            if !guest.stamps.contains_key(&key) {
                host.load(key);
                if guest.stamps.len() == GUEST {
                    let evicted = guest.victim();
                    host.store(evicted);
                }
            }
            guest.insert(key);
        }
    }
    host.hits as f64 / host.loads as f64
}

fn read_trace() -> Vec<Key> {
    let bytes = zstd::decode_all(&include_bytes!("trace.zst")[..]).expect("a zstd file");
    let mut bytes = bytes.into_iter();
    let mut number = || {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let byte = bytes.next()?;
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
        }
        Some(value)
    };
    let mut trace = Vec::new();
    while let (Some(file), Some(first), Some(count)) = (number(), number(), number()) {
        trace.extend((first..first + count).map(|page| file << 32 | page));
    }
    trace
}

fn main() {
    let trace = read_trace();
    let distinct: HashSet<_> = trace.iter().collect();
    println!(
        "{} accesses to {} pages; four guests with {GUEST} pages each\n",
        trace.len(),
        distinct.len()
    );
    println!("pool     store pages    FIFO     LRU   SIEVE  S3-FIFO   (hits of loads, percent)");
    for shared in [true, false] {
        for capacity in [500, 1000, 2000, 4000, 8000] {
            let name = if shared { "shared" } else { "private" };
            print!("{name:8} {capacity:11}");
            let policies: [Box<dyn Policy>; 4] = [
                Box::new(Fifo::default()),
                Box::new(Lru::default()),
                Box::new(Sieve::default()),
                Box::new(S3Fifo::new(capacity)),
            ];
            for policy in policies {
                let hits = hit_ratio(&trace, policy, capacity, shared);
                print!("{:8.1}", 100.0 * hits);
            }
            println!();
        }
    }
}
