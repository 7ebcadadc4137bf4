//! A scenario of the list.

use anyhow::Result;

use crate::guest::Machine;

/// What a scenario runs on.
#[derive(Clone, Copy)]
pub(super) enum Runs {
    /// KVM, here or in the outer machine: it is about `tmem run`.
    OnKvm(fn() -> Result<()>),
    /// Whatever the guest is: it is about the driver and the store.
    Anywhere(fn(Machine) -> Result<()>),
}

/// A scenario by its name.
#[derive(Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) runs: Runs,
}

impl Scenario {
    /// One that needs KVM.
    pub(super) const fn on_kvm(name: &'static str, run: fn() -> Result<()>) -> Self {
        let runs = Runs::OnKvm(run);
        Self { name, runs }
    }

    /// One that needs no KVM.
    pub(super) const fn anywhere(name: &'static str, run: fn(Machine) -> Result<()>) -> Self {
        let runs = Runs::Anywhere(run);
        Self { name, runs }
    }
}
