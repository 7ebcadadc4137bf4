//! Which file needs which.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files, and what each imports of which other.
#[derive(Default)]
pub(super) struct Graph {
    /// For each file the files that it needs, with the first import of each.
    edges: BTreeMap<PathBuf, BTreeMap<PathBuf, String>>,
}

/// One import of a circle.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    /// The imported name, as written in the file.
    pub(super) through: String,
}

impl Graph {
    /// A file, whether or not it imports anything.
    pub(super) fn file(&mut self, file: &Path) {
        self.edges.entry(file.to_owned()).or_default();
    }

    /// An import. Imports of a file from itself do not count.
    pub(super) fn import(&mut self, from: &Path, to: &Path, through: &str) {
        self.file(from);
        if from != to {
            let needed = self.edges.entry(from.to_owned()).or_default();
            needed
                .entry(to.to_owned())
                .or_insert_with(|| through.to_owned());
        }
    }

    /// Number of files.
    pub(super) fn files(&self) -> usize {
        self.edges.len()
    }

    /// Number of pairs of files of which one needs the other.
    pub(super) fn imports(&self) -> usize {
        self.edges.values().map(BTreeMap::len).sum()
    }

    /// Circles: none if there are none, else enough of them that each file of a circle is in one, or needs one.
    pub(super) fn circles(&self) -> Vec<Vec<Step>> {
        // A file that needs none of the remaining files is in no circle and is removed, so only circles and the files
        // that need them stay.
        let mut left: BTreeSet<&PathBuf> = self.edges.keys().collect();
        loop {
            let before = left.len();
            let kept: Vec<&PathBuf> = left
                .iter()
                .copied()
                .filter(|file| self.needed(file).any(|needed| left.contains(needed)))
                .collect();
            left = kept.into_iter().collect();
            if left.len() == before {
                break;
            }
        }
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        while let Some(start) = left.iter().copied().find(|file| !seen.contains(*file)) {
            // Each file that is left needs another one that is left, so a walk along them comes to one for the second time.
            let mut walk = vec![start];
            let circle = loop {
                let last = walk.last().copied().unwrap_or(start);
                let mut needed = self.needed(last).filter(|needed| left.contains(needed));
                let Some(next) = needed.next() else {
                    break None;
                };
                if let Some(first) = walk.iter().position(|file| *file == next) {
                    break walk.get(first..);
                }
                if seen.contains(next) {
                    break None;
                }
                walk.push(next);
            };
            if let Some(circle) = circle {
                circles.push(self.steps(circle));
            }
            seen.extend(walk.iter().copied());
        }
        circles
    }

    fn needed<'a>(&'a self, file: &Path) -> impl Iterator<Item = &'a PathBuf> + use<'a> {
        self.edges.get(file).into_iter().flat_map(BTreeMap::keys)
    }

    fn steps(&self, circle: &[&PathBuf]) -> Vec<Step> {
        let after = circle.iter().cycle().skip(1);
        circle
            .iter()
            .zip(after)
            .map(|(from, to)| Step {
                from: from.to_path_buf(),
                to: to.to_path_buf(),
                through: self
                    .edges
                    .get(*from)
                    .and_then(|needed| needed.get(*to))
                    .cloned()
                    .unwrap_or_default(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::default();
        for (from, to) in edges {
            graph.import(Path::new(from), Path::new(to), "x");
        }
        graph
    }

    fn circles(edges: &[(&str, &str)]) -> Vec<String> {
        let circles = graph(edges).circles();
        let shown = circles.iter().map(|circle| {
            let steps = circle.iter().map(|step| step.from.display().to_string());
            steps.collect::<Vec<_>>().join(" ")
        });
        shown.collect()
    }

    #[test]
    fn imports_that_go_down_are_no_circle() {
        assert!(circles(&[]).is_empty());
        assert!(circles(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("a", "a")]).is_empty());
    }

    #[test]
    fn a_circle_is_found_with_each_of_its_steps() {
        assert_eq!(circles(&[("a", "b"), ("b", "a")]), ["a b"]);
        assert_eq!(
            circles(&[
                ("top", "a"),
                ("a", "b"),
                ("b", "c"),
                ("c", "a"),
                ("c", "low")
            ]),
            ["a b c"]
        );
        assert_eq!(
            circles(&[("a", "b"), ("b", "a"), ("c", "d"), ("d", "c"), ("b", "d")]).len(),
            2
        );
    }
}
