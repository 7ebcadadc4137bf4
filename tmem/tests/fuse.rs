//! Front ends whose descriptors are files of a file system that answers when it likes, or never: FUSE. Its process is this
//! test, which speaks the protocol of <linux/fuse.h> by itself.

mod service;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use service::{GUESTS, Serve, eventually};
use tmem_protocol::Status;
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::{MEMORY, TestGuest};
use tmem_testkit::raw::{self, Raw};

/// Where a front end says that its memory is.
const USER: u64 = 0x1000_0000;

/// The requests that are never answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stall {
    /// A read, after a first one that failed: then a page fault does not end.
    Read,
    /// The close of a descriptor by the thread of guest `a`.
    Close,
}

/// A mounted file system with one file, `memory`, as long as it lives.
struct FileSystem {
    dir: tempfile::TempDir,
    daemon: Option<JoinHandle<()>>,
    /// Reads and questions about the file, other than by its first opener.
    asked: Arc<AtomicU32>,
}

impl FileSystem {
    /// `None` where this process may not mount one.
    fn mount(stall: Stall) -> Option<Self> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let mounted = device.and_then(|device| {
            let options = format!(
                "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
                device.as_raw_fd()
            );
            let options = CString::new(options).expect("no zeros");
            let path = CString::new(dir.path().to_str().expect("utf-8")).expect("no zeros");
            // SAFETY: strings that end with a zero.
            let done = unsafe {
                libc::mount(
                    c"tmem-test".as_ptr(),
                    path.as_ptr(),
                    c"fuse".as_ptr(),
                    libc::MS_NOSUID | libc::MS_NODEV,
                    options.as_ptr().cast(),
                )
            };
            if done == 0 {
                Ok(device)
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
        let device = match mounted {
            Ok(device) => device,
            Err(error) => {
                eprintln!("NO FUSE FILE SYSTEM CAN BE MOUNTED HERE ({error}): nothing was tested");
                return None;
            }
        };
        let asked = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&asked);
        let daemon = std::thread::spawn(move || serve(device, stall, &counted));
        Some(Self {
            dir,
            daemon: Some(daemon),
            asked,
        })
    }

    fn open(&self) -> File {
        let path = self.dir.path().join("memory");
        let file = File::options().read(true).write(true).open(path);
        file.expect("opens")
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let path = CString::new(self.dir.path().to_str().expect("utf-8")).expect("no zeros");
        // Processes that wait for it get an error. SAFETY: a string that ends with a zero.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_FORCE) };
        // SAFETY: as above.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        if let Some(daemon) = self.daemon.take() {
            let _ = daemon.join();
        }
    }
}

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// A `fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node == 1 {
        (0o40755u32, 4096)
    } else {
        (0o100_666, MEMORY)
    };
    let words = [node, size, size / 512, 0, 0, 0];
    let halves = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    [raw::words(&words), halves.map(u32::to_le_bytes).concat()].concat()
}

fn is_guest_thread(id: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{id}/comm"));
    name.is_ok_and(|name| name == "guest a\n")
}

/// Answers the kernel until the file system is unmounted.
fn serve(mut device: File, stall: Stall, asked: &AtomicU32) {
    let mut request = vec![0; 1 << 18];
    let mut reads = 0;
    // An hour, so that nothing is asked twice.
    let valid = [3600, 3600, 0];
    while let Ok(len) = device.read(&mut request) {
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("4 bytes"));
        let node = u64::from_le_bytes(request[16..24].try_into().expect("8 bytes"));
        assert!(len >= 40);
        let answer = match word(4) {
            INIT => {
                let words = [7u32, 31, 0, 0, 16, 1 << 16, 1, 0].map(u32::to_le_bytes);
                Ok([words.concat(), vec![0; 32]].concat())
            }
            LOOKUP => Ok([raw::words(&[2, 0]), raw::words(&valid), attributes(2)].concat()),
            GETATTR => Ok([raw::words(&valid[1..]), attributes(node)].concat()),
            OPEN => Ok(raw::words(&[0, 0])),
            READ => {
                asked.fetch_add(1, SeqCst);
                reads += 1;
                if reads > 1 && stall == Stall::Read {
                    continue;
                }
                Err(libc::EIO)
            }
            // Not a child of this test that is about to run something else, nor the test itself.
            FLUSH if stall == Stall::Close && !is_guest_thread(word(32)) => Ok(Vec::new()),
            FLUSH => {
                asked.fetch_add(1, SeqCst);
                if stall == Stall::Close {
                    continue;
                }
                Err(libc::ENOSYS)
            }
            RELEASE => Ok(Vec::new()),
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let len = u32::try_from(16 + body.len()).expect("small");
        let header = [
            &len.to_le_bytes()[..],
            &error.to_le_bytes(),
            &request[8..16],
        ]
        .concat();
        // The process that asked may have ended.
        let _ = device.write(&[header, body].concat());
    }
}

