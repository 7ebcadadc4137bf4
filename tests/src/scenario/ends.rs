//! How a guest ends, as who started it sees it: the exit code of `tmem run` and its last line.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};

use super::entry::Scenario;
use super::host::said;
use crate::guest::{Guest, Setup};

/// The scenarios of this file, and what each runs on.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::on_kvm("ends", ends),
    Scenario::on_kvm("without-acpi", without_acpi),
    Scenario::on_kvm("console-file", console_file),
];

/// Commands of a guest, words for its kernel, and how `tmem run` has to end.
type End = (&'static str, &'static str, i32, &'static str);

fn all_end(ends: &[End]) -> Result<()> {
    for (commands, words, code, line) in ends {
        let setup = Setup {
            kernel_words: words,
            ..Setup::default()
        };
        let mut guest = Guest::start(&setup, commands)?;
        let status = guest.ended()?;
        println!("{commands} {words}: ended with {status}");
        ensure!(
            status.code() == Some(*code),
            "{commands} {words}: ended with {status}, not {code}"
        );
        said(&guest, line)?;
    }
    Ok(())
}

fn ends() -> Result<()> {
    const PANIC: &str = "echo c >/proc/sysrq-trigger";
    const PANICKED: &str = "tmem: The guest's kernel panicked";
    all_end(&[
        ("poweroff -f", "", 0, "tmem: The guest powered itself off"),
        ("reboot -f", "", 32, "tmem: The guest reset itself"),
        // The reset register of ACPI, in place of the keyboard controller.
        ("reboot -f", "reboot=a", 32, "tmem: The guest reset itself"),
        (
            "reboot -f",
            "reboot=t",
            33,
            "tmem: The guest ended with a triple fault",
        ),
        (PANIC, "", 34, PANICKED),
        // It would stay where it is for ever.
        (PANIC, "panic=0", 34, PANICKED),
    ])
}

/// A kernel without ACPI cannot report some ends. Then the observed end is reported, and never
/// success.
fn without_acpi() -> Result<()> {
    all_end(&[
        (
            "poweroff -f",
            "acpi=off",
            35,
            "tmem: The guest's processors halted for good",
        ),
        (
            "echo c >/proc/sysrq-trigger",
            "acpi=off",
            32,
            "tmem: The guest reset itself",
        ),
    ])
}

/// The console in a file: the newest output, within the limit.
fn console_file() -> Result<()> {
    const LIMIT: u64 = 8192;
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let path = folder.path().join("console");
    let console: &'static str =
        Box::leak(format!("--console=file={},limit={LIMIT}", path.display()).into_boxed_str());
    let options: &'static [&'static str] = Box::leak(Box::new([console]));
    let setup = Setup {
        options,
        ..Setup::default()
    };
    let mut guest = Guest::start(&setup, "seq 600 | sed 's|.*|line & of the console|'")?;
    let status = guest.ended()?;
    ensure!(status.success(), "the guest ended with {status}");
    ensure!(
        !guest
            .console()
            .lines()
            .iter()
            .any(|line| line.starts_with("line")),
        "the console is on standard output, too"
    );
    let older = folder.path().join("console.1");
    let size = fs::metadata(&path)?.size() + fs::metadata(&older)?.size();
    ensure!(size <= LIMIT, "{size} bytes are kept");
    let text = fs::read_to_string(&older)? + &fs::read_to_string(&path)?;
    println!("{size} bytes are kept of the console");
    for line in ["line 599 of", "line 600 of", "guest end 0"] {
        ensure!(text.contains(line), "no {line:?} in the file:\n{text}");
    }
    Ok(())
}
