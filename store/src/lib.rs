//! The engine of transcendent memory: domains, pools and pages, without any transport.
//!
//! | module | holds |
//! |---|---|
//! | `store` | what callers hold: a store and its domains |
//! | `registry`, `domain`, `group` | what exists: domains, their pools, share groups |
//! | `owners` | all of them, for whoever is short of memory |
//! | `pool` | what happens to a page under the lock of its key's shard |
//! | `index`, `entry` | keys to 8-byte entries |
//! | `arena`, `memory` | slots of 64-byte size classes in segments of a memfd |
//! | `bad_memory` | what a handler of SIGBUS needs: with `memory`, the only `unsafe` |
//! | `account` | bytes used, reserved and granted, and who is charged |
//! | `evict`, `reclaim` | which pages go when memory is short |
//! | `gather` | memory that an operator asks for: a reserve, a flush, a lower limit |
//! | `reap` | what was destroyed, invalidated or removed is freed |
//! | `background`, `wake` | the background threads, and how they are woken |
//! | `codec` | LZ4, Zstandard |
//! | `config`, `error`, `stats` | what goes in and comes out |
//!
//! README.md explains how it works; `docs/store.md` has the byte maps, the lock order and measurements.

#![deny(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets in a segment, class numbers and bit counts are small by construction"
)]

mod account;
mod arena;
mod background;
#[expect(unsafe_code, reason = "maps pages over bad ones")]
mod bad_memory;
mod codec;
mod config;
mod domain;
mod entry;
mod error;
mod evict;
mod gather;
mod group;
mod index;
#[expect(unsafe_code, reason = "owns segment memory")]
mod memory;
mod owners;
mod page;
mod pool;
mod reap;
mod reclaim;
mod registry;
mod stats;
mod store;
mod sync;
mod wake;

pub use bad_memory::{bad_pages, repair, tell_of_bad_pages};
pub use codec::Codec;
pub use codec::codecs::Codecs;
pub use codec::lz4::Lz4;
pub use codec::zstd::Zstd;
pub use config::{DomainChange, DomainConfig, Gate, PoolSpec, StoreConfig, Want};
pub use error::{ConfigError, CreatePoolError, LoadError, StoreError, UnknownPool};
pub use page::{ObjectId, PAGE_SIZE, Page, PoolId};
pub use stats::{DomainStats, PoolStats, StoreStats};
pub use store::{Domain, Store};
pub use tmem_base::setting::{Dedup, PoolKind};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
