//! What the clients of a socket may ask for.

/// What the clients of a socket may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Operator,
    /// Statistics only: a request that would change something is refused.
    Monitor,
}

impl Role {
    /// Name of the thread that answers them; the kernel keeps 15 bytes.
    pub(crate) fn thread(self) -> &'static str {
        match self {
            Self::Operator => "tmem-control",
            Self::Monitor => "tmem-statistics",
        }
    }
}
