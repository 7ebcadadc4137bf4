//! What a pool counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Hands the one list of what a pool counts to the macro `$then`, as lines
/// `/// Description. name: Kind("metric of the domain", "unit"),`.
///
/// Statistics, metrics and the conversion from a store are made from it, and tests compare the documents with it. `Kind`
/// is `Gauge` for what the pool holds and `Counter` for what happened. A description is one line.
#[macro_export]
macro_rules! for_each_pool_counter {
    ($then:ident) => {
        $then! {
            /// Pages held.
            pages: Gauge("tmem_domain", "pages"),
            /// Contents of the pages held, as compressed.
            bytes_stored: Gauge("tmem_domain_stored", "bytes"),
            /// Memory charged for the pages held: contents, slab waste, index.
            bytes_used: Gauge("tmem_domain_used", "bytes"),
            /// Index of the pages held; part of what is charged.
            metadata_bytes: Gauge("tmem_domain_metadata", "bytes"),
            /// Pages held that are zero throughout.
            zero: Gauge("tmem_domain_zero", "pages"),
            /// Pages held that are one repeated word (zero included), and take no slot.
            same_filled: Gauge("tmem_domain_same_filled", "pages"),
            /// Pages held that did not compress and are kept as they came.
            raw: Gauge("tmem_domain_raw", "pages"),
            /// Pages held that were not used for long and are compressed harder.
            cold: Gauge("tmem_domain_cold", "pages"),
            /// Pages held that share their bytes with another key.
            deduplicated: Gauge("tmem_domain_deduplicated", "pages"),
            /// Pages accepted.
            stores: Counter("tmem_stores", ""),
            /// Pages found and given back.
            loads: Counter("tmem_loads", ""),
            /// Loads of a page that was not there.
            load_misses: Counter("tmem_load_misses", ""),
            /// Loads of a page whose bytes were found damaged.
            corrupt: Counter("tmem_corrupt_loads", ""),
            /// Pages removed by an invalidate, of the page, its object or its pool.
            invalidates: Counter("tmem_invalidates", ""),
            /// Ephemeral pages that were dropped to make room.
            evictions: Counter("tmem_evictions", ""),
        }
    };
}

macro_rules! define {
    ($($(#[doc = $description:literal])* $name:ident: $kind:ident($metric:literal, $unit:literal),)*) => {
        /// Pages held now, and operations since the beginning.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Counters {
            $($(#[doc = $description])* pub $name: u64,)*
            /// Pages refused, by reason.
            pub refusals: BTreeMap<String, u64>,
        }

        impl Counters {
            /// Name in JSON and description of each, but for the refusals.
            pub const DESCRIPTIONS: &[(&str, &str)] =
                &[$((stringify!($name), concat!($($description),*).trim_ascii())),*];

            /// Adds the counters of one pool to a sum.
            pub fn add(&mut self, pool: &Self) {
                $(self.$name += pool.$name;)*
                for (reason, count) in &pool.refusals {
                    *self.refusals.entry(reason.clone()).or_default() += count;
                }
            }

            /// Each counter by its name, but for the refusals.
            #[cfg(test)]
            pub(crate) fn each(&mut self) -> impl Iterator<Item = (&'static str, &mut u64)> {
                [$((stringify!($name), &mut self.$name)),*].into_iter()
            }
        }
    };
}

for_each_pool_counter!(define);

pub use for_each_pool_counter;
