//! What a guest wrote to its console.

use anyhow::{Context, Result, ensure};

use crate::process::tail;

/// A guest's console.
pub struct Console {
    lines: Vec<String>,
}

impl Console {
    pub(crate) fn new(lines: Vec<String>) -> Self {
        Self { lines }
    }

    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Value of the last `counter MOMENT NAME`, which must be there.
    pub fn counter(&self, moment: &str, name: &str) -> Result<u64> {
        let prefix = format!("counter {moment} {name} ");
        let line = self
            .lines
            .iter()
            .rev()
            .find_map(|line| line.strip_prefix(&prefix));
        let value = line.with_context(|| format!("no line \"{prefix}\" on the console"))?;
        value
            .trim()
            .parse()
            .with_context(|| format!("{prefix}is not a number"))
    }

    /// How many lines are this one.
    pub fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|other| *other == line).count()
    }

    /// How often the driver has rung a doorbell, whatever for, by the last `counters MOMENT`.
    pub fn kicks(&self, moment: &str) -> Result<u64> {
        let mut kicks = 0;
        for name in ["page", "staged", "invalidate", "control", "again"] {
            kicks += self.counter(moment, &format!("tmem.kicks_{name}"))?;
        }
        Ok(kicks)
    }

    /// The guest did all its work, verified every byte, and the kernel complained about nothing.
    pub fn verified(&self, workers: usize) -> Result<()> {
        let ok = self
            .lines
            .iter()
            .filter(|line| line.starts_with("verify ok "))
            .count();
        let statuses: Vec<&String> = self
            .lines
            .iter()
            .filter(|line| line.starts_with("guest work "))
            .collect();
        let good = statuses.iter().all(|line| line.as_str() == "guest work 0");
        ensure!(
            ok == workers && statuses.len() == workers && good,
            "{ok} of {workers} workers verified their memory, statuses {statuses:?}; the console ends:\n{}",
            tail(&self.lines)
        );
        let warned =
            |line: &&String| line.starts_with("guest splats ") && *line != "guest splats 0";
        ensure!(
            !self.lines.iter().any(|line| warned(&line)),
            "the guest's kernel wrote warnings; the console ends:\n{}",
            tail(&self.lines)
        );
        Ok(())
    }
}