/// Runs `harm` while guest `b` works and compares its bytes, and another is added, removed and served.
fn beside(serve: &Serve, harm: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let rounds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut good = TestGuest::boot(&serve.path("b"));
            let pool = good.create_pool();
            for index in 0..32 {
                assert_eq!(good.store(pool, index, &page(index.into())), Status::Ok);
            }
            while !stop.load(SeqCst) {
                let round = rounds.fetch_add(1, SeqCst);
                assert_eq!(good.load(pool, round % 32), Ok(page((round % 32).into())));
                let index = 32 + round % 512;
                assert_eq!(good.store(pool, index, &page(round.into())), Status::Ok);
            }
        });
        // However this ends, so does the neighbour.
        let _stop = Stop(&stop);
        let goes_on = || {
            let before = rounds.load(SeqCst);
            eventually("the neighbour goes on", || {
                rounds.load(SeqCst) > before + 1000
            });
        };
        goes_on();
        harm();
        goes_on();
        let new = format!("name=new,socket={}", serve.path("new").display());
        let said = serve.ask(&["guest", "add", &new]);
        assert_eq!(said.0, Some(0), "{}", said.1);
        let mut new = TestGuest::boot(&serve.path("new"));
        let pool = new.create_pool();
        assert_eq!(new.store(pool, 1, &page(1)), Status::Ok);
        assert_eq!(new.load(pool, 1), Ok(page(1)));
        let said = serve.ask(&["guest", "remove", "a"]);
        assert_eq!(said.0, Some(0), "{}", said.1);
        goes_on();
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Describes memory and starts a ring in it, which the service reads.
fn start_ring(bad: &Raw, fd: RawFd) {
    let event = vmm_sys_util::eventfd::EventFd::new(0).expect("eventfd");
    let at = USER + 0x1000;
    let addresses = [raw::state(1, 0), raw::words(&[at, at, at, 0])].concat();
    bad.send(
        raw::SET_MEM_TABLE,
        &raw::table(&[[0, MEMORY, USER, 0]]),
        &[fd],
    );
    bad.send(raw::SET_VRING_NUM, &raw::state(1, 64), &[]);
    bad.send(raw::SET_VRING_BASE, &raw::state(1, 0), &[]);
    bad.send(raw::SET_VRING_ADDR, &addresses, &[]);
    bad.send(raw::SET_VRING_KICK, &raw::words(&[1]), &[event.as_raw_fd()]);
    bad.send(raw::SET_VRING_ENABLE, &raw::state(1, 1), &[]);
}

#[test]
fn memory_whose_page_faults_never_end_is_not_touched_and_nobody_waits() {
    let mut serve = Serve::configured("64M", GUESTS, |_| {});
    // Dropped first, however this ends: a service that waits for it could not be killed.
    let Some(files) = FileSystem::mount(Stall::Read) else {
        return;
    };
    beside(&serve, || {
        let file = files.open();
        let bad = Raw::open(&serve.path("a"));
        start_ring(&bad, file.as_raw_fd());
        eventually("refused", || {
            serve.log().contains("is no memory of the kernel")
        });
    });
    kill_process(Pid::from_child(&serve.child), Signal::TERM).expect("is running");
    assert!(serve.child.wait().expect("ends").success());
    // The close of the descriptors, which the kernel asks for once.
    assert!(files.asked.load(SeqCst) <= 1);
}

#[test]
fn a_descriptor_whose_close_never_ends_holds_up_its_sender_and_nobody_else() {
    let serve = Serve::configured("64M", GUESTS, |_| {});
    // As above.
    let Some(files) = FileSystem::mount(Stall::Close) else {
        return;
    };
    let file = files.open();
    beside(&serve, || {
        let bad = Raw::open(&serve.path("a"));
        start_ring(&bad, file.as_raw_fd());
        eventually("it is closed", || files.asked.load(SeqCst) > 0);
    });
}
