//! The segments of one owner (a domain, or a share group): slots are allocated and freed here.
//!
//! Each size class has its own lock, so that two stores meet only when their pages compress to the
//! same size. The lowest free slot is allocated first, so that the high segments empty by themselves and
//! compaction has little to move.
//!
//! No list is searched: a class lists its segments with free slots, with free slots in memory and with frames to
//! give back, and the owner has a bit for each class where compacting may free a frame. `hold` gets frames for a slot, `prefault` for
//! slots to come, `trim` gives them back, `compact` says which slots to move. No lock of the crate is held while the
//! kernel is asked.

mod abandon;
mod compact;
pub(crate) mod hold;
mod prefault;
mod reserve;
pub(crate) mod segment;
pub(crate) mod size_class;
#[cfg(test)]
pub(crate) mod swap_in;
#[cfg(test)]
mod tests;
mod trim;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use segment::{IDLE, OPEN, PackedBackref, READY, Segment};
use size_class::{CLASSES, Classes, class_of, slot_bytes, slots_per_segment};

use crate::account::quota::{AllocError, Quota};
use crate::entry::{MAX_SEGMENTS, Slot, SlotId};
use crate::memory::{FRAME_BYTES, Memory};
use crate::sync::{Counter, InnerMutex, assert_no_lock_is_held};

/// Slots given back to a class between two checks of its waste.
const FREES_PER_CHECK: u64 = 64;
/// Waste, in thousandths of a class's frames, for which the background thread is woken.
const WAKE_WASTE: u64 = 20;

/// The slots of one owner.
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Memory,
    quota: Quota,
    classes: Box<[ClassCell]>,
    spare: InnerMutex<Spare>,
    /// Frames of retired segments. Written under the lock of `spare`.
    retired_frames: Counter,
    /// Of those, how many the background may still give back. Written by the thread that plans the trim.
    retired_trim_budget: Counter,
    /// Bit per size class that wants frames prefaulted.
    wanting: AtomicU64,
    /// Bit per size class with idle frames. A bit is changed under the class's lock.
    idle: AtomicU64,
    /// Bit per size class where moving slots may free a frame. It is set by each change that could make this true, and
    /// cleared by a thread that finds under the class's lock that it is false.
    movable: AtomicU64,
    /// Bit per size class that has segments. A bit is changed under the class's lock.
    occupied: AtomicU64,
    /// Kinds of frames to give back: classes with idle ones, and one for retired segments.
    sources: AtomicU64,
    /// Frames that a thread is getting from the kernel or giving back to it.
    on_the_way: AtomicU64,
    /// More memory holds no slot than the owner should keep, when it was last measured.
    wasteful: AtomicBool,
    /// The owner was removed: no frames are prefaulted.
    ended: AtomicBool,
    /// The background leaves the owner's reserve alone.
    keeps_reserve: AtomicBool,
}

/// A size class, its lock and its gauges, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ClassCell {
    locked: InnerMutex<SizeClass>,
    gauges: Gauges,
    trim_plan: TrimPlan,
}

/// What a size class holds. Written under the class's lock.
#[derive(Debug, Default)]
struct Gauges {
    /// Frames that are charged.
    frames: Counter,
    metadata: Counter,
    live: Counter,
    frees: Counter,
    /// Free slots in frames with memory.
    ready: Counter,
}

/// How many frames of a class the background may give back until it plans again. Written by the thread that plans the
/// trim.
#[derive(Debug, Default)]
struct TrimPlan {
    /// Slots taken when it planned.
    taken: Counter,
    /// Frames that it may still give back.
    trim_budget: Counter,
    /// Frames behind the lowest free slot that stay.
    spared: Counter,
}

/// The segments of one size class.
#[derive(Debug, Default)]
struct SizeClass {
    segments: BTreeMap<u32, Box<Segment>>,
    /// Segments with a free slot.
    open: BTreeSet<u32>,
    /// Segments with a free slot in frames that have memory.
    ready: BTreeSet<u32>,
    /// Segments with idle frames.
    idle: BTreeSet<u32>,
    /// Where the next victim is looked for.
    hand: SlotId,
}

/// Segments of no class.
#[derive(Debug, Default)]
struct Spare {
    /// Ids below this were used before.
    next: u32,
    /// Without memory.
    free_ids: Vec<u32>,
    /// With frames that are still charged.
    retired: Vec<(u32, u64)>,
}

