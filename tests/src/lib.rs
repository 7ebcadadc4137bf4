//! Boot-and-swap tests: real guests, whose own bytes are checked.
//!
//! | module | holds |
//! |---|---|
//! | [`place`] | where built binaries and images are |
//! | [`platform`] | whether KVM is usable here |
//! | [`outer`] | the emulated machine a guest runs in where it is not |
//! | [`cpio`] | initramfs archives |

pub mod cpio;
pub mod outer;
pub mod place;
pub mod platform;
