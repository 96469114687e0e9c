//! The router's view: which node serves a shard, under which epoch, and where it is reached.
//!
//! ```text
//!   affinity key --pinned hash--> shard --this map--> node, epoch, lane, address
//! ```
//!
//! A map is a snapshot of one version of the cluster's state, made once and shared in an `Arc`; a
//! newer version is another map. A stale map costs a hop and a refresh, never correctness: the
//! node asked checks that it is the primary.

use std::collections::BTreeMap;

use crate::control::{ClusterState, Member, MemberState, ShardConfig};
use crate::id::{BootId, ClusterId, DiskId, Epoch, NodeId, ShardId};

/// The shards and members of one version of the cluster's state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardMap {
    cluster: Option<ClusterId>,
    version: u64,
    shards: Vec<Entry>,
    nodes: Vec<Node>,
    by_name: BTreeMap<NodeId, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    epoch: Epoch,
    /// The place of its primary in `nodes`.
    primary: Option<usize>,
    /// The places of the other members of its in-sync set that are up.
    standbys: Vec<usize>,
    disk_lost: bool,
}

/// A member, as far as routing needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub node: NodeId,
    /// Its start.
    pub boot: BootId,
    /// Where peers and clients reach it.
    pub peer_addr: String,
    /// Where HTTP clients reach it.
    pub http_addr: String,
    /// Its lanes.
    pub lanes: u16,
    /// Its state. One that is `Down` was not heard from by the control leader; a shard that it
    /// alone holds has no other place to be asked for.
    pub state: MemberState,
}

/// Where a shard is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'a> {
    /// The shard.
    pub shard: ShardId,
    /// The epoch of its primary; goes with the request.
    pub epoch: Epoch,
    /// The primary.
    pub node: &'a Node,
    /// The lane of that node that owns the shard.
    pub lane: u16,
}

/// Why a shard has no route. A newer map may have one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The cluster has no such shard: the asker's map is of another cluster, or there is none yet.
    #[error("shard {shard} does not exist, there are {shards}")]
    NoShard {
        /// The shard asked for.
        shard: ShardId,
        /// How many there are.
        shards: u32,
    },
    /// No node was made its primary so far. Ask again soon.
    #[error("shard {shard} has no primary yet")]
    Unassigned {
        /// The shard.
        shard: ShardId,
    },
    /// The data directory that held its only copy is gone from its node. Stays so until an
    /// operator brings it back.
    #[error("shard {shard} was held by a data directory that node {node} no longer has")]
    DiskLost {
        /// The shard.
        shard: ShardId,
        /// The node that came back with another directory.
        node: NodeId,
    },
}

impl ShardMap {
    /// The map of this state.
    pub fn new(state: &ClusterState) -> Self {
        let nodes: Vec<Node> = state.members.iter().map(Node::new).collect();
        let by_name: BTreeMap<_, _> =
            nodes.iter().enumerate().map(|(at, node)| (node.node.clone(), at)).collect();
        let entry = |config: &ShardConfig| Entry {
            epoch: config.epoch,
            primary: config.primary.as_ref().and_then(|claim| by_name.get(&claim.node).copied()),
            disk_lost: config.primary.as_ref().is_some_and(|claim| {
                state.members.get(&claim.node).is_none_or(|member| member.disk != claim.disk)
            }),
            standbys: standbys(state, config)
                .filter_map(|node| by_name.get(node).copied())
                .collect(),
        };
        let shards = state.shards.iter().map(entry).collect();
        Self { cluster: state.cluster, version: state.version, shards, nodes, by_name }
    }

    /// The cluster that it is a map of; `None` before there is one.
    pub const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The version of the state that it was made of.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Whether this map should replace `other`: a later version of the same cluster, or the first
    /// of any. A map of another cluster never does.
    pub fn newer_than(&self, other: &Self) -> bool {
        match (self.cluster, other.cluster) {
            (Some(_), None) => true,
            (mine, theirs) => mine == theirs && self.version > other.version,
        }
    }

