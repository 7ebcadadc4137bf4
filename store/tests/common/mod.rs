//! A store to test.

use tmem_store::{Store, StoreConfig};

/// A store of this budget that does nothing in the background.
pub(crate) fn store(budget: u64) -> Store {
    Store::new(StoreConfig {
        budget,
        background: false,
        ..StoreConfig::default()
    })
    .expect("store")
}
