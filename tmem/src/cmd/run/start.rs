//! Starts what a [`Config`] describes and waits for its end.

use std::convert::Infallible;
use std::error::Error;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use rustix::fs::Mode;
use tmem_base::socket::SocketFile;
use tmem_control::{Role, Server, Source};
use tmem_device::{FileDisk, StoreQueues, TmemConfig, TmemDevice};
use tmem_serve::listen::{ListenError, listen_for};
use tmem_store::{DomainConfig, Store, StoreConfig};
use tmem_vmm::virtio::VirtioDevice;
use tmem_vmm::virtio::block::Block;
use tmem_vmm::virtio::tmem::Tmem;
use tmem_vmm::virtio::vhost_user::{Timeouts, VhostUser};
use tmem_vmm::{Signals, Vm, VmConfig};

use super::config::Config;
use crate::host_memory::memory_info::MemoryInfo;
use crate::host_memory::{HostMemory, Relief};
use crate::source::inline::Inline;
use crate::source::none::NoStore;
use crate::source::remote::AtService;
use crate::source::store::OwnStore;

/// The only domain of this process.
const DOMAIN: &str = "guest";
/// Size suggested for the guest's swap disk, in budgets: pages that compress to half of their size fill both. Pages
/// that do not fit are refused.
const SWAP_FACTOR: u64 = 2;

/// Pages that the guest should have in one store: few where a vCPU compresses them in its exit, in which it gets no timer
/// interrupt. 8 pages take about 70 us.
const BATCH_IN_EXIT: u16 = 8;
/// The same where a thread does.
const BATCH_OF_THREAD: u16 = 16;

/// Runs the guest, and ends the process with it; returns only what kept the guest from running.
pub(super) fn start(config: &Config) -> Result<Infallible, Box<dyn Error>> {
    // Before there is anything to leave behind.
    let signals = Signals::new()?;
    let statistics_socket = statistics_socket(config)?;
    // Dropped after the store that asks it.
    let mut memory = None;
    let mut devices: Vec<Arc<dyn VirtioDevice>> = Vec::new();
    let mut source: Arc<dyn Source> = Arc::new(NoStore);
    // The console and the store's memory are files. One that meets its limit is an error there.
    tmem_serve::signals::ignore_file_size_limit();
    if config.tmem > 0 {
        tmem_serve::signals::survive_bad_memory();
        let memory_info = MemoryInfo::open();
        memory_info.leave(config.host_reserve);
        crate::limits::warn(config.tmem, &memory_info);
        let watched = memory.insert(Arc::new(HostMemory::watch(memory_info, || ())?));
        let (transport, inline) = device(config, store(config, watched)?, watched)?;
        devices.push(transport);
        source = Arc::new(inline);
    }
    if let Some(socket) = &config.tmem_socket {
        let device = Arc::new(VhostUser::connect(socket, Timeouts::default())?);
        devices.push(Arc::clone(&device) as Arc<dyn VirtioDevice>);
        source = Arc::new(AtService::new(device));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        let disk = FileDisk::open(&disk.path, disk.read_only)?;
        devices.push(Arc::new(Block::new(disk, &format!("tmem-disk{index}"))?));
    }
    let (listener, statistics_file) = statistics_socket.unzip();
    let monitor = listener
        .map(|listener| Server::start_as(Role::Monitor, listener, Arc::clone(&source), || {}))
        .transpose()?;
    let server = config
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
    let reason = vm.run(&signals)?;
    // They remove the sockets. Only memory is left, which the kernel frees faster than a walk over the pages.
    drop(server);
    drop(monitor);
    drop(statistics_file);
    super::end::end(reason)
}

/// The statistics socket, with the mode that was asked for whatever the umask: while there is one thread only.
fn statistics_socket(config: &Config) -> Result<Option<(UnixListener, SocketFile)>, ListenError> {
    let Some(path) = &config.statistics else {
        return Ok(None);
    };
    let umask = rustix::process::umask(Mode::empty());
    let socket = listen_for(
        path,
        config.statistics_access,
        crate::cmd::statistics::BACKLOG,
    );
    rustix::process::umask(umask);
    socket.map(Some)
}

/// The store of the process.
fn store(config: &Config, memory: &HostMemory) -> Result<Store, tmem_store::ConfigError> {
    Store::new(StoreConfig {
        budget: config.tmem,
        gate: Some(memory.gate()),
        locked: config.mlock,
        ..StoreConfig::default()
    })
}

/// Threads that serve store queues, where the user did not say: one, if it does not take a processor from the vCPUs.
/// `processors` are those that this process may use, which its affinity and its control group limit.
fn store_threads(processors: usize, cpus: u8) -> u16 {
    u16::from(processors > usize::from(cpus))
}

/// The one domain of the store with a device in front of it, a load queue and a store queue for each vCPU; and what
/// reports on both.
fn device(
    config: &Config,
    store: Store,
    memory: &Arc<HostMemory>,
) -> Result<(Arc<Tmem>, Inline), Box<dyn Error>> {
    let domain = store.add_domain(DOMAIN, DomainConfig::default())?;
    let cpus = u16::from(config.cpus);
    let store_threads = config.store_threads.unwrap_or_else(|| {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        store_threads(processors, config.cpus)
    });
    let batch = match store_threads {
        0 => BATCH_IN_EXIT,
        _ => BATCH_OF_THREAD,
    };
    let device = TmemConfig {
        request_queues: cpus.saturating_mul(2),
        stores: StoreQueues { count: cpus, batch },
        limit_bytes: config.tmem,
        swap_bytes: config.tmem.saturating_mul(SWAP_FACTOR),
        ..TmemConfig::default()
    };
    let device = Arc::new(TmemDevice::new(domain, device));
    memory.relieve(Guest {
        store: store.clone(),
        device: Arc::clone(&device),
    });
    let store = OwnStore::new(store);
    store.connect(DOMAIN, Arc::clone(&device));
    Ok((
        Arc::new(Tmem::new(device, store_threads)?),
        Inline::new(store, memory),
    ))
}

