//! `cargo xtask demo` and `cargo xtask bench`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use tmem_tests::outer::Outer;
use tmem_tests::platform;

use crate::{binaries, command, image, place};

/// Builds what is needed and runs the demo; `false` when a guest did not verify every byte.
pub(crate) fn demo() -> Result<bool> {
    image::build(false)?;
    binaries::build()?;
    if platform::kvm_is_usable() {
        let program = tmem_tests::place::binary("tmem-scenario")?;
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
            started = true;
        } else if started {
            println!("{line}");
        }
    })?;
    println!("Nested, times say nothing by themselves: compare them with each other.");
    Ok(status == 0)
}

/// The benchmark that boots a guest.
const GUEST_BENCH: &str = "guest";

/// Runs a benchmark of the workspace. Benchmarks print a table and write `target/bench/NAME.json`.
pub(crate) fn bench(name: &str, json: bool, arguments: &[String]) -> Result<()> {
    if name == GUEST_BENCH {
        for task in [&["image", "--uml"][..], &["build"]] {
            let mut build = Command::new(std::env::current_exe()?);
            build.args(task);
            if json {
                build.stdout(std::io::stderr());
            }
            command::run(&mut build)?;
        }
    }
    let mut bench = bench_command(name, arguments);
    if json {
        bench.stdout(std::io::stderr());
    }
    command::run(&mut bench)?;
    if json {
        let file = results().join(format!("{name}.json"));
        let text = std::fs::read_to_string(&file);
        print!(
            "{}",
            text.with_context(|| format!("cannot read {}", file.display()))?
        );
    }
    Ok(())
}

/// Measures what is shipped: built as the static binaries are, and away from them.
fn bench_command(name: &str, arguments: &[String]) -> Command {
    let mut bench = binaries::optimized("bench");
    bench.env("TMEM_BENCH_DIR", results());
    bench.args(["--quiet", "--workspace", "--bench", name]);
    if !arguments.is_empty() {
        bench.arg("--").args(arguments);
    }
    bench
}

/// Where benchmarks leave what they found.
fn results() -> PathBuf {
    place::target().join("bench")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_builds_nothing_at_the_place_of_the_static_binary() {
        let bench = bench_command("store", &["--quick".to_owned()]);
        let arguments: Vec<_> = bench.get_args().filter_map(|word| word.to_str()).collect();
        let ours = arguments.iter().position(|word| *word == "--");
        let ours = &arguments[..ours.expect("arguments of the benchmark")];
        assert!(
            ours.windows(2)
                .any(|pair| pair == ["--target", binaries::TARGET]),
            "without a target Cargo writes to target/release: {ours:?}"
        );
        assert!(ours.iter().any(|word| word.contains("+crt-static")));
    }
}
