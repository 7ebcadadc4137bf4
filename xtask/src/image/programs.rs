//! Programs that benchmarks run in guests: a compiler, and Redis, as Debian ships them, with the libraries that they
//! need.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::apt;

const PACKAGES: &[&str] = &[
    "cpp-12",
    "libatomic1",
    "libc6",
    "libcap2",
    "libgcc-s1",
    "libgcrypt20",
    "libgmp10",
    "libgpg-error0",
    "libisl23",
    "libjemalloc2",
    "liblz4-1",
    "liblzf1",
    "liblzma5",
    "libmpc3",
    "libmpfr6",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "redis-server",
    "redis-tools",
    "zlib1g",
];

/// The folder in the cache that a guest sees as the root of its programs.
pub(crate) fn folder(cache: &Path) -> Result<PathBuf> {
    apt::merged(cache, "programs", PACKAGES)
}
