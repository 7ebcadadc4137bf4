//! Guests that are processes: User Mode Linux with our driver, on one `tmem serve`.
//!
//! | module | holds |
//! |---|---|
//! | [`guest`] | a guest: its console, its end |

pub mod guest;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// For what takes seconds on a machine that has nothing else to do.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Waits until `condition` is true.
///
/// # Errors
/// It did not become true in [`PATIENCE`].
pub fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !condition()? {
        if Instant::now() >= end {
            bail!("not in time: {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
