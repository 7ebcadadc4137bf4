//! The commands that README and documents show: each is one that `tmem` understands, those that start a service start
//! one, and where an output is shown, the output has that shape.

mod service;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use service::{command, eventually};
use tmem_testkit::corpus::page;
use tmem_testkit::frontend::TestGuest;

/// Where commands are shown.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "docs/operations.md",
    "docs/store.md",
    "serve/README.md",
];

/// A command of `tmem` in a document.
#[derive(Debug)]
struct Shown {
    /// Document and line.
    at: String,
    /// Arguments after `tmem`.
    arguments: Vec<String>,
    /// Lines of output, if any are shown.
    output: Vec<String>,
}

impl Shown {
    fn is(&self, verb: &str) -> bool {
        self.arguments.first().is_some_and(|word| word == verb)
    }
}

/// A line of code of a document; `block` tells the blocks apart.
struct Code<'a> {
    number: usize,
    block: usize,
    text: &'a str,
}

fn code(document: &str) -> Vec<Code<'_>> {
    let (mut fenced, mut block, mut inside) = (false, 0, false);
    let mut found = Vec::new();
    for (number, line) in document.lines().enumerate() {
        let fence = line.starts_with("```");
        let text = if fence {
            fenced = !fenced;
            None
        } else if fenced {
            Some(line)
        } else {
            line.strip_prefix("    ")
        };
        if text.is_none() && inside {
            block += 1;
        }
        inside = text.is_some();
        found.extend(text.map(|text| Code {
            number: number + 1,
            block,
            text,
        }));
    }
    found
}

/// Words as a shell has them, as far as documents need it: quotes, and the end of a command.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars().chain([' ']) {
        match (letter, quote) {
            (_, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => quote = Some(letter),
            (' ', None) => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(letter),
        }
    }
    let end = words
        .iter()
        .position(|word| matches!(word.as_str(), "&" | "|" | "&&" | ";" | ">"));
    words.truncate(end.unwrap_or(words.len()));
    words
}

/// Where in a line `tmem` is run. Its output may begin with its name as well, and then the version.
fn is_run_at(words: &[String]) -> Option<usize> {
    let is_version = |word: &String| word.starts_with(|letter: char| letter.is_ascii_digit());
    words.iter().enumerate().position(|(at, word)| {
        (word == "tmem" || word.ends_with("/tmem")) && !words.get(at + 1).is_some_and(is_version)
    })
}

fn shown_in(name: &str, document: &str) -> Vec<Shown> {
    let lines = code(document);
    let mut found = Vec::new();
    let mut rest = lines.iter().peekable();
    while let Some(first) = rest.next() {
        let prompted = first
            .text
            .strip_prefix("$ ")
            .or(first.text.strip_prefix("# "));
        let mut text = prompted.unwrap_or(first.text).to_owned();
        while let Some(joined) = text.strip_suffix('\\') {
            text = joined.to_owned() + rest.next().map_or("", |line| line.text.trim());
        }
        let all = words(&text);
        let start = all
            .iter()
            .position(|word| word == "tmem" || word.ends_with("/tmem"));
        // Not the name of a folder, and not in the middle of another program's arguments.
        let known = ["setpriv", "systemd-socket-activate"];
        let Some(start) = start.filter(|&start| start == 0 || known.contains(&all[0].as_str()))
        else {
            continue;
        };
        let mut output = Vec::new();
        // What follows a prompt, or stands in the next block of a document without prompts.
        while let Some(line) = rest.next_if(|line| {
            let other = line.text.starts_with("$ ") || line.text.starts_with("# ");
            let follows = match prompted {
                Some(_) => line.block == first.block,
                None => line.block == first.block + 1 && is_run_at(&words(line.text)).is_none(),
            };
            follows && !other
        }) {
            output.push(line.text.to_owned());
        }
        found.push(Shown {
            at: format!("{name}:{}", first.number),
            arguments: all[start + 1..].to_vec(),
            output,
        });
    }
    found
}

fn shown() -> Vec<Shown> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the checkout");
    let all = DOCUMENTS.iter().flat_map(|name| {
        let document = fs::read_to_string(root.join(name)).expect("is there");
        shown_in(name, &document)
    });
    all.collect()
}

#[test]
fn every_command_that_is_shown_is_one() {
    let shown = shown();
    assert!(shown.len() > 10, "commands are shown: {shown:?}");
    for Shown { at, arguments, .. } in &shown {
        let all = ["tmem"]
            .into_iter()
            .chain(arguments.iter().map(String::as_str));
        let result = tmem::command().try_get_matches_from(all);
        let is_help = result.as_ref().is_err_and(|error| error.exit_code() == 0);
        assert!(
            result.is_ok() || is_help,
            "{at}: tmem {}: {}",
            arguments.join(" "),
            result.expect_err("an error")
        );
    }
}

