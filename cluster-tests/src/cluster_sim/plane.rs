//! The simulated control plane: the real state and the real director, on a node that never fails.
//!
//! Consensus itself is not simulated here: commands are applied in the order in which they arrive,
//! late, twice or never. What the director knows of the members is their heartbeats.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::director::{self, View};
use mainstay_protocol::control::{
    Claim, ClusterState, Command, Expect, Member, MemberState, ShardConfig,
};
use mainstay_protocol::failure_detector::Verdict;
use mainstay_protocol::id::{BootId, ClusterId, DiskId, Epoch, NodeId};
use mainstay_protocol::time::Instant;

use super::Planted;
use crate::sim::cluster::SHARD;

/// Who is in sync, by claim.
pub type Set = BTreeMap<NodeId, DiskId>;

/// The control plane.
#[derive(Debug)]
pub struct Plane {
    state: Arc<ClusterState>,
    heard: BTreeMap<NodeId, (BootId, Instant)>,
    /// Whose connection was seen to close.
    closed: BTreeSet<NodeId>,
    silence: Duration,
    planned_for: Option<(u64, View)>,
    planted: Option<Planted>,
    /// Promotions so far.
    pub promotions: u64,
}

impl Plane {
    /// A cluster of one shard.
    ///
    /// # Panics
    /// Never: the first command of a cluster is its creation.
    pub fn new(standbys: u8, min_insync: u8, silence: Duration, planted: Option<Planted>) -> Self {
        let mut state = ClusterState::new();
        let cluster = ClusterId::from_bytes([1; 16]);
        let shards = SHARD.0 + 1;
        let grouping = BTreeMap::new();
        state
            .apply(Command::Init { cluster, shards, standbys, min_insync, grouping })
            .expect("a new cluster can be created");
        Self {
            state: Arc::new(state),
            heard: BTreeMap::new(),
            closed: BTreeSet::new(),
            silence,
            planned_for: None,
            planted,
            promotions: 0,
        }
    }

    /// What is agreed on.
    pub const fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// The shard's record.
    ///
    /// # Panics
    /// Never: the cluster has the shard.
    pub fn shard(&self) -> &ShardConfig {
        self.state.shard(SHARD).expect("the cluster has the shard")
    }

    fn apply(&mut self, command: Command) -> bool {
        let promotes = matches!(command, Command::Promote { .. });
        let before = self.shard().epoch;
        let accepted = Arc::make_mut(&mut self.state).apply(command).is_ok();
        let promoted = promotes && self.shard().epoch > before;
        self.promotions += u64::from(promoted);
        if promoted && before > Epoch(0) && self.planted == Some(Planted::PromotionRemoves) {
            let config = &mut Arc::make_mut(&mut self.state).shards[SHARD.0 as usize];
            let primary = config.primary.clone();
            config.in_sync.retain(|node, _| primary.as_ref().is_some_and(|it| it.node == *node));
        }
        accepted
    }

    /// A node registers, or registers again.
    pub fn register(&mut self, node: &NodeId, disk: DiskId, boot: BootId, now: Instant) {
        let member = Member {
            disk,
            boot,
            peer_addr: node.to_string(),
            http_addr: node.to_string(),
            zone: String::new(),
            weight: 1,
            lanes: 1,
            state: MemberState::Up,
            wire_max: 1,
        };
        let known = self.state.members.get(node);
        let replaced = known.is_some_and(|known| known.disk != disk);
        let down = known.is_some_and(|known| known.state == MemberState::Down);
        if replaced && !down {
            let boot = known.map_or(boot, |known| known.boot);
            self.apply(Command::SetDown { node: node.clone(), boot });
        }
        let node = node.clone();
        self.closed.remove(&node);
        self.heard.insert(node.clone(), (boot, now));
        self.apply(Command::Register { node, member, grouping: BTreeMap::new() });
    }

    /// A node says that it lives.
    pub fn beat(&mut self, node: &NodeId, boot: BootId, now: Instant) {
        let latest = self.heard.get(node).is_none_or(|(known, _)| *known <= boot);
        if latest {
            self.heard.insert(node.clone(), (boot, now));
        }
    }

    /// A node's connection closed: its process died.
    pub fn close(&mut self, node: &NodeId) {
        self.closed.insert(node.clone());
    }

    /// A primary proposes who is in sync.
    pub fn propose(&mut self, from: Claim, mut expect: Expect, in_sync: Set) {
        if self.planted == Some(Planted::SetChangeWithoutExpect) {
            expect.version = self.shard().version;
        }
        self.apply(Command::ProposeInSync { shard: SHARD, expect, from, in_sync });
    }

    /// A source has stopped: the target takes over.
    pub fn complete(&mut self, expect: Expect, to: Claim) {
        self.apply(Command::CompleteHandoff { shard: SHARD, expect, to });
    }

    /// Lets the director plan, if anything changed; `true` when the state did.
    pub fn plan(&mut self, now: Instant) -> bool {
        let verdict = |node: &NodeId, at: Instant| {
            let silent = now.saturating_since(at) > self.silence;
            if silent || self.closed.contains(node) { Verdict::Dead } else { Verdict::Alive }
        };
        let view: View = self
            .heard
            .iter()
            .map(|(node, (boot, at))| (node.clone(), (*boot, verdict(node, *at))))
            .collect();
        let version = self.state.version;
        if self.planned_for.as_ref().is_some_and(|(at, seen)| *at == version && *seen == view) {
            return false;
        }
        if self.planted == Some(Planted::UncleanPromotion) {
            self.count_everybody_in_sync(&view);
        }
        for command in self.planned(&view) {
            self.apply(command);
        }
        self.planned_for = Some((version, view));
        self.state.version != version
    }

    /// What the director proposes; with a planted fault, no new epoch for a primary that started
    /// again.
    fn planned(&self, view: &View) -> Vec<Command> {
        let mut commands = director::plan(&self.state, view, director::Config::default());
        if self.planted == Some(Planted::SameEpochAfterRestart) {
            let primary = self.shard().primary.as_ref().map(|claim| &claim.node);
            commands.retain(|command| {
                let Command::Promote { shards } = command else { return true };
                shards.iter().all(|(_, _, claim)| Some(&claim.node) != primary)
            });
        }
        commands
    }

    /// A planted fault: when the primary is dead, whoever lives is taken to be in sync.
    fn count_everybody_in_sync(&mut self, view: &View) {
        let alive = |node: &NodeId| view.get(node).is_some_and(|seen| seen.1 == Verdict::Alive);
        let state = Arc::make_mut(&mut self.state);
        let config = &mut state.shards[SHARD.0 as usize];
        if config.primary.as_ref().is_none_or(|primary| alive(&primary.node)) {
            return;
        }
        let living = state.members.iter().filter(|(node, _)| alive(node));
        config.in_sync.extend(living.map(|(node, member)| (node.clone(), member.disk)));
    }
}
