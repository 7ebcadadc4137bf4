//! The end of an owner: its memory is freed a segment at a time, whatever slots are in use.

use super::Arena;

/// Frames that one step gives back to the kernel at most.
const FRAMES: usize = 1024;

impl Arena {
    /// Gives back some of the memory of an owner that was removed: nothing names its slots any more. Returns whether
    /// nothing is left that could be given back.
    pub(crate) fn abandon(&self) -> bool {
        let mut waits = false;
        for (class, cell) in self.classes.iter().enumerate() {
            let mut guard = cell.locked.lock();
            let inner = &mut *guard;
            let Some((segment_id, segment)) = inner.segments.last_key_value() else {
                continue;
            };
            let (segment_id, live) = (*segment_id, segment.live());
            waits = true;
            // One with frames on the way stays until they are there.
            if segment.on_the_way() == 0 {
                cell.gauges.live.sub(live as u64);
                self.close(class, inner, segment_id);
            }
        }
        self.trim(FRAMES) == 0 && !waits
    }
}
