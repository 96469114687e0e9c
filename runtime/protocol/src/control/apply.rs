//! The state machine: what each command checks, and what it does to the state.
//!
//! Every command is checked as a whole before anything is written, so that a refused one changes
//! nothing. The result depends on the state and the command only: no clock, no configuration, no
//! placement is computed here, or members of two versions would diverge. The two limits that are
//! checked are part of the rules and change with a feature level only.

mod claims;

use std::collections::BTreeSet;

use super::{
    Applied, Claim, ClusterState, Command, Event, Expect, Grouping, Handoff, Health, Member,
    MemberState, ProposeRefused, ShardConfig, grouping_conflict,
};
use crate::id::{BootId, DiskId, Epoch, NodeId, ShardId};
use crate::limits;

/// What an accepted command did.
enum Change {
    /// Nothing: the state was so already.
    None,
    /// Claims or moves of shards.
    Shards(Vec<Event>),
    /// Members or targets: what placement works from.
    Placement(Vec<Event>),
}

type Result<T> = std::result::Result<T, ProposeRefused>;

impl ClusterState {
    /// Applies one command, in the order agreed on.
    ///
    /// # Errors
    /// [`ProposeRefused`] by the rule that the command breaks; the state is as before.
    pub fn apply(&mut self, command: Command) -> Result<Applied> {
        let change = self.change(command)?;
        let (grown, placement, events) = match change {
            Change::None => (0, false, Vec::new()),
            Change::Shards(events) => (1, false, events),
            Change::Placement(events) => (1, true, events),
        };
        self.version += grown;
        if placement {
            self.placement_version = self.version;
        }
        debug_assert_eq!(self.check_invariants(), Ok(()));
        Ok(Applied { version: self.version, events })
    }

    fn change(&mut self, command: Command) -> Result<Change> {
        if self.cluster.is_none() && !matches!(command, Command::Init { .. }) {
            return Err(ProposeRefused::NotInitialised);
        }
        match command {
            Command::Init { cluster, shards, standbys, min_insync, grouping } => {
                let cluster = Some(cluster);
                self.init(shards, Self { cluster, standbys, min_insync, grouping, ..Self::new() })
            }
            Command::Register { node, member, grouping } => self.register(node, member, grouping),
            Command::SetDown { node, boot } => self.set_down(&node, boot),
            Command::Drain { node } => self.drain(node),
            Command::Undrain { node } => self.undrain(node),
            Command::Leave { node } => self.leave(node),
            Command::SetTargets { from_version, targets } => {
                self.set_targets(from_version, targets)
            }
            Command::Promote { shards } => self.promote(shards),
            Command::BeginHandoff { shards } => self.begin_handoff(shards),
            Command::CompleteHandoff { shard, expect, to } => {
                self.complete_handoff(shard, expect, to)
            }
            Command::AbortHandoff { shard, expect } => self.abort_handoff(shard, expect),
            Command::ProposeInSync { shard, expect, from, in_sync } => {
                self.propose_in_sync(shard, expect, &from, in_sync)
            }
        }
    }

    // -- members --

    /// Creates the cluster from a state that has no shards yet.
    fn init(&mut self, shards: u32, blank: Self) -> Result<Change> {
        if let Some(cluster) = self.cluster {
            return Err(ProposeRefused::Initialised { cluster });
        }
        if shards == 0 || shards > limits::SHARDS_MAX {
            return rule(format!("a cluster has 1 to {} shards, not {shards}", limits::SHARDS_MAX));
        }
        let copies = u16::from(blank.standbys) + 1;
        if blank.min_insync == 0 || u16::from(blank.min_insync) > copies {
            let min = blank.min_insync;
            return rule(format!("the least in-sync set is 1 to {copies} copies, not {min}"));
        }
        let cluster = blank.cluster.map_or_else(String::new, |cluster| cluster.to_string());
        *self = Self { shards: vec![ShardConfig::fresh(); shards as usize], ..blank };
        Ok(Change::Placement(vec![Event::ClusterCreated { cluster, shards }]))
    }

