//! The segments of one owner (a domain, or a share group): slots are taken and given back here.
//!
//! Each size class has its own lock, so that two stores meet only when their pages compress to the
//! same size. Slots are taken lowest address first, so that the high segments empty by themselves and
//! compaction has little to move.

mod ahead;
mod kept;
mod trim;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use trim::Look;

use crate::config::{Gate, Want};
use crate::entry::{Encoding, MAX_SEGMENTS, Slot};
use crate::ledger::{Account, Ledger, Short};
use crate::memory::{FRAME_BYTES, Memory};
use crate::segment::{
    Backref, CLASSES, Segment, class_of, frame_run, slot_bytes, slots_per_segment,
};
use crate::sync::{Counter, Mutex};
use crate::upkeep::Wakes;

/// Frames that a class of `frames` frames takes ahead of its need: few when it is small, so that a small guest pays for
/// little that it does not use, and never many, because whoever stores waits until the kernel has found and
/// cleared them. In the bench `store`, `p999_over_p50` was 33 with seven ahead, 20 with three and 18 with one; with
/// one, half of the stores took 3 % longer, since more of them call the kernel.
fn ahead(frames: u64) -> u64 {
    (frames / 8).min(3)
}

/// Slots given back to a class between two looks at its waste.
const FREES_PER_LOOK: u64 = 64;
/// Waste, in thousandths of a class's frames, for which the background thread is woken.
const WAKE_WASTE: u64 = 20;

/// Why there is no slot or no metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Limit or budget: evicting, trimming or compacting may help.
    Short(Short),
    /// The host has no memory.
    NoMemory,
}

impl From<Short> for Refusal {
    fn from(short: Short) -> Self {
        Refusal::Short(short)
    }
}

/// Pays for memory and asks whether the host grants it.
#[derive(Clone, Debug)]
pub(crate) struct Purse {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) account: Arc<Account>,
    gate: Option<Arc<dyn Gate>>,
    /// The background threads, for when there is something to compact or to get ahead.
    wakes: Arc<Wakes>,
    /// The host may not swap the memory out.
    locked: bool,
}

impl Purse {
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        account: Arc<Account>,
        gate: Option<Arc<dyn Gate>>,
        wakes: Arc<Wakes>,
    ) -> Self {
        Self {
            ledger,
            account,
            gate,
            wakes,
            locked: false,
        }
    }

    /// As it is, or for memory that the host may not swap out.
    pub(crate) fn locked(self, locked: bool) -> Self {
        Self { locked, ..self }
    }

    pub(crate) fn pay(&self, bytes: u64) -> Result<(), Refusal> {
        self.pay_for(bytes, Want::Pages)
    }

    pub(crate) fn pay_for(&self, bytes: u64, want: Want) -> Result<(), Refusal> {
        if bytes == 0 {
            return Ok(());
        }
        self.ledger.charge(&self.account, bytes)?;
        if self
            .gate
            .as_ref()
            .is_some_and(|gate| !gate.allow(bytes, want))
        {
            self.ledger.release(&self.account, bytes);
            return Err(Refusal::Short(Short::Host));
        }
        Ok(())
    }

    /// Gives back what was paid for frames that the kernel has again.
    fn give_back(&self, bytes: u64) {
        self.refund(bytes);
        if let Some(gate) = &self.gate {
            gate.returned(bytes);
        }
    }

    pub(crate) fn refund(&self, bytes: u64) {
        self.ledger.release(&self.account, bytes);
    }
}

/// The slots of one owner.
#[derive(Debug)]
pub(crate) struct Space {
    memory: Memory,
    purse: Purse,
    classes: Box<[ClassCell]>,
    spare: Mutex<Spare>,
    /// Frames of retired segments. Written under the lock of `spare`.
    retired_frames: Counter,
    /// Of those, what the background may still give back. Written by whoever looks.
    retired_allowed: Counter,
    /// Bit per size class that wants frames ahead.
    wanting: AtomicU64,
    /// The owner is gone: no frames are taken ahead.
    ended: AtomicBool,
    /// The background leaves the owner's reserve alone.
    kept: AtomicBool,
}

/// A size class, its lock and its gauges, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ClassCell {
    locked: Mutex<SizeClass>,
    gauges: Gauges,
    look: Look,
}

