//! The promotions that the map wants of this node's standbys, from the map that says so on; see
//! [`Ascent`].

use std::collections::BTreeMap;

use mainstay_protocol::control::{Claim, ClusterState};
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::time::Instant;

use crate::shard::ascent::{Ascent, Cause};

/// What is under way, one for each shard at most, and which nodes are not reached.
#[derive(Debug, Default)]
pub(super) struct Ascents {
    under_way: BTreeMap<ShardId, Ascent>,
    lost: BTreeMap<NodeId, Instant>,
}

impl Ascents {
    /// A connection to this node was lost.
    pub(super) fn handle_lost(&mut self, node: &NodeId, now: Instant) {
        self.lost.insert(node.clone(), now);
    }

    /// There is a connection to this node.
    pub(super) fn handle_connected(&mut self, node: &NodeId) {
        self.lost.remove(node);
    }

    /// A map came: whom it names that was not named before.
    pub(super) fn handle_map(
        &mut self,
        (before, map): (&ClusterState, &ClusterState),
        me: &Claim,
        now: Instant,
    ) {
        for (shard, config) in map.shards() {
            if config.primary.as_ref() != Some(me) {
                self.under_way.remove(&shard);
                continue;
            }
            let old = before.shard(shard);
            if old.is_some_and(|old| old.epoch >= config.epoch) {
                continue;
            }
            let cause = Cause::of(old, map, &me.node);
            let primary = old.and_then(|old| old.primary.as_ref());
            let lost_at = primary.and_then(|claim| self.lost.get(&claim.node)).copied();
            self.under_way.insert(shard, Ascent::new((config.epoch, cause), now, lost_at));
        }
        self.lost.retain(|node, _| map.members.contains_key(node));
    }

    /// The lane gets the shard.
    pub(super) fn take(&mut self, shard: ShardId, epoch: Epoch, now: Instant) -> Option<Ascent> {
        let mut ascent = self.under_way.remove(&shard).filter(|ascent| ascent.epoch == epoch)?;
        ascent.promoted(now);
        Some(ascent)
    }
}
