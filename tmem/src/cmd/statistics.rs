//! The options of the statistics socket, which `tmem run` and `tmem serve` share.

use std::path::PathBuf;

use tmem_serve::Access;
use tmem_serve::access::AccessError;

/// Connections to the socket that wait while all slots of its server are taken.
pub(super) const BACKLOG: i32 = 64;

/// Where the statistics socket is, and who can connect to it.
#[derive(Debug, clap::Args)]
pub(super) struct Statistics {
    /// Unix socket to make that shows all figures and changes nothing
    #[arg(long, value_name = "SOCKET")]
    pub(super) statistics: Option<PathBuf>,
    /// Its permission bits; 0600 when left out, or 0660 with a group
    #[arg(long, value_name = "OCTAL", requires = "statistics")]
    statistics_mode: Option<String>,
    /// Its group, by name or number
    #[arg(long, value_name = "GROUP", requires = "statistics")]
    statistics_group: Option<String>,
}

impl Statistics {
    /// Permission bits that were asked for.
    pub(super) fn mode(&self) -> Result<Option<u32>, AccessError> {
        let mode = self.statistics_mode.as_deref();
        mode.map(Access::parse_mode).transpose()
    }

    /// Number of the group that was asked for.
    pub(super) fn group(&self) -> Result<Option<u32>, AccessError> {
        let group = self.statistics_group.as_deref();
        group.map(Access::parse_group).transpose()
    }
}
