//! Boot-and-swap: real guests on KVM. Where this machine has none, on KVM inside an emulated machine, or as processes.

use anyhow::{Result, bail};
use tmem_tests::guest::Machine;
use tmem_tests::outer::Outer;
use tmem_tests::{platform, scenario};

fn holds(name: &str) -> Result<()> {
    if platform::kvm_is_usable() {
        return scenario::run(name);
    }
    println!("no usable KVM here: {name} runs nested in an emulated machine");
    let status = Outer { arguments: name }.run(|line| println!("{line}"))?;
    if status != 0 {
        bail!("scenario {name} failed; its line SCENARIO above says why");
    }
    Ok(())
}

/// Scenarios that need no KVM. Where it is not usable, the guest is a process: within an emulated machine it would do the
/// same in many times the time.
fn holds_anywhere(name: &str) -> Result<()> {
    if platform::kvm_is_usable() {
        return scenario::run(name);
    }
    println!("no usable KVM here: {name} runs on User Mode Linux");
    scenario::run_on(Machine::Process, name)
}

#[test]
fn a_page_goes_through_all_layers_and_comes_back() -> Result<()> {
    holds("first-page")
}

#[test]
fn a_guest_that_works_on_three_times_its_memory_gets_every_byte_back() -> Result<()> {
    holds_anywhere("every-kind-of-page")
}

#[test]
fn processes_that_share_swapped_pages_each_see_their_own_bytes() -> Result<()> {
    holds_anywhere("fork")
}

#[test]
fn swapoff_brings_every_page_home_and_leaves_the_store_empty() -> Result<()> {
    holds("swapoff")
}

#[test]
fn a_guest_at_its_limit_survives_on_a_real_swap_disk() -> Result<()> {
    holds_anywhere("limit")
}

#[test]
fn two_processors_swap_at_once() -> Result<()> {
    holds("two-cpus")
}

#[test]
fn a_flipped_bit_in_the_guest_is_seen() -> Result<()> {
    holds_anywhere("wrong-byte")
}

#[test]
fn a_compressed_kernel_boots_too() -> Result<()> {
    holds("compressed-kernel")
}

#[test]
fn frontswap_alone_writes_nothing_to_the_disk_below_it() -> Result<()> {
    holds_anywhere("frontswap-alone")
}

#[test]
fn the_swap_disk_alone_keeps_every_byte() -> Result<()> {
    holds_anywhere("block-alone")
}

#[test]
fn without_tmem_1_nothing_reaches_the_host_and_zswap_has_its_slot() -> Result<()> {
    holds_anywhere("off")
}

#[test]
fn with_tmem_1_zswap_steps_back_without_a_warning() -> Result<()> {
    holds_anywhere("zswap")
}

#[test]
fn a_page_costs_one_exit_and_no_interrupt() -> Result<()> {
    holds("exits")
}

#[test]
fn the_figures_of_the_host_are_those_of_the_guest() -> Result<()> {
    holds("figures")
}

#[test]
fn control_clients_that_stall_or_die_change_nothing_for_the_guest() -> Result<()> {
    holds("clients")
}

#[test]
fn an_idle_guest_costs_no_processor_time_in_our_threads() -> Result<()> {
    holds("idle")
}

#[test]
fn a_terminal_is_raw_while_the_guest_runs_and_as_before_afterwards() -> Result<()> {
    holds("terminal")
}

#[test]
fn a_signal_ends_tmem_and_leaves_nothing_behind() -> Result<()> {
    holds("terminate")
}

#[test]
fn a_guest_sleeps_with_pages_at_the_host_and_wakes_with_every_byte() -> Result<()> {
    holds("sleep")
}

#[test]
fn no_page_is_given_back_while_a_service_that_hangs_may_write_to_it() -> Result<()> {
    holds("service-hangs")
}

#[test]
fn two_guests_on_one_service_get_every_byte_back_and_the_counters_agree() -> Result<()> {
    holds("two-guests")
}

#[test]
fn a_service_that_ends_costs_a_guest_its_pages_and_nothing_else() -> Result<()> {
    holds("service-dies")
}

#[test]
fn a_page_at_a_service_costs_no_exit_to_our_process() -> Result<()> {
    holds("service-cost")
}
