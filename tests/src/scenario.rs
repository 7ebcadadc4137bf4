//! The scenarios, by name: each starts guests and holds one promise against what they and the host say. The list of each
//! file says which of its scenarios need KVM and run wherever that is usable, on this machine or in an outer one, and
//! which are about the driver and the store, whatever the guest runs on. [`run_each`] runs several, and ends each with a
//! [`Verdict`].

mod backends;
mod ends;
mod entry;
mod failure;
mod host;
mod service;
mod swap;
mod threads;

use std::fmt;
use std::panic::catch_unwind;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use entry::{Runs, Scenario};

use crate::guest::Machine;

/// How a scenario ended; as text, a line that [`Verdict::read`] understands.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Name of the scenario.
    pub name: String,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Seconds it took.
    pub seconds: u64,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, seconds, .. } = self;
        match &self.failure {
            None => write!(f, "SCENARIO {name} {seconds} s ok"),
            Some(why) => write!(f, "SCENARIO {name} {seconds} s FAILED: {why}"),
        }
    }
}

impl Verdict {
    /// The verdict that a line is, if it is one. Of a failure with many lines it has the first.
    pub fn read(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("SCENARIO ")?;
        let (name, rest) = rest.split_once(' ')?;
        let (seconds, rest) = rest.split_once(" s ")?;
        let failure = match rest {
            "ok" => None,
            _ => Some(rest.strip_prefix("FAILED: ")?.to_owned()),
        };
        Some(Self {
            name: name.to_owned(),
            failure,
            seconds: seconds.parse().ok()?,
        })
    }
}

/// Runs scenarios on KVM one after the other, whatever becomes of those before, and prints how each ended.
pub fn run_each<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<Verdict> {
    let one = |name: &str| {
        let start = Instant::now();
        let result = catch_unwind(|| run(name)).unwrap_or_else(|_| Err(anyhow!("it panicked")));
        let verdict = Verdict {
            name: name.to_owned(),
            failure: result.err().map(|error| format!("{error:#}")),
            seconds: start.elapsed().as_secs(),
        };
        println!("{verdict}");
        verdict
    };
    names.into_iter().map(one).collect()
}

/// Every scenario.
fn all() -> impl Iterator<Item = &'static Scenario> {
    let lists = [
        backends::SCENARIOS,
        ends::SCENARIOS,
        failure::SCENARIOS,
        host::SCENARIOS,
        service::SCENARIOS,
        swap::SCENARIOS,
        threads::SCENARIOS,
    ];
    lists.into_iter().flatten()
}

fn find(name: &str) -> Result<&'static Scenario> {
    all()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("there is no scenario {name:?}"))
}

/// Runs any scenario on KVM.
pub fn run(name: &str) -> Result<()> {
    match find(name)?.runs {
        Runs::OnKvm(run) => run(),
        Runs::Anywhere(run) => run(Machine::Kvm),
    }
}

/// Runs a scenario that needs no KVM.
pub fn run_on(machine: Machine, name: &str) -> Result<()> {
    match find(name)?.runs {
        Runs::Anywhere(run) => run(machine),
        Runs::OnKvm(_) => bail!("scenario {name:?} needs KVM"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_as_it_was_written() {
        let mut verdict = Verdict {
            name: "first-page".to_owned(),
            failure: None,
            seconds: 12,
        };
        assert_eq!(Verdict::read(&verdict.to_string()).as_ref(), Some(&verdict));
        verdict.failure = Some("not ok: 3 s ok".to_owned());
        assert_eq!(Verdict::read(&verdict.to_string()).as_ref(), Some(&verdict));
        assert_eq!(Verdict::read("SCENARIO first-page 12 s"), None);
        assert_eq!(Verdict::read("[    1.0] SCENARIO first-page 12 s ok"), None);
    }

    #[test]
    fn every_scenario_has_a_name_of_its_own() {
        let mut names: Vec<&str> = all().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(run_on(Machine::Process, "sleep").is_err(), "it needs KVM");
    }

    #[test]
    fn a_scenario_that_fails_does_not_keep_the_next_from_running() {
        let verdicts = run_each(["missing", "absent"]);
        let failed = |name: &str| {
            verdicts.iter().any(|verdict| {
                let why = verdict.failure.as_deref().unwrap_or_default();
                verdict.name == name && why.contains(&format!("no scenario {name:?}"))
            })
        };
        assert!(failed("missing") && failed("absent"), "{verdicts:?}");
    }
}
