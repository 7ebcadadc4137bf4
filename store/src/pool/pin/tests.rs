//! Nobody waits for a lock while another waits for a slot to be swapped in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::arena::swap_in::SWAP_IN;
use crate::{Dedup, Domain, DomainConfig, ObjectId, Page, PoolId, PoolSpec, Store, StoreConfig};

const OBJECT: ObjectId = ObjectId([0; 3]);

fn page(seed: usize) -> Page {
    std::array::from_fn(|at| (at / 9 * seed) as u8)
}

fn store() -> Store {
    let config = StoreConfig {
        background: false,
        ..StoreConfig::default()
    };
    Store::new(config).expect("store")
}

fn domain(store: &Store, name: &str) -> Domain {
    let config = DomainConfig {
        groups: vec!["files".to_owned()],
        ..DomainConfig::default()
    };
    store.add_domain(name, config).expect("new name")
}

/// While this thread touches a slot next, another one has time for `act`.
fn meanwhile(act: impl FnOnce() + Send + 'static) -> Arc<AtomicBool> {
    let done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&done);
    SWAP_IN.set(Some(Box::new(move || {
        let (say, heard) = mpsc::channel();
        std::thread::spawn(move || {
            act();
            let _ = say.send(());
        });
        let ended = heard.recv_timeout(Duration::from_secs(20)).is_ok();
        seen.store(ended, Ordering::SeqCst);
    })));
    done
}

type Guest = (Domain, PoolId);

/// Two guests of each kind of pool in which one may wait for the other's lock.
fn guests(dedup: Dedup) -> (Store, Guest, Guest) {
    let store = store();
    let [a, b] = ["a", "b"].map(|name| {
        let domain = domain(&store, name);
        let group = PoolSpec::Shared { group: "files" };
        let pool = domain.create_pool_with(group, dedup).expect("room");
        (domain, pool)
    });
    (store, a, b)
}

#[test]
fn a_member_that_waits_for_its_page_to_be_swapped_in_holds_no_other_up() {
    for dedup in [Dedup::On, Dedup::Off] {
        let (_store, a, b) = guests(dedup);
        a.0.store(a.1, OBJECT, 1, &page(3)).expect("room");
        // Another guest takes the very page away, and would take its slot.
        let went_on = meanwhile({
            let b = b.clone();
            move || {
                for index in [1, 2] {
                    b.0.store(b.1, OBJECT, index, &page(5 + index as usize))
                        .expect("room");
                }
            }
        });
        let mut back = [0; 4096];
        a.0.load(a.1, OBJECT, 1, &mut back).expect("is there");
        assert!(went_on.load(Ordering::SeqCst), "another guest waited");
        assert!(back == page(3), "the page that was there");
        a.0.load(a.1, OBJECT, 1, &mut back).expect("is there");
        assert!(back == page(6));
    }
}

#[test]
fn a_member_that_waits_for_a_slot_to_be_swapped_in_holds_no_other_up() {
    for dedup in [Dedup::On, Dedup::Off] {
        let (_store, a, b) = guests(dedup);
        let went_on = meanwhile({
            let b = b.clone();
            move || b.0.store(b.1, OBJECT, 1, &page(5)).expect("room")
        });
        a.0.store(a.1, OBJECT, 1, &page(3)).expect("room");
        assert!(went_on.load(Ordering::SeqCst), "another guest waited");
        let mut back = [0; 4096];
        b.0.load(b.1, OBJECT, 1, &mut back).expect("is there");
        assert!(back == page(3), "the store that ended last");
    }
}
