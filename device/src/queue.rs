//! Taking descriptor chains off a queue.
//!
//! Every chain that is taken is returned once. A call does a bounded amount of work however fast the
//! guest adds chains, and no kick is lost: when a call ends with [`Progress::more`] unset, the guest
//! kicks for the next chain.

use std::ops::DerefMut;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// `VRING_AVAIL_F_NO_INTERRUPT`, the one flag of the available ring.
const NO_INTERRUPT: u16 = 1;

/// The result of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "a caller that ignores `more` leaves the guest waiting"]
pub struct Progress {
    /// Chains taken and returned.
    pub chains: u32,
    /// Pages stored, loaded and invalidated with success.
    pub pages: u32,
    /// What the chains asked for: their entries, granted or not, and one for a chain without entries.
    pub work: u32,
    /// There are chains left, and the guest will not kick for them: call again, after looking after
    /// whatever else the thread has to do.
    pub more: bool,
}

/// The ring is inconsistent. The device needs a reset and must not touch this queue before it.
#[derive(Debug, thiserror::Error)]
pub enum QueueCorrupt {
    /// The available index is further ahead than the queue is long.
    #[error("Available index {index} is out of reach from {next}")]
    AvailIndex {
        /// The available index in guest memory.
        index: u16,
        /// The next chain the device would take.
        next: u16,
    },
    /// A chain begins outside the descriptor table.
    #[error("Chain begins at descriptor {head} of a queue of {size}")]
    Head {
        /// Index of the first descriptor.
        head: u16,
        /// Size of the queue.
        size: u16,
    },
    /// The rings cannot be read or written.
    #[error("Ring is not accessible")]
    Ring(#[source] virtio_queue::Error),
    /// The available ring cannot be read.
    #[error("Available ring is not accessible")]
    Unreadable,
}

/// The result of serving one chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    /// Bytes written, from the start of the writable part.
    pub(crate) len: u32,
    /// Pages stored, loaded and invalidated with success.
    pub(crate) pages: u32,
    /// Entries of the request, granted or not.
    pub(crate) entries: u32,
}

/// A length as the used ring has it.
pub(crate) fn used_len(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Number of chains that are available now.
fn available<M: GuestMemory>(queue: &Queue, mem: &M) -> Result<u16, QueueCorrupt> {
    let index = queue
        .avail_idx(mem, Ordering::Acquire)
        .map_err(QueueCorrupt::Ring)?
        .0;
    let next = queue.next_avail();
    let pending = index.wrapping_sub(next);
    if pending > queue.size() {
        return Err(QueueCorrupt::AvailIndex { index, next });
    }
    Ok(pending)
}

/// Takes one chain.
fn pop<'a, M: GuestMemory>(
    queue: &mut Queue,
    mem: &'a M,
) -> Result<DescriptorChain<&'a M>, QueueCorrupt> {
    let size = queue.size();
    let chain = queue
        .iter(mem)
        .map_err(QueueCorrupt::Ring)?
        .next()
        .ok_or(QueueCorrupt::Unreadable)?;
    let head = chain.head_index();
    if head >= size {
        return Err(QueueCorrupt::Head { head, size });
    }
    Ok(chain)
}

/// Serves chains of those that are available at the time of the call, until they were [`Progress::work`] of `limit` or
/// `urgent` says, between two chains, that something else cannot wait. The last chain may go beyond the limit: how large
/// it is shows when it is served. Leaves notifications as they are.
pub(crate) fn poll<M: GuestMemory, Q: QueueT>(
    mem: &M,
    queue: &mut Q,
    limit: u32,
    mut serve: impl FnMut(DescriptorChain<&M>) -> Used,
    mut urgent: impl FnMut() -> bool,
) -> Result<Progress, QueueCorrupt> {
    let mut guard = queue.lock();
    let queue: &mut Queue = guard.deref_mut();
    let mut progress = Progress::default();
    if !queue.ready() {
        return Ok(progress);
    }
    for _ in 0..available(queue, mem)? {
        if progress.work >= limit || (progress.chains > 0 && urgent()) {
            break;
        }
        let chain = pop(queue, mem)?;
        let head = chain.head_index();
        let served = serve(chain);
        queue
            .add_used(mem, head, served.len)
            .map_err(QueueCorrupt::Ring)?;
        progress.chains = progress.chains.saturating_add(1);
        progress.pages = progress.pages.saturating_add(served.pages);
        progress.work = progress.work.saturating_add(served.entries.max(1));
    }
    Ok(progress)
}