/// What a size class holds, for statistics. Written under the class's lock.
#[derive(Debug, Default)]
struct Gauges {
    frames: Counter,
    metadata: Counter,
    live: Counter,
    frees: Counter,
}

/// The segments of one size class.
#[derive(Debug, Default)]
struct SizeClass {
    segments: BTreeMap<u32, Box<Segment>>,
    /// Segments with a free slot.
    open: BTreeSet<u32>,
    /// Where the next victim is looked for.
    hand: (u32, u16),
}

/// Segments of no class.
#[derive(Debug, Default)]
struct Spare {
    /// Numbers below this were used before.
    next: u32,
    /// Without memory.
    numbers: Vec<u32>,
    /// With frames that are still charged.
    retired: Vec<(u32, u64)>,
}

/// Sums over an owner's segments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpaceUse {
    /// Bytes of frames with memory.
    pub(crate) frames: u64,
    /// Bytes of bookkeeping per segment.
    pub(crate) metadata: u64,
    /// Bytes of slots in use.
    pub(crate) slots: u64,
}

/// A slot in use, and who holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Movable {
    pub(crate) slot: (u32, u16),
    pub(crate) backref: Backref,
}

impl Space {
    pub(crate) fn new(name: &str, purse: Purse) -> io::Result<Self> {
        Ok(Self {
            memory: Memory::new(name)?.locked(purse.locked),
            purse,
            classes: (0..CLASSES).map(|_| ClassCell::default()).collect(),
            spare: Mutex::default(),
            retired_frames: Counter::default(),
            retired_allowed: Counter::default(),
            wanting: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            kept: AtomicBool::new(false),
        })
    }

    pub(crate) fn purse(&self) -> &Purse {
        &self.purse
    }

    /// Takes a slot and writes `bytes` (1 to 4096) to it.
    pub(crate) fn place(
        &self,
        bytes: &[u8],
        encoding: Encoding,
        backref: Backref,
    ) -> Result<Slot, Refusal> {
        let len = bytes.len() as u16;
        let class = class_of(len);
        let (segment, number) = self.take(class, backref)?;
        let offset = usize::from(number) * slot_bytes(class);
        let check = self.memory.write(segment, offset, bytes);
        Ok(Slot {
            segment,
            number,
            len,
            encoding,
            check,
        })
    }

    /// Copies a slot's bytes out. `false` when they are not those that were written.
    pub(crate) fn fetch(&self, slot: Slot, bytes: &mut [u8]) -> bool {
        let offset = usize::from(slot.number) * slot_bytes(class_of(slot.len));
        self.memory
            .read(slot.segment, offset, &mut bytes[..usize::from(slot.len)])
            == slot.check
    }

    fn take(&self, class: usize, backref: Backref) -> Result<(u32, u16), Refusal> {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let number = match inner.open.first() {
            Some(number) => *number,
            None => self.open_segment(class, inner)?,
        };
        let taken = self.take_from(class, inner, number, backref, false);
        if taken.is_err() && inner.segments.get(&number).is_some_and(|s| s.live() == 0) {
            self.close_segment(class, inner, number);
        }
        match taken {
            Err(Refusal::Short(short)) => {
                // No new frame is granted; a few segments may have room in the frames they have.
                let open: [u32; 4] = {
                    let mut numbers = inner.open.iter().copied();
                    std::array::from_fn(|_| numbers.next().unwrap_or(u32::MAX))
                };
                for number in open {
                    if inner.segments.contains_key(&number)
                        && let Ok(taken) = self.take_from(class, inner, number, backref, true)
                    {
                        return Ok(taken);
                    }
                }
                Err(Refusal::Short(short))
            }
            other => other,
        }
    }

