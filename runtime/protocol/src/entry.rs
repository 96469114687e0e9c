//! One entry of a shard's log, and a run of them as bytes: what is journalled and replicated.
//!
//! A segment is `u8 format | entries in compact MessagePack, one after the other`. Its checksum
//! travels beside it in the journal record (see `docs/storage.md`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{EntityId, Epoch, IdempotencyKey, MethodId, Seq, ShardId};
use crate::time::LogTime;

/// The format of entries that this build writes. It reads all formats up to this one.
pub const FORMAT: u8 = 1;

/// One entry. `(shard, epoch, seq)` names it for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the shard.
    pub seq: Seq,
    /// When, in the shard's log time.
    pub log_time: LogTime,
    /// What happened.
    pub op: Op,
}

/// What an entry records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A new primary took over; fences the epoch before.
    Noop,
    /// One turn of one entity.
    Turn {
        /// The entity.
        entity: EntityId,
        /// What became of its state.
        change: Change,
        /// The record that makes the command take effect once, if it carried a key.
        dedup: Option<DedupRecord>,
    },
}

/// What a turn did to the encoded state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Nothing: an `Err`, or a command that left the state as it was.
    None,
    /// The whole new state.
    Put(Bytes),
    /// A patch against the bytes that this entity had before; see `replication::delta`.
    Delta {
        /// `xxh3_64` of the bytes that the patch is made for.
        base_hash: u64,
        /// `xxh3_64` of the bytes that it gives.
        next_hash: u64,
        /// The patch.
        patch: Bytes,
    },
}

/// What is kept of a command that carried an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupRecord {
    /// The caller's key.
    pub key: IdempotencyKey,
    /// The method; the same key with another one is a conflict.
    pub method: MethodId,
    /// `xxh3_64` of the payload; the same key with another one is a conflict.
    pub payload_hash: u64,
    /// The first reply: the value, or the entity's own refusal.
    pub reply: StoredReply,
}

/// A reply as it is kept for repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredReply {
    /// The method's value.
    Value(Bytes),
    /// The entity's own error.
    App(Bytes),
    /// The handler panicked on this input three times; it is not tried again.
    Quarantined,
}

/// A run of entries of one shard and epoch, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that wrote them.
    pub epoch: Epoch,
    /// The place of the first entry.
    pub first: Seq,
    /// The place of the last entry.
    pub last: Seq,
    /// `format | entries`.
    pub bytes: Bytes,
}
