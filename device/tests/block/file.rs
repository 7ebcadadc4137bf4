//! Over a host file: data, and every way to get a chain wrong.

use tmem_device::FileDisk;
use tmem_testkit::driver::*;
use tmem_testkit::guest::MEMORY;

use crate::*;

/// Sectors of the disk, which is no whole number of pages.
const SECTORS: u64 = 67;

/// A file that holds 0xaa, and a disk over it.
fn disk(read_only: bool) -> (Disk<FileDisk>, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xaa; SECTORS as usize * 512]).unwrap();
    let backend = FileDisk::open(file.path(), read_only).unwrap();
    (Disk::new(backend, 1), file)
}

impl Disk<FileDisk> {
    /// Makes a chain available and gives its used length.
    fn used(&mut self, chain: &[Buffer]) -> u32 {
        let head = self.guest.chain(chain);
        let used = self.process();
        assert_eq!((used.len(), used[0].0), (1, head));
        used[0].1
    }

    /// A header in guest memory.
    fn header(&mut self, request_type: u32, sector: u64) -> u64 {
        let mut header = request_type.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.guest.put(&header)
    }

    /// The queue goes on.
    fn works(&mut self) {
        let answer = self.send(IN, 66, &[], 512);
        assert_eq!((answer.status, answer.len), (OK, 513));
        assert_eq!(answer.data, [0xaa; 512]);
    }
}

#[test]
fn what_is_written_is_in_the_file_and_comes_back() {
    let (mut disk, file) = disk(false);
    let data: Vec<u8> = (0..3 * 512u32).map(|at| (at % 251) as u8).collect();
    let answer = disk.send(OUT, 64, &data, 0);
    assert_eq!((answer.status, answer.len), (OK, 1));
    let expected = [vec![0xaa; 64 * 512], data.clone()].concat();
    assert!(std::fs::read(file.path()).unwrap() == expected);
    let answer = disk.send(IN, 63, &[], 4 * 512);
    assert_eq!((answer.status, answer.len), (OK, 4 * 512 + 1));
    assert!(answer.data == [vec![0xaa; 512], data].concat());
    let metrics = disk.device.metrics().snapshot();
    assert_eq!((metrics.reads, metrics.read_bytes), (1, 4 * 512));
    assert_eq!((metrics.writes, metrics.written_bytes), (1, 3 * 512));
    assert_eq!(metrics.chains, 2);
}

#[test]
fn descriptor_borders_mean_nothing() {
    let (mut disk, file) = disk(false);
    let data: Vec<u8> = (0..1024u32).map(|at| (at % 253) as u8).collect();
    let header = disk.header(OUT, 1);
    let from = disk.guest.put(&data);
    let to = disk.guest.alloc(1025);
    // Header and data in odd pieces, empty ones among them.
    let len = disk.used(&[
        readable(header, 1),
        readable(header + 1, 7),
        readable(header, 0),
        readable(header + 8, 8),
        readable(from, 700),
        readable(from + 700, 324),
        writable(to, 1),
        writable(to, 0),
    ]);
    assert_eq!((len, disk.guest.read(to, 1)), (1, vec![OK]));
    assert!(std::fs::read(file.path()).unwrap()[512..1536] == data);
    // The status at the end of the data.
    let header = disk.header(IN, 1);
    let len = disk.used(&[
        readable(header, 16),
        writable(to, 3),
        writable(to + 3, 1022),
    ]);
    assert_eq!(len, 1025);
    assert!(disk.guest.read(to, 1025) == [data, vec![OK]].concat());
}

#[test]
fn extents_beyond_the_disk_or_not_in_sectors_are_io_errors() {
    let (mut disk, file) = disk(false);
    for (sector, len) in [
        (67, 512),
        (66, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 0),
        (0, 511),
        (0, 513),
    ] {
        let answer = disk.send(IN, sector, &[], len);
        assert_eq!(answer.status, IOERR, "{sector} {len}");
        assert!(answer.data.iter().all(|byte| *byte == 0xee));
        let answer = disk.send(OUT, sector, &vec![0x55; len], 0);
        assert_eq!(answer.status, IOERR, "{sector} {len}");
    }
    assert!(std::fs::read(file.path()).unwrap() == vec![0xaa; 67 * 512]);
    disk.works();
}

