//! How much the bench does.

/// How much to do.
pub(crate) struct Scale {
    /// Times that each side has its turn.
    pub(crate) turns: usize,
    /// Copies of one turn.
    pub(crate) copies: u32,
    /// Requests of one turn.
    pub(crate) requests: u64,
}
