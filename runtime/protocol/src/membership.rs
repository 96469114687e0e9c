//! Who is a member: what a node says before it joins, and what the cluster answers.

use serde::{Deserialize, Serialize};

use crate::id::{BootId, ClusterId, DiskId, NodeId};

/// What a node says about itself before joining or bootstrapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub node: NodeId,
    /// Its data directory.
    pub disk: DiskId,
    /// Its start.
    pub boot: BootId,
    /// The cluster that its data belongs to, if any.
    pub cluster: Option<ClusterId>,
    /// Where its peers reach it: `host:port`.
    pub peer_addr: String,
    /// How many fresh nodes it waits for before it forms a cluster; 0 when it never forms one.
    pub expect: u32,
    /// The nodes it has heard from, itself included, sorted.
    pub known: Vec<NodeId>,
    /// A digest of the kinds it hosts and how they group; see [`crate::control::GroupingDigest`].
    pub grouping: crate::control::Grouping,
}

/// A heartbeat: proof of life, and of progress behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The sender.
    pub node: NodeId,
    /// Its start.
    pub boot: BootId,
    /// The version of the map that it holds.
    pub map_version: u64,
    /// Milliseconds since its slowest lane last took its queue.
    pub lane_age_ms: u32,
    /// Milliseconds since its storage threads last answered.
    pub storage_age_ms: u32,
    /// Bytes of state in its memory.
    pub state_bytes: u64,
}
