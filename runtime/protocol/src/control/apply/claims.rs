//! The claims of a shard: who becomes its primary, and who is in sync with it.
//!
//! The in-sync set never falls below `min_insync`. A promotion takes the primary from it and removes
//! nobody. Only the primary's own proposal removes a member; while a set loses nobody, it may grow.
//! A claim is of a node and a data directory: a node whose directory was replaced holds nothing
//! under its old claim, and joins as anybody else does.

use std::collections::BTreeMap;

use super::{Change, Result, check_once, not_in_sync, rule};
use crate::control::{
    Claim, ClusterState, Event, Expect, Handoff, MemberState, ProposeRefused, ShardConfig,
};
use crate::id::{DiskId, Epoch, NodeId, ShardId};

impl ClusterState {
    pub(super) fn promote(&mut self, shards: Vec<(ShardId, Expect, Claim)>) -> Result<Change> {
        check_once(shards.iter().map(|(shard, ..)| *shard))?;
        let mut next = Vec::with_capacity(shards.len());
        for (shard, expect, claim) in shards {
            next.push((shard, self.promoted(self.expected(shard, expect)?, claim)?));
        }
        let mut events = Vec::new();
        for (shard, config) in next {
            let node = config.primary.as_ref().expect("a promotion names a primary").node.clone();
            events.push(Event::ShardPromoted { shard, node, epoch: config.epoch });
            let before = std::mem::replace(&mut self.shards[shard.0 as usize], config);
            events.extend(before.handoff.map(|_| Event::HandoffAborted { shard }));
        }
        Ok(if events.is_empty() { Change::None } else { Change::Shards(events) })
    }

    /// The record after the promotion of `claim`. A promotion removes nobody from the in-sync set;
    /// a shard that never had a primary holds nothing, so that everyone is in sync with it.
    fn promoted(&self, config: &ShardConfig, claim: Claim) -> Result<ShardConfig> {
        self.check_registered(&claim)?;
        let mut in_sync = config.in_sync.clone();
        match &config.primary {
            None => {
                in_sync.insert(claim.node.clone(), claim.disk);
                let standbys = self.standbys_at_start(config, &claim.node);
                in_sync.extend(standbys.take(usize::from(self.min_insync) - 1));
                if in_sync.len() < usize::from(self.min_insync) {
                    return rule(format!("a shard starts with {} copies", self.min_insync));
                }
            }
            Some(primary) if *primary == claim => return rule("it is the primary already"),
            Some(_) if !config.is_in_sync(&claim.node, claim.disk) => {
                return not_in_sync(&claim.node);
            }
            Some(_) => {}
        }
        Ok(ShardConfig {
            epoch: Epoch(config.epoch.0 + 1),
            version: config.version + 1,
            primary: Some(claim),
            in_sync,
            targets: config.targets.clone(),
            handoff: None,
        })
    }

    /// Who can hold a shard that never had a primary beside its first one.
    pub(in crate::control) fn standbys_at_start<'a>(
        &'a self,
        config: &'a ShardConfig,
        primary: &'a NodeId,
    ) -> impl Iterator<Item = (NodeId, DiskId)> + 'a {
        let others = config.targets.iter().filter(move |node| *node != primary);
        let members = others.filter_map(|node| self.members.get_key_value(node));
        let up = members.filter(|(_, member)| member.state != MemberState::Down);
        up.map(|(node, member)| (node.clone(), member.disk))
    }

    pub(super) fn propose_in_sync(
        &mut self,
        shard: ShardId,
        expect: Expect,
        from: &Claim,
        in_sync: BTreeMap<NodeId, DiskId>,
    ) -> Result<Change> {
        let config = self.expected(shard, expect)?;
        if config.primary.as_ref() != Some(from) {
            return rule("nobody but the primary proposes its in-sync set");
        }
        self.check_registered(from)?;
        if in_sync.get(&from.node) != Some(&from.disk) {
            return rule("the primary is in sync with itself");
        }
        let added = beyond(&in_sync, &config.in_sync);
        let removed = beyond(&config.in_sync, &in_sync);
        for node in &added {
            self.check_joins(node, in_sync[node])?;
        }
        if !removed.is_empty() {
            self.check_remain(&in_sync)?;
        }

        // An equal set changes the version too: that is how the primary learns that no older
        // proposal of its own can succeed any more.
        let mut next = ShardConfig { version: config.version + 1, in_sync, ..config.clone() };
        let mut events = Vec::new();
        if !added.is_empty() || !removed.is_empty() {
            events.push(Event::InSyncChanged { shard, added, removed });
        }
        let leads_out = |handoff: &Handoff| !self.can_move_to(&next, &handoff.to, handoff.disk);
        if next.handoff.as_ref().is_some_and(leads_out) {
            next.handoff = None;
            events.push(Event::HandoffAborted { shard });
        }
        self.shards[shard.0 as usize] = next;
        Ok(Change::Shards(events))
    }

    /// Checks that a member may join an in-sync set: under its registered disk, heard, and here to
    /// stay.
    fn check_joins(&self, node: &NodeId, disk: DiskId) -> Result<()> {
        let member = self.member(node)?;
        if self.standbys == 0 {
            return rule("without standbys a shard has one copy");
        }
        if member.disk != disk {
            return Err(ProposeRefused::Stale);
        }
        if member.state == MemberState::Down {
            return rule(format!("member {node} is down"));
        }
        if self.draining.contains(node) {
            return rule(format!("member {node} drains, it takes no shards"));
        }
        Ok(())
    }

    /// Checks that enough copies remain in a set that loses one. The claim of a disk that was
    /// replaced is of a copy that is gone, and counts for nothing.
    fn check_remain(&self, in_sync: &BTreeMap<NodeId, DiskId>) -> Result<()> {
        let registered = |(node, disk): &(&NodeId, &DiskId)| {
            self.members.get(*node).is_some_and(|member| member.disk == **disk)
        };
        let remain = in_sync.iter().filter(registered).count();
        if remain < usize::from(self.min_insync) {
            return rule(format!("{remain} copies remain, {} must", self.min_insync));
        }
        Ok(())
    }
}

/// Whose claims `one` has and `other` has not.
fn beyond(one: &BTreeMap<NodeId, DiskId>, other: &BTreeMap<NodeId, DiskId>) -> Vec<NodeId> {
    let missing = one.iter().filter(|(node, disk)| other.get(*node) != Some(*disk));
    missing.map(|(node, _)| node.clone()).collect()
}
