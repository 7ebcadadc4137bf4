//! The pools of a driver, under ids that no other driver can guess.
//!
//! With a pool id, a driver proves that it created the pool. The low 8 bits of an id are the index of the pool in its
//! domain; the others are random. When the queues change hands, for example because a front end connects again, no pool
//! is claimed. The first request that names a pool claims all pools of the driver that created it. A request that names
//! a pool that does not exist is from another driver: the unclaimed pools are destroyed. So another driver has one
//! guess in 16 million.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tmem_store::PoolId;

/// Places of a domain: the low 8 bits of an id.
const PLACES: usize = 256;
/// No pool is in a place. A pool there would have an id of the store with all bits set.
const NONE: u64 = u64::MAX;

/// Pools that the caller must destroy, because they cannot be named any more.
#[must_use]
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Orphans(pub(super) Vec<PoolId>);

/// The pools which the driver created and did not destroy.
#[derive(Debug)]
pub(super) struct Pools {
    /// For each place the id of the pool, and below it the store's own: what a request reads.
    named: Box<[AtomicU64]>,
    /// The queues changed hands, and there are pools that the driver did not claim since.
    is_unclaimed: AtomicBool,
    locked: Mutex<Locked>,
    random: RandomState,
}

#[derive(Debug, Default)]
struct Locked {
    known: Vec<Known>,
    /// Ids that were made.
    made: u64,
    /// Times that the queues changed hands.
    driver: u64,
    /// How long unclaimed pools stay once the driver uses others.
    patience: Duration,
    /// When that is over.
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u32,
    pool: PoolId,
    /// Who created it; one driver has several of these numbers until it shows that it is the same.
    driver: u64,
    /// The driver that has the queues now created it, or named a pool of the same driver.
    is_shown: bool,
}

impl Pools {
    pub(super) fn new() -> Self {
        Self {
            named: (0..PLACES).map(|_| AtomicU64::new(NONE)).collect(),
            is_unclaimed: AtomicBool::new(false),
            locked: Mutex::default(),
            random: RandomState::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Locked> {
        // Every critical section leaves the list whole.
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, id: u32) -> Option<&AtomicU64> {
        self.named.get(place_of(id))
    }

    fn named(&self, id: u32) -> Option<PoolId> {
        let [name, pool] = unpack(self.place(id)?.load(Ordering::Acquire))?;
        (name == id).then_some(PoolId(pool))
    }

    /// The pool of this id.
    pub(super) fn find(&self, id: u32) -> (Option<PoolId>, Orphans) {
        let pool = self.named(id);
        if !self.is_unclaimed.load(Ordering::Acquire) {
            return (pool, Orphans::default());
        }
        let mut locked = self.lock();
        let known = locked.known.iter().find(|known| known.id == id).copied();
        let is_late = locked.until.is_some_and(|until| Instant::now() >= until);
        let orphans = match known {
            Some(known) if !known.is_shown => {
                locked.show(known.driver);
                Orphans::default()
            }
            Some(_) if !is_late => Orphans::default(),
            _ => self.abandon(&mut locked),
        };
        self.look(&mut locked);
        (pool, orphans)
    }

    /// Forgets the unclaimed pools, which the caller destroys.
    fn abandon(&self, locked: &mut Locked) -> Orphans {
        let (known, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut locked.known)
            .into_iter()
            .partition(|known| known.is_shown);
        locked.known = known;
        self.forget(&gone)
    }

    /// Notes whether there is an unclaimed pool, and starts its time limit once the driver uses others.
    fn look(&self, locked: &mut Locked) {
        let is_unclaimed = locked.known.iter().any(|known| !known.is_shown);
        if !is_unclaimed {
            locked.until = None;
        } else if locked.until.is_none() && locked.known.iter().any(|known| known.is_shown) {
            locked.until = Instant::now().checked_add(locked.patience);
        }
        self.is_unclaimed.store(is_unclaimed, Ordering::Release);
    }

    fn forget(&self, gone: &[Known]) -> Orphans {
        for known in gone {
            if let Some(place) = self.place(known.id) {
                place.store(NONE, Ordering::Release);
            }
        }
        Orphans(gone.iter().map(|known| known.pool).collect())
    }

    /// Notes the pool that `create` makes, unless there are `most` already (`None`). Returns its id.
    pub(super) fn create<E>(
        &self,
        most: u32,
        create: impl FnOnce() -> Result<PoolId, E>,
    ) -> Option<Result<u32, E>> {
        let mut locked = self.lock();
        if locked.known.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
            return None;
        }
        let pool = match create() {
            Ok(pool) => pool,
            Err(error) => return Some(Err(error)),
        };
        locked.made = locked.made.wrapping_add(1);
        let random = self.random.hash_one(locked.made).to_le_bytes();
        let [low, ..] = pool.0.to_le_bytes();
        let [a, b, c, ..] = random;
        let id = u32::from_le_bytes([low, a, b, c]);
        let driver = locked.driver;
        locked.known.push(Known {
            id,
            pool,
            driver,
            is_shown: true,
        });
        self.look(&mut locked);
        if let Some(place) = self.place(id) {
            place.store(pack(id, pool), Ordering::Release);
        }
        Some(Ok(id))
    }

    /// Takes a pool off the list, for the caller to destroy.
    pub(super) fn remove(&self, id: u32) -> (Option<PoolId>, Orphans) {
        let (pool, orphans) = self.find(id);
        let mut locked = self.lock();
        let place = locked.known.iter().position(|known| known.id == id);
        let (Some(pool), Some(place)) = (pool, place) else {
            return (None, orphans);
        };
        let known = locked.known.swap_remove(place);
        let _ = self.forget(&[known]);
        (Some(pool), orphans)
    }

    /// All pools, for the caller to destroy.
    pub(super) fn take(&self) -> Orphans {
        let mut locked = self.lock();
        let gone = std::mem::take(&mut locked.known);
        self.look(&mut locked);
        self.forget(&gone)
    }

    /// The queues change hands. Unclaimed pools are destroyed `patience` after the driver began to use others.
    pub(super) fn hand_over(&self, patience: Duration) {
        let mut locked = self.lock();
        for known in &mut locked.known {
            known.is_shown = false;
        }
        locked.driver = locked.driver.wrapping_add(1);
        locked.patience = patience;
        locked.until = None;
        self.look(&mut locked);
    }
}

impl Locked {
    /// The driver that has the queues is this one.
    fn show(&mut self, driver: u64) {
        for known in &mut self.known {
            if known.driver == driver {
                known.driver = self.driver;
                known.is_shown = true;
            }
        }
    }
}

fn place_of(id: u32) -> usize {
    let [low, ..] = id.to_le_bytes();
    low.into()
}

fn pack(id: u32, pool: PoolId) -> u64 {
    u64::from(id) << 32 | u64::from(pool.0)
}

/// Id and the store's own.
fn unpack(packed: u64) -> Option<[u32; 2]> {
    let low = u32::try_from(packed & u64::from(u32::MAX)).ok()?;
    let high = u32::try_from(packed >> 32).ok()?;
    (packed != NONE).then_some([high, low])
}
