//! The kernel of User Mode Linux keeps the floating point state of its processes, however much the host has.
//!
//! This test covers the registers of this processor. The state is 512 bytes without XSAVE, 832 with AVX, about 2.5 KiB
//! with AVX-512, 11 KiB with AMX. A kernel that holds a fixed amount ends at its first process on a host that has more,
//! so on such a host every test with a guest of this kind covers that.

use anyhow::{Result, ensure};
use tmem_tests::service::Service;
use tmem_tests::uml::guest::{END, Guest, Setup};

#[test]
fn processes_that_are_preempted_and_take_signals_keep_their_registers() -> Result<()> {
    let service = Service::start("16M", &[("vm1", "")])?;
    let commands = format!("vectors seconds=4 procs=2; echo guest vectors $?; splats; {END}");
    let setup = Setup {
        commands: &commands,
        ..Setup::default()
    };
    let guest = Guest::start(&service.socket("vm1"), service.folder(), &setup)?;
    let lines = guest.finish()?.lines().join("\n");
    println!("{lines}");
    for line in ["vectors ok procs=2", "guest vectors 0", "guest splats 0"] {
        ensure!(
            lines.lines().any(|other| other == line),
            "no line {line:?}:\n{lines}"
        );
    }
    Ok(())
}
