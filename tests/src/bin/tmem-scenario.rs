//! `tmem-scenario NAME...`: runs scenarios where KVM is usable; the last line of each says how it went. `tmem-scenario
//! demo` runs the demo there, and `tmem-scenario count-exits` what a benchmark counts.
//! `tmem-scenario keep` and `announce` are what every process of a test runs under, see [`tmem_tests::keeper`].

use std::process::ExitCode;

use anyhow::Result;
use tmem_tests::{demo, exits, keeper, scenario};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [task, test, command @ ..] if task == "keep" => said(keeper::keep(test, command)),
        [task, keeper, command @ ..] if task == "announce" => {
            said(keeper::announce(keeper, command).map(|never| match never {}))
        }
        [task] if task == "demo" => said(demo::run().map(|()| ExitCode::SUCCESS)),
        [task] if task == "count-exits" => said(exits::tell().map(|()| ExitCode::SUCCESS)),
        names => scenarios(names),
    }
}

fn said(result: Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("tmem-scenario: {error:#}");
        ExitCode::FAILURE
    })
}

fn scenarios(names: &[String]) -> ExitCode {
    let verdicts = scenario::run_each(names.iter().map(String::as_str));
    if verdicts.iter().all(|verdict| verdict.failure.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
