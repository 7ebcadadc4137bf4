//! Boot-and-swap tests: real guests, whose own bytes are checked.
//!
//! | module | holds |
//! |---|---|
//! | [`paths`] | where built binaries and images are |
//! | [`platform`] | whether KVM is usable here |
//! | [`process`] | a process that a test starts: its output, its end |
//! | [`keeper`] | what ends it, and all below it, when the test ends |
//! | [`console`] | what a guest wrote to its console |
//! | [`stats`] | what the host counts |
//! | [`guest`] | a guest of a scenario: how it starts, its disks, its end |
//! | [`service`] | a `tmem serve` beside the guests |
//! | [`interrupts`] | what a guest was interrupted for |
//! | [`scenario`] | what guests do and what must hold, by name |
//! | [`outer`] | the emulated machine a guest runs in where it is not |
//! | [`uml`] | guests that are processes (User Mode Linux) on one `tmem serve` |
//! | [`exits`] | exits that a page costs, for a benchmark |
//! | [`demo`] | what `cargo xtask demo` shows |
//! | [`cpio`] | initramfs archives |

pub mod console;
pub mod cpio;
pub mod demo;
pub mod exits;
pub mod guest;
pub mod interrupts;
pub mod keeper;
pub mod outer;
pub mod paths;
pub mod platform;
pub mod process;
pub mod scenario;
pub mod service;
pub mod stats;
pub mod uml;
