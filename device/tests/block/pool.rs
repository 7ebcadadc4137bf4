//! Over a pool: what a virtio-blk driver of any system relies on.

use tmem_device::PoolDisk;
use tmem_device::block::pool::{MAX_PAGES, MAX_RANGE_SECTORS};
use tmem_store::{Domain, DomainConfig, Store, StoreConfig};
use tmem_testkit::driver::*;
use tmem_testkit::guest::MEMORY;

use crate::*;

/// Pages of the disk.
const PAGES: u64 = 1000;

/// A page that looks like no other.
fn page(seed: u32) -> Vec<u8> {
    tmem_testkit::corpus::page(seed.into()).to_vec()
}

/// A disk of [`PAGES`] pages and a bit, for a guest with this limit; and the guest's domain.
fn disk(limit: u64) -> (Disk<PoolDisk>, Domain) {
    let store = Store::new(StoreConfig {
        budget: 64 << 20,
        ..StoreConfig::default()
    })
    .unwrap();
    let config = DomainConfig {
        limit,
        ..DomainConfig::default()
    };
    let domain = store.add_domain("guest", config).unwrap();
    let backend = PoolDisk::new(domain.clone(), PAGES * 4096 + 4095).unwrap();
    (Disk::new(backend, 2), domain)
}

impl Disk<PoolDisk> {
    fn write(&mut self, first: u64, pages: &[u8]) -> u8 {
        let answer = self.send(OUT, first * 8, pages, 0);
        assert_eq!(answer.len, 1);
        answer.status
    }

    fn read(&mut self, first: u64, count: usize) -> Vec<u8> {
        let answer = self.send(IN, first * 8, &[], count * 4096);
        assert_eq!(answer.status, OK);
        assert_eq!(answer.len as usize, count * 4096 + 1);
        answer.data
    }
}

#[test]
fn what_was_written_is_read_and_the_rest_is_zero() {
    let (mut disk, _) = disk(u64::MAX);
    assert_eq!(disk.write(3, &[page(1), page(2)].concat()), OK);
    let expected = [vec![0; 4096], page(1), page(2), vec![0; 4096]].concat();
    assert!(disk.read(2, 4) == expected);
    assert_eq!(disk.write(4, &page(9)), OK);
    assert!(disk.read(3, 2) == [page(1), page(9)].concat());
}

#[test]
fn the_last_page_of_the_disk_can_be_used_and_nothing_behind_it() {
    let (mut disk, _) = disk(u64::MAX);
    assert_eq!(disk.write(PAGES - 1, &page(1)), OK);
    assert!(disk.read(PAGES - 1, 1) == page(1));
    assert_eq!(disk.write(PAGES, &page(1)), IOERR);
    assert_eq!(disk.write(PAGES - 1, &[page(2), page(3)].concat()), IOERR);
    assert!(disk.read(PAGES - 1, 1) == page(1), "nothing was executed");
    for sector in [PAGES * 8, u64::MAX - 7, u64::MAX, 1 << 40] {
        assert_eq!(disk.send(IN, sector, &[], 4096).status, IOERR, "{sector}");
    }
}

#[test]
fn a_request_that_is_not_whole_pages_or_empty_is_an_io_error() {
    let (mut disk, _) = disk(u64::MAX);
    disk.write(1, &page(1));
    let cases = [
        (8, 0),
        (8, 512),
        (8, 4095),
        (8, 4097),
        (9, 4096),
        (15, 4096),
    ];
    for (sector, len) in cases {
        assert_eq!(disk.send(IN, sector, &[], len).status, IOERR);
        assert_eq!(disk.send(OUT, sector, &vec![1; len], 0).status, IOERR);
    }
    assert!(disk.read(1, 1) == page(1));
}

#[test]
fn a_request_of_more_pages_than_announced_is_an_io_error() {
    let (mut disk, _) = disk(u64::MAX);
    let to = disk.guest.alloc(4096);
    let request = [0; 16];
    let from = disk.guest.put(&request);
    let mut buffers = vec![readable(from, 16)];
    buffers.extend((0..128).map(|_| writable(0x10000, 64 << 10)));
    buffers.push(writable(to, 1));
    disk.guest.chain(&buffers);
    disk.process();
    assert_eq!(disk.guest.read(to, 1), [IOERR]);
    const { assert!(128 * (64 << 10) > MAX_PAGES * 4096) };
}

#[test]
fn a_discarded_or_zeroed_page_reads_as_zeroes() {
    for request_type in [DISCARD, WRITE_ZEROES] {
        let (mut disk, _) = disk(u64::MAX);
        for index in 0..6 {
            disk.write(index, &page(index as u32 + 1));
        }
        let ranges = [(8, 16, 0), (4 * 8, 8, 0)];
        assert_eq!(disk.clear(request_type, &ranges), OK);
        let expected = [page(1), vec![0; 2 * 4096], page(4), vec![0; 4096], page(6)];
        assert!(disk.read(0, 6) == expected.concat());
        assert_eq!(disk.device.metrics().snapshot().cleared_bytes, 3 * 4096);
    }
}