/// Sums over an owner's segments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ArenaUsage {
    /// Bytes of frames with memory.
    pub(crate) frames: u64,
    /// Bytes of bookkeeping per segment.
    pub(crate) metadata: u64,
    /// Bytes of slots in use.
    pub(crate) slots: u64,
}

/// A slot in use, and what names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Movable {
    pub(crate) slot: SlotId,
    pub(crate) backref: PackedBackref,
}

impl Arena {
    pub(crate) fn new(name: &str, quota: Quota) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::new(name)?.locked(quota.is_locked()),
            quota,
            classes: (0..CLASSES).map(|_| ClassCell::default()).collect(),
            spare: InnerMutex::default(),
            retired_frames: Counter::default(),
            retired_trim_budget: Counter::default(),
            wanting: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            movable: AtomicU64::new(0),
            occupied: AtomicU64::new(0),
            sources: AtomicU64::new(0),
            on_the_way: AtomicU64::new(0),
            wasteful: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            keeps_reserve: AtomicBool::new(false),
        })
    }

    pub(crate) fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Copies a slot's bytes out. `false` when they are not those that were written. The caller holds no lock of the
    /// crate, as the host may have swapped the bytes out.
    pub(crate) fn fetch(&self, slot: Slot, bytes: &mut [u8]) -> bool {
        before_touch();
        self.fetch_now(slot, bytes)
    }

    /// As [`Arena::fetch`], for a caller that keeps its lock because it has no memory to pin the slot.
    pub(crate) fn fetch_now(&self, slot: Slot, bytes: &mut [u8]) -> bool {
        let offset = usize::from(slot.index) * slot_bytes(class_of(slot.len));
        self.memory
            .read(slot.segment, offset, &mut bytes[..usize::from(slot.len)])
            == slot.check
    }

    /// Takes the lowest free slot in frames with memory of a segment that has one.
    fn take_ready(
        &self,
        class: usize,
        inner: &mut SizeClass,
        segment_id: u32,
        backref: PackedBackref,
    ) -> Result<SlotId, AllocError> {
        let taken = self.change(class, inner, segment_id, |segment| {
            let slot = segment.find_ready().ok_or(AllocError::Frames)?;
            self.grow(class, segment, slot)?;
            segment.alloc(slot, backref);
            self.request_prefault(class, segment, slot);
            Ok(SlotId {
                segment: segment_id,
                index: slot,
            })
        });
        let id = taken.unwrap_or(Err(AllocError::Frames))?;
        self.classes[class].gauges.live.add(1);
        Ok(id)
    }

    /// Makes room for the slot's backref.
    fn grow(&self, class: usize, segment: &mut Segment, slot: u16) -> Result<(), AllocError> {
        let growth = segment.growth(slot);
        if growth > 0 {
            self.quota.charge(growth)?;
            if !segment.grow(slot) {
                self.quota.uncharge(growth);
                return Err(AllocError::NoMemory);
            }
            self.classes[class].gauges.metadata.add(growth);
        }
        Ok(())
    }

    /// Changes a segment, and then the lists and counts that it is in.
    fn change<R>(
        &self,
        class: usize,
        inner: &mut SizeClass,
        segment_id: u32,
        act: impl FnOnce(&mut Segment) -> R,
    ) -> Option<R> {
        let SizeClass {
            segments,
            open,
            ready,
            idle,
            ..
        } = inner;
        let segment = segments.get_mut(&segment_id)?;
        let before = segment.ready();
        let result = act(segment);
        let after = segment.ready();
        let gauge = &self.classes[class].gauges.ready;
        gauge.set(gauge.get() + after - before);
        let (was, is) = (segment.listed, segment.lists());
        segment.listed = is;
        if was != is {
            enlist(open, segment_id, was & OPEN, is & OPEN);
            enlist(ready, segment_id, was & READY, is & READY);
            if (was ^ is) & IDLE != 0 {
                let none_before = idle.is_empty();
                enlist(idle, segment_id, was & IDLE, is & IDLE);
                self.mark_idle(class, none_before, idle.is_empty());
            }
        }
        // Taking a slot in a populated frame cannot make it possible to free a frame by moving slots.
        if after >= before {
            self.mark_movable(class);
        }
        Some(result)
    }

    /// A class has idle frames now, or has none any more.
    fn mark_idle(&self, class: usize, none_before: bool, none_now: bool) {
        let bit = 1 << class;
        match (none_before, none_now) {
            (true, false) => {
                self.idle.fetch_or(bit, Ordering::Relaxed);
                self.add_source();
            }
            (false, true) => {
                self.idle.fetch_and(!bit, Ordering::Relaxed);
                self.remove_source();
            }
            _ => {}
        }
    }

    fn add_source(&self) {
        if self.sources.fetch_add(1, Ordering::Relaxed) == 0 {
            self.quota.ledger.owners_with_idle.add(1);
        }
    }

    fn remove_source(&self) {
        if self.sources.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.quota.ledger.owners_with_idle.add(-1);
        }
    }

    fn mark_movable(&self, class: usize) {
        let bit = 1 << class;
        if self.movable.load(Ordering::Relaxed) & bit == 0 {
            self.movable.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether there are frames to give back.
    pub(crate) fn has_idle(&self) -> bool {
        self.sources.load(Ordering::Relaxed) > 0
    }

    /// Whether a slot of the class is free in frames with memory.
    pub(crate) fn has_ready(&self, class: usize) -> bool {
        self.classes[class].gauges.ready.get() > 0
    }

    /// Whether a thread is getting frames from the kernel or giving some back.
    pub(crate) fn has_frames_on_the_way(&self) -> bool {
        self.on_the_way.load(Ordering::Relaxed) > 0
    }

    /// Classes that have segments.
    pub(crate) fn occupied(&self) -> Classes {
        Classes(self.occupied.load(Ordering::Relaxed))
    }

    fn spare_segment(&self) -> Option<(u32, u64)> {
        let mut spare = self.spare.lock();
        if let Some(retired) = self.pop_retired(&mut spare) {
            return Some(retired);
        }
        if let Some(segment_id) = spare.free_ids.pop() {
            return Some((segment_id, 0));
        }
        if spare.next == MAX_SEGMENTS {
            return None;
        }
        spare.next += 1;
        Some((spare.next - 1, 0))
    }

    fn retire(&self, segment_id: u32, resident: u64) {
        let mut spare = self.spare.lock();
        if resident == 0 {
            spare.free_ids.push(segment_id);
        } else {
            self.retired_frames.add(u64::from(resident.count_ones()));
            if spare.retired.is_empty() {
                self.add_source();
            }
            spare.retired.push((segment_id, resident));
            drop(spare);
            self.quota.wakes().background.ask_soon();
        }
    }

    fn pop_retired(&self, spare: &mut Spare) -> Option<(u32, u64)> {
        let (segment_id, resident) = spare.retired.pop()?;
        self.retired_frames.sub(u64::from(resident.count_ones()));
        if spare.retired.is_empty() {
            self.remove_source();
        }
        Some((segment_id, resident))
    }

    /// Gives a slot back. Its frames stay charged until [`Arena::trim`].
    pub(crate) fn free(&self, slot: Slot) {
        self.free_id(class_of(slot.len), slot.id());
    }

    fn free_id(&self, class: usize, id: SlotId) {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let given = self.change(class, inner, id.segment, |segment| {
            segment.free(id.index).then(|| segment.live() == 0)
        });
        let Some(empty) = given.flatten() else {
            // The segment of a removed owner may be closed already.
            debug_assert!(
                self.ended.load(Ordering::Relaxed),
                "slot given back twice, or of an unknown segment"
            );
            return;
        };
        let gauges = &self.classes[class].gauges;
        gauges.live.sub(1);
        if empty {
            self.close_empty(class, inner, id.segment);
        }
        gauges.frees.add(1);
        if gauges.frees.get().is_multiple_of(FREES_PER_CHECK) {
            if self.is_sparse(class, WAKE_WASTE) {
                self.quota.wakes().background.ask_soon();
            }
            if !self.wasteful.load(Ordering::Relaxed) {
                self.measure_waste();
            }
        }
    }

    /// Closes a segment without slots in use, unless a thread is populating or freeing frames of it: then that thread
    /// closes it.
    fn close_empty(&self, class: usize, inner: &mut SizeClass, segment_id: u32) {
        let Some(segment) = inner.segments.get(&segment_id) else {
            return;
        };
        if segment.live() == 0 && segment.on_the_way() == 0 {
            self.close(class, inner, segment_id);
        }
    }

    /// Takes a segment from its class, whatever is in it.
    fn close(&self, class: usize, inner: &mut SizeClass, segment_id: u32) {
        let Some(segment) = inner.segments.get(&segment_id) else {
            return;
        };
        let resident = segment.resident();
        let metadata = segment.metadata_bytes();
        let gauges = &self.classes[class].gauges;
        gauges.ready.sub(segment.ready());
        gauges.metadata.sub(metadata);
        gauges.frames.sub(u64::from(resident.count_ones()));
        inner.segments.remove(&segment_id);
        inner.open.remove(&segment_id);
        inner.ready.remove(&segment_id);
        let none_before = inner.idle.is_empty();
        inner.idle.remove(&segment_id);
        self.mark_idle(class, none_before, inner.idle.is_empty());
        if inner.segments.is_empty() {
            self.occupied.fetch_and(!(1 << class), Ordering::Relaxed);
        }
        self.quota.uncharge(metadata);
        self.retire(segment_id, resident);
    }

    /// Whether moving slots of the class would free more than `fraction` of its frames.
    pub(crate) fn is_sparse(&self, class: usize, per_mille: u64) -> bool {
        let gauges = &self.classes[class].gauges;
        let live = gauges.live.get() as usize;
        let slots = slots_per_segment(class);
        // Frames that the slots need when they lie as dense as they can.
        let dense = (live / slots) as u64 * 64
            + ((live % slots) * slot_bytes(class)).div_ceil(FRAME_BYTES) as u64;
        let frames = gauges.frames.get();
        frames > dense + 1 && (frames - dense) * 1000 > frames * per_mille
    }

    /// No frames are prefaulted from now on. A thread that was prefaulting has finished, or knows this.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        for cell in &self.classes {
            drop(cell.locked.lock());
        }
    }

    /// A slot in use of the class: all of them in turn.
    pub(crate) fn next_victim(&self, class: usize) -> Option<Movable> {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let SlotId {
            segment: segment_id,
            index: from,
        } = inner.hand;
        let here = inner.segments.range(segment_id..=segment_id);
        let behind = inner.segments.range(segment_id.saturating_add(1)..);
        let around = inner.segments.range(..=segment_id);
        let (segment_id, (slot, backref)) = here
            .filter_map(|(segment_id, segment)| Some((*segment_id, segment.next_used(from)?)))
            .chain(
                behind
                    .chain(around)
                    .filter_map(|(segment_id, segment)| Some((*segment_id, segment.next_used(0)?))),
            )
            .next()?;
        inner.hand = SlotId {
            segment: segment_id,
            index: slot + 1,
        };
        Some(Movable {
            slot: SlotId {
                segment: segment_id,
                index: slot,
            },
            backref,
        })
    }

    /// Sums for statistics.
    pub(crate) fn usage(&self) -> ArenaUsage {
        let mut usage = ArenaUsage {
            frames: self.retired_frames.get() * FRAME_BYTES as u64,
            ..ArenaUsage::default()
        };
        for (class, ClassCell { gauges, .. }) in self.classes.iter().enumerate() {
            usage.frames += gauges.frames.get() * FRAME_BYTES as u64;
            usage.metadata += gauges.metadata.get();
            usage.slots += gauges.live.get() * slot_bytes(class) as u64;
        }
        usage
    }
}

