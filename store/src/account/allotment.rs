//! The part of the budget that a domain may use.

use crate::config::{DomainChange, DomainConfig};
use crate::error::ConfigError;

/// Reserve and limit in bytes, and the weight beyond the reserve.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allotment {
    pub(crate) reserve: u64,
    pub(crate) limit: u64,
    pub(crate) weight: u32,
}

impl Allotment {
    /// That of a domain that was removed.
    pub(crate) const NONE: Self = Self {
        reserve: 0,
        limit: 0,
        weight: 1,
    };

    #[cfg(test)]
    pub(crate) fn of(reserve: u64, limit: u64) -> Self {
        Self {
            reserve,
            limit,
            weight: 1,
        }
    }

    /// Whether it is consistent, and fits the budget beside what others reserved.
    pub(crate) fn check(self, reserved: u64, budget: u64) -> Result<(), ConfigError> {
        if self.weight == 0 {
            return Err(ConfigError::NoWeight);
        }
        if self.reserve > self.limit {
            return Err(ConfigError::ReserveAboveLimit);
        }
        let wanted = reserved.saturating_add(self.reserve);
        if wanted > budget {
            return Err(ConfigError::ReservesAboveBudget { wanted, budget });
        }
        Ok(())
    }

    pub(crate) fn changed(self, change: DomainChange) -> Self {
        Self {
            reserve: change.reserve.unwrap_or(self.reserve),
            limit: change.limit.unwrap_or(self.limit),
            weight: change.weight.unwrap_or(self.weight),
        }
    }
}

impl From<&DomainConfig> for Allotment {
    fn from(config: &DomainConfig) -> Self {
        Self {
            reserve: config.reserve,
            limit: config.limit,
            weight: config.weight,
        }
    }
}
