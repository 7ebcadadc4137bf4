//! Starts what a [`Config`] describes and waits for its end.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use tmem_control::stats::Service;
use tmem_control::{Live, Server, Source, Stats};
use tmem_device::{TmemConfig, TmemDevice};
use tmem_store::{DomainConfig, Gate, Store, StoreConfig};
use tmem_vmm::virtio::VirtioDevice;
use tmem_vmm::virtio::block::{Block, Disk};
use tmem_vmm::virtio::tmem::Tmem;
use tmem_vmm::virtio::vhost_user::{Patience, VhostUser};
use tmem_vmm::{ExitReason, Signals, Vm, VmConfig};

use super::Config;
use crate::host_memory::HostMemory;
use crate::host_memory::figures::Figures;

/// The only domain of this process.
const DOMAIN: &str = "guest";
/// Size suggested for the guest's swap disk, in budgets: pages that compress to half of their size fill both. What
/// does not fit is refused.
const SWAP_FACTOR: u64 = 2;

/// Runs the guest and returns how it ended.
pub(super) fn start(config: &Config) -> Result<ExitReason, Box<dyn Error>> {
    // Before there is anything to leave behind.
    let signals = Signals::new()?;
    // Dropped after the store that asks it.
    let mut memory = None;
    let mut devices: Vec<Arc<dyn VirtioDevice>> = Vec::new();
    let mut source: Arc<dyn Source> = Arc::new(NoStore);
    // The console and the store's memory are files. One that meets its limit is an error there.
    tmem_serve::signals::ignore_file_size_limit();
    if config.tmem > 0 {
        let figures = Figures::open();
        crate::limits::warn(config.tmem, &figures);
        let watched = memory.insert(HostMemory::watch(figures, || ())?);
        let (device, live) = tmem(config, watched.gate())?;
        devices.push(device);
        source = live;
    }
    if let Some(socket) = &config.tmem_socket {
        let device = Arc::new(VhostUser::connect(socket, Patience::default())?);
        devices.push(Arc::clone(&device) as Arc<dyn VirtioDevice>);
        source = Arc::new(AtService {
            device,
            started: Instant::now(),
        });
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let disk = Disk::open(&disk.path, disk.read_only)?;
        devices.push(Arc::new(Block::new(disk, &format!("tmem-disk{index}"))?));
    }
    // Dropped last: it removes the socket.
    let _server = config
        .control
        .as_ref()
        .map(|path| Server::start(path, source))
        .transpose()?;
    let vm = Vm::new(
        &VmConfig {
            kernel: config.kernel.clone(),
            initrd: Some(config.initrd.clone()),
            cmdline: config.cmdline.clone(),
            cpus: config.cpus,
            memory: config.memory,
            console: config.console.clone(),
            grace: config.grace,
        },
        devices,
    )?;
    Ok(vm.run(&signals)?)
}

/// The store with its one domain, and the device in front of it: a request queue for each vCPU.
fn tmem(config: &Config, gate: Arc<dyn Gate>) -> Result<(Arc<Tmem>, Arc<Live>), Box<dyn Error>> {
    let store = Store::new(StoreConfig {
        budget: config.tmem,
        gate: Some(gate),
        ..StoreConfig::default()
    })?;
    let domain = store.add_domain(DOMAIN, DomainConfig::default())?;
    let request_queues = u16::from(config.cpus);
    let device = TmemConfig {
        request_queues,
        limit_bytes: config.tmem,
        swap_bytes: config.tmem.saturating_mul(SWAP_FACTOR),
        ..TmemConfig::default()
    };
    let device = Arc::new(TmemDevice::new(domain, device));
    let live = Arc::new(Live::new(store));
    live.connect(DOMAIN, Arc::clone(&device));
    Ok((Arc::new(Tmem::new(device, request_queues)), live))
}

/// The statistics of a guest without tmem.
struct NoStore;

impl Source for NoStore {
    fn stats(&self) -> Stats {
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Stats::default()
        }
    }
}

/// The statistics of a guest whose pages are at a service: what the front end knows.
struct AtService {
    device: Arc<VhostUser>,
    started: Instant,
}

impl Source for AtService {
    fn stats(&self) -> Stats {
        let figures = self.device.figures();
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            service: Some(Service {
                socket: figures.socket.display().to_string(),
                connected: figures.connected,
                connections: figures.connections,
                activations: figures.activations,
                faults: figures.faults,
                interrupts: figures.interrupts,
                doorbell_exits: figures.doorbell_exits,
            }),
            ..Stats::default()
        }
    }
}
