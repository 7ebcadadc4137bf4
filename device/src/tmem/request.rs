//! Pure decoding: what a request asks for, or why it is refused.

use tmem_protocol::request::{Entry, Op, POOL_EPHEMERAL, POOL_SHARED, RequestHeader};
use tmem_protocol::{GROUP_LEN, MAX_BATCH, PAGE_SIZE, Response, Status, feature};
use zerocopy::IntoBytes;

use crate::chain::Fault;

/// A request that is well-formed and whose feature was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Create a pool of this kind.
    CreatePool(PoolRequest),
    /// Destroy this pool.
    DestroyPool(u32),
    /// Store pages.
    Store(Batch),
    /// Load pages.
    Load(Batch),
    /// Invalidate pages.
    InvalidatePage(Batch),
    /// Invalidate the pages of an object.
    InvalidateObject {
        /// Id of the pool.
        pool: u32,
        /// The object.
        object: [u64; 3],
    },
}

/// Pages of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Id of the pool.
    pub pool: u32,
    /// The object.
    pub object: [u64; 3],
    /// Number of entries, 1 to [`MAX_BATCH`].
    pub count: u16,
}

/// A pool to create.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolRequest {
    /// Private; what it accepts is kept.
    Persistent,
    /// Private; pages may vanish.
    Ephemeral,
    /// A member of a share group.
    Shared(GroupName),
}

/// Name of a share group: 1 to [`GROUP_LEN`] bytes of UTF-8 without a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupName {
    bytes: [u8; GROUP_LEN],
}

impl GroupName {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; GROUP_LEN] = bytes.try_into().ok()?;
        let mut parts = bytes.splitn(2, |byte| *byte == 0);
        let name = parts.next()?;
        let padding = parts.next().unwrap_or_default();
        if name.is_empty() || padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        str::from_utf8(name).ok()?;
        Some(Self { bytes })
    }

    /// The name without its padding.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let name = self.bytes.split(|byte| *byte == 0).next();
        name.and_then(|name| str::from_utf8(name).ok())
            .unwrap_or_default()
    }
}

/// Why a request was not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// It breaks a rule of the ABI.
    Malformed(Malformed),
    /// Its operation or flags are not known, or their feature was not negotiated.
    Unsupported,
}

impl DecodeError {
    /// The status that tells the driver.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Self::Malformed(_) => Status::Invalid,
            Self::Unsupported => Status::Unsupported,
        }
    }
}

