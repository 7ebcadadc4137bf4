//! Writes the man pages and shell completions of `tmem`, made from the definition of its command line.
//!
//! `cargo run --package tmem --example documents -- FOLDER DATE` makes `FOLDER/man/tmem*.1` and
//! `FOLDER/completions/{tmem,_tmem,tmem.fish}`. The date (2026-11-25) is at the foot of the pages. An example, so that what it needs is not in the binary.

use std::error::Error;
use std::fs;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, date] = arguments.as_slice() else {
        return Err("usage: documents FOLDER DATE".into());
    };
    let folder = Path::new(folder);
    man_pages(&folder.join("man"), date)?;
    completions(&folder.join("completions"))?;
    Ok(())
}

fn completions(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    for (shell, file) in [
        (Shell::Bash, "tmem"),
        (Shell::Zsh, "_tmem"),
        (Shell::Fish, "tmem.fish"),
    ] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut tmem::command(), "tmem", &mut script);
        fs::write(folder.join(file), script)?;
    }
    Ok(())
}

fn man_pages(folder: &Path, date: &str) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut command = tmem::command().disable_help_subcommand(true);
    // Gives the subcommands their full names.
    command.build();
    let mut all = Vec::new();
    collect(&command, &mut all);
    let names: Vec<String> = all.iter().map(|command| name(command)).collect();
    for (command, own) in all.into_iter().zip(&names) {
        let others = names.iter().filter(|other| *other != own);
        let page = page(command, date, others.map(String::as_str))?;
        fs::write(folder.join(format!("{own}.1")), page)?;
    }
    Ok(())
}

fn collect<'a>(command: &'a Command, all: &mut Vec<&'a Command>) {
    all.push(command);
    for subcommand in command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        collect(subcommand, all);
    }
}

/// `tmem-guest-add` for `tmem guest add`.
fn name(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned()
}

fn page<'a>(
    command: &Command,
    date: &str,
    others: impl Iterator<Item = &'a str>,
) -> Result<String, Box<dyn Error>> {
    let name = name(command);
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .date(date)
        .source(concat!("tmem ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    // Long usage lines cannot be spread to both margins.
    page.extend_from_slice(b".ad l\n");
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command
        .get_arguments()
        .any(|argument| !argument.is_hide_set())
    {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut end = Roff::new();
    end.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in statuses(&name) {
        end.control("TP", []);
        end.text([bold(*status)]);
        end.text([roman(*meaning)]);
    }
    if matches!(name.as_str(), "tmem" | "tmem-serve") {
        end.control("SH", ["FILES"]);
        for (file, what) in FILES {
            end.control("TP", []);
            end.text([bold(*file)]);
            end.text([roman(*what)]);
        }
    }
    end.control("SH", ["SEE ALSO"]);
    let mut see = Vec::new();
    for other in others {
        see.extend([bold(other), roman("(1), ")]);
    }
    see.extend([bold("tmem.toml"), roman("(5)")]);
    end.text(see);
    end.to_writer(&mut page)?;
    // How clap_mangen begins the list of what an option can be: more breaks than a formatter takes.
    let page = String::from_utf8(page)?.replace("\n.br\n\n.br\n", "\n.sp\n");
    Ok(page.lines().map(tidy).collect())
}

/// A line of a page, changed so that the formatters do not warn: no spaces at its end, no words that are longer than a
/// line. `Quoted` text becomes bold.
fn tidy(line: &str) -> String {
    let line = line.trim_end().replace("[,", r"\:[,");
    let mut tidy = String::new();
    for (index, part) in line.split('`').enumerate() {
        if index > 0 {
            tidy.push_str(if index % 2 == 1 { r"\fB" } else { r"\fR" });
        }
        tidy.push_str(part);
    }
    tidy + "\n"
}

const FILES: &[(&str, &str)] = &[
    (
        "/etc/tmem.toml",
        "Configuration of the service, see tmem.toml(5).",
    ),
    (
        "/run/tmem.sock",
        "Control socket of the service; systemd makes it.",
    ),
    (
        "/run/tmem-guests/NAME.sock",
        "Socket of guest NAME, once tmem-guest@NAME.socket is enabled.",
    ),
];

fn statuses(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "tmem-run" => &[
            ("0", "The guest powered off or reset."),
            ("1", "An error; one line says which."),
            ("2", "Arguments that cannot be meant."),
            ("128 + N", "Signal N ended it."),
        ],
        "tmem-serve" => &[
            ("0", "SIGTERM or SIGINT ended it."),
            ("1", "An error; one line says which."),
            (
                "2",
                "Arguments, a configuration or sockets passed by systemd that cannot be meant.",
            ),
        ],
        _ => &[
            ("0", "Done."),
            ("1", "An error; one line says which."),
            ("2", "Arguments that cannot be meant."),
        ],
    }
}