    /// How many shards there are; 0 before there is a cluster.
    pub fn shards(&self) -> u32 {
        u32::try_from(self.shards.len()).unwrap_or(u32::MAX)
    }

    /// Where the shard is served.
    ///
    /// # Errors
    /// [`NoRoute`] when nobody serves it.
    pub fn route(&self, shard: ShardId) -> Result<Route<'_>, NoRoute> {
        let entry = self.shards.get(shard.0 as usize);
        let entry = entry.ok_or(NoRoute::NoShard { shard, shards: self.shards() })?;
        let node = &self.nodes[entry.primary.ok_or(NoRoute::Unassigned { shard })?];
        if entry.disk_lost {
            return Err(NoRoute::DiskLost { shard, node: node.node.clone() });
        }
        Ok(Route { shard, epoch: entry.epoch, node, lane: node.lane_of(shard) })
    }

    /// The members that hold a copy of the shard in sync and are up, without its primary, by name.
    pub fn standbys(&self, shard: ShardId) -> impl Iterator<Item = &Node> {
        let entry = self.shards.get(shard.0 as usize);
        entry.into_iter().flat_map(|entry| entry.standbys.iter().map(|at| &self.nodes[*at]))
    }

    /// The member of this name.
    pub fn node(&self, name: &NodeId) -> Option<&Node> {
        Some(&self.nodes[*self.by_name.get(name)?])
    }

    /// All members, by name.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The shards whose primary is this node, in order.
    pub fn held_by<'a>(&'a self, name: &NodeId) -> impl Iterator<Item = (ShardId, Epoch)> + 'a {
        let at = self.by_name.get(name).copied();
        let held = move |entry: &Entry| at.is_some() && entry.primary == at && !entry.disk_lost;
        (0..)
            .map(ShardId)
            .zip(&self.shards)
            .filter_map(move |(shard, entry)| held(entry).then_some((shard, entry.epoch)))
    }
}

/// Who is in the set with the disk that it has, beside the primary.
fn standbys<'s>(
    state: &'s ClusterState,
    config: &'s ShardConfig,
) -> impl Iterator<Item = &'s NodeId> {
    let primary = config.primary.as_ref().map(|claim| &claim.node);
    let others = config.in_sync.iter().filter(move |(node, _)| Some(*node) != primary);
    let up = |node: &NodeId, disk: &DiskId| {
        let member = state.members.get(node);
        member.is_some_and(|member| member.disk == *disk && member.state != MemberState::Down)
    };
    others.filter(move |(node, disk)| up(node, disk)).map(|(node, _)| node)
}

impl Node {
    fn new((name, member): (&NodeId, &Member)) -> Self {
        Self {
            node: name.clone(),
            boot: member.boot,
            peer_addr: member.peer_addr.clone(),
            http_addr: member.http_addr.clone(),
            lanes: member.lanes,
            state: member.state,
        }
    }

    /// The lane of this node that owns the shard when the node does.
    pub fn lane_of(&self, shard: ShardId) -> u16 {
        u16::try_from(shard.0 % u32::from(self.lanes.max(1))).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Claim, ShardConfig};

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

    fn member(disk: u8, state: MemberState) -> Member {
        Member {
            disk: DiskId::from_bytes([disk; 16]),
            boot: BootId(1),
            peer_addr: format!("host-{disk}:7000"),
            http_addr: format!("host-{disk}:8080"),
            zone: String::new(),
            weight: 1,
            lanes: 3,
            state,
            wire_max: 1,
        }
    }

    fn served(node: &str, disk: u8, epoch: u64) -> ShardConfig {
        let node = NodeId::new(node).unwrap();
        let disk = DiskId::from_bytes([disk; 16]);
        let primary = Some(Claim { node, disk, boot: BootId(1) });
        ShardConfig { epoch: Epoch(epoch), version: epoch, primary, ..ShardConfig::fresh() }
    }

