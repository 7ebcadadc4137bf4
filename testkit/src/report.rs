//! What a benchmark found: rows on the screen, and a JSON file in the target directory.

use std::path::PathBuf;

use serde_json::{Map, Value};

/// What is written to the JSON file.
#[derive(Default)]
pub struct Report(Map<String, Value>);

impl Report {
    pub fn put(&mut self, key: &str, value: f64) {
        let rounded = (value * 1000.0).round() / 1000.0;
        self.value(key, Value::from(rounded));
    }

    /// Also prints it. `goal` is `<= NUMBER` or `>= NUMBER`, or empty.
    pub fn goal(&mut self, key: &str, value: f64, goal: &str) {
        let verdict = match is_met(value, goal) {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let goal = if goal.is_empty() {
            String::new()
        } else {
            format!("   goal {goal:9} {verdict}")
        };
        println!("{key:34} {value:10.3}{goal}");
        self.put(key, value);
    }

    pub fn value(&mut self, key: &str, value: Value) {
        self.0.insert(key.to_owned(), value);
    }

    /// Writes `NAME.json`: where `TMEM_BENCH_DIR` says, else to `bench` of the folder that this was built in.
    pub fn write(self, name: &str) {
        let dir = std::env::var_os("TMEM_BENCH_DIR")
            .map_or_else(|| target_dir().join("bench"), PathBuf::from);
        std::fs::create_dir_all(&dir).expect("target directory is writable");
        let file = dir.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&Value::Object(self.0)).expect("plain values");
        std::fs::write(&file, text + "\n").expect("target directory is writable");
        println!("\nwritten to {}", file.display());
    }
}

fn is_met(value: f64, goal: &str) -> Option<bool> {
    let (relation, bound) = goal.split_once(' ')?;
    let bound: f64 = bound.parse().ok()?;
    match relation {
        "<=" => Some(value <= bound),
        ">=" => Some(value >= bound),
        _ => None,
    }
}

fn target_dir() -> PathBuf {
    // target/release/deps/NAME-HASH
    let exe = std::env::current_exe().expect("path of this program");
    exe.ancestors()
        .nth(3)
        .expect("inside a target directory")
        .to_owned()
}

/// The value below which `fraction` of the samples lie.
pub fn quantile(samples: &mut [u32], fraction: f64) -> f64 {
    assert!(!samples.is_empty());
    let at = ((samples.len() - 1) as f64 * fraction) as usize;
    f64::from(*samples.select_nth_unstable(at).1)
}

/// The middle of the values.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nanoseconds of a floor and of what is compared with it: medians of the turns, and of their ratios.
pub struct Compared {
    pub floor: f64,
    pub other: f64,
    pub ratio: f64,
}

impl Compared {
    /// Turn by turn, as the machine is not the same all the time.
    pub fn of(turns: usize, mut turn: impl FnMut() -> (f64, f64)) -> Self {
        let (mut floors, mut others, mut ratios) = (vec![], vec![], vec![]);
        for _ in 0..turns {
            let (floor, other) = turn();
            floors.push(floor);
            others.push(other);
            ratios.push(other / floor);
        }
        Self {
            floor: median(&mut floors),
            other: median(&mut others),
            ratio: median(&mut ratios),
        }
    }

    /// A row of the table, and of the report.
    pub fn print(&self, key: &str, report: &mut Report) {
        let Self {
            floor,
            other,
            ratio,
        } = self;
        println!("  {key:26} {floor:9.0} {other:11.0} {ratio:9.3}");
        report.put(&format!("{key}_floor_ns"), *floor);
        report.put(&format!("{key}_ns"), *other);
        report.put(&format!("{key}_ratio"), *ratio);
    }
}
