//! Who is charged for memory: the ledger, what a domain may take, an owner's quota in it, and what an allocation costs.

pub(crate) mod allotment;
pub(crate) mod heap;
pub(crate) mod ledger;
pub(crate) mod quota;
