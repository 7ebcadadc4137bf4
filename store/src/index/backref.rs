//! The way back from a slot to the entry that names it.

use crate::arena::segment::PackedBackref;

/// Names an entry of a pool's index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryId {
    pub(crate) shard: usize,
    pub(crate) chunk: u32,
    pub(crate) offset: u8,
}

impl EntryId {
    /// The backref of the slot that the entry names, in the pool of this index.
    #[expect(clippy::cast_possible_truncation, reason = "there are 64 shards")]
    pub(crate) fn backref(self, pool: u8) -> Backref {
        Backref::Chunk {
            pool,
            shard: self.shard as u8,
            chunk: self.chunk,
            offset: self.offset,
        }
    }
}

/// The entry, node or record that names a slot. It is packed into 8 bytes beside the slot, so that compaction finds the
/// entry that it must change. It is a hint: a thread that follows it checks, under the lock of that entry, node or
/// record, that the slot is named there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backref {
    /// Entry `offset` of a chunk.
    Chunk {
        pool: u8,
        shard: u8,
        chunk: u32,
        offset: u8,
    },
    /// Node of an ephemeral pool's shard.
    Node { pool: u8, shard: u8, node: u32 },
    /// Record of a pool's dedup table.
    Record { pool: u8, record: u32 },
}

impl Backref {
    pub(crate) fn pack(self) -> PackedBackref {
        let (kind, pool, shard, index, offset) = match self {
            Backref::Chunk {
                pool,
                shard,
                chunk,
                offset,
            } => (1u64, pool, shard, chunk, offset),
            Backref::Node { pool, shard, node } => (2, pool, shard, node, 0),
            Backref::Record { pool, record } => (3, pool, 0, record, 0),
        };
        kind << 62
            | u64::from(pool) << 48
            | u64::from(shard) << 40
            | u64::from(offset) << 32
            | u64::from(index)
    }

    #[expect(clippy::cast_possible_truncation, reason = "fields of their width")]
    pub(crate) fn unpack(backref: PackedBackref) -> Option<Backref> {
        let pool = (backref >> 48) as u8;
        let shard = (backref >> 40) as u8;
        let offset = (backref >> 32) as u8;
        let index = backref as u32;
        match backref >> 62 {
            1 => Some(Backref::Chunk {
                pool,
                shard,
                chunk: index,
                offset,
            }),
            2 => Some(Backref::Node {
                pool,
                shard,
                node: index,
            }),
            3 => Some(Backref::Record {
                pool,
                record: index,
            }),
            _ => None,
        }
    }

    pub(crate) fn pool(self) -> u8 {
        match self {
            Backref::Chunk { pool, .. }
            | Backref::Node { pool, .. }
            | Backref::Record { pool, .. } => pool,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backrefs_say_what_was_packed() {
        for backref in [
            Backref::Chunk {
                pool: 255,
                shard: 63,
                chunk: u32::MAX,
                offset: 63,
            },
            Backref::Node {
                pool: 3,
                shard: 1,
                node: 5,
            },
            Backref::Record {
                pool: 9,
                record: 77,
            },
        ] {
            assert_eq!(Backref::unpack(backref.pack()), Some(backref));
        }
        assert_eq!(Backref::unpack(0), None);
    }
}
