//! Starts what a [`Config`] describes and waits for its end.

use std::error::Error;
use std::sync::Arc;

use tmem_vmm::virtio::VirtioDevice;
use tmem_vmm::virtio::block::{Block, Disk};
use tmem_vmm::{ExitReason, Vm, VmConfig};

use super::Config;

/// What shells report for a process that a signal ended.
const SIGNAL_BASE: i32 = 128;

/// Runs the guest and returns the exit code of the process.
pub(super) fn start(config: &Config) -> Result<u8, Box<dyn Error>> {
    let mut devices: Vec<Arc<dyn VirtioDevice>> = Vec::new();
    for (index, disk) in config.disks.iter().enumerate() {
        let disk = Disk::open(&disk.path, disk.read_only)?;
        devices.push(Arc::new(Block::new(disk, &format!("tmem-disk{index}"))?));
    }
    let vm = Vm::new(
        &VmConfig {
            kernel: config.kernel.clone(),
            initrd: Some(config.initrd.clone()),
            cmdline: config.cmdline.clone(),
            cpus: config.cpus,
            memory: config.memory,
        },
        devices,
    )?;
    Ok(exit_code(vm.run()?))
}

fn exit_code(reason: ExitReason) -> u8 {
    match reason {
        ExitReason::Signal(signal) => u8::try_from(SIGNAL_BASE + signal).unwrap_or(1),
        ExitReason::TripleFault => {
            log::warn!("the guest ended with a triple fault");
            0
        }
        _ => 0,
    }
}
