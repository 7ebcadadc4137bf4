//! Units, on segments of [`crate::memory`].

use std::sync::Once;

use super::*;
use crate::memory::{FRAME_BYTES, Memory};

extern "C" fn handler(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid one.
    let info = unsafe { &*info };
    // SAFETY: in a SIGBUS this field is an address.
    let address = unsafe { info.si_addr() }.addr();
    if !repair(address) {
        // SAFETY: async-signal-safe.
        unsafe { libc::abort() };
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: all zeroes is a valid value, in which no signal is blocked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: a handler that is async-signal-safe.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut()) };
        assert_eq!(set, 0);
    });
}

/// A memory whose file ends after so many frames: those behind them are bad.
fn memory(frames: usize) -> Memory {
    install();
    let memory = Memory::new("test").expect("memfd");
    memory.map(0).expect("map");
    memory.write(0, 0, &[0; 4 * FRAME_BYTES]);
    memory.cut((frames * FRAME_BYTES) as u64);
    memory
}

/// Bytes that have the check of as many zeroes: one in 1024 has.
fn like_zeroes(memory: &Memory) -> (Vec<u8>, u16) {
    let zeroes = memory.write(0, 0, &[0; FRAME_BYTES]);
    for seed in 1..u64::MAX {
        let words = (0..FRAME_BYTES as u64 / 8).map(|at| (at + 1).wrapping_mul(seed));
        let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
        if memory.write(0, 0, &bytes) == zeroes {
            return (bytes, zeroes);
        }
    }
    unreachable!("found before");
}

#[test]
fn bytes_on_a_bad_page_are_lost_whatever_their_check_and_no_others_are() {
    let memory = memory(4);
    let (bytes, check) = like_zeroes(&memory);
    memory.write(0, FRAME_BYTES, &bytes);
    let beside = memory.write(0, 0, &[3; FRAME_BYTES]);
    memory.cut(FRAME_BYTES as u64);
    let before = bad_pages();
    let mut back = vec![0; FRAME_BYTES];
    let read = memory.read(0, FRAME_BYTES, &mut back);
    assert_ne!(read, check, "zeroes would pass for the page");
    assert!(bad_pages() > before);
    assert_ne!(memory.read(0, FRAME_BYTES, &mut back), check, "still");
    assert_eq!(memory.read(0, 0, &mut back), beside);
}

#[test]
fn what_is_written_to_a_page_that_went_bad_is_there_and_the_rest_of_it_stays_lost() {
    let memory = memory(1);
    let at = FRAME_BYTES;
    // The write is what finds it.
    let check = memory.write(0, at + 128, &[7; 100]);
    let mut back = [0; 100];
    assert_eq!(memory.read(0, at + 128, &mut back), check);
    assert_eq!(back, [7; 100]);
    for lost in [at, at + 64, at + 256, at + 4032] {
        assert_eq!(memory.read(0, lost, &mut [0; 64]), u16::MAX, "{lost}");
    }
    // One slot that lies on a lost page in part.
    assert_eq!(memory.read(0, at - 64, &mut [0; 128]), u16::MAX);
    let check = memory.write(0, at - 64, &[5; 128]);
    assert_eq!(memory.read(0, at - 64, &mut [0; 128]), check);
}

#[test]
fn a_write_during_which_a_page_went_bad_is_done_again() {
    let memory = memory(1);
    let page = memory.address(0, FRAME_BYTES);
    let before = begin();
    // Somebody else finds it, after the bytes were written and before they are said to be there.
    memory.read(0, FRAME_BYTES, &mut [0; 64]);
    assert!(!written(before, page, 64));
    assert!(is_lost(page, 64));
    assert!(written(begin(), page, 64));
    assert!(!is_lost(page, 64));
}

