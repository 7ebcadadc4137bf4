//! Bytes to and from the memory of a front end: through its mapping, and by `pread` and `pwrite` on its descriptor.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::scale::Scale;
use tmem_testkit::frontend::memfd;
use tmem_testkit::report::{Compared, Report};

const PAGE: u64 = 4096;
/// Pages of the memory: more than a processor's own cache has.
const PAGES: u64 = 16 << 10;
/// Bytes of the small copies: a request header, an entry or an answer is about as long.
const SMALL: usize = 32;

/// Additional cost of the descriptor compared with the mapping, in nanoseconds.
pub(crate) struct Copied {
    pub(crate) page_from_guest: f64,
    pub(crate) page_to_guest: f64,
    pub(crate) bytes_from_guest: f64,
    pub(crate) bytes_to_guest: f64,
}

struct Memory {
    file: File,
    mapped: GuestMemoryMmap,
}

impl Memory {
    /// All of its pages are there, in the file and in the mapping.
    fn new() -> Self {
        let file = memfd(PAGES * PAGE);
        let clone = file.try_clone().expect("clones");
        let mapped = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            usize::try_from(PAGES * PAGE).expect("64 bit"),
            Some(FileOffset::new(clone, 0)),
        )]);
        let memory = Self {
            file,
            mapped: mapped.expect("maps"),
        };
        for at in 0..PAGES {
            let page = memory
                .mapped
                .write_slice(&[7; 4096], GuestAddress(at * PAGE));
            page.expect("in memory");
        }
        memory
    }

    /// Nanoseconds of a copy through the mapping and of one by descriptor.
    fn compare(
        &self,
        scale: &Scale,
        mut mapping: impl FnMut(&GuestMemoryMmap, GuestAddress),
        mut descriptor: impl FnMut(&File, u64),
    ) -> Compared {
        Compared::of(scale.turns, || {
            let floor = time(scale.copies, |at| mapping(&self.mapped, GuestAddress(at)));
            (floor, time(scale.copies, |at| descriptor(&self.file, at)))
        })
    }
}

/// Nanoseconds of one of so many copies, each of another page: neighbours seldom follow one another.
fn time(copies: u32, mut copy: impl FnMut(u64)) -> f64 {
    let begin = Instant::now();
    for round in 0..u64::from(copies) {
        copy(round * 7919 % PAGES * PAGE);
    }
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(copies)
}

pub(crate) fn measure(scale: &Scale, report: &mut Report) -> Copied {
    let memory = Memory::new();
    println!("\nns a copy                      mapping  descriptor     ratio");
    let mut row = |key: &str, len: usize| {
        let mut bytes = vec![7u8; len];
        let from = memory.compare(
            scale,
            |mapped, at| mapped.read_slice(&mut bytes, at).expect("in memory"),
            |file, at| {
                let mut bytes = [0; PAGE as usize];
                file.read_exact_at(&mut bytes[..len], at).expect("reads");
                std::hint::black_box(&bytes);
            },
        );
        from.print(&format!("{key}_from_guest"), report);
        let to = memory.compare(
            scale,
            |mapped, at| mapped.write_slice(&bytes, at).expect("in memory"),
            |file, at| file.write_all_at(&bytes, at).expect("writes"),
        );
        to.print(&format!("{key}_to_guest"), report);
        (from.other - from.floor, to.other - to.floor)
    };
    let (page_from_guest, page_to_guest) = row("page", PAGE as usize);
    let (bytes_from_guest, bytes_to_guest) = row("bytes", SMALL);
    Copied {
        page_from_guest,
        page_to_guest,
        bytes_from_guest,
        bytes_to_guest,
    }
}
