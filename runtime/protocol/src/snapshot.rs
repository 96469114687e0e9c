//! A shard's states on their way to another node: what the sender says, and what is done about it.
//!
//! ```text
//!   sender                                     receiver
//!   Begin(shard, copy)      ----------------> what is here of the shard is let go; what an earlier
//!                                             try left is forgotten
//!   Rows, Rows, .. in key order -------------> stored beside, seen by nobody
//!   Dedup, Dedup, .. ------------------------> the same
//!   Finish(complete up to seq, so many rows) > all there? then this copy is the live one
//! ```
//! One message is outstanding at a time. A copy that was not finished counts for nothing.
//!
//! A shard that moves stands still meanwhile. One that is copied to a standby serves on: each row
//! says which entry made it, some are newer than the base of the copy, and the standby gets every
//! entry after the base and skips what a row holds already.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::entry::DedupRecord;
use crate::id::{EntityId, Epoch, Seq, ShardId};
use crate::replication::Position;
use crate::time::LogTime;

/// A record that makes a command take effect once, with its entity and the log time of its entry.
pub type Remembered = (EntityId, LogTime, DedupRecord);

/// One message of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Which copy it is a part of.
    pub head: Head,
    /// What it says.
    pub body: Body,
}

/// What all messages of a copy have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The shard.
    pub shard: ShardId,
    /// Names this copy; another try is another copy, and has a greater number.
    pub copy: u64,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// What the copy is made for.
    pub reason: Reason,
}

/// What a copy is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The shard moves; it stands still.
    Move {
        /// The plan that the sender carries out.
        plan: u64,
    },
    /// A standby is too far behind for entries; the shard serves on.
    Standby {
        /// Everything up to here is in the copy; entries after it follow otherwise.
        base: Position,
    },
}

/// What a message of a copy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Body {
    /// A copy begins.
    Begin,
    /// Some states, in key order.
    Rows(Vec<Row>),
    /// Some records that make commands take effect once.
    Dedup(Vec<Remembered>),
    /// That was all.
    Finish {
        /// Everything up to this entry is in the copy, and who wrote it.
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
