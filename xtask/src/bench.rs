//! `cargo xtask bench`: the benchmarks of the workspace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{build, command, paths};

/// The benchmark that boots a guest.
const GUEST_BENCH: &str = "guest";

/// Runs a benchmark of the workspace. Benchmarks print a table and write `target/bench/NAME.json`.
pub(crate) fn bench(name: &str, json: bool, arguments: &[String]) -> Result<()> {
    if name == GUEST_BENCH {
        for task in [&["image", "--uml", "--programs"][..], &["build"]] {
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

/// Measures the shipped code: built like the static binaries, in another target directory.
fn bench_command(name: &str, arguments: &[String]) -> Command {
    let mut bench = build::optimized("bench");
    bench.env("TMEM_BENCH_DIR", results());
    bench.args(["--quiet", "--workspace", "--bench", name]);
    if !arguments.is_empty() {
        bench.arg("--").args(arguments);
    }
    bench
}

/// Where benchmarks leave what they found.
pub(crate) fn results() -> PathBuf {
    paths::target().join("bench")
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
                .any(|pair| pair == ["--target", build::TARGET]),
            "without a target Cargo writes to target/release: {ours:?}"
        );
        assert!(ours.iter().any(|word| word.contains("+crt-static")));
    }
}
