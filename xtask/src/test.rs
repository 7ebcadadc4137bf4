//! `cargo xtask test`: every check, one step after the other. All of them run, then the failed ones are named.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tmem_tests::platform;

use crate::build::cargo;
use crate::image::kernel::{self, Tree};
use crate::{apt, build, cache, command, image, imports, package, paths, space};

/// Which checks to run; all of them without an option.
#[derive(clap::Args)]
pub(crate) struct Selection {
    /// Only the steps whose names contain one of these words
    #[arg(value_name = "STEP")]
    steps: Vec<String>,
    /// Only what finds most faults in little time: format, clippy, unit tests, one guest of each platform
    #[arg(long)]
    quick: bool,
}

/// How a step ended, if not in failure.
enum Outcome {
    Passed,
    /// Why it could not be done here.
    Skipped(String),
}

use Outcome::{Passed, Skipped};

type Step = (&'static str, fn() -> Result<Outcome>);

const STEPS: &[Step] = &[
    ("format", format),
    ("imports", || imports::check().map(|()| Passed)),
    ("images", images),
    ("binaries", || build::build().map(|()| Passed)),
    ("clippy", clippy),
    ("package", package),
    ("tests", tests),
    ("metrics", metrics),
    ("documentation tests", documentation_tests),
    ("interleavings", interleavings),
    ("memory errors", memory_errors),
    ("fuzz targets", fuzz_targets),
    ("dependencies", dependencies),
    ("driver style", driver_style),
    ("driver warnings", driver_warnings),
];

/// Those of `--quick`.
const QUICK_STEPS: &[Step] = &[
    ("format", format),
    ("imports", || imports::check().map(|()| Passed)),
    ("images", images),
    ("binaries", || build::build().map(|()| Passed)),
    ("clippy", clippy),
    ("tests", quick_tests),
];

/// The tests with guests that `--quick` runs: one under `tmem run` and one under User Mode Linux.
const QUICK_TESTS: &str = "not (package(tmem-tests) and kind(test)) \
    or (package(tmem-tests) and binary(bad_input)) \
    or (binary(guests) and test(=a_page_goes_through_all_layers_and_comes_back)) \
    or (binary(uml) and test(=the_swap_disk_alone_keeps_every_byte))";

/// Runs the steps; `false` when one failed.
pub(crate) fn test(selection: &Selection) -> Result<bool> {
    let chosen = |name: &str| {
        selection.steps.is_empty()
            || selection
                .steps
                .iter()
                .any(|word| name.contains(word.as_str()))
    };
    space::check(&paths::target())?;
    space::check(&paths::cache()?)?;
    if platform::kvm_is_usable() {
        println!("KVM is usable: guests run directly");
    } else {
        println!(
            "no usable KVM (/dev/kvm and hardware virtualization): guests run nested in an emulated machine"
        );
    }
    let mut report: Vec<(&str, Duration, Result<Outcome>)> = Vec::new();
    let steps = if selection.quick { QUICK_STEPS } else { STEPS };
    for (name, step) in steps.iter().filter(|(name, _)| chosen(name)) {
        println!("\n=== {name}");
        let start = Instant::now();
        let result = step();
        let took = start.elapsed();
        match &result {
            Ok(Passed) => println!("=== {name}: ok, {:.0} s", took.as_secs_f64()),
            Ok(Skipped(why)) => println!("=== {name}: skipped: {why}"),
            Err(error) => println!("=== {name}: FAILED, {:.0} s\n{error:#}", took.as_secs_f64()),
        }
        report.push((name, took, result));
    }
    if report.is_empty() {
        let names: Vec<&str> = steps.iter().map(|(name, _)| *name).collect();
        bail!("no step has such a name; there are: {}", names.join(", "));
    }
    println!("\n=== summary");
    for (name, took, result) in &report {
        let how = match result {
            Ok(Passed) => "ok",
            Ok(Skipped(_)) => "skipped",
            Err(_) => "FAILED",
        };
        println!("{how:>8}  {:>5.0} s  {name}", took.as_secs_f64());
    }
    Ok(report.iter().all(|(_, _, result)| result.is_ok()))
}

fn images() -> Result<Outcome> {
    image::build(image::More {
        uml: true,
        programs: false,
    })?;
    Ok(Passed)
}

fn format() -> Result<Outcome> {
    command::run(cargo().args(["fmt", "--all", "--", "--check"]))?;
    Ok(Passed)
}

fn clippy() -> Result<Outcome> {
    command::run(cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    Ok(Passed)
}

fn tests() -> Result<Outcome> {
    nextest(&[])
}

fn quick_tests() -> Result<Outcome> {
    nextest(&["--filterset", QUICK_TESTS])
}

fn nextest(arguments: &[&str]) -> Result<Outcome> {
    if !command::exists("cargo-nextest") {
        println!("cargo-nextest is missing: installing it from source, once");
        command::run(cargo().args(["install", "cargo-nextest", "--locked", "--quiet"]))
            .context("install cargo-nextest by hand, then try again")?;
    }
    command::run(
        cargo()
            .args(["nextest", "run", "--workspace"])
            .args(arguments),
    )?;
    Ok(Passed)
}

/// The package, from the binary of the step before.
fn package() -> Result<Outcome> {
    if !command::exists("dpkg-deb") {
        return Ok(Skipped("this is not a Debian system".to_owned()));
    }
    package::check::check(&package::assemble()?)?;
    Ok(Passed)
}

/// The metrics page of a running service, as Prometheus' own checker sees it.
fn metrics() -> Result<Outcome> {
    let promtool = {
        let cache = paths::cache()?;
        let _lock = cache::CacheLock::take(&cache)?;
        apt::unpacked(&cache, "prometheus")?
            .root
            .join("usr/bin/promtool")
    };
    command::run(
        cargo()
            .args(["nextest", "run", "--package", "tmem", "--test", "metrics"])
            .args(["--run-ignored", "all"])
            .env("TMEM_PROMTOOL", promtool),
    )?;
    Ok(Passed)
}

fn documentation_tests() -> Result<Outcome> {
    command::run(cargo().args(["test", "--workspace", "--doc", "--quiet"]))?;
    Ok(Passed)
}

/// The lock protocol of the store under the shuttle checker, in a target folder of its own: another `cfg` builds
/// everything anew.
fn interleavings() -> Result<Outcome> {
    command::run(
        cargo()
            .args(["nextest", "run", "--package", "tmem-store"])
            .args(["--test", "interleavings", "--target-dir"])
            .arg(paths::target().join("shuttle"))
            .env("RUSTFLAGS", "--cfg shuttle"),
    )?;
    Ok(Passed)
}

/// The store's module with `unsafe`, and what uses it most, under valgrind.
fn memory_errors() -> Result<Outcome> {
    apt::require(apt::CHECK)?;
    for tests in [
        // Valgrind cannot continue after a handler of SIGBUS mapped a page.
        &["--lib", "memory::", "--", "--skip", "bad_memory::"][..],
        &["--test", "contract", "an_accepted_page"],
        &["--test", "contract", "compaction"],
        &["--test", "contract", "untouched_pages"],
        &["--test", "model", "random_operations"],
    ] {
        command::run(
            cargo()
                .args(["test", "--quiet", "--package", "tmem-store"])
                .args(tests)
                .env(
                    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER",
                    "valgrind --quiet --error-exitcode=1",
                )
                .env("TMEM_MODEL_OPS", "40000"),
        )?;
    }
    Ok(Passed)
}

/// The fuzz targets, which are no part of the workspace, build without a warning.
fn fuzz_targets() -> Result<Outcome> {
    apt::require(apt::CHECK)?;
    let manifest = paths::root().join("fuzz/Cargo.toml");
    command::run(
        cargo()
            .args(["clippy", "--quiet", "--locked", "--manifest-path"])
            .arg(manifest)
            .arg("--target-dir")
            .arg(paths::target().join("fuzz"))
            .args(["--", "-D", "warnings"]),
    )?;
    Ok(Passed)
}

fn dependencies() -> Result<Outcome> {
    if !command::exists("cargo-deny") {
        return Ok(Skipped(
            "cargo-deny is not installed (cargo install cargo-deny --locked)".to_owned(),
        ));
    }
    // First the checks that need no network: licences, bans, sources.
    command::run(cargo().args([
        "deny",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))?;
    match command::output(cargo().args(["deny", "--log-level", "error", "check", "advisories"])) {
        Ok(_) => Ok(Passed),
        Err(error) if format!("{error:#}").contains("failed to fetch advisory database") => {
            Ok(Skipped(
                "the advisory database cannot be reached; licences, bans and sources are ok"
                    .to_owned(),
            ))
        }
        Err(error) => Err(error),
    }
}

fn driver_tree() -> Result<Tree> {
    apt::require(apt::BUILD)?;
    kernel::KVM.tree(&paths::cache()?)
}

/// `checkpatch.pl --strict` on every file of the driver.
fn driver_style() -> Result<Outcome> {
    let tree = {
        let _lock = cache::CacheLock::take(&paths::cache()?)?;
        driver_tree()?
    };
    let driver = paths::root().join("guest-driver");
    let checked = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "c" || extension == "h")
    };
    let files = paths::files_below(&driver)?
        .into_iter()
        .filter(|path| checked(path));
    let mut check = Command::new("perl");
    check
        .arg("scripts/checkpatch.pl")
        .args([
            "--strict",
            "--no-tree",
            "--terse",
            "--quiet",
            "--no-summary",
            "--color=never",
            "-f",
        ])
        .args(files)
        .current_dir(&tree.path);
    let said = command::output(&mut check);
    match said {
        Ok(text) if text.trim().is_empty() => Ok(Passed),
        Ok(text) => bail!("checkpatch.pl --strict:\n{text}"),
        Err(_) => {
            // Without --quiet and --terse it explains itself.
            command::run(&mut check)?;
            bail!("checkpatch.pl --strict failed")
        }
    }
}

/// A build of the driver with `W=1` and sparse, which must say nothing.
fn driver_warnings() -> Result<Outcome> {
    apt::require(apt::CHECK)?;
    let _lock = cache::CacheLock::take(&paths::cache()?)?;
    let tree = driver_tree()?;
    // Files that were built before would not be built again, and would give no warnings.
    for file in paths::files_below(&tree.path.join("drivers/tmem"))? {
        if file.extension().is_some_and(|extension| extension == "o") {
            std::fs::remove_file(&file)
                .with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    let log = tree.path.join("tmem-check.log");
    let _ = std::fs::remove_file(&log);
    let mut make = tree.make();
    command::logged(
        make.args(["-s", "W=1", "C=2", "CF=-D__CHECK_ENDIAN__", "drivers/tmem/"]),
        &log,
        |_| (),
    )?;
    let text =
        std::fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let said: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("$ ") && !line.is_empty())
        .collect();
    if !said.is_empty() {
        bail!("sparse and W=1:\n{}", said.join("\n"));
    }
    Ok(Passed)
}