#[test]
fn ranges_that_break_a_rule_clear_nothing() {
    let (mut disk, _) = disk(u64::MAX);
    disk.write(0, &page(1));
    let good = (0, 8, 0);
    for (bad, status) in [
        ((0, 8, 1), UNSUPP),
        ((0, 8, 2), UNSUPP),
        ((1, 8, 0), IOERR),
        ((0, 9, 0), IOERR),
        ((0, 0, 0), IOERR),
        ((PAGES * 8, 8, 0), IOERR),
        ((u64::MAX, 8, 0), IOERR),
        ((0, MAX_RANGE_SECTORS + 8, 0), IOERR),
    ] {
        assert_eq!(disk.clear(DISCARD, &[good, bad]), status, "{bad:?}");
    }
    assert_eq!(disk.clear(DISCARD, &[]), IOERR);
    assert_eq!(disk.clear(DISCARD, &[good; 17]), IOERR);
    assert_eq!(disk.send(DISCARD, 0, &[0; 17], 0).status, IOERR);
    assert!(disk.read(0, 1) == page(1));
    assert_eq!(disk.clear(WRITE_ZEROES, &[(0, 8, 1)]), OK, "unmap is fine");
}

#[test]
fn a_write_that_is_refused_is_an_io_error_and_the_block_is_one_until_it_is_written() {
    let (mut disk, domain) = disk(u64::MAX);
    assert_eq!(disk.write(5, &page(1)), OK);
    domain.freeze();
    assert_eq!(disk.write(5, &page(2)), IOERR);
    assert_eq!(disk.write(6, &page(2)), IOERR);
    for index in [5, 6] {
        let answer = disk.send(IN, index * 8, &[], 4096);
        assert_eq!(answer.status, IOERR, "neither the old data nor zeroes");
    }
    domain.thaw();
    assert_eq!(disk.write(5, &page(3)), OK);
    assert!(disk.read(5, 1) == page(3));
    assert_eq!(disk.clear(DISCARD, &[(48, 8, 0)]), OK);
    assert!(disk.read(6, 1) == vec![0; 4096]);
}

#[test]
fn a_disk_at_its_limit_refuses_writes_and_keeps_what_it_accepted() {
    let (mut disk, _) = disk(256 << 10);
    let accepted: Vec<bool> = (0..200)
        .map(|index| disk.write(index, &page(index as u32)) == OK)
        .collect();
    assert!(accepted.contains(&true) && accepted.contains(&false));
    for (index, _) in (0..).zip(accepted).filter(|(_, accepted)| *accepted) {
        assert!(disk.read(index, 1) == page(index as u32));
    }
}

#[test]
fn flush_and_the_name_of_the_disk_are_answered() {
    let (mut disk, _) = disk(u64::MAX);
    assert_eq!(disk.send(FLUSH, 0, &[], 0).status, OK);
    let answer = disk.send(GET_ID, 0, &[], 20);
    assert_eq!((answer.status, answer.len), (OK, 21));
    assert_eq!(answer.data, *b"swap\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(disk.send(GET_ID, 0, &[], 19).status, IOERR);
}

#[test]
fn an_unknown_request_is_unsupported() {
    let (mut disk, _) = disk(u64::MAX);
    for request_type in [2, 3, 5, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(disk.send(request_type, 0, &[], 0).status, UNSUPP);
    }
}

#[test]
fn malformed_chains_are_returned_and_the_queue_goes_on() {
    let (mut disk, _) = disk(u64::MAX);
    disk.write(0, &page(1));
    let header = disk.guest.put(&[0; 16]);
    let to = disk.guest.alloc(4097);
    let chains: [&[Buffer]; 8] = [
        &[readable(header, 16)],
        &[writable(to, 1)],
        &[readable(header, 15), writable(to, 1)],
        &[writable(to, 4097), readable(header, 16)],
        &[readable(header, 16), writable(MEMORY - 4096, 4097)],
        &[readable(header, 16), writable(MEMORY, 1)],
        &[readable(MEMORY - 8, 16), writable(to, 1)],
        &[readable(header, 16), writable(to, 0)],
    ];
    for chain in chains {
        let head = disk.guest.chain(chain);
        let used = disk.process();
        assert_eq!((used.len(), used[0].0), (1, head));
    }
    let looped = disk.guest.take_desc();
    disk.guest.set_desc(looped, to, 16, NEXT | WRITE, looped);
    disk.guest.push(looped);
    assert_eq!(disk.process().len(), 1);
    assert!(disk.read(0, 1) == page(1));
}

#[test]
fn configuration_space_is_that_of_a_disk_with_blocks_of_a_page() {
    let (disk, _) = disk(u64::MAX);
    let mut config = [0xff; 64];
    disk.device.read_config(0, &mut config);
    let le32 = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(config[..8], (PAGES * 8).to_le_bytes());
    assert_eq!(le32(20), 4096, "block size");
    assert_eq!(config[34..36], 2u16.to_le_bytes(), "queues");
    assert_eq!(le32(44), 8, "discard alignment");
    assert_eq!((le32(40), le32(52)), (16, 16), "ranges");
    assert_eq!(config[60..], [0; 4]);
    assert_ne!(disk.device.offered_features() & (1 << 6), 0);
    assert_eq!(
        disk.device.offered_features() & (1 << 5),
        0,
        "not read-only"
    );
}

#[test]
fn a_disk_that_is_dropped_leaves_nothing_in_the_store() {
    let (mut disk, domain) = disk(u64::MAX);
    for index in 0..100 {
        disk.write(index, &page(index as u32));
    }
    drop(disk.device);
    assert_eq!(domain.stats().pools.len(), 0);
}
