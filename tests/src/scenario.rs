//! The scenarios, by name: each starts guests and holds one promise against what they and the host say. Those of
//! [`run`] need KVM, and run wherever that is usable: on this machine, or in an outer one. Those of [`run_on`] are
//! about the driver and the store, whatever the guest runs on.

mod data;
mod failure;
mod host;
mod paths;
mod service;

use anyhow::{Result, bail};

use crate::guest::Machine;

/// Runs any scenario on KVM.
pub fn run(name: &str) -> Result<()> {
    match name {
        "first-page" => data::first_page(),
        "two-cpus" => data::two_cpus(),
        "compressed-kernel" => data::compressed_kernel(),
        "swapoff" => data::swapoff(),
        "exits" => paths::exits(),
        "figures" => host::figures(),
        "clients" => host::clients(),
        "idle" => host::idle(),
        "terminate" => host::terminate(),
        "terminal" => host::terminal(),
        "sleep" => failure::sleep(),
        "service-hangs" => failure::hangs(),
        "two-guests" => service::two_guests(),
        "service-dies" => service::dies(),
        "service-cost" => service::cost(),
        _ => run_on(Machine::Kvm, name),
    }
}

/// Runs a scenario that needs no KVM.
pub fn run_on(machine: Machine, name: &str) -> Result<()> {
    match name {
        "every-kind-of-page" => data::every_kind_of_page(machine),
        "fork" => data::fork(machine),
        "limit" => data::limit(machine),
        "wrong-byte" => data::wrong_byte(machine),
        "frontswap-alone" => paths::frontswap_alone(machine),
        "block-alone" => paths::block_alone(machine),
        "off" => paths::off(machine),
        "zswap" => paths::zswap(machine),
        _ => bail!("there is no scenario {name:?}"),
    }
}
