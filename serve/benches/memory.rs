//! A page to and from the memory of a front end: by its mapping, and by `pread` and `pwrite` on its descriptor.
//!
//! `cargo bench -p tmem-serve --bench memory`. Ratios are to the copy through the mapping in the same run.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
/// Pages of the memory; more than caches near the processor have.
const PAGES: u64 = 16 << 10;
const ROUNDS: u64 = 200_000;
const TURNS: usize = 9;

/// Nanoseconds of one call, the median of some turns.
fn median(mut call: impl FnMut(u64)) -> f64 {
    let mut turns: Vec<f64> = (0..TURNS)
        .map(|_| {
            let begin = Instant::now();
            for round in 0..ROUNDS {
                // Neighbours seldom follow one another.
                call(round.wrapping_mul(7919) % PAGES);
            }
            begin.elapsed().as_secs_f64() * 1e9 / 200_000.0
        })
        .collect();
    turns.sort_by(f64::total_cmp);
    turns[TURNS / 2]
}

fn main() {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd");
    let file = File::from(file);
    file.set_len(PAGES * PAGE).expect("sized");
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files([(
        GuestAddress(0),
        usize::try_from(PAGES * PAGE).expect("64 bit"),
        Some(FileOffset::new(file.try_clone().expect("clones"), 0)),
    )])
    .expect("maps");
    let mut page = [7u8; 4096];
    for at in 0..PAGES {
        memory
            .write_slice(&page, GuestAddress(at * PAGE))
            .expect("in memory");
    }
    let read = median(|at| {
        memory
            .read_slice(&mut page, GuestAddress(at * PAGE))
            .expect("reads")
    });
    let pread = median(|at| file.read_exact_at(&mut page, at * PAGE).expect("reads"));
    let write = median(|at| {
        memory
            .write_slice(&page, GuestAddress(at * PAGE))
            .expect("writes")
    });
    let pwrite = median(|at| file.write_all_at(&page, at * PAGE).expect("writes"));
    println!("ns a page        mapping  descriptor   ratio");
    println!(
        "from the guest {read:9.0} {pread:11.0} {:7.2}",
        pread / read
    );
    println!(
        "to the guest   {write:9.0} {pwrite:11.0} {:7.2}",
        pwrite / write
    );
}