#[test]
fn chains_without_a_writable_byte_cannot_be_answered() {
    let (mut disk, _file) = disk(false);
    let header = disk.header(FLUSH, 0);
    let to = disk.guest.alloc(1);
    let chains = [
        &[readable(header, 0)][..],
        &[readable(header, 16)],
        &[readable(header, 16), writable(to, 0)],
        &[readable(header, 16), writable(0xffff_0000, 1)],
        &[readable(header, 16), writable(u64::MAX, 2)],
    ];
    for chain in chains {
        assert_eq!(disk.used(chain), 0);
    }
    let metrics = disk.device.metrics().snapshot();
    assert_eq!((metrics.unanswerable, metrics.flushes), (5, 0));
    disk.works();
}

#[test]
fn short_headers_are_io_errors() {
    let (mut disk, _file) = disk(false);
    let header = disk.header(FLUSH, 0);
    for chain in [&[][..], &[readable(header, 15)]] {
        let to = disk.guest.alloc(1);
        let chain = [chain, &[writable(to, 1)]].concat();
        assert_eq!(disk.used(&chain), 1);
        assert_eq!(disk.guest.read(to, 1), [IOERR]);
    }
    disk.works();
}

#[test]
fn buffers_in_the_wrong_direction_or_order_are_io_errors() {
    let (mut disk, file) = disk(false);
    for (request_type, write) in [(IN, false), (OUT, true)] {
        let header = disk.header(request_type, 0);
        let (addr, to) = (disk.guest.alloc(512), disk.guest.alloc(1));
        let data = Buffer {
            addr,
            len: 512,
            write,
        };
        disk.used(&[readable(header, 16), data, writable(to, 1)]);
        assert_eq!(disk.guest.read(to, 1), [IOERR]);
        assert_eq!(disk.guest.read(addr, 512), [0xee; 512]);
    }
    let header = disk.header(FLUSH, 0);
    let to = disk.guest.alloc(1);
    disk.used(&[writable(to, 1), readable(header, 16)]);
    assert_eq!(disk.guest.read(to, 1), [IOERR]);
    assert_eq!(disk.device.metrics().snapshot().flushes, 0);
    assert!(std::fs::read(file.path()).unwrap() == vec![0xaa; 67 * 512]);
    disk.works();
}

#[test]
fn buffers_outside_of_memory_are_io_errors() {
    let (mut disk, _file) = disk(false);
    for address in [MEMORY - 256, MEMORY, u64::MAX - 100] {
        let header = disk.header(IN, 0);
        let to = disk.guest.alloc(1);
        disk.used(&[
            readable(header, 16),
            writable(address, 512),
            writable(to, 1),
        ]);
        assert_eq!(disk.guest.read(to, 1), [IOERR], "{address:#x}");
    }
    assert_eq!(disk.device.metrics().snapshot().malformed, 3);
    disk.works();
}

#[test]
fn a_chain_that_loops_is_an_io_error_and_does_nothing() {
    let (mut disk, file) = disk(false);
    let mut request = OUT.to_le_bytes().to_vec();
    request.extend([0; 12]);
    request.extend([0x55; 512]);
    let (from, to) = (disk.guest.put(&request), disk.guest.alloc(1));
    // All that a write needs, and then a status that follows itself.
    let (head, looped) = (disk.guest.take_desc(), disk.guest.take_desc());
    disk.guest.set_desc(head, from, 528, NEXT, looped);
    disk.guest.set_desc(looped, to, 1, NEXT | WRITE, looped);
    disk.guest.push(head);
    assert_eq!(disk.process(), [(head, 0)]);
    assert_eq!(disk.guest.read(to, 1), [IOERR]);
    assert!(std::fs::read(file.path()).unwrap() == vec![0xaa; 67 * 512]);
    disk.works();
}

#[test]
fn data_that_overlaps_header_and_status_is_served_once() {
    let (mut disk, _file) = disk(false);
    let header = disk.header(IN, 0);
    // The header is read before data goes over it, and the status is written last.
    let len = disk.used(&[
        readable(header, 16),
        writable(header, 512),
        writable(header, 1),
    ]);
    assert_eq!(len, 513);
    let data = disk.guest.read(header, 512);
    assert_eq!(data[0], OK);
    assert!(data[1..].iter().all(|byte| *byte == 0xaa));
}

