//! What the host counts.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Runs `tmem stats --json`.
pub fn stats_of(mut command: Command) -> Result<Stats> {
    let output = command.output().context("cannot run tmem stats")?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "tmem stats: {}: {}",
        output.status,
        why.trim()
    );
    Ok(Stats(
        serde_json::from_slice(&output.stdout).context("tmem stats --json wrote no JSON")?,
    ))
}

/// The reply of `/v1/stats`; nothing yet by default.
#[derive(Default)]
pub struct Stats(pub Value);

impl Stats {
    /// A figure of the one domain, by its JSON pointer; refusals and pools that never were count as 0.
    pub fn get(&self, pointer: &str) -> u64 {
        self.0
            .pointer(&format!("/domains/0{pointer}"))
            .and_then(Value::as_u64)
            .unwrap_or(0)
    }

    /// As `get`, of the virtio device.
    pub fn device(&self, name: &str) -> u64 {
        self.get(&format!("/device/{name}"))
    }

    /// Pages refused, whatever the reason.
    pub fn refused(&self) -> u64 {
        let refusals = self
            .0
            .pointer("/domains/0/refusals")
            .and_then(Value::as_object);
        refusals.map_or(0, |reasons| {
            reasons.values().filter_map(Value::as_u64).sum()
        })
    }
}
