//! `cargo xtask demo`: a guest that swaps into host memory, and what it is compared with.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tmem_tests::outer::Outer;
use tmem_tests::{demo, platform};

use crate::{bench, build, image, paths};

/// Builds what is needed and runs the demo; `false` when a guest did not verify every byte. What the guests took is
/// written to `target/bench/demo.json`.
pub(crate) fn demo() -> Result<bool> {
    image::build(image::More::default())?;
    build::build()?;
    if platform::kvm_is_usable() {
        return here();
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
            show(line);
        }
    })?;
    Ok(status == 0)
}

/// Runs the demo on this machine.
fn here() -> Result<bool> {
    let program = tmem_tests::paths::binary("tmem-scenario")?;
    let cannot = || format!("cannot run {}", program.display());
    let mut demo = Command::new(&program)
        .arg("demo")
        .stdout(Stdio::piped())
        .spawn()
        .with_context(cannot)?;
    let stdout = demo.stdout.take().context("standard output is piped")?;
    for line in BufReader::new(stdout).lines() {
        show(&line.with_context(cannot)?);
    }
    Ok(demo.wait().with_context(cannot)?.success())
}

/// Shows a line of the demo, or writes the figures that it has to the file of the demo.
fn show(line: &str) {
    let Some(figures) = demo::figures(line) else {
        println!("{line}");
        return;
    };
    let file = bench::results().join("demo.json");
    match paths::write(&file, &format!("{figures}\n")) {
        Ok(()) => println!("written to {}", file.display()),
        // What was shown is no less right.
        Err(error) => eprintln!("xtask: {error:#}"),
    }
}
