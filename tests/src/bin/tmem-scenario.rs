//! `tmem-scenario NAME...`: runs scenarios, or `demo`, where KVM is usable; the last line of each says how it went.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for name in std::env::args().skip(1) {
        let result = match name.as_str() {
            "demo" => tmem_tests::demo::run(),
            _ => tmem_tests::scenario::run(&name),
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