    fn register(&mut self, node: NodeId, member: Member, grouping: Grouping) -> Result<Change> {
        self.check_member(&node, &member)?;
        if let Some(kind) = grouping_conflict(&grouping, &self.grouping) {
            return Err(ProposeRefused::Grouping { kind: kind.to_owned() });
        }
        let known = self.members.get(&node);
        let same_disk = known.is_some_and(|known| known.disk == member.disk);
        if let Some(registered) = self.last_boot(&node, member.disk)
            && member.boot < registered
        {
            return Err(ProposeRefused::OldBoot { node, given: member.boot, registered });
        }
        match known {
            Some(known) if !same_disk && known.state != MemberState::Down => {
                return Err(ProposeRefused::NameInUse { node });
            }
            None if self.members.len() >= limits::MEMBERS_MAX => {
                return rule(format!("a cluster has at most {} members", limits::MEMBERS_MAX));
            }
            _ => {}
        }

        let drains = self.draining.contains(&node);
        let state = if drains { MemberState::Draining } else { MemberState::Up };
        let member = Member { state, ..member };
        let new_kinds = grouping.keys().any(|kind| !self.grouping.contains_key(kind));
        if known == Some(&member) && !new_kinds {
            return Ok(Change::None);
        }
        let was_up = |known: &Member| known.boot == member.boot && known.state == state;
        let events = match known {
            Some(known) if same_disk && was_up(known) => Vec::new(),
            Some(_) if same_disk => vec![Event::MemberRestarted { node: node.clone() }],
            _ => vec![Event::MemberJoined { node: node.clone() }],
        };
        self.grouping.extend(grouping);
        self.members.insert(node, member);
        Ok(Change::Placement(events))
    }

    /// The latest start of this node on this disk that anything was registered or claimed under.
    fn last_boot(&self, node: &NodeId, disk: DiskId) -> Option<BootId> {
        let registered = self.members.get(node).filter(|known| known.disk == disk);
        let claims = self.shards.iter().filter_map(|config| config.primary.as_ref());
        let claims = claims.filter(|claim| claim.node == *node && claim.disk == disk);
        claims.map(|claim| claim.boot).chain(registered.map(|known| known.boot)).max()
    }

    fn check_member(&self, node: &NodeId, member: &Member) -> Result<()> {
        if member.lanes == 0 {
            return rule("a member has at least one lane");
        }
        if member.peer_addr.is_empty() {
            return rule("a member tells where its peers reach it");
        }
        let voter = member.disk.consensus_id();
        let holder = self.members.iter().find(|(_, known)| known.disk.consensus_id() == voter);
        match holder {
            Some((other, _)) if other != node => {
                rule(format!("this data directory is registered as member {other}"))
            }
            _ => Ok(()),
        }
    }

    fn set_down(&mut self, node: &NodeId, boot: BootId) -> Result<Change> {
        let member = self.member_mut(node)?;
        if member.boot != boot {
            return Err(ProposeRefused::Stale);
        }
        if member.state == MemberState::Down {
            return Ok(Change::None);
        }
        member.state = MemberState::Down;
        Ok(Change::Placement(vec![Event::MemberDown { node: node.clone() }]))
    }

    fn drain(&mut self, node: NodeId) -> Result<Change> {
        self.member(&node)?;
        if self.draining.contains(&node) {
            return Ok(Change::None);
        }
        let mut others = self.members.iter().filter(|(other, _)| **other != node);
        if !others.any(|(_, other)| other.state == MemberState::Up && other.weight > 0) {
            return rule("no other member is up to take the shards");
        }
        let member = self.member_mut(&node)?;
        if member.state == MemberState::Up {
            member.state = MemberState::Draining;
        }
        self.draining.insert(node.clone());
        Ok(Change::Placement(vec![Event::MemberDraining { node }]))
    }

