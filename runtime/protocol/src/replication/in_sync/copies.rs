//! Who holds a shard, and who should, as the control plane says.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::{ClusterState, MemberState, ShardConfig};
use crate::id::{DiskId, NodeId};

/// What the control plane says about the copies of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Copies {
    /// The version of the shard's record.
    pub version: u64,
    /// The in-sync set, the primary included.
    pub in_sync: BTreeMap<NodeId, DiskId>,
    /// Where the placement wants copies, as far as those members are up: with their disks.
    pub wanted: BTreeMap<NodeId, DiskId>,
    /// Members of the set that are down, or have another disk now.
    pub gone: BTreeSet<NodeId>,
}

impl Copies {
    /// The copies of a shard with this record.
    pub fn of(state: &ClusterState, config: &ShardConfig) -> Self {
        let up = |node: &NodeId| {
            state.members.get(node).filter(|member| member.state != MemberState::Down)
        };
        let is_gone =
            |(node, disk): &(&NodeId, &DiskId)| up(node).is_none_or(|member| member.disk != **disk);
        let wanted = config.targets.iter().filter_map(|node| Some((node.clone(), up(node)?.disk)));
        Self {
            version: config.version,
            in_sync: config.in_sync.clone(),
            wanted: wanted.collect(),
            gone: config.in_sync.iter().filter(is_gone).map(|(node, _)| node.clone()).collect(),
        }
    }

    /// The copies of a shard that only this node holds.
    pub fn single(node: NodeId, disk: DiskId) -> Self {
        let in_sync = BTreeMap::from([(node, disk)]);
        Self { wanted: in_sync.clone(), in_sync, ..Self::default() }
    }
}
