//! `tmem-scenario NAME...`: runs scenarios where KVM is usable; the last line of each says how it went.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for name in std::env::args().skip(1) {
        match tmem_tests::scenario::run(&name) {
            Ok(()) => println!("SCENARIO {name} ok"),
            Err(error) => {
                println!("SCENARIO {name} FAILED: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
