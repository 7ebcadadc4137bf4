//! Interrupts that a guest took, as its `/proc/interrupts` counts them. The driver's own counter is not enough: an
//! interrupt that finds nothing in the used ring ends before the driver's callback.

use anyhow::{Context, Result, ensure};

use crate::console::Console;

/// Interrupts of all virtio devices up to a moment, which the guest named by `irqs MOMENT`.
///
/// # Errors
/// The console has no such lines, or they are not understood.
pub fn taken(console: &Console, moment: &str) -> Result<u64> {
    let prefix = format!("irq {moment} ");
    let mut lines = 0;
    let mut sum = 0u64;
    for line in console.lines() {
        let Some(line) = line.strip_prefix(&prefix) else {
            continue;
        };
        // Its number, a count for each processor, then names.
        let counts: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .map_while(|word| word.parse().ok())
            .collect();
        ensure!(!counts.is_empty(), "no count in {line:?}");
        sum += counts.iter().sum::<u64>();
        lines += 1;
    }
    (lines > 0)
        .then_some(sum)
        .with_context(|| format!("no virtio device in /proc/interrupts {moment}"))
}
