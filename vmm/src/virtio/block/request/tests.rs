//! One test for each way in which a chain can be malformed.

use vm_memory::GuestMemoryMmap;

use super::*;

const LIMITS: Limits = Limits {
    capacity: 64 * SECTOR,
    read_only: false,
};
const HEADER_AT: u64 = 0x1000;
const DATA_AT: u64 = 0x2000;
const STATUS_AT: u64 = 0x9000;
const W: u16 = 2;

fn mem() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

fn header(mem: &GuestMemoryMmap, kind: u32, sector: u64) {
    mem.write_obj(kind, GuestAddress(HEADER_AT)).unwrap();
    mem.write_obj(sector, GuestAddress(HEADER_AT + 8)).unwrap();
}

fn decoded(
    mem: &GuestMemoryMmap,
    chain: &[(u64, u32, u16)],
    limits: Limits,
) -> Result<Request, Unanswerable> {
    let descriptors = chain
        .iter()
        .map(|&(address, len, flags)| Descriptor::new(address, len, flags, 0));
    decode(mem, descriptors, limits)
}

/// The operation of header + data + status.
fn simple(kind: u32, sector: u64, len: u32, flags: u16) -> Result<Operation, Refusal> {
    let mem = mem();
    header(&mem, kind, sector);
    let chain = [(HEADER_AT, 16, 0), (DATA_AT, len, flags), (STATUS_AT, 1, W)];
    let request = decoded(&mem, &chain, LIMITS).unwrap();
    assert_eq!(request.status, GuestAddress(STATUS_AT));
    request.operation
}

#[test]
fn reads_and_writes_are_decoded() {
    let span = Span {
        address: GuestAddress(DATA_AT),
        len: 1024,
    };
    assert_eq!(
        simple(VIRTIO_BLK_T_IN, 3, 1024, W),
        Ok(Operation::Read {
            offset: 1536,
            to: vec![
                span,
                Span {
                    address: GuestAddress(STATUS_AT),
                    len: 0
                }
            ]
        })
    );
    assert_eq!(
        simple(VIRTIO_BLK_T_OUT, 3, 1024, 0),
        Ok(Operation::Write {
            offset: 1536,
            from: vec![span]
        })
    );
    assert_eq!(simple(VIRTIO_BLK_T_FLUSH, 0, 0, 0), Ok(Operation::Flush));
}

#[test]
fn extents_beyond_the_disk_or_not_in_sectors_are_io_errors() {
    for (sector, len) in [
        (64, 512),
        (63, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 0),
        (0, 511),
        (0, 513),
    ] {
        assert_eq!(
            simple(VIRTIO_BLK_T_IN, sector, len, W),
            Err(Refusal::IoError),
            "{sector} {len}"
        );
        assert_eq!(
            simple(VIRTIO_BLK_T_OUT, sector, len, 0),
            Err(Refusal::IoError)
        );
    }
}

#[test]
fn unknown_types_are_unsupported() {
    for kind in [2, 3, 5, 99, u32::MAX] {
        assert_eq!(simple(kind, 0, 512, W), Err(Refusal::Unsupported));
    }
}

#[test]
fn chains_without_a_writable_byte_cannot_be_answered() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_FLUSH, 0);
    for chain in [
        &[][..],
        &[(HEADER_AT, 16, 0)],
        &[(HEADER_AT, 16, 0), (STATUS_AT, 0, W)],
        &[(HEADER_AT, 16, 0), (0xffff_0000, 1, W)],
        &[(HEADER_AT, 16, 0), (u64::MAX, 2, W)],
    ] {
        assert_eq!(decoded(&mem, chain, LIMITS), Err(Unanswerable));
    }
}

#[test]
fn short_headers_are_io_errors() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_FLUSH, 0);
    for chain in [
        &[(STATUS_AT, 1, W)][..],
        &[(HEADER_AT, 15, 0), (STATUS_AT, 1, W)],
    ] {
        assert_eq!(
            decoded(&mem, chain, LIMITS).unwrap().operation,
            Err(Refusal::IoError)
        );
    }
}

#[test]
fn descriptor_borders_mean_nothing() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_IN, 1);
    // Header in three pieces, status at the end of the data buffer.
    let chain = [
        (HEADER_AT, 1, 0),
        (HEADER_AT + 1, 7, 0),
        (HEADER_AT + 8, 8, 0),
        (DATA_AT, 513, W),
    ];
    let request = decoded(&mem, &chain, LIMITS).unwrap();
    assert_eq!(request.status, GuestAddress(DATA_AT + 512));
    assert_eq!(request.writable, 512);
    let to = vec![Span {
        address: GuestAddress(DATA_AT),
        len: 512,
    }];
    assert_eq!(request.operation, Ok(Operation::Read { offset: 512, to }));
}

