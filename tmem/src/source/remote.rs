//! The source of a guest whose pages are at a service.

use std::sync::Arc;
use std::time::Instant;

use tmem_control::api::Service;
use tmem_control::{Source, Stats};
use tmem_vmm::virtio::vhost_user::VhostUser;

/// The statistics of a guest whose pages are at a service: what the front end knows.
pub(crate) struct AtService {
    device: Arc<VhostUser>,
    started: Instant,
}

impl AtService {
    /// Reports on this connection, from now on.
    pub(crate) fn new(device: Arc<VhostUser>) -> Self {
        Self {
            device,
            started: Instant::now(),
        }
    }
}

impl Source for AtService {
    fn stats(&self) -> Stats {
        let stats = self.device.stats();
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            service: Some(Service {
                socket: stats.socket.display().to_string(),
                connected: stats.connected,
                connections: stats.connections,
                activations: stats.activations,
                faults: stats.faults,
                interrupts: stats.interrupts,
                doorbell_exits: stats.doorbell_exits,
            }),
            ..Stats::default()
        }
    }
}