/// Serves the available chains and those that are added meanwhile, up to twice the size of the queue and until they
/// were [`Progress::work`] of `limit`; then asks the guest to kick for the next chain.
pub(crate) fn drain<M: GuestMemory, Q: QueueT>(
    mem: &M,
    queue: &mut Q,
    limit: u32,
    mut serve: impl FnMut(DescriptorChain<&M>) -> Used,
) -> Result<Progress, QueueCorrupt> {
    let mut total = Progress::default();
    if !queue.ready() {
        return Ok(total);
    }
    loop {
        let left = limit.saturating_sub(total.work);
        let progress = poll(mem, queue, left, &mut serve, || false)?;
        total.chains = total.chains.saturating_add(progress.chains);
        total.pages = total.pages.saturating_add(progress.pages);
        total.work = total.work.saturating_add(progress.work);
        // Only chains that were made available after this are sure to be kicked for.
        if !queue.enable_notification(mem).map_err(QueueCorrupt::Ring)? {
            return Ok(total);
        }
        if total.chains >= u32::from(queue.size()) || total.work >= limit {
            total.more = true;
            return Ok(total);
        }
    }
}

/// Whether the driver wants an interrupt for what was used in `queue` since the last call: what it said with
/// `used_event` where EVENT_IDX was negotiated, else what the flag of the available ring says (section 2.7.7 of the
/// virtio specification 1.2).
///
/// Ask this, and not [`QueueT::needs_notification`], which does not know the flag.
///
/// # Errors
/// The available ring cannot be read.
pub fn wants_interrupt<M: GuestMemory>(
    queue: &mut Queue,
    mem: &M,
) -> Result<bool, virtio_queue::Error> {
    if queue.event_idx_enabled() {
        return queue.needs_notification(mem);
    }
    // A driver clears the flag, then reads the used index once more before it sleeps. So the driver sees our store of
    // the index, or we see its flag.
    fence(Ordering::SeqCst);
    let flags: u16 = mem
        .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_err(virtio_queue::Error::GuestMemory)?;
    Ok(u16::from_le(flags) & NO_INTERRUPT == 0)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicBool, AtomicU16};
    use std::time::{Duration, Instant};

    use super::*;
    use vm_memory::GuestMemoryMmap;

    const AVAILABLE: u32 = 0x2000;
    const USED: u32 = 0x3000;

    /// A queue of 16 whose chains all begin at descriptor 0.
    fn rig() -> (GuestMemoryMmap, Queue) {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(AVAILABLE), None);
        queue.set_used_ring_address(Some(USED), None);
        queue.set_ready(true);
        (mem, queue)
    }

    #[test]
    fn a_guest_that_adds_a_chain_for_each_that_is_served_does_not_hold_a_call() {
        let (mem, mut queue) = rig();
        let available = GuestAddress(u64::from(AVAILABLE + 2));
        mem.write_obj(16u16.to_le(), available).unwrap();
        for call in 1..100u32 {
            let mut added = 0;
            let progress = drain(&mem, &mut queue, u32::MAX, |_| {
                added += 1;
                let index = u16::from_le(mem.read_obj(available).unwrap());
                mem.write_obj(index.wrapping_add(1).to_le(), available)
                    .unwrap();
                Used::default()
            })
            .unwrap();
            assert_eq!(progress.chains, added);
            assert!(progress.more && added < 32, "call {call}: {progress:?}");
        }
    }

    #[test]
    fn no_interrupt_is_lost_while_the_guest_clears_its_flag_on_another_cpu() {
        const CHAINS: u16 = 60_000;
        let (mem, mut queue) = rig();
        let (mem, deadline) = (&mem, Instant::now() + Duration::from_secs(120));
        let set = |at: u32, value: u16| {
            mem.store(value.to_le(), GuestAddress(at.into()), Ordering::Release)
                .unwrap();
        };
        let (line, decided) = (AtomicBool::new(false), AtomicU16::new(0));
        let (line, decided) = (&line, &decided);
        set(AVAILABLE, NO_INTERRUPT);
        std::thread::scope(|scope| {
            // A driver that makes a chain available, and goes to sleep at once.
            let driver = scope.spawn(move || {
                for new in 1..=CHAINS {
                    line.store(false, SeqCst);
                    set(AVAILABLE + 2, new);
                    // Before, while and after the device reads the ring.
                    for _ in 0..new % 64 {
                        std::hint::spin_loop();
                    }
                    set(AVAILABLE, 0);
                    fence(SeqCst);
                    let used: u16 = mem.load(GuestAddress((USED + 2).into()), SeqCst).unwrap();
                    let sleeps = u16::from_le(used) != new;
                    // Then the device has thought about this chain, and comes back to it no more.
                    while decided.load(SeqCst) != new {
                        assert!(Instant::now() < deadline, "chain {new} is not served");
                        std::thread::yield_now();
                    }
                    assert!(
                        !sleeps || line.load(SeqCst),
                        "the driver sleeps for ever at chain {new}"
                    );
                    set(AVAILABLE, NO_INTERRUPT);
                }
            });
            for served in 1..=CHAINS {
                while available(&queue, mem).unwrap() == 0 {
                    assert!(!driver.is_finished(), "the driver is gone");
                    std::thread::yield_now();
                }
                // Nothing but the fence is between the store of the used index and the load of the flag.
                queue.set_next_avail(served);
                queue.add_used(mem, 0, 0).unwrap();
                if wants_interrupt(&mut queue, mem).unwrap() {
                    line.store(true, SeqCst);
                }
                decided.store(served, SeqCst);
            }
        });
    }
}