#[test]
fn a_lost_slot_that_is_moved_stays_lost_until_something_else_is_written_there() {
    let memory = memory(2);
    let (bad, good) = (2 * FRAME_BYTES, 64);
    assert!(memory.copy((0, bad), (0, good), 192));
    assert_eq!(memory.read(0, good, &mut [0; 192]), u16::MAX);
    let check = memory.write(0, 0, &[1; 64]);
    assert_eq!(memory.read(0, 0, &mut [0; 64]), check, "its neighbour");
    let check = memory.write(0, good, &[9; 192]);
    assert_eq!(memory.read(0, good, &mut [0; 192]), check);
}

#[test]
fn a_frame_that_is_given_back_and_taken_again_is_a_frame_of_the_file() {
    let memory = memory(1);
    memory.write(0, FRAME_BYTES, &[7; 64]);
    let page = memory.address(0, FRAME_BYTES);
    assert!(!mapping_of(page).contains("memfd"), "replaced");
    memory.cut(4 * FRAME_BYTES as u64);
    memory.punch(0, 1, 1).expect("punch");
    assert!(mapping_of(page).contains("memfd"));
    let mut back = [1; 64];
    assert_ne!(memory.read(0, FRAME_BYTES, &mut back), u16::MAX);
    assert_eq!(back, [0; 64]);
}

#[test]
fn nothing_is_left_of_a_memory_that_goes() {
    let page = {
        let memory = memory(1);
        memory.write(0, FRAME_BYTES, &[7; 64]);
        let page = memory.address(0, FRAME_BYTES);
        assert!(find(page).is_some() && is_segment(page));
        page
    };
    // Nothing else takes its address in a process of one test.
    assert!(find(page).is_none());
    assert!(!is_segment(page) && !repair(page));
}

#[test]
fn threads_that_meet_on_bad_pages_lose_no_byte_that_one_of_them_wrote() {
    let memory = memory(1);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let memory = &memory;
            scope.spawn(move || {
                // Each its own slots, on the same pages.
                for round in 0..3 {
                    for slot in (thread..192).step_by(4) {
                        let bytes = [(slot + round) as u8; 64];
                        let at = FRAME_BYTES + slot * 64;
                        let check = memory.write(0, at, &bytes);
                        let mut back = [0; 64];
                        assert_eq!(memory.read(0, at, &mut back), check);
                        assert_eq!(back, bytes);
                    }
                }
            });
        }
    });
    assert_eq!(bad_pages(), 3);
}

#[test]
fn units_of_pages_are_those_that_bytes_touch() {
    let units = |start, bytes| pages(start, bytes).collect::<Vec<_>>();
    assert_eq!(units(0x1000, 64), [(0x1000, 1)]);
    assert_eq!(units(0x1000, 65), [(0x1000, 3)]);
    assert_eq!(units(0x1fc0, 64), [(0x1000, 1 << 63)]);
    assert_eq!(units(0x1fc0, 128), [(0x1000, 1 << 63), (0x2000, 1)]);
    assert_eq!(units(0x1000, 4096), [(0x1000, u64::MAX)]);
}

#[test]
fn more_extents_than_a_block_has_are_found_and_forgotten() {
    let starts: Vec<_> = (1..=3 * BLOCK).map(|number| number << 44).collect();
    for start in &starts {
        register(*start, 8192);
    }
    assert!(starts.iter().all(|start| is_segment(start + 8191)));
    assert!(!starts.iter().any(|start| is_segment(start + 8192)));
    for start in &starts {
        forget(*start, 8192);
    }
    assert!(!starts.iter().any(|start| is_segment(*start)));
    // Places are used again.
    let count = blocks().count();
    register(starts[0], 4096);
    assert_eq!(blocks().count(), count);
    forget(starts[0], 4096);
}

/// The line of `/proc/self/maps` for an address.
fn mapping_of(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    let line = maps.lines().find(|line| {
        let bounds = line
            .split_whitespace()
            .next()
            .and_then(|b| b.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).unwrap_or(0);
        bounds.is_some_and(|(start, end)| (number(start)..number(end)).contains(&address))
    });
    line.unwrap_or_default().to_owned()
}
