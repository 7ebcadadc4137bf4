//! Accounting of memory: the ledger, the limits of a domain, an owner's quota, and the cost of an allocation.

pub(crate) mod allotment;
pub(crate) mod heap;
pub(crate) mod ledger;
pub(crate) mod quota;
