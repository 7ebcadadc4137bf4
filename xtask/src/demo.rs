//! `cargo xtask demo`: a guest that swaps into host memory, and what it is compared with.

use std::process::Command;

use anyhow::{Context, Result};
use tmem_tests::outer::Outer;
use tmem_tests::platform;

use crate::{build, image};

/// Builds what is needed and runs the demo; `false` when a guest did not verify every byte.
pub(crate) fn demo() -> Result<bool> {
    image::build(image::More::default())?;
    build::build()?;
    if platform::kvm_is_usable() {
        let program = tmem_tests::paths::binary("tmem-scenario")?;
        let status = Command::new(&program)
            .arg("demo")
            .status()
            .with_context(|| format!("cannot run {}", program.display()))?;
        return Ok(status.success());
    }
    println!(
        "\nno usable KVM (/dev/kvm and hardware virtualization): the demo runs nested in an emulated machine\n"
    );
    let mut started = false;
    let status = Outer { arguments: "demo" }.run(|line| {
        if line.starts_with("outer ") {
            // Behind its end only the kernel speaks, of the restart.
            started = !line.starts_with("outer end ");
        } else if started {
            println!("{line}");
        }
    })?;
    Ok(status == 0)
}