    fn take_from(
        &self,
        class: usize,
        inner: &mut SizeClass,
        number: u32,
        backref: Backref,
        resident_only: bool,
    ) -> Result<(u32, u16), Refusal> {
        let none = Refusal::Short(Short::Limit);
        let segment = inner.segments.get_mut(&number).ok_or(none)?;
        let slot = segment.find(resident_only).ok_or(none)?;
        let gauges = &self.classes[class].gauges;

        let growth = segment.growth(slot);
        if growth > 0 {
            self.purse.pay(growth)?;
            if !segment.grow(slot) {
                self.purse.refund(growth);
                return Err(Refusal::NoMemory);
            }
            gauges.metadata.add(growth);
        }
        let missing = segment.missing(slot);
        if missing != 0 {
            let paid = segment.filling;
            let wanted = segment.run_from(missing, ahead(gauges.frames.get()));
            // What is taken ahead is only taken while it is there for the asking.
            let got = match self.populate(number, wanted, paid) {
                Err(Refusal::Short(_)) if wanted != missing => {
                    self.populate(number, missing, paid)?;
                    missing
                }
                other => other.map(|()| wanted)?,
            };
            segment.resident |= got;
            gauges.frames.add(u64::from((got & !paid).count_ones()));
        }
        segment.take(slot, backref);
        gauges.live.add(1);
        self.look_ahead(class, segment, slot);
        if segment.is_full() {
            inner.open.remove(&number);
        }
        Ok((number, slot))
    }

    /// Pays for frames, except for those that are paid, and gets them from the kernel.
    fn populate(&self, segment: u32, frames: u64, paid: u64) -> Result<(), Refusal> {
        let unpaid = frames & !paid;
        let bytes = u64::from(unpaid.count_ones()) * FRAME_BYTES as u64;
        self.purse.pay(bytes)?;
        for (first, count) in runs(frames) {
            if self.memory.populate(segment, first, count).is_err() {
                for (first, count) in runs(unpaid) {
                    let _ = self.memory.punch(segment, first, count);
                }
                self.purse.refund(bytes);
                return Err(Refusal::NoMemory);
            }
        }
        Ok(())
    }

    fn open_segment(&self, class: usize, inner: &mut SizeClass) -> Result<u32, Refusal> {
        let metadata = Segment::base_bytes(class);
        self.purse.pay(metadata)?;
        let taken = self.spare_segment();
        let opened = taken.and_then(|(number, resident)| {
            match self
                .memory
                .map(number)
                .ok()
                .and_then(|()| Segment::new(class, resident))
            {
                Some(segment) => Some((number, segment)),
                None => {
                    self.retire(number, resident);
                    None
                }
            }
        });
        let Some((number, segment)) = opened else {
            self.purse.refund(metadata);
            return Err(Refusal::NoMemory);
        };
        let gauges = &self.classes[class].gauges;
        gauges.metadata.add(metadata);
        gauges.frames.add(u64::from(segment.resident.count_ones()));
        inner.segments.insert(number, Box::new(segment));
        inner.open.insert(number);
        Ok(number)
    }

    fn spare_segment(&self) -> Option<(u32, u64)> {
        let mut spare = self.spare.lock();
        if let Some((number, resident)) = spare.retired.pop() {
            self.retired_frames.sub(u64::from(resident.count_ones()));
            return Some((number, resident));
        }
        if let Some(number) = spare.numbers.pop() {
            return Some((number, 0));
        }
        if spare.next == MAX_SEGMENTS {
            return None;
        }
        spare.next += 1;
        Some((spare.next - 1, 0))
    }

    fn retire(&self, number: u32, resident: u64) {
        let mut spare = self.spare.lock();
        if resident == 0 {
            spare.numbers.push(number);
        } else {
            self.retired_frames.add(u64::from(resident.count_ones()));
            spare.retired.push((number, resident));
            drop(spare);
            self.purse.wakes.upkeep.ask();
        }
    }

    /// Gives a slot back. Its frames stay charged until [`Space::trim`].
    pub(crate) fn free(&self, slot: Slot) {
        self.give(class_of(slot.len), slot.segment, slot.number);
    }

    fn give(&self, class: usize, number: u32, slot: u16) {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let Some(segment) = inner.segments.get_mut(&number) else {
            debug_assert!(false, "slot of an unknown segment given back");
            return;
        };
        let was_full = segment.is_full();
        if !segment.give(slot) {
            debug_assert!(false, "slot given back twice");
            return;
        }
        self.classes[class].gauges.live.sub(1);
        if segment.live() == 0 {
            self.close_segment(class, inner, number);
        } else if was_full {
            inner.open.insert(number);
        }
        let frees = &self.classes[class].gauges.frees;
        frees.add(1);
        if frees.get().is_multiple_of(FREES_PER_LOOK) && self.is_sparse(class, WAKE_WASTE) {
            self.purse.wakes.upkeep.ask();
        }
    }