    fn undrain(&mut self, node: NodeId) -> Result<Change> {
        let member = self.member_mut(&node)?;
        if member.state == MemberState::Draining {
            member.state = MemberState::Up;
        }
        if !self.draining.remove(&node) {
            return Ok(Change::None);
        }
        Ok(Change::Placement(vec![Event::MemberUndrained { node }]))
    }

    fn leave(&mut self, node: NodeId) -> Result<Change> {
        if self.member(&node)?.state == MemberState::Up {
            return rule("a member that is up is drained before it leaves");
        }
        let shards = self.held_by(&node);
        if shards > 0 {
            return Err(ProposeRefused::HoldsShards { node, shards });
        }
        self.members.remove(&node);
        self.draining.remove(&node);
        for config in self.shards.iter_mut().filter(|config| config.targets.contains(&node)) {
            config.targets.retain(|target| *target != node);
            config.version += 1;
        }
        Ok(Change::Placement(vec![Event::MemberLeft { node }]))
    }

    // -- shards --

    fn set_targets(
        &mut self,
        from_version: u64,
        targets: Vec<(ShardId, Vec<NodeId>)>,
    ) -> Result<Change> {
        if from_version < self.placement_version || from_version > self.version {
            return Err(ProposeRefused::Stale);
        }
        check_once(targets.iter().map(|(shard, _)| *shard))?;
        for (shard, nodes) in &targets {
            self.known(*shard)?;
            self.check_targets(nodes)?;
        }
        let mut changed = 0;
        for (shard, nodes) in targets {
            let config = &mut self.shards[shard.0 as usize];
            if config.targets != nodes {
                config.targets = nodes;
                config.version += 1;
                changed += 1;
            }
        }
        if changed == 0 {
            return Ok(Change::None);
        }
        Ok(Change::Placement(vec![Event::TargetsChanged { shards: changed }]))
    }

    fn check_targets(&self, nodes: &[NodeId]) -> Result<()> {
        let distinct: BTreeSet<&NodeId> = nodes.iter().collect();
        let copies = usize::from(self.standbys) + 1;
        if nodes.is_empty() || nodes.len() > copies || distinct.len() != nodes.len() {
            return rule(format!("targets are 1 to {copies} distinct nodes"));
        }
        for node in nodes {
            self.member(node)?;
            if self.draining.contains(node) {
                return rule(format!("member {node} drains, it takes no shards"));
            }
        }
        Ok(())
    }

    fn begin_handoff(&mut self, shards: Vec<(ShardId, Expect, Handoff)>) -> Result<Change> {
        check_once(shards.iter().map(|(shard, ..)| *shard))?;
        let mut events = Vec::new();
        for (shard, expect, handoff) in &shards {
            let config = self.expected(*shard, *expect)?;
            let from = self.check_movable(config, handoff)?;
            events.push(Event::HandoffBegan { shard: *shard, from, to: handoff.to.clone() });
        }
        for (shard, _, handoff) in shards {
            let config = &mut self.shards[shard.0 as usize];
            config.handoff = Some(handoff);
            config.version += 1;
        }
        Ok(if events.is_empty() { Change::None } else { Change::Shards(events) })
    }

    /// Checks that a move may begin; returns from where.
    fn check_movable(&self, config: &ShardConfig, handoff: &Handoff) -> Result<NodeId> {
        let from = match (&config.primary, self.health(config)) {
            (Some(primary), Health::Served) => primary.node.clone(),
            (_, health) => return rule(format!("the shard is not served: {health:?}")),
        };
        if config.handoff.is_some() {
            return rule("a move of the shard is under way");
        }
        if handoff.to == from {
            return rule(format!("the shard is at {from} already"));
        }
        let target = self.member(&handoff.to)?;
        if target.disk != handoff.disk || handoff.plan != config.version + 1 {
            return Err(ProposeRefused::Stale);
        }
        if target.state != MemberState::Up {
            return rule(format!("target {} is {:?}", handoff.to, target.state));
        }
        self.check_can_move(config, &handoff.to, handoff.disk)?;
        Ok(from)
    }

