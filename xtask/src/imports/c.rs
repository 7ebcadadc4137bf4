//! The imports of C files in kernel style.
//!
//! The functions of all files are declared in one header, so `#include` says little: a file needs another if it uses a
//! function or a variable that the other defines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::graph::Graph;
use crate::paths;

/// Adds the C files below a folder.
///
/// # Errors
/// A file cannot be read.
pub(super) fn read(folder: &Path, graph: &mut Graph) -> Result<()> {
    let mut files = Vec::new();
    for path in paths::files_below(folder)? {
        if path
            .extension()
            .is_some_and(|kind| kind == "c" || kind == "h")
        {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            files.push((path, without_comments(&text)));
        }
    }
    let mut defined = BTreeMap::new();
    for (path, text) in &files {
        graph.file(path);
        if path.extension().is_some_and(|kind| kind == "c") {
            for name in definitions(text) {
                defined.insert(name, path);
            }
        }
    }
    for (path, text) in &files {
        for included in text.lines().filter_map(included) {
            // A public header of ours is included by the place that it has in a kernel.
            let beside = path.with_file_name(included);
            if let Some((other, _)) = files
                .iter()
                .find(|(other, _)| *other == beside || other.ends_with(included))
            {
                graph.import(path, other, &format!("#include \"{included}\""));
            }
        }
        if path.extension().is_some_and(|kind| kind == "c") {
            for word in words(text) {
                if let Some(other) = defined.get(word) {
                    graph.import(path, other, word);
                }
            }
        }
    }
    Ok(())
}

/// The text without comments, strings and character constants, which become spaces; the name of an included file stays.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let include = rest.starts_with("#include");
        let end = if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("//") || include {
            rest.find('\n').unwrap_or(rest.len())
        } else if next == '"' || next == '\'' {
            literal(rest, next)
        } else {
            out.push(next);
            rest = rest.get(next.len_utf8()..).unwrap_or_default();
            continue;
        };
        let (gone, after) = rest.split_at(end);
        if include {
            out.push_str(gone);
        } else {
            // Lines stay where they are.
            out.extend(
                gone.chars()
                    .map(|letter| if letter == '\n' { '\n' } else { ' ' }),
            );
        }
        rest = after;
    }
    out
}

/// The length of a string or character constant at the begin of `text`.
fn literal(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        if letter == quote && !escaped {
            return at + letter.len_utf8();
        }
        escaped = letter == '\\' && !escaped;
    }
    text.len()
}

fn included(line: &str) -> Option<&str> {
    let name = line.trim().strip_prefix("#include")?.trim();
    let name = name.trim_matches(['"', '<', '>']);
    (!name.is_empty()).then_some(name)
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
}

/// Functions and variables that other files can use: what begins at the left margin, is not static, and has a body or a
/// value. The first word before the parenthesis, or before the sign, is the name.
fn definitions(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut head = String::new();
    for line in text.lines() {
        if line.starts_with('{') || line.trim_end().ends_with('{') || line.contains(" = ") {
            if !line.starts_with('{') {
                head = continued(&head, line);
            }
            let before = head.split(['(', '[', '=', '{']).next().unwrap_or_default();
            let words: Vec<&str> = words(before).collect();
            // `struct name {` is a type, and no more than that.
            let is_type =
                !head.contains('(') && matches!(words[..], ["struct" | "enum" | "union", _]);
            if let [_, .., name] = words[..]
                && !is_type
                && !head.starts_with("static")
            {
                found.push(name.to_owned());
            }
            head.clear();
        } else if line.trim_end().ends_with(';')
            || line.starts_with(['#', '}'])
            || line.trim().is_empty()
        {
            head.clear();
        } else {
            head = continued(&head, line);
        }
    }
    found
}

/// A declaration goes on over lines that are indented.
fn continued(head: &str, line: &str) -> String {
    if line.starts_with(char::is_whitespace) {
        if head.is_empty() {
            return String::new();
        }
        return format!("{head} {}", line.trim());
    }
    // The type of a function may be on the line before its name.
    if head.is_empty() || head.contains('(') {
        line.trim_end().to_owned()
    } else {
        format!("{head} {}", line.trim_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_files_can_use_is_found() {
        let text = "\
#define MACRO(x) \\
	do_it(x)

static int own(int a)
{
	if (a) {
		b = c;
	}
	return 0;
}

int tmem_one(struct tmem_dev *dev,
	     unsigned int index)
{
	int x = 1;
}

struct tmem_slot *tmem_two(void)
{
}

static const struct file_operations fops = {
	.open = tmem_open,
};

const char *const tmem_names[] = {
	[0] = \"x\",
};

bool tmem_ready = true;

struct tmem_slot tmem_first = {
	.kind = 1,
};

struct tmem_thing {
	int a;
};

int tmem_declared(void);
";
        assert_eq!(
            definitions(text),
            [
                "tmem_one",
                "tmem_two",
                "tmem_names",
                "tmem_ready",
                "tmem_first"
            ]
        );
    }

    #[test]
    fn comments_and_strings_name_nothing() {
        let text = without_comments(
            "a /* tmem_b */ \"tmem_c \\\" x\" // tmem_d\n'\"' e\n#include \"f.h\"\n",
        );
        assert_eq!(
            words(&text).collect::<Vec<_>>(),
            ["a", "e", "include", "f", "h"]
        );
    }

    #[test]
    fn a_circle_of_calls_or_of_headers_is_found() -> Result<()> {
        for files in [
            [
                ("a.c", "int a(void)\n{\n\treturn b();\n}\n"),
                ("b.c", "int b(void)\n{\n\treturn a();\n}\n"),
            ],
            [("a.h", "#include \"b.h\"\n"), ("b.h", "#include \"a.h\"\n")],
        ] {
            let folder = tempfile::tempdir()?;
            for (name, text) in files {
                fs::write(folder.path().join(name), text)?;
            }
            let mut graph = Graph::default();
            read(folder.path(), &mut graph)?;
            assert_eq!(graph.circles().len(), 1, "{files:?}");
        }
        Ok(())
    }
}
