//! placeholder
use anyhow::Result;
#[derive(clap::Args)]
pub(crate) struct Selection {}
pub(crate) fn test(_: &Selection) -> Result<bool> { Ok(true) }
