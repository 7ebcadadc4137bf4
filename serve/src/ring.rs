//! One virtqueue and the descriptors that belong to it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::SendFlags;
use tmem_device::queue::wants_interrupt;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};

/// Most entries of a ring.
pub(crate) const MAX_QUEUE_SIZE: u16 = 1024;

/// One ring of one connection.
pub(crate) struct Ring {
    pub(crate) queue: Queue,
    /// Rung by the guest. Never read: it is watched edge-triggered, so a read could only block.
    pub(crate) kick: Option<File>,
    pub(crate) enabled: bool,
    call: Option<Call>,
    error: Option<Call>,
}

impl Ring {
    /// A stopped ring. `next` is where it begins unless the front end says otherwise.
    pub(crate) fn new(next: u16) -> Result<Self, virtio_queue::Error> {
        let mut queue = Queue::new(MAX_QUEUE_SIZE)?;
        queue.set_next_avail(next);
        queue.set_next_used(next);
        Ok(Self {
            queue,
            kick: None,
            enabled: false,
            call: None,
            error: None,
        })
    }

    /// Whether chains may be taken.
    pub(crate) fn is_active(&self) -> bool {
        self.enabled && self.queue.ready()
    }

    /// Whether there is something to serve. A ring that cannot be read has: serving it shows what is wrong.
    pub(crate) fn has_chain(&self, memory: &impl GuestMemory) -> bool {
        self.is_active()
            && self
                .queue
                .avail_idx(memory, Ordering::Acquire)
                .map_or(true, |index| index.0 != self.queue.next_avail())
    }

    /// Every chain is answered before the next is taken, so both indexes are always equal.
    pub(crate) fn set_next(&mut self, next: u16) {
        self.queue.set_next_avail(next);
        self.queue.set_next_used(next);
    }

    /// Places the ring in guest memory.
    pub(crate) fn set_addresses(
        &mut self,
        descriptors: u64,
        available: u64,
        used: u64,
    ) -> Result<(), virtio_queue::Error> {
        self.queue
            .try_set_desc_table_address(GuestAddress(descriptors))?;
        self.queue
            .try_set_avail_ring_address(GuestAddress(available))?;
        self.queue.try_set_used_ring_address(GuestAddress(used))
    }

    /// Starts the ring, if all of it lies in guest memory.
    pub(crate) fn start(&mut self, memory: &impl GuestMemory) -> bool {
        self.queue.set_ready(true);
        let valid = self.queue.is_valid(memory);
        self.queue.set_ready(valid);
        valid
    }

    /// Stops the ring and returns the index at which it goes on.
    pub(crate) fn stop(&mut self) -> u16 {
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        self.queue.next_avail()
    }

    pub(crate) fn set_call(&mut self, file: Option<File>) -> Result<(), Errno> {
        self.call = file.map(Call::new).transpose()?;
        Ok(())
    }

    pub(crate) fn set_error(&mut self, file: Option<File>) -> Result<(), Errno> {
        self.error = file.map(Call::new).transpose()?;
        Ok(())
    }

    /// Interrupts the guest, if it wants to be.
    pub(crate) fn notify(&mut self, memory: &impl GuestMemory) -> Result<(), virtio_queue::Error> {
        if wants_interrupt(&mut self.queue, memory)?
            && let Some(call) = &self.call
        {
            call.ring();
        }
        Ok(())
    }

    /// Tells the front end that this ring cannot be served.
    pub(crate) fn signal_error(&self) {
        if let Some(error) = &self.error {
            error.ring();
        }
    }
}

/// A descriptor on which the front end waits: an eventfd, or (User Mode Linux) a socket.
struct Call {
    file: File,
    is_socket: bool,
}

impl Call {
    /// Refuses files in a file system: the service might be allowed to write to a file that the guest may not write to.
    fn new(file: File) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&file)?;
        let is_socket = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => true,
            // Eventfds have no type.
            FileType::Fifo | FileType::Unknown => false,
            _ => return Err(Errno::INVAL),
        };
        Ok(Self { file, is_socket })
    }

    /// Every outcome is fine: a full eventfd or socket still wakes the front end, and a closed one
    /// belongs to a front end that is going, which the connection tells as well.
    fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        if self.is_socket {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _: Result<usize, Errno> = rustix::net::send(self.file.as_fd(), &one, flags);
        } else {
            // An eventfd blocks when its counter is full, which only a hostile guest can bring
            // about; then only the thread of that guest waits, and a stop interrupts it.
            let _ = (&self.file).write(&one);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    type GuestMemoryMmap = vm_memory::GuestMemoryMmap<()>;

    #[test]
    fn a_call_writes_eight_bytes_to_a_socket_and_never_waits() {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        let call = Call::new(File::from(OwnedFd::from(ours))).expect("a socket");
        assert!(call.is_socket);
        call.ring();
        let mut bytes = [0u8; 8];
        theirs.read_exact(&mut bytes).expect("eight bytes");
        assert_eq!(u64::from_ne_bytes(bytes), 1);
        // Fills the buffer of the socket many times over: it must not block.
        for _ in 0..100_000 {
            call.ring();
        }
    }

    #[test]
    fn a_call_of_a_front_end_that_went_away_is_no_error() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        drop(theirs);
        Call::new(File::from(OwnedFd::from(ours)))
            .expect("a socket")
            .ring();
    }

    #[test]
    fn a_call_is_no_file_that_the_guest_could_have_us_write() {
        let file = tempfile::tempfile().expect("temporary file");
        assert!(Call::new(file).is_err());
        for path in ["/dev/null", "/"] {
            assert!(
                Call::new(File::open(path).expect("opens")).is_err(),
                "{path}"
            );
        }
        let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        Call::new(File::from(eventfd.expect("eventfd"))).expect("an eventfd");
        let (_read, write) = std::io::pipe().expect("pipe");
        Call::new(File::from(OwnedFd::from(write))).expect("a pipe");
    }

    #[test]
    fn a_ring_outside_memory_does_not_start() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).expect("maps");
        let mut ring = Ring::new(7).expect("valid size");
        ring.queue.set_size(256);
        ring.set_addresses(0x1000, 0x2000, 0x20000)
            .expect("aligned");
        assert!(!ring.start(&memory));
        ring.set_addresses(0x1000, 0x2000, 0x3000).expect("aligned");
        assert!(ring.start(&memory));
        assert!(!ring.is_active(), "not enabled yet");
        assert_eq!(ring.stop(), 7);
    }
}
