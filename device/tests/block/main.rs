//! The virtio-blk device over each of its backends.
#![allow(missing_docs, clippy::cast_possible_truncation)]

mod file;
mod pool;

use tmem_device::block::Backend;
use tmem_device::{BlockConfig, BlockDevice};
use tmem_testkit::driver::{readable, writable};
use tmem_testkit::guest::Guest;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A guest and its disk.
struct Disk<B> {
    guest: Guest,
    device: BlockDevice<B>,
}

struct Answer {
    status: u8,
    data: Vec<u8>,
    len: u32,
}

impl<B: Backend> Disk<B> {
    fn new(backend: B, request_queues: u16) -> Self {
        let config = BlockConfig {
            request_queues,
            id: "swap".to_owned(),
        };
        Self {
            guest: Guest::new(256),
            device: BlockDevice::new(backend, &config),
        }
    }

    fn process(&mut self) -> Vec<(u16, u32)> {
        let Self { guest, device, .. } = self;
        let progress = device
            .process_requests(&guest.mem, &mut guest.queue)
            .unwrap();
        let used = guest.used();
        assert_eq!(used.len(), progress.chains as usize);
        used
    }

    /// One request, with `room` bytes for data before the status.
    fn send(&mut self, request_type: u32, sector: u64, data: &[u8], room: usize) -> Answer {
        let mut request = request_type.to_le_bytes().to_vec();
        request.extend([0; 4]);
        request.extend(sector.to_le_bytes());
        request.extend(data);
        let from = self.guest.put(&request);
        let to = self.guest.alloc(room + 1);
        let head = self
            .guest
            .chain(&[readable(from, request.len()), writable(to, room + 1)]);
        let used = self.process();
        assert_eq!((used.len(), used[0].0), (1, head));
        let mut data = self.guest.read(to, room + 1);
        Answer {
            status: data.pop().unwrap(),
            data,
            len: used[0].1,
        }
    }

    fn clear(&mut self, request_type: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let data: Vec<u8> = ranges
            .iter()
            .flat_map(|(sector, sectors, flags)| {
                let mut bytes = sector.to_le_bytes().to_vec();
                bytes.extend(sectors.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes
            })
            .collect();
        self.send(request_type, 0, &data, 0).status
    }
}
