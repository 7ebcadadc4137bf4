//! Guests that are processes: User Mode Linux with our driver, on one `tmem serve`.
//!
//! | module | holds |
//! |---|---|
//! | [`guest`] | a guest: its console, its end |

pub mod guest;

use anyhow::Result;

use crate::process;
pub use crate::process::PATIENCE;
pub use guest::eventually_with;

/// Waits until `condition` is true, whatever guests do meanwhile.
///
/// # Errors
/// It did not become true in [`PATIENCE`].
pub fn eventually(what: &str, condition: impl FnMut() -> Result<bool>) -> Result<()> {
    process::eventually(&mut [], what, condition)
}
