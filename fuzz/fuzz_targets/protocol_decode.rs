//! Request headers and entries of any content: decoding is total, and what it accepts is in bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tmem_device::tmem::request::{DecodeError, PoolRequest, Request, check_entries, decode};
use tmem_protocol::{Entry, MAX_BATCH, Op, RequestHeader, Status, feature};
use zerocopy::{FromBytes, IntoBytes};

fuzz_target!(|input: (&[u8], u32, u32, u8)| {
    let (bytes, readable, writable, features) = input;
    let Ok((header, rest)) = RequestHeader::read_from_prefix(bytes) else {
        return;
    };
    assert_eq!(header.as_bytes(), &bytes[..32]);
    let features = u64::from(features);
    // Either the lengths of the input, or any.
    for (readable, writable) in [
        (bytes.len(), 1 << 20),
        (readable as usize, writable as usize),
    ] {
        match decode(&header, readable, writable, features) {
            Ok(Request::Store(batch) | Request::Load(batch) | Request::InvalidatePage(batch)) => {
                assert!((1..=MAX_BATCH).contains(&batch.count));
                assert!(readable >= 32 + 8 * usize::from(batch.count));
                assert!(writable >= 8 + usize::from(batch.count));
            }
            Ok(Request::CreatePool(kind)) => {
                if kind != PoolRequest::Persistent {
                    assert_ne!(features & feature::bit(feature::EPHEMERAL), 0);
                }
                if let PoolRequest::Shared(group) = kind {
                    assert_ne!(features & feature::bit(feature::SHARED), 0);
                    let name = group.as_str();
                    assert!((1..=24).contains(&name.len()) && !name.contains('\0'));
                }
            }
            Ok(Request::DestroyPool(_) | Request::InvalidateObject { .. }) => {
                assert_eq!(header.count.get(), 0);
            }
            Err(refusal) => {
                let known = Op::try_from(header.op.get()).is_ok();
                assert!(known || refusal == DecodeError::Unsupported);
                assert_ne!(refusal.status(), Status::Ok);
            }
        }
    }
    if let Ok((entries, _)) = <[Entry]>::ref_from_prefix_with_elems(rest, rest.len() / 8) {
        let clean = entries.iter().all(|entry| entry.reserved.get() == 0);
        assert_eq!(check_entries(entries).is_ok(), clean);
    }
});