#[test]
fn buffers_in_the_wrong_direction_or_order_are_io_errors() {
    assert_eq!(simple(VIRTIO_BLK_T_IN, 0, 512, 0), Err(Refusal::IoError));
    assert_eq!(simple(VIRTIO_BLK_T_OUT, 0, 512, W), Err(Refusal::IoError));
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_FLUSH, 0);
    let chain = [(STATUS_AT, 1, W), (HEADER_AT, 16, 0)];
    assert_eq!(
        decoded(&mem, &chain, LIMITS).unwrap().operation,
        Err(Refusal::IoError)
    );
}

#[test]
fn buffers_outside_of_memory_are_io_errors() {
    let mem = mem();
    header(&mem, VIRTIO_BLK_T_IN, 0);
    for address in [0xff00, 0x1_0000, u64::MAX - 100] {
        let chain = [(HEADER_AT, 16, 0), (address, 512, W), (STATUS_AT, 1, W)];
        assert_eq!(
            decoded(&mem, &chain, LIMITS).unwrap().operation,
            Err(Refusal::IoError)
        );
    }
}

#[test]
fn a_read_only_disk_refuses_what_writes() {
    let mem = mem();
    for kind in [
        VIRTIO_BLK_T_OUT,
        VIRTIO_BLK_T_DISCARD,
        VIRTIO_BLK_T_WRITE_ZEROES,
    ] {
        header(&mem, kind, 0);
        let chain = [(HEADER_AT, 16, 0), (DATA_AT, 512, 0), (STATUS_AT, 1, W)];
        let limits = Limits {
            read_only: true,
            ..LIMITS
        };
        assert_eq!(
            decoded(&mem, &chain, limits).unwrap().operation,
            Err(Refusal::IoError)
        );
    }
}

#[test]
fn the_id_needs_20_bytes() {
    assert!(matches!(
        simple(VIRTIO_BLK_T_GET_ID, 0, 20, W),
        Ok(Operation::GetId { .. })
    ));
    assert_eq!(simple(VIRTIO_BLK_T_GET_ID, 0, 19, W), Err(Refusal::IoError));
}

fn range(
    kind: u32,
    sector: u64,
    sectors: u32,
    flags: u32,
    bytes: u32,
) -> Result<Operation, Refusal> {
    let mem = mem();
    header(&mem, kind, 0);
    mem.write_obj(sector, GuestAddress(DATA_AT)).unwrap();
    mem.write_obj(sectors, GuestAddress(DATA_AT + 8)).unwrap();
    mem.write_obj(flags, GuestAddress(DATA_AT + 12)).unwrap();
    let chain = [(HEADER_AT, 16, 0), (DATA_AT, bytes, 0), (STATUS_AT, 1, W)];
    decoded(&mem, &chain, LIMITS).unwrap().operation
}

#[test]
fn ranges_are_decoded_and_bounded() {
    let expected = |unmap| {
        vec![Range {
            offset: 1024,
            len: 512,
            unmap,
        }]
    };
    assert_eq!(
        range(VIRTIO_BLK_T_DISCARD, 2, 1, 0, 16),
        Ok(Operation::Discard(expected(true)))
    );
    assert_eq!(
        range(VIRTIO_BLK_T_WRITE_ZEROES, 2, 1, 0, 16),
        Ok(Operation::WriteZeroes(expected(false)))
    );
    assert_eq!(
        range(VIRTIO_BLK_T_WRITE_ZEROES, 2, 1, 1, 16),
        Ok(Operation::WriteZeroes(expected(true)))
    );
    assert_eq!(
        range(VIRTIO_BLK_T_DISCARD, 2, 1, 1, 16),
        Err(Refusal::Unsupported)
    );
    assert_eq!(
        range(VIRTIO_BLK_T_WRITE_ZEROES, 2, 1, 2, 16),
        Err(Refusal::Unsupported)
    );
    for (sector, sectors, bytes) in [
        (64, 1, 16),
        (0, 65, 16),
        (0, 0, 16),
        (u64::MAX, 1, 16),
        (0, u32::MAX, 16),
        (0, 1, 0),
        (0, 1, 15),
        (0, 1, 17),
        (0, 1, 16 * 33),
    ] {
        assert_eq!(
            range(VIRTIO_BLK_T_DISCARD, sector, sectors, 0, bytes),
            Err(Refusal::IoError),
            "{sector} {sectors} {bytes}"
        );
    }
}
