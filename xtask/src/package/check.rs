//! Checks of the Debian package: it is unpacked, and its contents are tested.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::{apt, cache, command, paths};

/// Files that must be there, and their modes.
const FILES: &[(&str, u32)] = &[
    ("etc/tmem.toml", 0o644),
    ("usr/bin/tmem", 0o755),
    ("usr/lib/systemd/system/tmem.service", 0o644),
    ("usr/lib/systemd/system/tmem.socket", 0o644),
    ("usr/lib/systemd/system/tmem-guest@.socket", 0o644),
    ("usr/lib/systemd/system/tmem-guest@.service", 0o644),
    ("usr/lib/systemd/system/tmem-statistics.socket", 0o644),
    ("usr/share/bash-completion/completions/tmem", 0o644),
    ("usr/share/doc/tmem/README.md", 0o644),
    ("usr/share/doc/tmem/changelog.gz", 0o644),
    ("usr/share/doc/tmem/changelog.Debian.gz", 0o644),
    ("usr/share/doc/tmem/copyright", 0o644),
    ("usr/share/doc/tmem/docs/operations.md", 0o644),
    ("usr/share/doc/tmem/third-party-licenses.gz", 0o644),
    ("usr/share/fish/vendor_completions.d/tmem.fish", 0o644),
    ("usr/share/lintian/overrides/tmem", 0o644),
    ("usr/share/man/man5/tmem.toml.5.gz", 0o644),
    ("usr/share/zsh/vendor-completions/_tmem", 0o644),
];
/// Where there may be more, all of them with mode 0644.
const FOLDERS: &[&str] = &["usr/share/man/man1/", "usr/share/doc/tmem/docs/"];
/// Maintainer scripts, and a command that each must have.
const SCRIPTS: &[(&str, &str)] = &[
    ("postinst", "deb-systemd-helper enable tmem.service"),
    ("prerm", "deb-systemd-invoke stop tmem.service tmem.socket"),
    ("postrm", "deb-systemd-helper purge"),
];

/// Unpacks a package and checks all of it.
pub(crate) fn check(package: &Path) -> Result<()> {
    apt::require(apt::PAGES)?;
    let root = paths::target().join("package-check");
    cache::publish(&root, |part| {
        command::run(
            Command::new("dpkg-deb")
                .arg("--raw-extract")
                .arg(package)
                .arg(part),
        )
    })?;
    files(&root)?;
    control(&root.join("DEBIAN"))?;
    let binary = root.join("usr/bin/tmem");
    let said = command::output(Command::new(&binary).arg("--version"))?;
    let version = env!("CARGO_PKG_VERSION");
    ensure!(
        said.trim() == format!("tmem {version}"),
        "tmem --version: {said}"
    );
    let commands = commands(&binary)?;
    pages(&root, &commands)?;
    completions(&root, &commands)?;
    units(&root)?;
    lint(package)?;
    paths::remove(&root)
}

fn files(root: &Path) -> Result<()> {
    let mut found = BTreeMap::new();
    for path in paths::files_below(root)? {
        let mode = path.symlink_metadata()?.permissions().mode() & 0o7777;
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        if !name.starts_with("DEBIAN/") {
            found.insert(name, mode);
        }
    }
    for (name, mode) in FILES {
        let found = found.remove(*name);
        ensure!(
            found == Some(*mode),
            "{name} should have mode {mode:o}, and has {}",
            found.map_or("no file".to_owned(), |mode| format!("{mode:o}"))
        );
    }
    for (name, mode) in found {
        let known = FOLDERS.iter().any(|folder| name.starts_with(folder));
        ensure!(
            known && mode == 0o644,
            "unexpected: {name} with mode {mode:o}"
        );
    }
    Ok(())
}

fn control(folder: &Path) -> Result<()> {
    let read = |name: &str| {
        fs::read_to_string(folder.join(name)).with_context(|| format!("cannot read {name}"))
    };
    let conffiles = read("conffiles")?;
    ensure!(
        conffiles.trim() == "/etc/tmem.toml",
        "configuration files: {conffiles}"
    );
    let control = read("control")?;
    let version = concat!("Version: ", env!("CARGO_PKG_VERSION"), "-");
    ensure!(
        control.lines().any(|line| line.starts_with(version)),
        "the package is of another version than this checkout:\n{control}"
    );
    for (name, part) in SCRIPTS {
        let script = read(name)?;
        ensure!(script.contains(part), "{name} lacks {part:?}:\n{script}");
        command::output(Command::new("sh").arg("-n").arg(folder.join(name)))?;
        // The memory of the service is its guests' swap: an upgrade must not take it away.
        ensure!(
            !script.contains("restart"),
            "{name} restarts the service:\n{script}"
        );
    }
    let prerm = read("prerm")?;
    for block in prerm.split("\nif ").skip(1) {
        ensure!(
            block.contains("\"$1\" = remove") || !block.contains("stop"),
            "prerm stops the service on upgrade:\n{prerm}"
        );
    }
    Ok(())
}