macro_rules! malformed {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The rule that a malformed chain breaks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Malformed {
            $($(#[$doc])* $name,)*
        }

        impl Malformed {
            /// Every rule, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Number of rules.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in statistics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

malformed! {
    /// The chain has no end: a loop, a bad indirect table.
    Incomplete = "incomplete",
    /// Too many descriptors.
    TooLong = "too_long",
    /// A readable descriptor follows a writable one.
    Order = "order",
    /// A descriptor lies outside guest memory.
    OutsideMemory = "outside_memory",
    /// The readable part is shorter than the header.
    ShortHeader = "short_header",
    /// There is no room for the response.
    NoResponse = "no_response",
    /// The number of entries is not one which the operation can have.
    Count = "count",
    /// The readable part is not as long as the header says.
    ReadableLength = "readable_length",
    /// The writable part has no room for what the header asks for.
    WritableLength = "writable_length",
    /// A reserved field is not zero.
    Reserved = "reserved",
    /// The name of the share group is empty, not padded with zeroes or not UTF-8.
    GroupName = "group_name",
    /// An event buffer is too small or not writable.
    EventBuffer = "event_buffer",
}

impl From<Fault> for Malformed {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Incomplete => Self::Incomplete,
            Fault::TooLong => Self::TooLong,
            Fault::Order => Self::Order,
            Fault::OutsideMemory => Self::OutsideMemory,
        }
    }
}

impl From<Malformed> for DecodeError {
    fn from(rule: Malformed) -> Self {
        Self::Malformed(rule)
    }
}

/// Decodes the header of a request whose chain has `readable` and `writable` bytes. `features` are
/// those which were negotiated.
///
/// # Errors
/// The first rule that the request breaks.
pub fn decode(
    header: &RequestHeader,
    readable: usize,
    writable: usize,
    features: u64,
) -> Result<Request, DecodeError> {
    let op = Op::try_from(header.op.get()).map_err(|_| DecodeError::Unsupported)?;
    let count = header.count.get();
    let allowed = if op.has_entries() {
        1..=MAX_BATCH
    } else {
        0..=0
    };
    if !allowed.contains(&count) {
        return Err(Malformed::Count.into());
    }
    let sizes = Sizes::of(op, usize::from(count));
    if readable != sizes.readable {
        return Err(Malformed::ReadableLength.into());
    }
    if writable < sizes.writable {
        return Err(Malformed::WritableLength.into());
    }
    let pool = header.pool.get();
    let object = header.object.map(|word| word.get());
    let batch = Batch {
        pool,
        object,
        count,
    };
    match op {
        Op::CreatePool => decode_pool(header, features).map(Request::CreatePool),
        Op::DestroyPool if object != [0; 3] => Err(Malformed::Reserved.into()),
        Op::DestroyPool => Ok(Request::DestroyPool(pool)),
        Op::Store => Ok(Request::Store(batch)),
        Op::Load => Ok(Request::Load(batch)),
        Op::InvalidatePage => Ok(Request::InvalidatePage(batch)),
        Op::InvalidateObject => Ok(Request::InvalidateObject { pool, object }),
    }
}

fn decode_pool(header: &RequestHeader, features: u64) -> Result<PoolRequest, DecodeError> {
    let flags = header.pool.get();
    if flags & !(POOL_EPHEMERAL | POOL_SHARED) != 0 {
        return Err(DecodeError::Unsupported);
    }
    let ephemeral = flags & POOL_EPHEMERAL != 0;
    let shared = flags & POOL_SHARED != 0;
    if ephemeral && features & feature::bit(feature::EPHEMERAL) == 0
        || shared && (!ephemeral || features & feature::bit(feature::SHARED) == 0)
    {
        return Err(DecodeError::Unsupported);
    }
    if shared {
        return GroupName::decode(header.group())
            .map(PoolRequest::Shared)
            .ok_or(Malformed::GroupName.into());
    }
    if header.group().iter().any(|byte| *byte != 0) {
        return Err(Malformed::Reserved.into());
    }
    Ok(if ephemeral {
        PoolRequest::Ephemeral
    } else {
        PoolRequest::Persistent
    })
}

/// Checks the entries of a request.
///
/// # Errors
/// A reserved field is not zero.
pub fn check_entries(entries: &[Entry]) -> Result<(), DecodeError> {
    if entries.iter().any(|entry| entry.reserved.get() != 0) {
        return Err(Malformed::Reserved.into());
    }
    Ok(())
}

/// Bytes of both parts of a request.
struct Sizes {
    readable: usize,
    writable: usize,
}

impl Sizes {
    fn of(op: Op, count: usize) -> Self {
        let pages = count.saturating_mul(PAGE_SIZE);
        let (stored, loaded) = match op {
            Op::Store => (pages, 0),
            Op::Load => (0, pages),
            _ => (0, 0),
        };
        Self {
            readable: size_of::<RequestHeader>()
                .saturating_add(count.saturating_mul(size_of::<Entry>()))
                .saturating_add(stored),
            writable: size_of::<Response>()
                .saturating_add(count)
                .saturating_add(loaded),
        }
    }
}

/// The answer of the device: the response and the statuses of the entries.
#[derive(Clone, Debug)]
pub struct Answer {
    response: Response,
    statuses: [u8; MAX_BATCH as usize],
}

impl Answer {
    /// An answer with this status for the request and each of `count` entries.
    #[must_use]
    pub fn new(status: Status, count: u16) -> Self {
        let count = count.min(MAX_BATCH);
        Self {
            response: Response {
                status: status.into(),
                count: count.into(),
                ..Response::default()
            },
            statuses: [status.into(); MAX_BATCH as usize],
        }
    }

    /// Sets the id of the new pool.
    #[must_use]
    pub fn with_pool(mut self, pool: u32) -> Self {
        self.response.pool = pool.into();
        self
    }

    /// Sets the status of the request.
    pub fn set_status(&mut self, status: Status) {
        self.response.status = status.into();
    }

    /// Sets the status of the entry at `position`, if there is one.
    pub fn set_entry(&mut self, position: usize, status: Status) {
        let count = usize::from(self.response.count.get());
        let entries = self.statuses.get_mut(..count).unwrap_or_default();
        if let Some(entry) = entries.get_mut(position) {
            *entry = status.into();
        }
    }

    /// The bytes of the response.
    #[must_use]
    pub fn response_bytes(&self) -> &[u8] {
        self.response.as_bytes()
    }

    /// The bytes of the statuses of the entries.
    #[must_use]
    pub fn status_bytes(&self) -> &[u8] {
        let count = usize::from(self.response.count.get());
        self.statuses.get(..count).unwrap_or_default()
    }
}