/// A service as a document starts it, in a folder.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(shown: &Shown, folder: &Path) -> Started {
    let folder_name = folder.display().to_string();
    let here = |word: &String| {
        let word = word
            .replace("/run/tmem/", "/tmp/")
            .replace("/run/", "/tmp/");
        word.replace("$PWD/", "/tmp/")
            .replace("/tmp/", &format!("{folder_name}/"))
    };
    let arguments: Vec<String> = shown.arguments.iter().map(here).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let child = command(&words)
        .current_dir(folder)
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut started = Started(child);
    eventually(&format!("{}: the service answers", shown.at), || {
        let ended = started.0.try_wait().expect("can be asked");
        assert!(ended.is_none(), "{}: it ended with {ended:?}", shown.at);
        ask(&control(folder, shown), &["list"]).status.success()
    });
    started
}

/// The control socket that a shown command makes in a folder.
fn control(folder: &Path, shown: &Shown) -> std::path::PathBuf {
    let at = shown.arguments.iter().position(|word| word == "--control");
    let path = at
        .and_then(|at| shown.arguments.get(at + 1))
        .expect("a control socket");
    folder.join(Path::new(path).file_name().expect("a name"))
}

fn ask(control: &Path, arguments: &[&str]) -> Output {
    let mut ask: Command = command(arguments);
    ask.arg("--control").arg(control).output().expect("runs")
}

#[test]
fn every_service_that_is_shown_starts_and_answers() {
    let shown = shown();
    let services: Vec<&Shown> = shown
        .iter()
        .filter(|shown| shown.is("serve") && !shown.arguments.iter().any(|word| word == "--config"))
        .collect();
    assert!(services.len() >= 3, "services are shown: {services:?}");
    for service in services {
        let folder = tempfile::tempdir().expect("temporary folder");
        drop(start(service, folder.path()));
    }
}

/// What a line of output is about: its first column, without numbers. Of a table that is one line in capitals.
fn label(line: &str) -> String {
    let line = line.trim();
    if line
        .split_whitespace()
        .all(|word| word.chars().all(|letter| !letter.is_lowercase()))
    {
        return line.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let column = line.split("  ").next().unwrap_or_default();
    let words = column
        .split(' ')
        .take_while(|word| !word.contains(|letter: char| letter.is_ascii_digit() || letter == '['));
    words.collect::<Vec<_>>().join(" ")
}

/// What is shown is a part of what is printed, line by line.
fn has_shape(at: &str, shown: &[String], printed: &str, only_here: &[&str]) {
    let printed_labels: Vec<String> = printed.lines().map(label).collect();
    for line in shown {
        let label = label(line);
        assert!(
            label.is_empty()
                || printed_labels.contains(&label)
                || only_here.contains(&label.as_str()),
            "{at} shows {line:?}, and it is not in\n{printed}"
        );
    }
}

#[test]
fn output_that_is_shown_has_the_shape_of_what_is_printed() {
    let shown = shown();
    let folder = tempfile::tempdir().expect("temporary folder");
    let arguments = "serve --memory 64M --control /tmp/control --guest name=vm1,socket=/tmp/vm1,limit=32M \
        --guest name=web-1,socket=/tmp/web-1 --guest name=database,socket=/tmp/database";
    let service = Shown {
        at: "this test".to_owned(),
        arguments: words(arguments),
        output: Vec::new(),
    };
    let _service = start(&service, folder.path());
    let mut guest = TestGuest::boot(&folder.path().join("vm1"));
    let pool = guest.create_pool();
    for index in 0..16 {
        guest.store(pool, index, &page(index.into()));
        guest.load(pool, index).expect("is there");
    }
    let control = control(folder.path(), &service);
    let mut compared = Vec::new();
    for Shown {
        at,
        arguments,
        output,
    } in shown.iter().filter(|shown| !shown.output.is_empty())
    {
        let verb = arguments.first().map_or("", String::as_str);
        let printed = match verb {
            "--version" => command(&["--version"]).output().expect("runs"),
            "list" | "stats" => ask(&control, &[verb]),
            "top" => ask(&control, &["top", "--once", "--interval", "0.2"]),
            _ => continue,
        };
        assert!(printed.status.success(), "{at}: {printed:?}");
        let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
        // `tmem run` counts exits of the guest, a service has none.
        has_shape(at, output, &printed, &["exits"]);
        compared.push(verb.to_owned());
    }
    for verb in ["--version", "list", "stats", "top"] {
        assert!(
            compared.iter().any(|other| other == verb),
            "no output of {verb} is shown: {compared:?}"
        );
    }
}

#[test]
fn commands_are_found_with_what_they_print() {
    let document = "\
Text with `tmem list`.

    $ tmem list --control \\
        x
    NAME  PAGES
    # other
    target/release/tmem stats

```text
tmem 0.1.0

  pages  3
```

```
tmem serve --memory '4 G' & tmem top
```
";
    let found = shown_in("x", document);
    let seen: Vec<(String, usize)> = found
        .iter()
        .map(|shown| (shown.arguments.join("|"), shown.output.len()))
        .collect();
    assert_eq!(
        seen,
        [
            ("list|--control|x".to_owned(), 1),
            ("stats".to_owned(), 3),
            ("serve|--memory|4 G".to_owned(), 0),
        ]
    );
}
