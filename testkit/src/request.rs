//! Requests of the tmem device as the bytes that a driver sends, and their answers as values.

use tmem_protocol::{Entry, Op, RequestHeader, Response, Status};
use zerocopy::{FromBytes, IntoBytes};

/// The object of requests that name none.
pub const OBJECT: [u64; 3] = [7, 8, 9];

/// The 32 bytes of a header. `op` and `count` may be any that a device must refuse.
pub fn header(op: u16, count: u16, pool: u32, object: [u64; 3]) -> Vec<u8> {
    RequestHeader {
        op: op.into(),
        count: count.into(),
        pool: pool.into(),
        object: object.map(Into::into),
    }
    .as_bytes()
    .to_vec()
}

/// The entries of a request for the pages of these indices, 8 bytes each.
pub fn entries(indices: &[u32]) -> Vec<u8> {
    let entries = indices.iter().map(|index| Entry {
        index: (*index).into(),
        reserved: 0.into(),
    });
    entries
        .flat_map(|entry| entry.as_bytes().to_vec())
        .collect()
}

/// Header and entries of a request for pages of an object.
///
/// # Panics
/// There are more indices than a header can count.
pub fn object_request(op: Op, pool: u32, object: [u64; 3], indices: &[u32]) -> Vec<u8> {
    let count = u16::try_from(indices.len()).expect("counted in 16 bits");
    let mut request = header(op as u16, count, pool, object);
    request.extend(entries(indices));
    request
}

/// As [`object_request`], for pages of [`OBJECT`].
pub fn batch_request(op: Op, pool: u32, indices: &[u32]) -> Vec<u8> {
    object_request(op, pool, OBJECT, indices)
}

/// The request that stores these pages of [`OBJECT`], each with its index.
pub fn store_request(pool: u32, pages: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let indices: Vec<u32> = pages.iter().map(|(index, _)| *index).collect();
    let mut request = batch_request(Op::Store, pool, &indices);
    for (_, page) in pages {
        request.extend(page);
    }
    request
}

/// Response, entry statuses and the bytes behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Status of the request as a whole.
    pub status: Status,
    /// Id of the pool that was created, else 0.
    pub pool: u32,
    /// Status of each entry.
    pub statuses: Vec<Status>,
    /// Whole pages of a load.
    pub pages: Vec<u8>,
    /// Bytes that the device wrote.
    pub len: u32,
}

impl Answer {
    /// The answer that refuses a request and each of its entries.
    pub fn refused(status: Status, entries: usize) -> Self {
        Self {
            status,
            pool: 0,
            statuses: vec![status; entries],
            pages: Vec::new(),
            len: 8 + entries as u32,
        }
    }

    /// What the device wrote, all of it.
    ///
    /// # Panics
    /// It is no answer: too short, of unknown statuses, or with a reserved field that is not 0.
    pub fn parse(bytes: &[u8]) -> Self {
        let (response, rest) = Response::read_from_prefix(bytes).unwrap();
        assert_eq!(response.reserved, 0);
        let (statuses, pages) = rest.split_at(usize::from(response.count.get()));
        Self {
            status: Status::try_from(response.status).unwrap(),
            pool: response.pool.get(),
            statuses: statuses
                .iter()
                .map(|status| Status::try_from(*status).unwrap())
                .collect(),
            pages: pages.to_vec(),
            len: bytes.len() as u32,
        }
    }
}
