//! Where the guest's driver keeps a page: `stage.c` and `key.c` of `guest-driver/`, built as a program of user space,
//! against a plain map (`model.c`).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Each is a sequence of operations of its own.
const SEEDS: std::ops::RangeInclusive<u32> = 1..=8;
const OPERATIONS: &str = "500000";

/// What must have happened in each sequence, or it shows little.
const HAPPENED: [&str; 11] = [
    "staged",
    "dropped",
    "refused",
    "stuck_read",
    "sync",
    "loads",
    "resets",
    "swapoffs",
    "removals",
    "met",
    "met_resets",
];

fn driver() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-driver")
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stage")
}

/// For each header of the kernel that these files ask for, one that has `kernel.h`.
fn make_headers(files: &[PathBuf], folder: &Path) -> Result<()> {
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        for line in text.lines() {
            let name = line
                .strip_prefix("#include <linux/")
                .and_then(|rest| rest.strip_suffix('>'));
            names.extend(name.map(str::to_owned));
        }
    }
    // The ABI is included as it is.
    names.remove("virtio_tmem.h");
    fs::create_dir(folder.join("linux"))?;
    for name in names {
        fs::write(folder.join("linux").join(name), "#include \"kernel.h\"\n")?;
    }
    Ok(())
}

/// Builds the program.
fn build(folder: &Path) -> Result<PathBuf> {
    let sources = ["stage.c", "key.c"].map(|name| driver().join(name));
    let mut files = sources.to_vec();
    files.push(driver().join("tmem.h"));
    make_headers(&files, folder)?;
    let program = folder.join("model");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| OsString::from("cc"));
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror"])
        // Functions of the driver that are empty without an option have parameters.
        .arg("-Wno-unused-parameter")
        .args(["-fsanitize=address,undefined", "-fno-sanitize-recover"])
        .arg("-I")
        .arg(folder)
        .arg("-I")
        .arg(here())
        .arg("-I")
        .arg(driver())
        .arg("-I")
        .arg(driver().join("include/uapi"))
        .arg("-o")
        .arg(&program)
        .arg(here().join("model.c"))
        .args(sources)
        .output()
        .context("cannot run the C compiler")?;
    ensure!(
        output.status.success(),
        "the program does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(program)
}

#[test]
fn a_page_is_where_the_driver_says_whatever_its_host_does() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = build(folder.path())?;
    for seed in SEEDS {
        let output = Command::new(&program)
            .arg(seed.to_string())
            .arg(OPERATIONS)
            .output()
            .context("cannot run the program")?;
        let said = String::from_utf8_lossy(&output.stdout);
        println!("{}", said.trim_end());
        ensure!(
            output.status.success(),
            "seed {seed}: {}\n{said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        for what in HAPPENED {
            ensure!(
                !said.contains(&format!(" {what}=0 ")),
                "seed {seed}: {what} never happened: {said}"
            );
        }
    }
    Ok(())
}