    fn close_segment(&self, class: usize, inner: &mut SizeClass, number: u32) {
        if inner.segments.get(&number).is_some_and(|s| s.filling != 0) {
            // Whoever fills it closes it.
            return;
        }
        inner.open.remove(&number);
        let Some(segment) = inner.segments.remove(&number) else {
            return;
        };
        let gauges = &self.classes[class].gauges;
        let metadata = segment.metadata_bytes();
        gauges.metadata.sub(metadata);
        gauges.frames.sub(u64::from(segment.resident.count_ones()));
        let resident = segment.resident;
        drop(segment);
        self.purse.refund(metadata);
        self.retire(number, resident);
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

    /// No frames are taken ahead from now on, and whoever is at it in a class is done or knows.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        for cell in &self.classes {
            drop(cell.locked.lock());
        }
    }

    /// The slot at the highest address of the class, if a slot at a lower one is free.
    pub(crate) fn movable(&self, class: usize) -> Option<Movable> {
        let inner = self.classes[class].locked.lock();
        let (number, segment) = inner.segments.last_key_value()?;
        let (slot, backref) = segment.highest()?;
        let lowest = *inner.open.first()?;
        if lowest == *number && segment.live() == usize::from(slot) + 1 {
            return None;
        }
        Some(Movable {
            slot: (*number, slot),
            backref,
        })
    }

    /// A slot in use of the class: all of them in turn.
    pub(crate) fn next_victim(&self, class: usize) -> Option<Movable> {
        let mut guard = self.classes[class].locked.lock();
        let inner = &mut *guard;
        let (number, from) = inner.hand;
        let here = inner.segments.range(number..=number);
        let behind = inner.segments.range(number.saturating_add(1)..);
        let around = inner.segments.range(..=number);
        let (number, (slot, backref)) = here
            .filter_map(|(number, segment)| Some((*number, segment.next_used(from)?)))
            .chain(
                behind
                    .chain(around)
                    .filter_map(|(number, segment)| Some((*number, segment.next_used(0)?))),
            )
            .next()?;
        inner.hand = (number, slot + 1);
        Some(Movable {
            slot: (number, slot),
            backref,
        })
    }

    /// Copies a slot to the lowest free place of its class, if that is lower. The caller holds the
    /// lock of the entry that names the slot, changes the entry, and frees the old slot.
    pub(crate) fn relocate(&self, slot: Slot, backref: Backref) -> Option<Slot> {
        let class = class_of(slot.len);
        let (segment, number) = self.take(class, backref).ok()?;
        if (segment, number) >= (slot.segment, slot.number) {
            self.give(class, segment, number);
            return None;
        }
        let bytes = slot_bytes(class);
        let copied = self.memory.copy(
            (slot.segment, usize::from(slot.number) * bytes),
            (segment, usize::from(number) * bytes),
            usize::from(slot.len),
        );
        if !copied {
            self.give(class, segment, number);
            return None;
        }
        Some(Slot {
            segment,
            number,
            ..slot
        })
    }

    /// Sums for statistics.
    pub(crate) fn usage(&self) -> SpaceUse {
        let mut usage = SpaceUse {
            frames: self.retired_frames.get() * FRAME_BYTES as u64,
            ..SpaceUse::default()
        };
        for (class, ClassCell { gauges, .. }) in self.classes.iter().enumerate() {
            usage.frames += gauges.frames.get() * FRAME_BYTES as u64;
            usage.metadata += gauges.metadata.get();
            usage.slots += gauges.live.get() * slot_bytes(class) as u64;
        }
        usage
    }
}

impl Drop for Space {
    /// The memory goes as a whole, and with it all that was charged for it.
    fn drop(&mut self) {
        let usage = self.usage();
        self.purse.refund(usage.frames + usage.metadata);
    }
}

/// The runs of set bits: first bit and length.
fn runs(mut bits: u64) -> impl Iterator<Item = (usize, usize)> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let first = bits.trailing_zeros() as usize;
        let count = (!(bits >> first)).trailing_zeros() as usize;
        bits &= !frame_run(first, count);
        Some((first, count))
    })
}
