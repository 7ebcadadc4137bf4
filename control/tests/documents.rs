//! The tests that the documents name exist.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All Rust sources of the workspace, joined.
fn sources() -> String {
    let mut text = String::new();
    let mut folders: Vec<PathBuf> = [
        "base", "protocol", "store", "device", "control", "vmm", "tmem", "tests", "serve",
    ]
    .iter()
    .map(|folder| root().join(folder))
    .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(path).expect("is UTF-8");
            }
        }
    }
    text
}

/// Words in backquotes that look like the name of a test.
fn tests_named(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2).filter(|name| {
        name.matches('_').count() >= 3
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    })
}

#[test]
fn every_test_that_a_document_names_exists() {
    let sources = sources();
    for document in [
        "docs/threat-model.md",
        "docs/design.md",
        "control/README.md",
    ] {
        let text = fs::read_to_string(root().join(document)).expect(document);
        for name in tests_named(&text) {
            // A function, or one of a group (`tests/tests/guests.rs`).
            let forms = [format!("fn {name}()"), format!("    {name} => \"")];
            assert!(
                forms.iter().any(|form| sources.contains(form)),
                "{document} names {name}, which no file has"
            );
        }
    }
}

#[test]
fn a_name_that_is_no_test_would_be_found() {
    let found: Vec<_> = tests_named("a `b_c_d_e` and `F_G_H_I`, `tmem_x`").collect();
    assert_eq!(found, ["b_c_d_e"]);
}
