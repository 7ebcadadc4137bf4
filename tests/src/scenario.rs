//! The scenarios, by name: each starts guests with `tmem run` and holds one promise against what they and the
//! host say. They run wherever KVM is usable: on this machine, or in an outer one.

mod data;
mod failure;
mod host;
mod paths;
mod service;

use anyhow::{Result, bail};

/// Runs one scenario.
pub fn run(name: &str) -> Result<()> {
    match name {
        "first-page" => data::first_page(),
        "every-kind-of-page" => data::every_kind_of_page(),
        "fork" => data::fork(),
        "swapoff" => data::swapoff(),
        "limit" => data::limit(),
        "two-cpus" => data::two_cpus(),
        "wrong-byte" => data::wrong_byte(),
        "compressed-kernel" => data::compressed_kernel(),
        "frontswap-alone" => paths::frontswap_alone(),
        "block-alone" => paths::block_alone(),
        "off" => paths::off(),
        "zswap" => paths::zswap(),
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
        _ => bail!("there is no scenario {name:?}"),
    }
}