    /// Shards 0 and 4 at n1; 1 at n2, which is down; 2 nowhere; 3 on a disk that n2 lost.
    fn map() -> ShardMap {
        let name = |name| NodeId::new(name).unwrap();
        ShardMap::new(&ClusterState {
            cluster: Some(CLUSTER),
            version: 9,
            members: [
                (name("n1"), member(1, MemberState::Up)),
                (name("n2"), member(2, MemberState::Down)),
            ]
            .into(),
            shards: vec![
                served("n1", 1, 4),
                served("n2", 2, 5),
                ShardConfig::fresh(),
                served("n2", 7, 2),
                served("n1", 1, 1),
            ],
            ..ClusterState::new()
        })
    }

    #[test]
    fn a_route_names_node_epoch_lane_and_address() {
        let map = map();
        let route = map.route(ShardId(4)).unwrap();
        assert_eq!((route.epoch, route.lane), (Epoch(1), 1));
        assert_eq!(route.node.peer_addr, "host-1:7000");
        let route = map.route(ShardId(1)).unwrap();
        assert_eq!(route.node.state, MemberState::Down, "asked all the same: nobody else has it");
    }

    #[test]
    fn a_shard_without_a_route_says_why() {
        let map = map();
        let shard = ShardId(2);
        assert_eq!(map.route(shard), Err(NoRoute::Unassigned { shard }));
        let lost = map.route(ShardId(3)).unwrap_err();
        assert_eq!(
            lost.to_string(),
            "shard 3 was held by a data directory that node n2 no longer has"
        );
        let shard = ShardId(5);
        assert_eq!(map.route(shard), Err(NoRoute::NoShard { shard, shards: 5 }));
    }

    #[test]
    fn a_node_holds_what_it_can_serve() {
        let held = |node| map().held_by(&NodeId::new(node).unwrap()).collect::<Vec<_>>();
        assert_eq!(held("n1"), [(ShardId(0), Epoch(4)), (ShardId(4), Epoch(1))]);
        assert_eq!(held("n2"), [(ShardId(1), Epoch(5))], "not what was on its lost disk");
        assert_eq!(held("n9"), []);
    }

    #[test]
    fn standbys_are_in_sync_with_the_disks_that_they_have_and_up() {
        let name = |name| NodeId::new(name).unwrap();
        let disk = |disk| DiskId::from_bytes([disk; 16]);
        let members = [("n1", 1, MemberState::Up), ("n2", 2, MemberState::Down)]
            .into_iter()
            .chain([("n3", 3, MemberState::Draining), ("n4", 9, MemberState::Up)]);
        let in_sync = [("n1", 1), ("n2", 2), ("n3", 3), ("n4", 4)];
        let in_sync = in_sync.map(|(node, number)| (name(node), disk(number))).into();
        let map = ShardMap::new(&ClusterState {
            members: members.map(|(node, disk, state)| (name(node), member(disk, state))).collect(),
            shards: vec![ShardConfig { in_sync, ..served("n1", 1, 4) }],
            ..ClusterState::new()
        });
        let standbys: Vec<_> = map.standbys(ShardId(0)).map(|node| node.node.as_str()).collect();
        assert_eq!(standbys, ["n3"], "n2 is down, n4 came back with another disk");
        assert_eq!(map.standbys(ShardId(1)).count(), 0);
    }

    #[test]
    fn a_later_map_of_the_same_cluster_is_newer() {
        let (none, map) = (ShardMap::default(), map());
        let mut later = map.clone();
        later.version += 1;
        assert!(later.newer_than(&map) && !map.newer_than(&later) && !map.newer_than(&map));
        assert!(map.newer_than(&none) && !none.newer_than(&map));
        later.cluster = Some(ClusterId::from_bytes([2; 16]));
        assert!(!later.newer_than(&map), "of another cluster");
    }
}
