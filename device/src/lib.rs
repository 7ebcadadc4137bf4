//! The virtio devices over the page store: decode, validate, act, answer. Generic over guest memory
//! and queue, so that the microVM, a vhost-user backend and a test drive the same code.
//!
//! | module | holds |
//! |---|---|
//! | [`tmem`] | the transcendent memory device of `docs/abi.md` |
//! | [`block`] | the virtio-blk device, over a pool or a host file |
//! | [`queue`] | taking chains off a queue: bounds, notifications, interrupts, what makes a ring corrupt |
//! | `chain` | one descriptor chain as two streams of bytes; the only reader and writer of guest memory |
//! | [`histogram`] | latency and batch histograms in atomics |
//!
//! Everything that comes from a queue is hostile. Each byte of it is read once.

#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

pub mod block;
mod chain;
pub mod histogram;
pub mod queue;
pub mod tmem;

pub use block::{BlockConfig, BlockDevice, BlockMetrics, FileDisk, PoolDisk};
pub use queue::{Progress, QueueCorrupt};
pub use tmem::{StoreQueues, TmemConfig, TmemDevice, TmemMetrics};
