//! Store queues: which they are, what the driver reads of them, and that they are request queues like the others.
#![allow(missing_docs)]

mod common;

use common::*;
use tmem_device::{StoreQueues, TmemConfig, TmemDevice};
use tmem_protocol::{Config, MAX_BATCH, Op, PAGE_SIZE, Status, feature};
use zerocopy::{FromZeros, IntoBytes};

const STORE_QUEUES: u64 = feature::bit(feature::STORE_QUEUES);

/// A guest whose device has this many request queues and, of them, store queues.
fn rig(request_queues: u16, stores: StoreQueues) -> Rig {
    let mut rig = Rig::new();
    let config = TmemConfig {
        request_queues,
        stores,
        features: feature::ALL,
        ..TmemConfig::default()
    };
    rig.device = TmemDevice::new(rig.domain.clone(), config);
    rig.device.set_features(rig.device.offered_features());
    rig
}

fn shown(rig: &Rig) -> Config {
    let mut config = Config::new_zeroed();
    rig.device.read_config(0, config.as_mut_bytes());
    config
}

#[test]
fn the_last_request_queues_are_store_queues_and_never_all_of_them() {
    for (request_queues, count, has) in [(2, 1, 1), (6, 2, 2), (6, 6, 5), (2, u16::MAX, 1)] {
        let rig = rig(request_queues, StoreQueues { count, batch: 8 });
        assert_ne!(rig.device.offered_features() & STORE_QUEUES, 0);
        let config = shown(&rig);
        let queues = (
            config.num_request_queues.get(),
            config.num_store_queues.get(),
        );
        assert_eq!(queues, (request_queues, has));
        assert_eq!(config.store_batch.get(), 8);
        assert_eq!(config.reserved.get(), 0);
    }
}

#[test]
fn a_device_without_store_queues_does_not_offer_them_and_shows_zeros() {
    for (request_queues, count) in [(4, 0), (1, 1), (0, 1)] {
        let rig = rig(request_queues, StoreQueues { count, batch: 8 });
        assert_eq!(rig.device.offered_features() & STORE_QUEUES, 0);
        let config = shown(&rig);
        assert_eq!(config.num_request_queues.get(), request_queues.max(1));
        assert_eq!(config.num_store_queues.get(), 0);
        assert_eq!(config.store_batch.get(), 0);
    }
}

#[test]
fn a_store_batch_outside_of_1_to_max_batch_is_the_nearest_in_it() {
    for (batch, shows) in [(0, 1), (1, 1), (16, 16), (64, 64), (65, 64), (u16::MAX, 64)] {
        let rig = rig(2, StoreQueues { count: 1, batch });
        assert_eq!(shown(&rig).store_batch.get(), shows, "{batch}");
    }
}

#[test]
fn every_operation_is_executed_on_every_queue_with_the_feature_and_without() {
    for features in [feature::ALL, feature::ALL & !STORE_QUEUES] {
        let mut rig = rig(4, StoreQueues { count: 2, batch: 8 });
        rig.device.set_features(features);
        for queue in 1..=4 {
            rig.request_queue = queue;
            let pool = rig.create_pool();
            let stored = rig.store(pool, &[(1, page(1)), (2, page(2))]);
            assert_eq!(stored.statuses, [Status::Ok; 2], "queue {queue}");
            assert_eq!(rig.load(pool, &[2]).pages, page(2));
            let invalidate = batch_request(Op::InvalidatePage, pool, &[1]);
            assert_eq!(rig.send(&invalidate, 9).statuses, [Status::Ok]);
            assert_eq!(rig.load(pool, &[1]).statuses, [Status::NotFound]);
            let object = header(Op::InvalidateObject as u16, 0, pool, OBJECT);
            assert_eq!(rig.send(&object, 8).status, Status::Ok);
            assert_eq!(rig.load(pool, &[2]).statuses, [Status::NotFound]);
            let destroy = header(Op::DestroyPool as u16, 0, pool, [0; 3]);
            assert_eq!(rig.send(&destroy, 8).status, Status::Ok);
        }
    }
}

#[test]
fn a_store_queue_takes_more_entries_than_it_would_like() {
    let mut rig = rig(2, StoreQueues { count: 1, batch: 8 });
    let pool = rig.create_pool();
    rig.request_queue = 2;
    let pages: Vec<_> = (0..u32::from(MAX_BATCH)).map(|n| (n, page(n))).collect();
    let answer = rig.store(pool, &pages);
    assert_eq!(answer.statuses, [Status::Ok; MAX_BATCH as usize]);
    let loaded = rig.load(pool, &[0, 63]).pages;
    assert_eq!(loaded[..PAGE_SIZE], page(0));
    assert_eq!(loaded[PAGE_SIZE..], page(63));
}
