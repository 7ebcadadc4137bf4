//! How long each step with the service may take.

use std::time::Duration;

/// How long the service may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// From the start of `tmem run` until the device is known.
    pub connect: Duration,
    /// From DRIVER_OK until the rings are served; then the device needs a reset.
    pub start: Duration,
    /// For the confirmation that nothing is served any more: as long does a vCPU wait in its reset. A service that
    /// confirms later is heard too.
    pub stop: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            start: Duration::from_secs(10),
            stop: Duration::from_secs(1),
        }
    }
}
