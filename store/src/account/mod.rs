//! Who pays for memory: the ledger, an owner's quota in it, and what an allocation costs.

pub(crate) mod heap;
pub(crate) mod ledger;
pub(crate) mod quota;
