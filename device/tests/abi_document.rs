//! Every rule in `docs/abi.md` names tests, and they exist.
#![allow(missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources() -> String {
    let mut all = String::new();
    for folder in [
        "protocol/tests",
        "device/tests",
        "device/src",
        "serve/tests",
        "serve/src/round",
        "vmm/src/virtio/tmem",
    ] {
        for file in fs::read_dir(root().join(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rs") {
                all.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    all
}

/// List items and paragraphs.
fn paragraphs(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for line in text.lines() {
        let begins = line.starts_with("- ")
            || line.starts_with(|first: char| first.is_ascii_digit())
            || line.is_empty();
        if begins {
            found.push(String::new());
        }
        let last = found.last_mut().unwrap();
        last.push(' ');
        last.push_str(line);
    }
    found
}

/// Names in backquotes in the square brackets at the end of a rule.
fn tests_named(paragraph: &str) -> Vec<&str> {
    paragraph
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.matches('_').count() >= 3 && !name.contains(['/', '-', ' ']))
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect()
}

#[test]
fn every_rule_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join("docs/abi.md")).unwrap();
    let sources = sources();
    let mut rules = 0;
    for paragraph in paragraphs(&text) {
        let named = tests_named(&paragraph);
        for name in &named {
            let test = format!("fn {name}()");
            assert!(sources.contains(&test), "no test {name}");
        }
        if paragraph.contains("MUST") {
            rules += 1;
            assert!(!named.is_empty(), "no test holds: {paragraph}");
        }
    }
    assert!(rules > 30, "the document was understood: {rules} rules");
}
