//! Slots that a thread holds while it populates their frames. Slot and frames are chosen and charged under the class's
//! lock, and populated without a lock; no other thread can use them meanwhile.

use std::mem::ManuallyDrop;
use std::sync::atomic::Ordering;

use super::segment::{PackedBackref, Segment, frame_run, runs};
use super::size_class::{class_of, slot_bytes};
use super::{Arena, SizeClass, before_touch, free_slot, ready_slot};
use crate::account::quota::AllocError;
use crate::entry::{Encoding, Slot, SlotId};
use crate::memory::FRAME_BYTES;

/// Frames that a class of `frames` frames takes beyond its need. They are few when the class is small, so that a small
/// guest is charged for little that it does not use, and never many, because a store waits until the kernel has
/// allocated and cleared them. In the bench `store`, `p999_over_p50` was 33 with seven of them, 20 with three and 18
/// with one; with one, half of the stores took 3 % longer, since more of them call the kernel.
fn fault_around(frames: u64) -> u64 {
    (frames / 8).min(3)
}

/// A slot in frames with memory that no entry names yet; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    arena: &'a Arena,
    class: usize,
    id: SlotId,
    /// How many bytes were written to it, and their check.
    written: Option<(u16, u16)>,
}

impl Held<'_> {
    pub(crate) fn is_of(&self, arena: &Arena, class: usize) -> bool {
        std::ptr::eq(self.arena, arena) && self.class == class
    }

    /// Whether it has so many bytes of a page.
    pub(super) fn is_written(&self, arena: &Arena, len: u16) -> bool {
        self.is_of(arena, class_of(len)) && self.written.is_some_and(|(written, _)| written == len)
    }

    pub(crate) fn id(&self) -> SlotId {
        self.id
    }

    fn offset(&self) -> usize {
        usize::from(self.id.index) * slot_bytes(self.class)
    }

    /// Writes a page's bytes to it. The caller holds no lock of the crate, as the host may have swapped the slot out.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        before_touch();
        let memory = &self.arena.memory;
        let check = memory.write(self.id.segment, self.offset(), bytes);
        self.written = Some((bytes.len() as u16, check));
    }

    /// Copies the bytes of a slot of the class to it. `false` when bytes that are lost can not be noted.
    pub(super) fn copy_from(&mut self, slot: Slot) -> bool {
        let from = usize::from(slot.index) * slot_bytes(self.class);
        let copied = self.arena.memory.copy(
            (slot.segment, from),
            (self.id.segment, self.offset()),
            usize::from(slot.len),
        );
        self.written = copied.then_some((slot.len, slot.check));
        copied
    }

    /// The slot is that of `backref` from now on. Returns its id and the check of its bytes.
    pub(super) fn keep(self, backref: PackedBackref) -> (SlotId, u16) {
        let held = ManuallyDrop::new(self);
        let mut inner = held.arena.classes[held.class].locked.lock();
        if let Some(segment) = inner.segments.get_mut(&held.id.segment) {
            segment.set_backref(held.id.index, backref);
        }
        (held.id, held.written.map_or(0, |(_, check)| check))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.arena.free_id(self.class, self.id);
        self.arena.finish_if_ended();
    }
}

/// Frames that a thread begins to get.
struct Filling {
    segment_id: u32,
    frames: u64,
}

