use tmem_control::api::{Change, GuestSpec};
use tmem_control::{Client, ClientError, Server};
use tmem_store::{DomainConfig, ObjectId, PAGE_SIZE, PoolSpec, StoreConfig};

use super::*;

/// A store with the domain `vm1`, behind a control socket.
struct Host {
    store: Store,
    client: Client,
    _server: Server,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let store = Store::new(StoreConfig {
            budget: 64 << 20,
            background: false,
            ..StoreConfig::default()
        })
        .expect("valid");
        let domain = store
            .add_domain("vm1", DomainConfig::default())
            .expect("valid");
        let pool = domain.create_pool(PoolSpec::Ephemeral).expect("has room");
        let mut page = [0u8; PAGE_SIZE];
        for index in 0..32u32 {
            let word = index.wrapping_mul(0x9e37_79b9);
            for (place, byte) in (0u32..).zip(&mut page) {
                *byte = word.wrapping_mul(place | 1).to_le_bytes()[3];
            }
            domain
                .store(pool, ObjectId([0; 3]), index, &page)
                .expect("has room");
        }
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("s");
        let server = Server::start(&path, Arc::new(OwnStore::new(store.clone()))).expect("starts");
        Self {
            store,
            client: Client::new(path),
            _server: server,
            _dir: dir,
        }
    }
}

fn status<T: std::fmt::Debug>(result: Result<T, ClientError>) -> u16 {
    match result {
        Err(ClientError::Refused { status, .. }) => status.as_u16(),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn histogram_keeps_every_event_and_the_bounds_of_the_device() {
    let mut snapshot = HistogramSnapshot::default();
    snapshot.buckets[0] = 1;
    snapshot.buckets[FIRST_BUCKET] = 2;
    snapshot.buckets[FIRST_BUCKET + 1] = 4;
    snapshot.buckets[LAST_BUCKET] = 8;
    snapshot.buckets[LAST_BUCKET + 1] = 16;
    let histogram = latencies(&snapshot);
    assert_eq!(histogram.count(), snapshot.count());
    assert_eq!(histogram.counts.len(), histogram.bounds_ns.len() + 1);
    assert_eq!(histogram.bounds_ns.first(), Some(&127));
    assert_eq!(histogram.counts.first(), Some(&3));
    assert_eq!(histogram.counts[1], 4);
    assert_eq!(histogram.counts.last(), Some(&16));
}

#[test]
fn what_the_store_and_the_device_count_arrives() {
    let store = Store::new(StoreConfig {
        budget: 8 << 20,
        background: false,
        ..StoreConfig::default()
    })
    .expect("a store");
    let domain = store
        .add_domain("guest", DomainConfig::default())
        .expect("a domain");
    let pool = domain.create_pool(PoolSpec::Persistent).expect("a pool");
    let object = ObjectId([1, 2, 3]);
    let mut page = [0; PAGE_SIZE];
    for (index, fill) in [(0, 0), (1, 7)] {
        page.fill(fill);
        domain.store(pool, object, index, &page).expect("stores");
    }
    domain.load(pool, object, 1, &mut page).expect("loads");
    domain
        .load(pool, object, 2, &mut page)
        .expect_err("was never stored");

    let live = OwnStore::new(store.clone());
    let device = TmemDevice::new(domain, tmem_device::TmemConfig::default());
    device.metrics().count_doorbells(1, 1);
    live.connect("guest", Arc::new(device));

    let stats = live.stats();
    assert_eq!(stats.budget, 8 << 20);
    assert_eq!(stats.used, store.stats().used);
    let [domain] = stats.domains.as_slice() else {
        panic!("one domain: {stats:?}");
    };
    assert_eq!(domain.limit, None);
    let counters = &domain.counters;
    assert_eq!(
        (counters.pages, counters.zero, counters.same_filled),
        (2, 1, 2)
    );
    assert_eq!(
        (counters.stores, counters.loads, counters.load_misses),
        (2, 1, 1)
    );
    assert_eq!(domain.pools.len(), 1);
    let device = domain.device.as_ref().expect("a device");
    assert_eq!(device.doorbell_exits, 1);
    assert_eq!(device.pages_per_exit, Some(0.0));
    assert_eq!(device.refusals.get("no_space"), Some(&0));
    assert!(!device.refusals.contains_key("ok"));

    live.disconnect("guest");
    assert_eq!(live.stats().domains[0].device, None);
}

#[test]
fn a_change_is_made_and_the_rest_stays() {
    let host = Host::new();
    let change = Change {
        weight: Some(7),
        limit: Some(Some(1 << 20)),
        compression: Some(Compression::Dense),
        frozen: Some(true),
        ..Change::default()
    };
    let domain = host.client.change("vm1", &change).expect("changed");
    assert_eq!(
        (domain.weight, domain.limit, domain.frozen),
        (7, Some(1 << 20), true)
    );
    let change = Change {
        limit: Some(None),
        frozen: Some(false),
        ..Change::default()
    };
    let domain = host.client.change("vm1", &change).expect("changed");
    assert_eq!(
        (domain.weight, domain.limit, domain.frozen),
        (7, None, false)
    );
}

#[test]
fn a_change_that_makes_no_sense_changes_nothing() {
    let host = Host::new();
    let refused = |change: Change| status(host.client.change("vm1", &change));
    assert_eq!(
        refused(Change {
            weight: Some(0),
            frozen: Some(true),
            ..Change::default()
        }),
        400
    );
    assert_eq!(
        refused(Change {
            reserve: Some(1 << 40),
            ..Change::default()
        }),
        409
    );
    assert_eq!(status(host.client.change("vm2", &Change::default())), 404);
    let stats = host.client.stats().expect("answers");
    assert_eq!(
        (stats.domains[0].weight, stats.domains[0].frozen),
        (100, false)
    );
}

#[test]
fn a_flush_gives_back_what_was_freeable() {
    let host = Host::new();
    let before = host.client.freeable().expect("answers");
    assert!(before.freeable > 0);
    assert_eq!(before.domains["vm1"], before.freeable);
    assert!(host.client.flush("vm1", u64::MAX).expect("flushed") > 0);
    assert_eq!(host.client.freeable().expect("answers").freeable, 0);
    assert_eq!(host.client.flush("vm1", 1).expect("flushed"), 0);
    assert_eq!(status(host.client.flush("vm2", 1)), 404);
    assert_eq!(host.store.stats().freeable, 0);
}

#[test]
fn guests_are_not_for_a_process_that_runs_one() {
    let host = Host::new();
    let guest = GuestSpec {
        socket: "/run/vm1".into(),
        ..GuestSpec::default()
    };
    assert_eq!(status(host.client.add_guest(&guest)), 501);
    assert_eq!(status(host.client.remove_guest("vm1")), 501);
}
