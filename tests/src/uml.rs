//! Guests that are processes: User Mode Linux with our driver, on one `tmem serve`.
//!
//! | module | holds |
//! |---|---|
//! | [`guest`] | a guest: its console, its end |

pub mod guest;

use anyhow::Result;

pub use crate::process::PATIENCE;
use crate::process::{self, Process};

/// Waits until `condition` is true, whatever guests do meanwhile.
///
/// # Errors
/// It did not become true in [`PATIENCE`].
pub fn eventually(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    process::eventually(&mut [], what, condition)
}

/// Waits until `condition` is true, and for no guest that has ended. It takes what time it needs as long as one of the
/// guests says something new.
///
/// # Errors
/// One of the guests ended before, or all said nothing new for [`PATIENCE`].
pub fn eventually_with(
    guests: &mut [&mut guest::Guest],
    what: &str,
    condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let mut processes: Vec<&mut Process> =
        guests.iter_mut().map(|guest| &mut guest.process).collect();
    process::eventually(&mut processes, what, condition)
}
