//! One version of the map as the router uses it: per shard the own lane, or the link to its owner.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_protocol::control::MemberState;
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::shard_map::{Node, ShardMap};
use tokio::sync::watch;

use crate::transport::links::{Link, Links};

/// Where a shard is served.
#[derive(Debug)]
pub(super) enum Target {
    /// Here.
    Local { lane: u16, epoch: Epoch },
    /// At another node.
    Remote { link: Link, epoch: Epoch },
    /// Nowhere, and why.
    None { reason: String },
}

/// A map, resolved.
#[derive(Debug)]
pub(super) struct View {
    version: u64,
    targets: Vec<Target>,
    /// The other copies in sync of each shard, that of this node first.
    standbys: Vec<Vec<Target>>,
    nowhere: Target,
}

impl View {
    fn new<'m>(map: &'m ShardMap, own: Option<&NodeId>, links: &Links) -> Self {
        let mut known: BTreeMap<(&'m NodeId, u16), Link> = BTreeMap::new();
        let mut target = |node: &'m Node, lane, epoch| {
            if Some(&node.node) == own {
                return Target::Local { lane, epoch };
            }
            let link = || links.link(&node.node, &node.peer_addr, lane);
            let link = known.entry((&node.node, lane)).or_insert_with(link).clone();
            Target::Remote { link, epoch }
        };
        let (mut targets, mut standbys) = (Vec::new(), Vec::new());
        for shard in (0..map.shards()).map(ShardId) {
            let route = map.route(shard);
            let epoch = route.as_ref().map_or(Epoch(0), |route| route.epoch);
            let others = map.standbys(shard).map(|node| target(node, node.lane_of(shard), epoch));
            let mut others: Vec<_> = others.collect();
            others.sort_by_key(|other| !matches!(other, Target::Local { .. }));
            standbys.push(others);
            targets.push(match route {
                Ok(route) => target(route.node, route.lane, epoch),
                Err(error) => Target::None { reason: error.to_string() },
            });
        }
        let nowhere = Target::None { reason: "no map of the cluster yet".to_owned() };
        Self { version: map.version(), targets, standbys, nowhere }
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// The shard of an affinity key, and who serves it.
    pub(super) fn route(&self, affinity: &str) -> (ShardId, &Target) {
        let Some(shards) = u32::try_from(self.targets.len()).ok().filter(|shards| *shards > 0)
        else {
            return (ShardId(0), &self.nowhere);
        };
        let shard = ShardId::of(affinity, shards);
        (shard, &self.targets[shard.0 as usize])
    }

    /// The other copies in sync of a shard, that of this node first.
    pub(super) fn standbys(&self, shard: ShardId) -> &[Target] {
        self.standbys.get(shard.0 as usize).map_or(&[], Vec::as_slice)
    }

    /// Whether both versions send the shard to the same owner and epoch.
    pub(super) fn same_target(&self, other: &Self, shard: ShardId) -> bool {
        let at = shard.0 as usize;
        match (self.targets.get(at), other.targets.get(at)) {
            (Some(Target::Local { epoch, .. }), Some(Target::Local { epoch: before, .. })) => {
                epoch == before
            }
            (
                Some(Target::Remote { link, epoch }),
                Some(Target::Remote { link: other, epoch: before }),
            ) => link.peer() == other.peer() && epoch == before,
            (Some(Target::None { .. }) | None, Some(Target::None { .. }) | None) => true,
            _ => false,
        }
    }
}

/// Follows the map; ends the links to nodes that left or went down.
pub(super) fn follow(
    mut map: watch::Receiver<Arc<ShardMap>>,
    own: Option<NodeId>,
    links: Links,
    runtime: &tokio::runtime::Handle,
) -> watch::Receiver<Arc<View>> {
    let first = View::new(&map.borrow_and_update(), own.as_ref(), &links);
    let (sender, views) = watch::channel(Arc::new(first));
    runtime.spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = sender.closed() => return,
                changed = map.changed() => if changed.is_err() {
                    return;
                },
            }
            let now = Arc::clone(&map.borrow_and_update());
            let alive =
                |node: &NodeId| now.node(node).is_some_and(|node| node.state != MemberState::Down);
            links.retain(alive);
            sender.send_replace(Arc::new(View::new(&now, own.as_ref(), &links)));
        }
    });
    views
}
