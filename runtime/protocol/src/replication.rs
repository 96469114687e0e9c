//! Replication: one shard's log, held by several copies, so that one may die.
//!
//! ```text
//!   Primary --segments--> Feed --Append-->  (wire)  --> Standby --Persist--> its journal
//!      ^                   ^                               |                     |
//!      |  InSync counts    +------- Answer: heard, holds, refused <--------------+
//!      +--- holds, heard --+
//! ```
//! A [`feed::Feed`] sends what its primary appended to every other copy and learns how far each
//! is; [`in_sync::InSync`], inside the primary, counts which of them a write waits for; a
//! [`standby::Standby`] takes entries of the newest epoch only, and answers once they are on its
//! disk. Primary-backup with a configuration service is PacificA's (Lin et al., MSR-TR-2008-25);
//! the match of logs by epoch and place is Kafka's (KIP-101, KIP-279).
//!
//! **What a promise is.** A standby that hears an append with [`Append::lease`] takes no newer
//! primary's side before [`Timing::promise`] has passed on its own clock. The primary counts its
//! lease from when it *sent* that append, and a shorter time. So the lease is over everywhere
//! before any other copy, which waits for the promise that it gave, answers anybody.

pub mod audit;
pub mod delta;
pub mod freshness;
pub mod history;
pub mod in_sync;
pub mod standby;
pub mod feed;
pub mod wire;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::entry::Segment;
use crate::id::{DiskId, Epoch, Seq, ShardId};

/// The last entry of a log, or of the part of it before some other: its place and who wrote it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Position {
    /// The epoch that wrote it; 0 when there is none.
    pub epoch: Epoch,
    /// Its place; 0 when there is none.
    pub seq: Seq,
}

/// Entries from a primary for a standby, or none: then it is a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The shard.
    pub shard: ShardId,
    /// The primary's epoch; the entries may be of earlier ones.
    pub epoch: Epoch,
    /// The version of the shard's record that the sender goes by.
    pub version: u64,
    /// When it was sent, as a number that only the sender understands. It comes back.
    pub sent_at: u64,
    /// The sender asks for a promise.
    pub lease: bool,
    /// What the sender holds right before the entries.
    pub prev: Position,
    /// The entries, in order.
    pub segments: Vec<Segment>,
    /// Everything up to here is committed.
    pub committed: Seq,
}

impl Append {
    /// The last place that it is about.
    pub fn last(&self) -> Seq {
        self.segments.last().map_or(self.prev.seq, |segment| segment.last)
    }

    /// Bytes of its entries.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes.len() as u64).sum()
    }
}

/// What a standby answers to its primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The shard.
    pub shard: ShardId,
    /// The epoch of the append that it answers.
    pub epoch: Epoch,
    /// The data directory that answers. One that was replaced counts for nothing.
    pub disk: DiskId,
    /// What it says.
    pub what: Told,
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The append was heard, and no newer epoch is known here. Sent at once.
    Heard {
        /// The number of the append.
        sent_at: u64,
        /// A promise was given.
        promised: bool,
    },
    /// Everything up to here is on disk, as the primary of this epoch has it.
    Holds {
        /// The last place.
        upto: Seq,
        /// The newest version of the shard's record that a primary went by: no older one has this
        /// copy dropped.
        version: u64,
    },
    /// The log here does not go on where the append begins.
    Gap {
        /// The number of the append.
        sent_at: u64,
        /// The last place before it at which the logs may agree.
        last: Position,
    },
    /// The append is from a deposed primary. Nothing of it was taken.
    Fenced {
        /// The newest epoch known here.
        promised: Epoch,
    },
}

/// How long promises and leases last, and when a copy is too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How long a standby keeps a promise, on its clock, from when it heard the append.
    pub promise: Duration,
    /// How long a primary has a lease, on its clock, from when it sent the append. Less than the
    /// promise by more than two clocks differ in rate: at 0.8 that is 11 percent each way.
    pub lease: Duration,
    /// How long a copy may hold a write up before the primary proposes a set without it.
    pub patience: Duration,
    /// After so long without the control plane's answer a proposal is made again.
    pub propose_again: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            promise: Duration::from_millis(100),
            lease: Duration::from_millis(80),
            patience: Duration::from_millis(300),
            propose_again: Duration::from_millis(100),
        }
    }
}
