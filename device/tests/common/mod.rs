//! A device to talk to.
#![allow(dead_code, missing_docs, unreachable_pub)]

use tmem_device::{Progress, QueueCorrupt, TmemConfig, TmemDevice};
use tmem_protocol::{Op, PAGE_SIZE, Status, feature};
use tmem_store::{Domain, DomainConfig, Store, StoreConfig};
pub use tmem_testkit::driver::*;
pub use tmem_testkit::guest::*;
pub use tmem_testkit::request::*;

/// A page that looks like no other.
pub fn page(seed: u32) -> Vec<u8> {
    tmem_testkit::corpus::page(seed.into()).to_vec()
}

/// A guest with one request queue and the device behind it.
pub struct Rig {
    pub guest: Guest,
    pub device: TmemDevice,
    pub domain: Domain,
    /// The queue that the ring of the guest is.
    pub request_queue: u16,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(256, u64::MAX)
    }

    pub fn with(queue_size: u16, limit: u64) -> Self {
        let store = Store::new(StoreConfig {
            budget: 64 << 20,
            ..StoreConfig::default()
        })
        .unwrap();
        let domain = store
            .add_domain(
                "guest",
                DomainConfig {
                    limit,
                    ..DomainConfig::default()
                },
            )
            .unwrap();
        let config = TmemConfig {
            swap_bytes: 1 << 30,
            limit_bytes: 1 << 20,
            ..TmemConfig::default()
        };
        let device = TmemDevice::new(domain.clone(), config);
        device.set_features(feature::bit(feature::EVENTS));
        Self {
            guest: Guest::new(queue_size),
            device,
            domain,
            request_queue: 1,
        }
    }

    pub fn process(&mut self) -> Result<Progress, QueueCorrupt> {
        self.device
            .process_requests(self.request_queue, &self.guest.mem, &mut self.guest.queue)
    }

    /// Makes a request available; gives its head and the address of the writable part.
    pub fn submit(&mut self, request: &[u8], room: usize) -> (u16, u64) {
        let from = self.guest.put(request);
        let to = self.guest.alloc(room);
        let head = self
            .guest
            .chain(&[readable(from, request.len()), writable(to, room)]);
        (head, to)
    }

    /// What the device wrote to `to`.
    pub fn answer(&self, to: u64, len: u32) -> Answer {
        Answer::parse(&self.guest.read(to, len as usize))
    }

    /// Sends a request and takes its answer, which must be the only one.
    pub fn send(&mut self, request: &[u8], room: usize) -> Answer {
        let (head, to) = self.submit(request, room);
        let progress = self.process().unwrap();
        assert_eq!((progress.chains, progress.more), (1, false));
        let used = self.guest.used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        // What the device did not claim to have written it did not write.
        let behind = self.guest.read(to, room).split_off(used[0].1 as usize);
        assert!(used[0].1 as usize >= 8);
        let answer = self.answer(to, used[0].1);
        if answer.pages.is_empty() && answer.status != Status::Ok {
            assert!(behind.iter().all(|byte| *byte == 0xee));
        }
        answer
    }

    pub fn create_pool(&mut self) -> u32 {
        let answer = self.send(&header(Op::CreatePool as u16, 0, 0, [0; 3]), 8);
        assert_eq!((answer.status, answer.len), (Status::Ok, 8));
        answer.pool
    }

    pub fn store(&mut self, pool: u32, pages: &[(u32, Vec<u8>)]) -> Answer {
        let request = store_request(pool, pages);
        self.send(&request, 8 + pages.len())
    }

    pub fn load(&mut self, pool: u32, indices: &[u32]) -> Answer {
        let request = batch_request(Op::Load, pool, indices);
        self.send(&request, 8 + indices.len() * (1 + PAGE_SIZE))
    }

    pub fn malformed(&self, rule: tmem_device::tmem::Malformed) -> u64 {
        self.device.metrics().snapshot().malformed[rule as usize]
    }
}