    fn complete_handoff(&mut self, shard: ShardId, expect: Expect, to: Claim) -> Result<Change> {
        let config = self.expected(shard, expect)?;
        let (Some(source), Some(handoff)) = (&config.primary, &config.handoff) else {
            return rule("no move of the shard is under way");
        };
        if (&handoff.to, handoff.disk) != (&to.node, to.disk) {
            return rule(format!("the shard moves to {}, not to {}", handoff.to, to.node));
        }
        self.check_registered(&to)?;
        self.check_can_move(config, &to.node, to.disk)?;
        let mut in_sync = config.in_sync.clone();
        if self.standbys == 0 {
            // The target got a copy of everything, and one copy is all that is wanted. With
            // standbys it is in the set already, and the set shrinks by the new primary's proposal
            // only, once enough have acknowledged its epoch.
            in_sync.insert(to.node.clone(), to.disk);
            in_sync.remove(&source.node);
        }
        let from = source.node.clone();
        let epoch = Epoch(config.epoch.0 + 1);
        let events = vec![Event::ShardMoved { shard, from, to: to.node.clone(), epoch }];
        let config = &mut self.shards[shard.0 as usize];
        config.epoch = epoch;
        config.version += 1;
        config.primary = Some(to);
        config.in_sync = in_sync;
        config.handoff = None;
        Ok(Change::Shards(events))
    }

    fn abort_handoff(&mut self, shard: ShardId, expect: Expect) -> Result<Change> {
        if self.expected(shard, expect)?.handoff.is_none() {
            return rule("no move of the shard is under way");
        }
        let config = &mut self.shards[shard.0 as usize];
        config.handoff = None;
        config.version += 1;
        Ok(Change::Shards(vec![Event::HandoffAborted { shard }]))
    }

    // -- checks --

    fn check_can_move(&self, config: &ShardConfig, to: &NodeId, disk: DiskId) -> Result<()> {
        if self.can_move_to(config, to, disk) { Ok(()) } else { not_in_sync(to) }
    }

    fn member(&self, node: &NodeId) -> Result<&Member> {
        self.members.get(node).ok_or_else(|| ProposeRefused::NoMember { node: node.clone() })
    }

    fn member_mut(&mut self, node: &NodeId) -> Result<&mut Member> {
        self.members.get_mut(node).ok_or_else(|| ProposeRefused::NoMember { node: node.clone() })
    }

    fn known(&self, shard: ShardId) -> Result<&ShardConfig> {
        let none = || ProposeRefused::Rule { reason: format!("there is no shard {shard}") };
        self.shard(shard).ok_or_else(none)
    }

    /// The record of a shard, if it is as the proposer saw it.
    fn expected(&self, shard: ShardId, expect: Expect) -> Result<&ShardConfig> {
        let config = self.known(shard)?;
        if config.expect() == expect { Ok(config) } else { Err(ProposeRefused::Stale) }
    }

    /// Checks that a claim names the registered disk and start of a member that is not down.
    fn check_registered(&self, claim: &Claim) -> Result<()> {
        let member = self.member(&claim.node)?;
        if (member.disk, member.boot) != (claim.disk, claim.boot) {
            return Err(ProposeRefused::Stale);
        }
        if member.state == MemberState::Down {
            return rule(format!("member {} is down", claim.node));
        }
        Ok(())
    }
}

fn check_once(shards: impl Iterator<Item = ShardId>) -> Result<()> {
    let mut named = BTreeSet::new();
    for shard in shards {
        if !named.insert(shard) {
            return rule(format!("shard {shard} is named twice"));
        }
    }
    Ok(())
}

fn not_in_sync<T>(node: &NodeId) -> Result<T> {
    rule(format!("{node} is not in sync under this data directory"))
}

fn rule<T>(reason: impl Into<String>) -> Result<T> {
    Err(ProposeRefused::Rule { reason: reason.into() })
}