impl Drop for Arena {
    /// The memory is freed as a whole, and with it its charge.
    fn drop(&mut self) {
        let usage = self.usage();
        self.quota.uncharge(usage.frames + usage.metadata);
        if self.has_idle() {
            self.quota.ledger.owners_with_idle.add(-1);
        }
    }
}

/// Called before a slot's bytes are touched, which the host may have swapped out: others go on meanwhile.
fn before_touch() {
    assert_no_lock_is_held();
    #[cfg(test)]
    swap_in::swap_in();
    #[cfg(shuttle)]
    shuttle::thread::yield_now();
}

/// The lowest free slot in frames with memory.
fn ready_slot(inner: &mut SizeClass) -> Option<SlotId> {
    let segment = *inner.ready.first()?;
    let index = inner.segments.get_mut(&segment)?.find_ready()?;
    Some(SlotId { segment, index })
}

/// The lowest free slot, of those in frames that no thread has on the way.
fn free_slot(inner: &mut SizeClass) -> Option<SlotId> {
    let SizeClass { segments, open, .. } = inner;
    open.iter().find_map(|segment| {
        Some(SlotId {
            segment: *segment,
            index: segments.get_mut(segment)?.find_free()?,
        })
    })
}

fn enlist(list: &mut BTreeSet<u32>, segment_id: u32, was: u8, is: u8) {
    if was == 0 && is != 0 {
        list.insert(segment_id);
    } else if was != 0 && is == 0 {
        list.remove(&segment_id);
    }
}
