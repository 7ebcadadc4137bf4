//! `tmem-scenario NAME...`: runs scenarios, or `demo`, where KVM is usable; the last line of each says how it went.
//! `tmem-scenario keep` and `announce` are what every process of a test runs under, see [`tmem_tests::keeper`].

use std::process::ExitCode;

use anyhow::Result;
use tmem_tests::keeper;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [task, test, command @ ..] if task == "keep" => said(keeper::keep(test, command)),
        [task, keeper, command @ ..] if task == "announce" => {
            said(keeper::announce(keeper, command).map(|never| match never {}))
        }
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
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let result = match name.as_str() {
            "demo" => tmem_tests::demo::run(),
            _ => tmem_tests::scenario::run(name),
        };
        match result {
            Ok(()) if name == "demo" => (),
            Ok(()) => println!("SCENARIO {name} ok"),
            Err(error) => {
                println!("SCENARIO {name} FAILED: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