#[test]
fn a_discarded_or_zeroed_range_reads_as_zeroes() {
    for (request_type, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        let (mut disk, file) = disk(false);
        let ranges = [(8, 8, flags), (24, 16, flags)];
        assert_eq!(disk.clear(request_type, &ranges), OK);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(bytes.len(), 67 * 512);
        for (index, sector) in bytes.chunks(512).enumerate() {
            let cleared = (8..16).contains(&index) || (24..40).contains(&index);
            let byte = if cleared { 0 } else { 0xaa };
            assert!(sector.iter().all(|at| *at == byte), "{index}");
        }
        let metrics = disk.device.metrics().snapshot();
        assert_eq!((metrics.ranges, metrics.cleared_bytes), (2, 24 * 512));
    }
}

#[test]
fn ranges_that_break_a_rule_clear_nothing() {
    let (mut disk, file) = disk(false);
    let good = (0, 8, 0);
    for (bad, status) in [
        ((0, 8, 1), UNSUPP),
        ((0, 8, 2), UNSUPP),
        ((67, 1, 0), IOERR),
        ((0, 68, 0), IOERR),
        ((0, 0, 0), IOERR),
        ((u64::MAX, 1, 0), IOERR),
        ((0, u32::MAX, 0), IOERR),
    ] {
        assert_eq!(disk.clear(DISCARD, &[good, bad]), status, "{bad:?}");
    }
    assert_eq!(disk.clear(DISCARD, &[good; 33]), IOERR);
    assert_eq!(disk.send(DISCARD, 0, &[0; 17], 0).status, IOERR);
    assert!(std::fs::read(file.path()).unwrap() == vec![0xaa; 67 * 512]);
    assert_eq!(disk.clear(DISCARD, &[good; 32]), OK);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_what_writes() {
    let (mut disk, file) = disk(true);
    let features = disk.device.offered_features();
    assert_eq!(features & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(disk.send(OUT, 0, &[0; 512], 0).status, IOERR);
    assert_eq!(disk.clear(DISCARD, &[(0, 8, 0)]), IOERR);
    assert_eq!(disk.clear(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
    assert_eq!(disk.send(FLUSH, 0, &[], 0).status, OK);
    disk.works();
    assert!(std::fs::read(file.path()).unwrap() == vec![0xaa; 67 * 512]);
}

#[test]
fn flush_and_the_name_of_the_disk_are_answered() {
    let (mut disk, _file) = disk(false);
    let answer = disk.send(FLUSH, 0, &[], 0);
    assert_eq!((answer.status, answer.len), (OK, 1));
    let answer = disk.send(GET_ID, 0, &[], 20);
    assert_eq!((answer.status, answer.len), (OK, 21));
    assert_eq!(answer.data, *b"swap\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(disk.send(GET_ID, 0, &[], 19).status, IOERR);
}

#[test]
fn the_used_length_covers_only_what_was_written() {
    let (mut disk, _file) = disk(false);
    // The status is written, but behind room that is not.
    let answer = disk.send(IN, 67, &[], 512);
    assert_eq!((answer.status, answer.len), (IOERR, 0));
    let answer = disk.send(GET_ID, 0, &[], 30);
    assert_eq!((answer.status, answer.len), (OK, 20));
}

#[test]
fn an_error_of_the_host_is_an_io_error() {
    let (mut disk, file) = disk(false);
    file.as_file().set_len(512).unwrap();
    assert_eq!(disk.send(IN, 1, &[], 512).status, IOERR);
    assert_eq!(disk.send(IN, 0, &[], 1024).status, IOERR);
    assert_eq!(disk.send(IN, 0, &[], 512).status, OK);
    let metrics = disk.device.metrics().snapshot();
    assert_eq!((metrics.io_errors, metrics.reads), (2, 1));
}

#[test]
fn configuration_space_is_that_of_a_disk_with_blocks_of_a_sector() {
    let (disk, _file) = disk(false);
    let mut config = [0xff; 64];
    disk.device.read_config(0, &mut config);
    let mut expected = [0; 64];
    for (at, value) in [
        (0, SECTORS as u32),
        (12, 126),
        (20, 512),
        (36, 1 << 17),
        (40, 32),
        (44, 8),
        (48, 1 << 17),
        (52, 32),
        (56, 1),
    ] {
        expected[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    assert_eq!(config, expected);
    let features = disk.device.offered_features();
    let expected = [2, 6, 9, 13, 14].map(|bit| 1u64 << bit);
    assert_eq!(features, expected.iter().sum::<u64>());
}
