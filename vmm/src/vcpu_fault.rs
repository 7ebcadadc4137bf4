//! KVM's description of a vCPU that cannot go on, for the line that reports the end of its guest.

use std::fmt::Write as _;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
};

/// Longest x86 instruction.
const INSTRUCTION: usize = 15;

/// `kvm_run.internal`, of `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InternalError {
    pub(crate) suberror: u32,
    /// Words of `data` that count.
    pub(crate) ndata: u32,
    pub(crate) data: [u64; 16],
}

impl InternalError {
    /// On one line, with the address of the instruction where it is known.
    pub(crate) fn describe(&self, rip: Option<u64>) -> String {
        let what = match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "an instruction that KVM cannot emulate",
            KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions at the same time",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit while an event is delivered",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit of an unexpected reason",
            _ => "of a kind that this version does not know",
        };
        let mut line = format!(
            "internal error of KVM, suberror {} ({what}){}",
            self.suberror,
            at(rip)
        );
        let words = usize::try_from(self.ndata).unwrap_or(usize::MAX);
        let words = self.data.get(..words).unwrap_or(&self.data);
        if self.suberror == KVM_INTERNAL_ERROR_EMULATION {
            match instruction(words) {
                Some((size, bytes)) => {
                    line += ", instruction bytes";
                    for byte in bytes.get(..size).unwrap_or(&bytes) {
                        let _ = write!(line, " {byte:02x}");
                    }
                }
                None => line += ", without the bytes of the instruction",
            }
        } else if !words.is_empty() {
            line += ", data";
            for word in words {
                let _ = write!(line, " {word:#x}");
            }
        }
        line
    }
}

/// Number of bytes, and the bytes, that `kvm_run.emulation_failure` has of the instruction: flags, then the number in one
/// byte and the others behind it.
fn instruction(words: &[u64]) -> Option<(usize, [u8; INSTRUCTION])> {
    let [flags, first, second, ..] = words else {
        return None;
    };
    if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
        return None;
    }
    let bytes = u128::from(*first) | u128::from(*second) << 64;
    let [size, bytes @ ..] = bytes.to_le_bytes();
    Some((usize::from(size), bytes))
}

/// `KVM_EXIT_MEMORY_FAULT`: memory of the guest that the host does not have.
pub(crate) fn memory_fault(flags: u64, gpa: u64, size: u64, rip: Option<u64>) -> String {
    format!(
        "the host does not have the guest's memory at {gpa:#x} ({size:#x} bytes, flags {flags:#x}){}",
        at(rip)
    )
}

/// Where the vCPU is, if it is known.
pub(crate) fn at(rip: Option<u64>) -> String {
    rip.map_or_else(String::new, |rip| format!(" at RIP {rip:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_cannot_be_emulated_is_told_with_its_place_and_bytes() {
        let mut data = [0; 16];
        data[0] = 1;
        data[1] = u64::from_le_bytes([3, 0x0f, 0x01, 0xd0, 0x90, 0x90, 0x90, 0x90]);
        let error = InternalError {
            suberror: 1,
            ndata: 3,
            data,
        };
        assert_eq!(
            error.describe(Some(0xffff_ffff_8100_0000)),
            "internal error of KVM, suberror 1 (an instruction that KVM cannot emulate) at RIP 0xffffffff81000000, instruction bytes 0f 01 d0"
        );
        // An older KVM says less, and a wrong number reaches no further than there are bytes.
        let old = InternalError { ndata: 0, ..error };
        assert!(
            old.describe(None)
                .ends_with(", without the bytes of the instruction")
        );
        let mut long = error;
        long.data[1] |= 0xff;
        assert_eq!(long.describe(None).matches(" 90").count(), 4);
        assert_eq!(long.describe(None).matches(" 00").count(), 8);
    }

    #[test]
    fn another_internal_error_is_told_with_its_words_and_no_more_than_there_are() {
        let mut error = InternalError {
            suberror: 3,
            ndata: 2,
            data: [7; 16],
        };
        error.data[0] = 0x8000_0b0e;
        assert_eq!(
            error.describe(Some(0x1000)),
            "internal error of KVM, suberror 3 (an exit while an event is delivered) at RIP 0x1000, data 0x80000b0e 0x7"
        );
        error.ndata = u32::MAX;
        assert_eq!(error.describe(None).matches(" 0x7").count(), 15);
        error.suberror = 99;
        assert!(error.describe(None).contains("suberror 99 (of a kind"));
    }

    #[test]
    fn memory_that_the_host_does_not_have_is_told_with_its_address() {
        assert_eq!(
            memory_fault(8, 0x10_0000, 4096, Some(0x1234)),
            "the host does not have the guest's memory at 0x100000 (0x1000 bytes, flags 0x8) at RIP 0x1234"
        );
    }
}