impl Arena {
    /// A slot with these bytes (1 to 4096). The caller holds no lock of the crate.
    pub(crate) fn hold_for(&self, bytes: &[u8]) -> Result<Held<'_>, AllocError> {
        let mut held = self.hold(class_of(bytes.len() as u16))?;
        held.write(bytes);
        Ok(held)
    }

    /// Makes the slot that is held, with `len` bytes, that of a backref. [`AllocError::Frames`] when no such slot is.
    pub(crate) fn commit(
        &self,
        len: u16,
        encoding: Encoding,
        backref: PackedBackref,
        held: &mut Option<Held<'_>>,
    ) -> Result<Slot, AllocError> {
        let written = held.take_if(|held| held.is_written(self, len));
        let (id, check) = written.ok_or(AllocError::Frames)?.keep(backref);
        Ok(Slot {
            segment: id.segment,
            index: id.index,
            len,
            encoding,
            check,
        })
    }

    /// A slot of the class in frames with memory, which this gets from the kernel if there is none. The caller holds no
    /// lock of the crate.
    pub(super) fn hold(&self, class: usize) -> Result<Held<'_>, AllocError> {
        let mut fresh = None;
        loop {
            let mut guard = self.classes[class].locked.lock();
            let inner = &mut *guard;
            if let Some(segment_id) = inner.ready.first().copied() {
                let taken = self.take_ready(class, inner, segment_id, 0);
                drop(guard);
                self.discard(class, fresh);
                return taken.map(|id| Held {
                    arena: self,
                    class,
                    id,
                    written: None,
                });
            }
            let mut id = free_slot(inner);
            if id.is_none()
                && let Some((segment_id, segment)) = fresh.take()
            {
                self.insert(class, inner, segment_id, segment);
                id = free_slot(inner);
            }
            let Some(id) = id else {
                drop(guard);
                fresh = Some(self.new_segment(class)?);
                continue;
            };
            let extra = fault_around(self.classes[class].gauges.frames.get());
            let begun = self.begin_filling_for(class, inner, id, extra);
            if begun.is_err() {
                self.close_empty(class, inner, id.segment);
            }
            drop(guard);
            self.discard(class, fresh);
            return self.fill_for(class, id, begun?);
        }
    }

    /// A slot of the class below `limit`: the lowest that is free, if `fill` and there is memory for it; else the lowest
    /// in frames with memory. The caller holds no lock of the crate.
    pub(crate) fn hold_below(&self, class: usize, limit: SlotId, fill: bool) -> Option<Held<'_>> {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let ready = ready_slot(inner).filter(|ready| *ready < limit);
        if fill
            && let Some(free) = free_slot(inner)
            && free < ready.unwrap_or(limit)
            && let Ok(begun) = self.begin_filling_for(class, inner, free, 0)
        {
            drop(guard);
            return self.fill_for(class, free, begun).ok();
        }
        let id = self.take_ready(class, inner, ready?.segment, 0).ok()?;
        Some(Held {
            arena: self,
            class,
            id,
            written: None,
        })
    }

    /// Charges the frames that a slot misses, and for up to `extra` behind them; takes the slot.
    fn begin_filling_for(
        &self,
        class: usize,
        inner: &mut SizeClass,
        id: SlotId,
        extra: u64,
    ) -> Result<Filling, AllocError> {
        let Some(segment) = inner.segments.get_mut(&id.segment) else {
            return Err(AllocError::Frames);
        };
        self.grow(class, segment, id.index)?;
        let missing = segment.missing(id.index);
        let mut frames = segment.run_from(missing, extra);
        // The extra ones are only taken while it is there for the asking.
        match self.charge_frames(frames) {
            Err(AllocError::Short(_)) if frames != missing => {
                self.charge_frames(missing)?;
                frames = missing;
            }
            charged => charged?,
        }
        self.change(class, inner, id.segment, |segment| {
            segment.begin_filling(frames);
            segment.alloc(id.index, 0);
        });
        let gauges = &self.classes[class].gauges;
        gauges.live.add(1);
        self.count_begun(class, frames);
        Ok(Filling {
            segment_id: id.segment,
            frames,
        })
    }

    pub(super) fn charge_frames(&self, frames: u64) -> Result<(), AllocError> {
        self.quota
            .charge(u64::from(frames.count_ones()) * FRAME_BYTES as u64)
    }

    /// Frames that are charged belong to the class, and are on the way.
    pub(super) fn count_begun(&self, class: usize, frames: u64) {
        let count = u64::from(frames.count_ones());
        self.classes[class].gauges.frames.add(count);
        self.on_the_way.fetch_add(count, Ordering::Relaxed);
    }

    /// Gets the frames that were begun for a slot.
    fn fill_for(
        &self,
        class: usize,
        id: SlotId,
        Filling { segment_id, frames }: Filling,
    ) -> Result<Held<'_>, AllocError> {
        let got = self.populate(segment_id, frames);
        if self.end_filling(class, segment_id, (frames, got), Some(id.index)) {
            Ok(Held {
                arena: self,
                class,
                id,
                written: None,
            })
        } else {
            Err(AllocError::NoMemory)
        }
    }

    /// Asks the kernel for frames. Returns those that it gave.
    pub(super) fn populate(&self, segment_id: u32, frames: u64) -> u64 {
        let mut got = 0;
        for (first, count) in runs(frames) {
            if self.memory.populate(segment_id, first, count).is_ok() {
                got |= frame_run(first, count);
            }
        }
        got
    }

    /// Frames that were populated become the segment's, the charge for the others is given back. If a frame of the slot
    /// is missing, the slot is given back as well: `false`.
    pub(super) fn end_filling(
        &self,
        class: usize,
        segment_id: u32,
        (frames, got): (u64, u64),
        slot: Option<u16>,
    ) -> bool {
        let refused = frames & !got;
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let kept = self.change(class, inner, segment_id, |segment| {
            let missing = slot.map_or(0, |slot| segment.missing(slot));
            let kept = missing & refused == 0;
            if let (false, Some(slot)) = (kept, slot) {
                segment.free(slot);
            }
            segment.end_filling(frames, got);
            if let (true, Some(slot)) = (kept, slot) {
                self.request_prefault(class, segment, slot);
            }
            kept
        });
        debug_assert!(kept.is_some(), "a segment went while it was filled");
        let kept = kept == Some(true);
        if !kept && slot.is_some() {
            self.classes[class].gauges.live.sub(1);
        }
        let given = u64::from((frames & got).count_ones());
        self.on_the_way.fetch_sub(given, Ordering::Relaxed);
        self.close_empty(class, inner, segment_id);
        drop(guard);
        if refused != 0 {
            self.expel(class, &[(segment_id, refused)]);
        }
        kept
    }

    /// A segment for the class, which is charged and has an id.
    fn new_segment(&self, class: usize) -> Result<(u32, Box<Segment>), AllocError> {
        let metadata = Segment::base_bytes(class);
        self.quota.charge(metadata)?;
        let opened = self.spare_segment().and_then(|(segment_id, resident)| {
            let mapped = self.memory.map(segment_id).ok();
            let segment = mapped.and_then(|()| Segment::new(class, resident));
            if segment.is_none() {
                self.retire(segment_id, resident);
            }
            Some((segment_id, Box::new(segment?)))
        });
        if opened.is_none() {
            self.quota.uncharge(metadata);
        }
        opened.ok_or(AllocError::NoMemory)
    }

    fn insert(&self, class: usize, inner: &mut SizeClass, segment_id: u32, segment: Box<Segment>) {
        let gauges = &self.classes[class].gauges;
        gauges.metadata.add(segment.metadata_bytes());
        gauges
            .frames
            .add(u64::from(segment.resident().count_ones()));
        // `change` counts what is new: this segment was in no list so far.
        gauges.ready.add(segment.ready());
        if inner.segments.is_empty() {
            self.occupied.fetch_or(1 << class, Ordering::Relaxed);
        }
        inner.segments.insert(segment_id, segment);
        self.change(class, inner, segment_id, |_| ());
    }

    /// Somebody else opened a segment in the meantime, and this one is not needed.
    fn discard(&self, class: usize, fresh: Option<(u32, Box<Segment>)>) {
        if let Some((segment_id, segment)) = fresh {
            self.quota.uncharge(Segment::base_bytes(class));
            self.retire(segment_id, segment.resident());
        }
    }

    /// The thread that ended the owner could not give back the frames that this thread had.
    pub(super) fn finish_if_ended(&self) {
        if self.ended.load(Ordering::Relaxed) {
            while self.trim(usize::MAX) > 0 {}
        }
    }
}
