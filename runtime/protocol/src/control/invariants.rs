//! What is true of every state that the cluster agrees on.
//!
//! Checked after each command in debug builds and by the simulator. The numbers are those of
//! protocol.md 2.12 where they have one there.

use std::collections::BTreeSet;

use super::{ClusterState, MemberState, ShardConfig};
use crate::id::{Epoch, NodeId};

impl ClusterState {
    /// Checks every invariant.
    ///
    /// # Errors
    /// The first that is broken, in words; then the state machine has a bug.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.check_cluster()?;
        self.check_members()?;
        for (shard, config) in self.shards() {
            self.check_shard(config).map_err(|broken| format!("shard {shard}: {broken}"))?;
        }
        Ok(())
    }

    fn check_cluster(&self) -> Result<(), String> {
        holds(self.placement_version <= self.version, "placement is of a version there was")?;
        if self.cluster.is_none() {
            return holds(*self == Self::new(), "nothing is agreed on before there is a cluster");
        }
        let copies = u16::from(self.standbys) + 1;
        holds(!self.shards.is_empty(), "a cluster has shards")?;
        holds(self.min_insync >= 1, "an in-sync set holds the primary")?;
        holds(u16::from(self.min_insync) <= copies, "an in-sync set is at most all copies")
    }

    fn check_members(&self) -> Result<(), String> {
        let voters: BTreeSet<u64> =
            self.members.values().map(|member| member.disk.consensus_id()).collect();
        holds(voters.len() == self.members.len(), "a data directory is one member's")?;
        for (node, member) in &self.members {
            holds(member.lanes > 0, "a member has a lane")?;
            let drains = self.draining.contains(node);
            match member.state {
                MemberState::Up => holds(!drains, "a member that is up does not drain")?,
                MemberState::Draining => holds(drains, "a draining member was told to")?,
                MemberState::Down => {}
            }
        }
        let known = |node: &NodeId| self.members.contains_key(node);
        holds(self.draining.iter().all(known), "members drain, not strangers")
    }

    fn check_shard(&self, config: &ShardConfig) -> Result<(), String> {
        let known = |node: &NodeId| self.members.contains_key(node);
        let distinct: BTreeSet<&NodeId> = config.targets.iter().collect();
        holds(distinct.len() == config.targets.len(), "targets are distinct")?;
        holds(config.targets.len() <= usize::from(self.standbys) + 1, "targets are copies")?;
        holds(config.targets.iter().all(known), "targets are members")?;
        holds(config.in_sync.keys().all(known), "who holds a claim stays a member")?;
        holds(config.epoch.0 <= config.version, "a new epoch is a new version")?;

        let Some(primary) = &config.primary else {
            holds(config.epoch == Epoch(0), "a shard that had a primary has one")?;
            holds(config.in_sync.is_empty(), "a shard that had no primary holds nothing")?;
            return holds(config.handoff.is_none(), "a shard without a primary does not move");
        };
        holds(config.epoch > Epoch(0), "a primary has an epoch (I3)")?;
        let claim = config.in_sync.get(&primary.node);
        holds(claim == Some(&primary.disk), "the primary is in sync, under its disk (I9)")?;
        let least = usize::from(self.min_insync);
        holds(config.in_sync.len() >= least, "the in-sync set is at least min_insync (I4)")?;
        let single = self.standbys > 0 || config.in_sync.len() == 1;
        holds(single, "without standbys a shard has one copy")?;
        let member = self.members.get(&primary.node);
        let of_the_past =
            member.is_some_and(|member| member.disk != primary.disk || member.boot >= primary.boot);
        holds(of_the_past, "a claim is of a registered start")?;
        if let Some(handoff) = &config.handoff {
            holds(handoff.to != primary.node, "a move leads elsewhere")?;
            holds(known(&handoff.to), "a move leads to a member")?;
            let open = self.can_move_to(config, &handoff.to, handoff.disk);
            holds(open, "with standbys a move leads to a copy that is in sync")?;
        }
        Ok(())
    }
}

fn holds(truth: bool, invariant: &str) -> Result<(), String> {
    if truth { Ok(()) } else { Err(invariant.to_owned()) }
}
