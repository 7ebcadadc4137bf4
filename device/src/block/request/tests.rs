//! What is decoded, and one case for each rule that a request can break.

use super::*;

/// A disk in sectors, as over a file.
const SECTORS: Geometry = Geometry {
    capacity: 64 * SECTOR,
    block_size: 512,
    seg_max: 126,
    size_max: None,
    announce_topology: false,
    read_only: false,
    max_ranges: 32,
    max_range_sectors: 1 << 17,
    discard_alignment: 8,
};
/// A disk in pages, as over a pool.
const PAGES: Geometry = Geometry {
    block_size: 4096,
    seg_max: 2,
    size_max: Some(4096),
    max_ranges: 16,
    max_range_sectors: 48,
    ..SECTORS
};

fn decoded(
    request_type: u32,
    sector: u64,
    readable: usize,
    writable: usize,
    geometry: &Geometry,
) -> Result<Request, BlkStatus> {
    let header = Header {
        request_type: request_type.into(),
        reserved: 0.into(),
        sector: sector.into(),
    };
    decode(&header, readable, writable, geometry)
}

fn range(
    request_type: u32,
    sector: u64,
    sectors: u32,
    flags: u32,
    geometry: &Geometry,
) -> Result<(Extent, Clear), BlkStatus> {
    let range = Range {
        sector: sector.into(),
        sectors: sectors.into(),
        flags: flags.into(),
    };
    decode_range(&range, request_type == T_DISCARD, geometry)
}

#[test]
fn reads_and_writes_are_decoded() {
    let extent = Extent {
        offset: 1536,
        len: 1024,
    };
    let read = decoded(T_IN, 3, 0, 1024, &SECTORS);
    assert_eq!(read, Ok(Request::Read(extent)));
    let write = decoded(T_OUT, 3, 1024, 0, &SECTORS);
    assert_eq!(write, Ok(Request::Write(extent)));
    assert_eq!(decoded(T_FLUSH, 0, 0, 0, &SECTORS), Ok(Request::Flush));
}

#[test]
fn extents_beyond_the_disk_or_not_in_blocks_are_io_errors() {
    let refused = |geometry: &Geometry, cases: &[(u64, usize)]| {
        for &(sector, len) in cases {
            let read = decoded(T_IN, sector, 0, len, geometry);
            assert_eq!(read, Err(BlkStatus::IoError), "{sector} {len}");
            let write = decoded(T_OUT, sector, len, 0, geometry);
            assert_eq!(write, Err(BlkStatus::IoError), "{sector} {len}");
        }
    };
    let beyond = [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 0),
    ];
    refused(&SECTORS, &beyond);
    refused(&SECTORS, &[(0, 511), (0, 513)]);
    let beyond = [(64, 4096), (56, 8192), (u64::MAX, 4096), (0, 0)];
    refused(&PAGES, &beyond);
    let unaligned = [(0, 512), (0, 4095), (0, 4097), (1, 4096), (7, 4096)];
    refused(&PAGES, &unaligned);
}

#[test]
fn a_request_has_at_most_as_many_bytes_as_are_announced() {
    assert!(decoded(T_IN, 0, 0, 8192, &PAGES).is_ok());
    let refused = Err(BlkStatus::IoError);
    assert_eq!(decoded(T_IN, 0, 0, 3 * 4096, &PAGES), refused);
    assert_eq!(decoded(T_OUT, 0, 3 * 4096, 0, &PAGES), refused);
    let large = Geometry {
        capacity: 1 << 40,
        ..SECTORS
    };
    assert!(decoded(T_IN, 0, 0, 1 << 31, &large).is_ok());
}

#[test]
fn unknown_types_are_unsupported() {
    for request_type in [2, 3, 5, 99, u32::MAX] {
        let request = decoded(request_type, 0, 0, 512, &SECTORS);
        assert_eq!(request, Err(BlkStatus::Unsupported));
    }
}

#[test]
fn a_read_only_disk_refuses_what_writes() {
    let read_only = Geometry {
        read_only: true,
        ..SECTORS
    };
    for request_type in [T_OUT, T_DISCARD, T_WRITE_ZEROES] {
        assert!(decoded(request_type, 0, 512, 0, &SECTORS).is_ok());
        let request = decoded(request_type, 0, 512, 0, &read_only);
        assert_eq!(request, Err(BlkStatus::IoError));
    }
    assert!(decoded(T_IN, 0, 0, 512, &read_only).is_ok());
}

#[test]
fn the_id_needs_20_bytes() {
    let request = |room| decoded(T_GET_ID, 0, 0, room, &SECTORS);
    assert_eq!(request(20), Ok(Request::GetId));
    assert_eq!(request(19), Err(BlkStatus::IoError));
}

#[test]
fn ranges_are_decoded() {
    let extent = Extent {
        offset: 1024,
        len: 512,
    };
    for (request_type, flags, clear) in [
        (T_DISCARD, 0, Clear::Discard),
        (T_WRITE_ZEROES, 0, Clear::Zero { unmap: false }),
        (T_WRITE_ZEROES, 1, Clear::Zero { unmap: true }),
    ] {
        let decoded = range(request_type, 2, 1, flags, &SECTORS);
        assert_eq!(decoded, Ok((extent, clear)));
    }
    for (request_type, flags) in [(T_DISCARD, 1), (T_DISCARD, 2), (T_WRITE_ZEROES, 2)] {
        let decoded = range(request_type, 2, 1, flags, &SECTORS);
        assert_eq!(decoded, Err(BlkStatus::Unsupported));
    }
}

#[test]
fn ranges_beyond_the_disk_or_too_long_are_io_errors() {
    let refused = [(64, 1), (0, 65), (0, 0), (u64::MAX, 1), (0, u32::MAX)];
    for (sector, sectors) in refused {
        let decoded = range(T_DISCARD, sector, sectors, 0, &SECTORS);
        assert_eq!(decoded, Err(BlkStatus::IoError), "{sector} {sectors}");
    }
    assert!(range(T_DISCARD, 0, 48, 0, &PAGES).is_ok());
    for (sector, sectors) in [(0, 56), (0, 4), (4, 8), (64, 8)] {
        let decoded = range(T_DISCARD, sector, sectors, 0, &PAGES);
        assert_eq!(decoded, Err(BlkStatus::IoError), "{sector} {sectors}");
    }
}

#[test]
fn the_number_of_ranges_is_bounded() {
    for request_type in [T_DISCARD, T_WRITE_ZEROES] {
        let discard = request_type == T_DISCARD;
        for (geometry, most) in [(&SECTORS, 32), (&PAGES, 16)] {
            for ranges in [1, most] {
                let request = decoded(request_type, 0, ranges * 16, 0, geometry);
                assert_eq!(request, Ok(Request::Clear { ranges, discard }));
            }
            for bytes in [0, 15, 17, (most + 1) * 16] {
                let request = decoded(request_type, 0, bytes, 0, geometry);
                assert_eq!(request, Err(BlkStatus::IoError), "{bytes}");
            }
        }
    }
}
