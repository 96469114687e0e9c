//! A shard's state on the move: what the source of a handoff sends, and what the target answers.
//!
//! ```text
//!   source                                     target
//!   Begin(shard, copy)      ----------------> its lane lets go of the shard; what an earlier
//!                                             try left is forgotten
//!   Rows, Rows, .. in key order -------------> stored beside, seen by nobody
//!   Dedup, Dedup, .. ------------------------> the same
//!   Finish(stands at seq, so many rows) -----> all there? then this copy is the live one
//! ```
//! One message is outstanding at a time. A copy that was not finished counts for nothing.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::entry::DedupRecord;
use crate::id::{EntityId, Epoch, Seq, ShardId};
use crate::replication::Position;
use crate::time::LogTime;

/// One message of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The shard.
    pub shard: ShardId,
    /// Names this copy; another try is another copy.
    pub copy: u64,
    /// The epoch in which the source stopped.
    pub epoch: Epoch,
    /// The plan that the source carries out.
    pub plan: u64,
    /// What it says.
    pub body: Body,
}

/// What a message of a copy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A copy begins.
    Begin,
    /// Some states, in key order.
    Rows(Vec<Row>),
    /// Some records that make commands take effect once.
    Dedup(Vec<(EntityId, LogTime, DedupRecord)>),
    /// That was all.
    Finish {
        /// The last entry that the copy includes, and who wrote it.
        last: Position,
        /// The log time there.
        log_time: LogTime,
        /// States sent.
        rows: u64,
        /// Records sent.
        dedup: u64,
    },
}

/// One entity's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The entity.
    pub entity: EntityId,
    /// The entry that made it.
    pub seq: Seq,
    /// The encoded state.
    pub bytes: Bytes,
}
