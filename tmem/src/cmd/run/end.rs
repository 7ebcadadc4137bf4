//! How a guest ended: the last line and the exit code.

use tmem_vmm::{ExitReason, signal_name};

/// Exit codes that say more than that something failed. Those of a guest that did not power itself off are numbers
/// that neither shells nor common programs use.
pub(super) mod code {
    /// Arguments that cannot be meant, as clap has it.
    pub(in crate::cmd::run) const USAGE: u8 = 2;
    /// The guest reset itself.
    pub(in crate::cmd::run) const RESET: u8 = 32;
    /// A triple fault.
    pub(in crate::cmd::run) const TRIPLE_FAULT: u8 = 33;
    /// Its kernel panicked.
    pub(in crate::cmd::run) const PANIC: u8 = 34;
    /// Its processors halted for good.
    pub(in crate::cmd::run) const HALTED: u8 = 35;
    /// An error of KVM or of this program ended it.
    pub(in crate::cmd::run) const BROKEN: u8 = 36;
    /// The number that shells add to that of the signal that ended a process.
    pub(in crate::cmd::run) const SIGNAL: i32 = 128;
}

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0       the guest powered itself off, asked or not; or the user typed Ctrl-A x
  1       it could not be started
  2       the arguments cannot be meant
  32      the guest reset itself: `reboot`, or a panic that its kernel has no driver to tell
  33      triple fault
  34      the guest's kernel panicked and said so (pvpanic)
  35      all its processors halted: `halt`, `poweroff` of a kernel without ACPI, or one that gave up
  36      KVM or tmem could not go on with the guest
  128+N   signal N cut its power: 143 for SIGTERM, 130 for SIGINT, 129 for SIGHUP, 131 for SIGQUIT

SIGTERM, SIGINT and SIGHUP press the guest's power button. It has the grace time to power itself off; then, or on a
second SIGTERM or SIGINT, or on SIGQUIT, its power is cut. The last line on standard error says how it ended.";

/// Writes the last line and ends the process.
pub(super) fn end(reason: ExitReason) -> ! {
    eprintln!("tmem: {}", how_it_ended(reason));
    std::process::exit(exit_code(reason).into())
}

fn exit_code(reason: ExitReason) -> u8 {
    match reason {
        ExitReason::PowerOff | ExitReason::Escape => 0,
        ExitReason::Reset => code::RESET,
        ExitReason::TripleFault => code::TRIPLE_FAULT,
        ExitReason::Panic => code::PANIC,
        ExitReason::Halted => code::HALTED,
        ExitReason::Signal(signal) => u8::try_from(code::SIGNAL + signal).unwrap_or(1),
        // An end that this version does not know is no success.
        _ => code::BROKEN,
    }
}

fn how_it_ended(reason: ExitReason) -> String {
    match reason {
        ExitReason::PowerOff => "The guest powered itself off".into(),
        ExitReason::Escape => "The user ended the guest".into(),
        ExitReason::Reset => "The guest reset itself".into(),
        ExitReason::TripleFault => "The guest ended with a triple fault".into(),
        ExitReason::Panic => "The guest's kernel panicked".into(),
        ExitReason::Halted => "The guest's processors halted for good".into(),
        ExitReason::Signal(signal) => {
            format!("{} cut the guest's power", signal_name(signal))
        }
        other => format!("The guest ended otherwise: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_ends_of_a_guest_have_one_code_but_those_that_somebody_asked_for() {
        let ends = [
            ExitReason::PowerOff,
            ExitReason::Reset,
            ExitReason::TripleFault,
            ExitReason::Panic,
            ExitReason::Halted,
            ExitReason::Signal(15),
            ExitReason::Signal(2),
        ];
        let mut codes: Vec<u8> = ends.into_iter().map(exit_code).collect();
        assert_eq!(codes, [0, 32, 33, 34, 35, 143, 130]);
        codes.extend([1, code::USAGE, code::BROKEN]);
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ends.len() + 3);
        assert_eq!(exit_code(ExitReason::Escape), 0);
    }

    #[test]
    fn the_help_names_every_code() {
        for code in [
            code::USAGE,
            code::RESET,
            code::TRIPLE_FAULT,
            code::PANIC,
            code::HALTED,
            code::BROKEN,
        ] {
            let line = format!("\n  {code} ");
            assert!(EXIT_CODES.contains(&line), "{code}");
        }
    }
}
