//! A progress bar on a terminal, a line each tenth of the way elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one long step towards an expected number of units.
pub(crate) struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    expected: u64,
    done: u64,
    tenths: u64,
    start: Instant,
}

impl Progress {
    /// Starts a step of about `expected` units.
    pub(crate) fn start(name: &str, expected: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(expected);
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:40}] {percent}% {elapsed} {msg}")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        if bar.is_none() {
            println!("{name}: started");
        }
        Self {
            name: name.to_owned(),
            bar,
            expected: expected.max(1),
            done: 0,
            tenths: 0,
            start: Instant::now(),
        }
    }

    /// One unit is done; `what` names it.
    pub(crate) fn step(&mut self, what: &str) {
        self.done += 1;
        if let Some(bar) = &self.bar {
            if self.done > self.expected {
                bar.set_length(self.done);
            }
            bar.set_position(self.done);
            bar.set_message(what.chars().take(40).collect::<String>());
            return;
        }
        let tenths = (self.done * 10 / self.expected).min(9);
        if tenths > self.tenths {
            self.tenths = tenths;
            println!("{}: {}0 %", self.name, tenths);
        }
    }

    /// The step is done. Returns how many units there really were.
    pub(crate) fn finish(self) -> u64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        println!(
            "{}: done in {:.0} s",
            self.name,
            self.start.elapsed().as_secs_f64()
        );
        self.done
    }
}