/// The guest, for a host that is short of memory. It gets the event with its next answer.
struct Guest {
    store: Store,
    device: Arc<TmemDevice>,
}

impl Relief for Guest {
    fn has_any(&self) -> bool {
        self.store.is_freeable()
    }

    fn shrink(&self) -> bool {
        self.store.shrink()
    }

    fn announce(&self, short: bool) -> bool {
        self.device.note_host(short);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tmem_protocol::Pressure;
    use tmem_store::{ObjectId, PoolSpec, StoreError};

    use super::*;

    /// A machine of 256 MiB with so much available.
    fn machine(dir: &tempfile::TempDir, available_kib: u64) -> std::path::PathBuf {
        let path = dir.path().join("meminfo");
        let text = format!("MemTotal: 262144 kB\nMemAvailable: {available_kib:>8} kB\n");
        std::fs::write(&path, text).expect("writes");
        path
    }

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_guest_of_a_host_without_memory_is_refused_and_hears_of_it_and_goes_on_when_there_is_some()
    {
        let config = Config {
            tmem: 64 << 20,
            cpus: 1,
            ..Config::default()
        };
        let dir = tempfile::tempdir().expect("temporary folder");
        let memory_info = MemoryInfo::open_in(&machine(&dir, 8 << 10), "", dir.path());
        let memory = HostMemory::watch(memory_info, || ()).expect("starts");
        let memory = Arc::new(memory);
        let store = store(&config, &memory).expect("a store");
        let (transport, inline) = device(&config, store.clone(), &memory).expect("a device");
        let domain = store.domain(DOMAIN).expect("is there");
        let pool = domain.create_pool(PoolSpec::Persistent).expect("a pool");
        // Not one word over and over, which would need no memory of its own.
        let page = std::array::from_fn(|at| u8::try_from(at % 251).expect("small"));
        let put = |index| domain.store(pool, ObjectId([0; 3]), index, &page);
        assert_eq!(put(0), Err(StoreError::NoMemory));
        let pressure = || {
            let mut config = [0; size_of::<tmem_protocol::Config>()];
            transport.read_config(0, &mut config);
            let config: tmem_protocol::Config = zerocopy::transmute!(config);
            config.pressure.get()
        };
        eventually("told", || pressure() == Pressure::Some as u32);
        let host = inline.stats().host.expect("is watched");
        assert_eq!(
            (host.available, host.floor, host.short),
            (8 << 20, 8 << 20, true)
        );
        assert!(host.refusals > 0);
        machine(&dir, 64 << 10);
        eventually("accepted", || put(1).is_ok());
        eventually("told", || pressure() == Pressure::None as u32);
        let mut back = [0; 4096];
        domain
            .load(pool, ObjectId([0; 3]), 1, &mut back)
            .expect("is there");
        assert_eq!(back, page);
    }

    #[test]
    fn a_thread_takes_stores_where_it_has_a_processor_of_its_own() {
        assert_eq!(
            [1, 2, 3, 8].map(|have| store_threads(have, 2)),
            [0, 0, 1, 1]
        );
    }

    #[test]
    fn a_machine_has_two_queues_for_each_cpu_and_larger_stores_where_a_thread_takes_them() {
        for (threads, batch) in [(0, 8), (2, 16)] {
            let config = Config {
                tmem: 64 << 20,
                cpus: 2,
                store_threads: Some(threads),
                ..Config::default()
            };
            let memory = HostMemory::watch(MemoryInfo::open(), || ()).expect("starts");
            let memory = Arc::new(memory);
            let store = store(&config, &memory).expect("a store");
            let (transport, _inline) = device(&config, store, &memory).expect("a device");
            let mut shown = [0; size_of::<tmem_protocol::Config>()];
            transport.read_config(0, &mut shown);
            let shown: tmem_protocol::Config = zerocopy::transmute!(shown);
            let queues = (shown.num_request_queues.get(), shown.num_store_queues.get());
            assert_eq!(queues, (4, 2));
            assert_eq!(shown.store_batch.get(), batch);
            assert_eq!(transport.doorbell(3).is_some(), threads > 0);
        }
    }

    #[test]
    fn the_statistics_socket_has_its_mode_and_shows_all_and_changes_nothing() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("statistics");
        let config = Config {
            statistics: Some(path.clone()),
            statistics_access: tmem_serve::Access::new(Some(0o664), None),
            ..Config::default()
        };
        let umask = rustix::process::umask(Mode::from_raw_mode(0o077));
        let (listener, file) = statistics_socket(&config)
            .expect("listens")
            .expect("a socket");
        let after = rustix::process::umask(umask);
        assert_eq!(
            after,
            Mode::from_raw_mode(0o077),
            "files are made as before"
        );
        let mode = path.symlink_metadata().expect("is there").mode();
        assert_eq!(mode & 0o7777, 0o664);
        let source: Arc<dyn Source> = Arc::new(NoStore);
        let server = Server::start_as(Role::Monitor, listener, source, || {}).expect("starts");
        let client = tmem_control::Client::new(&path);
        assert_eq!(
            client.stats().expect("answers").version,
            env!("CARGO_PKG_VERSION")
        );
        let refused = client.remove_guest("vm1").expect_err("changes something");
        assert!(refused.to_string().contains("403"), "{refused}");
        drop((server, file));
        assert!(!path.exists());
        let none = statistics_socket(&Config::default()).expect("nothing to do");
        assert!(none.is_none());
    }
}
