//! What happened to the cluster: what every accepted command tells the event log.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeId, ShardId};

/// Something that happened to the cluster. Past tense, typed, one line in the event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The cluster was created.
    ClusterCreated {
        /// Its id.
        cluster: String,
        /// Its shards.
        shards: u32,
    },
    /// A node joined for the first time, or with a new disk.
    MemberJoined {
        /// Who.
        node: NodeId,
    },
    /// A member came back under the same identity.
    MemberRestarted {
        /// Who.
        node: NodeId,
    },
    /// A member was not heard from.
    MemberDown {
        /// Who.
        node: NodeId,
    },
    /// A member began to hand its shards over.
    MemberDraining {
        /// Who.
        node: NodeId,
    },
    /// A member stays after all.
    MemberUndrained {
        /// Who.
        node: NodeId,
    },
    /// A member left for good.
    MemberLeft {
        /// Who.
        node: NodeId,
    },
    /// The placement was recomputed.
    TargetsChanged {
        /// How many shards want to be elsewhere.
        shards: u32,
    },
    /// A shard has a new primary or a new start of one.
    ShardPromoted {
        /// The shard.
        shard: ShardId,
        /// The primary.
        node: NodeId,
        /// The epoch it serves in.
        epoch: Epoch,
    },
    /// A planned move began.
    HandoffBegan {
        /// The shard.
        shard: ShardId,
        /// From whom.
        from: NodeId,
        /// To whom.
        to: NodeId,
    },
    /// A planned move is done.
    ShardMoved {
        /// The shard.
        shard: ShardId,
        /// From whom.
        from: NodeId,
        /// To whom.
        to: NodeId,
        /// The epoch that the new primary serves in.
        epoch: Epoch,
    },
    /// A planned move was given up.
    HandoffAborted {
        /// The shard.
        shard: ShardId,
    },
    /// The in-sync set of a shard changed. A node whose data directory was replaced is in both.
    InSyncChanged {
        /// The shard.
        shard: ShardId,
        /// Who holds what is acknowledged from here on.
        added: Vec<NodeId>,
        /// Who need not any more.
        removed: Vec<NodeId>,
    },
    /// An audit found rows of a copy that differ from its primary's. Told by the primary's node
    /// alone: nothing of it is agreed on.
    CopyDiffered {
        /// The shard.
        shard: ShardId,
        /// Whose copy.
        node: NodeId,
        /// Rows that differ.
        rows: u32,
        /// How many of them the primary's took the place of.
        replaced: u32,
    },
}