/// Names of the pages of a program and its subcommands: what its own help lists.
fn commands(binary: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(words) = todo.pop() {
        let help = command::output(Command::new(binary).args(&words).arg("--help"))?;
        let listed = help
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1)
            .take_while(|line| line.starts_with("  "));
        for line in listed {
            match line.split_whitespace().next() {
                Some(word)
                    if word != "help" && line.starts_with("  ") && !line.starts_with("   ") =>
                {
                    todo.push([words.as_slice(), &[word.to_owned()]].concat());
                }
                _ => {}
            }
        }
        names.push([&["tmem".to_owned()], words.as_slice()].concat().join("-"));
    }
    ensure!(names.len() > 10, "the help lists only {names:?}");
    Ok(names)
}

fn pages(root: &Path, commands: &[String]) -> Result<()> {
    let man = root.join("usr/share/man");
    for name in commands {
        let page = man.join(format!("man1/{name}.1.gz"));
        ensure!(page.is_file(), "no page {}", page.display());
    }
    for packed in paths::files_below(&man)? {
        command::run(Command::new("gunzip").arg(&packed))?;
        let page = packed.with_extension("");
        let name = page.display();
        let mut formatters = vec![["groff", "-ww", "-man", "-Tutf8", "-z"].as_slice()];
        if command::exists("mandoc") {
            formatters.push(&["mandoc", "-Tlint", "-Wwarning"]);
        }
        for words in formatters {
            let said = said(words, &page)?;
            ensure!(said.is_empty(), "{}: {name}:\n{said}", words.join(" "));
        }
    }
    Ok(())
}

/// All that a program says about a file, on both outputs.
fn said(words: &[&str], file: &Path) -> Result<String> {
    let (program, arguments) = words.split_first().context("a program")?;
    let output = Command::new(program)
        .args(arguments)
        .arg(file)
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let mut text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if !output.status.success() {
        text.push_str(&output.status.to_string());
    }
    Ok(text)
}

fn completions(root: &Path, commands: &[String]) -> Result<()> {
    let share = root.join("usr/share");
    for (shell, script) in [
        ("bash", "bash-completion/completions/tmem"),
        ("zsh", "zsh/vendor-completions/_tmem"),
        ("fish", "fish/vendor_completions.d/tmem.fish"),
    ] {
        let script = share.join(script);
        let text = fs::read_to_string(&script)?;
        for word in commands.iter().filter_map(|name| name.rsplit('-').next()) {
            ensure!(text.contains(word), "{shell} does not complete {word}");
        }
        if !command::exists(shell) {
            println!("{shell} is not installed: its completions are not parsed");
            continue;
        }
        let said = said(&[shell, "-n"], &script)?;
        ensure!(said.is_empty(), "{shell} -n {}:\n{said}", script.display());
    }
    Ok(())
}

fn units(root: &Path) -> Result<()> {
    if !command::exists("systemd-analyze") {
        println!("systemd-analyze is not installed: the units are not verified");
        return Ok(());
    }
    let from = root.join("usr/lib/systemd/system");
    // Units name programs by their place on the system, so verify them with ours instead.
    let folder = root.join("units");
    fs::create_dir(&folder)?;
    for unit in paths::files_below(&from)? {
        let text = fs::read_to_string(&unit)?;
        let binary = root.join("usr/bin/tmem");
        let text = text.replace("/usr/bin/tmem", &binary.display().to_string());
        fs::write(folder.join(unit.file_name().unwrap_or_default()), text)?;
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    for kind in ["socket", "service"] {
        let template = folder.join(format!("tmem-guest@.{kind}"));
        let unit: PathBuf = folder.join(format!("tmem-guest@vm1.{kind}"));
        fs::copy(template, &unit)?;
        verify.arg(unit);
    }
    for unit in ["tmem.service", "tmem.socket", "tmem-statistics.socket"] {
        verify.arg(folder.join(unit));
    }
    let output = verify.output().context("cannot run systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.trim().is_empty(),
        "systemd-analyze verify: {}\n{said}",
        output.status
    );
    exposure(&folder.join("tmem.service"))
}

/// The service stays as confined as it was made.
fn exposure(unit: &Path) -> Result<()> {
    let mut security = Command::new("systemd-analyze");
    // Tenths of the scale from 0 to 10; it was 0.5.
    security.args(["security", "--offline=true", "--threshold=10", "--no-pager"]);
    match command::output(security.arg(unit)) {
        Ok(_) => Ok(()),
        Err(error) => bail!("the unit is exposed to more than 1.0: {error:#}"),
    }
}

fn lint(package: &Path) -> Result<()> {
    if !command::exists("lintian") {
        println!("lintian is not installed: the package is not linted");
        return Ok(());
    }
    command::run(
        Command::new("lintian")
            .args([
                "--fail-on",
                "error,warning",
                "--allow-root",
                "--tag-display-limit",
                "0",
            ])
            .arg(package),
    )
}
