//! The control plane's replicated state: members, and the shard map with epochs.
//!
//! Commands are compare-and-set; results are computed by the proposer and stored, never
//! recomputed, so that nodes of two versions cannot diverge. Nothing here is on the data path.
//!
//! ```text
//!                     proposes                            consensus             every node
//!   control::director --------> Command --(agreed order)--------> apply -------> ClusterState
//!        ^                                                                            |
//!        +----------------------------- reads ----------------------------------------+
//! ```
//!
//! This file holds the words; `apply` is the state machine, `invariants` what is always true of
//! its state, `director` decides what to propose next; the primary of a shard with standbys
//! proposes who is in sync with it. The design is that of PacificA (Lin et al.,
//! MSR-TR-2008-25: a configuration service beside primary-backup groups) with Kafka's claims bound
//! to a disk (KIP-841, KIP-903, KIP-966).

mod apply;
pub mod director;
mod event;
mod invariants;
pub mod succession;
pub mod voters;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use xxhash_rust::xxh3::Xxh3;

pub use event::Event;

use crate::id::{BootId, ClusterId, DiskId, Epoch, NodeId, ShardId};

/// How each kind groups its keys, by kind name: digest of `group_by` over golden keys, and the
/// durability class. A node whose grouping of a common kind differs may not join.
pub type Grouping = BTreeMap<String, GroupingDigest>;

/// A digest of one kind's grouping: `xxh3_64` over the affinity of the golden keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupingDigest(pub u64);

impl GroupingDigest {
    /// The digest of a durability class and of the affinities of the golden keys, in their order.
    /// Pinned: it is compared with what older builds stored.
    pub fn of<'a>(class: &'a str, affinities: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hasher = Xxh3::new();
        for text in std::iter::once(class).chain(affinities) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        Self(hasher.digest())
    }
}

/// What the cluster has agreed on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// The cluster, once it was initialised.
    pub cluster: Option<ClusterId>,
    /// Grows with every change; the map's version.
    pub version: u64,
    /// The version at which members or targets changed last. Targets that were computed from an
    /// earlier one are stale.
    pub placement_version: u64,
    /// Copies beside the primary that each shard wants. Fixed at creation, changed by an operator.
    pub standbys: u8,
    /// The least size of an in-sync set. Fixed at creation, never derived from who is alive.
    pub min_insync: u8,
    /// How kinds group their keys.
    pub grouping: Grouping,
    /// The members, by name.
    pub members: BTreeMap<NodeId, Member>,
    /// Members that were told to drain. It outlasts their restarts: one that comes back is
    /// `Draining` again.
    pub draining: BTreeSet<NodeId>,
    /// The shards, by id.
    pub shards: Vec<ShardConfig>,
}

impl ClusterState {
    /// Nothing agreed on yet: no cluster, no members, no shards.
    pub fn new() -> Self {
        Self::default()
    }

    /// The record of a shard.
    pub fn shard(&self, shard: ShardId) -> Option<&ShardConfig> {
        self.shards.get(shard.0 as usize)
    }

    /// The shards and their records, in order.
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &ShardConfig)> {
        (0..).map(ShardId).zip(&self.shards)
    }

    /// The claim that a member would serve under: its registered disk and start.
    pub fn claim_of(&self, node: &NodeId) -> Option<Claim> {
        let member = self.members.get(node)?;
        Some(Claim { node: node.clone(), disk: member.disk, boot: member.boot })
    }

    /// Whether a shard of this record can be served, and if not, what it waits for.
    pub fn health(&self, config: &ShardConfig) -> Health {
        let Some(claim) = &config.primary else { return Health::Unassigned };
        match self.members.get(&claim.node) {
            Some(member) if member.disk != claim.disk => Health::DiskLost,
            Some(member) if member.state == MemberState::Down => Health::Down,
            Some(member) if member.boot != claim.boot => Health::Restarted,
            Some(_) => Health::Served,
            None => Health::DiskLost,
        }
    }

    /// Whether a shard may move to a member under this disk. Without standbys a move brings a copy
    /// along; with standbys it leads to a copy that is in sync.
    fn can_move_to(&self, config: &ShardConfig, node: &NodeId, disk: DiskId) -> bool {
        self.standbys == 0 || config.is_in_sync(node, disk)
    }

    /// Whether a copy of a shard of this record that a member has, in sync or not, is one too many:
    /// it is in no set, wanted by nobody, and as many as are wanted are in sync. A member that was
    /// only slow is taken for dead for a moment, and wanted again at once: had it removed what it
    /// has, it would get all of it over the network again.
    pub fn is_surplus(&self, config: &ShardConfig, node: &NodeId) -> bool {
        let up = self.members.get(node).is_some_and(|member| member.state != MemberState::Down);
        let in_sync = |node: &NodeId| {
            self.members.get(node).is_some_and(|member| config.is_in_sync(node, member.disk))
        };
        let complete = config.targets.len() == usize::from(self.standbys) + 1;
        let wanted = in_sync(node) || config.targets.contains(node);
        up && !wanted && complete && config.targets.iter().all(in_sync)
    }

    /// How many shards a member has a part in: as primary, in an in-sync set, or as the target of
    /// a move under way; claims of a disk that it lost are counted.
    pub fn held_by(&self, node: &NodeId) -> u32 {
        let held = self.shards.iter().filter(|config| config.holds(node)).count();
        u32::try_from(held).unwrap_or(u32::MAX)
    }
}

impl ShardConfig {
    /// The record of a shard that never had a primary.
    pub const fn fresh() -> Self {
        Self {
            epoch: Epoch(0),
            version: 0,
            primary: None,
            in_sync: BTreeMap::new(),
            targets: Vec::new(),
            handoff: None,
        }
    }

    /// What a command that was decided on this record expects.
    pub const fn expect(&self) -> Expect {
        Expect { epoch: self.epoch, version: self.version }
    }

    /// Whether the in-sync set has this very data directory of a node.
    pub fn is_in_sync(&self, node: &NodeId, disk: DiskId) -> bool {
        self.in_sync.get(node) == Some(&disk)
    }

    fn holds(&self, node: &NodeId) -> bool {
        self.in_sync.contains_key(node)
            || self.primary.as_ref().is_some_and(|claim| claim.node == *node)
            || self.handoff.as_ref().is_some_and(|handoff| handoff.to == *node)
    }
}

/// The first kind, by name, that two groupings know and group differently.
pub fn grouping_conflict<'a>(one: &'a Grouping, other: &Grouping) -> Option<&'a str> {
    let differs = |(kind, digest): &(&String, &GroupingDigest)| {
        other.get(*kind).is_some_and(|theirs| theirs != *digest)
    };
    one.iter().find(differs).map(|(kind, _)| kind.as_str())
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its data directory.
    pub disk: DiskId,
    /// Its start.
    pub boot: BootId,
    /// Where peers reach it.
    pub peer_addr: String,
    /// Where HTTP clients reach it.
    pub http_addr: String,
    /// Its failure zone, or empty.
    pub zone: String,
    /// Its share of the shards, 1 for most.
    pub weight: u8,
    /// Its lanes.
    pub lanes: u16,
    /// Its state.
    pub state: MemberState,
    /// The newest wire version that it speaks.
    pub wire_max: u16,
}

/// The state of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MemberState {
    /// Takes part.
    Up,
    /// Hands its shards over, then leaves.
    Draining,
    /// Not heard from; keeps its claims until it comes back, is removed, or is replaced by others.
    Down,
}

/// Who holds one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardConfig {
    /// Grows with every new primary or start of one.
    pub epoch: Epoch,
    /// Grows with every change of this record.
    pub version: u64,
    /// Who serves: the claim of the primary, bound to its disk and its start.
    pub primary: Option<Claim>,
    /// Who holds every committed entry: claims by disk. Holds the primary.
    pub in_sync: BTreeMap<NodeId, DiskId>,
    /// Where the placement wants it: primary first, distinct nodes.
    pub targets: Vec<NodeId>,
    /// A planned move under way.
    pub handoff: Option<Handoff>,
}

/// A primary's claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Claim {
    /// The node.
    pub node: NodeId,
    /// Its data directory: another disk is no primary.
    pub disk: DiskId,
    /// Its start: a restarted primary needs a new epoch before it serves.
    pub boot: BootId,
}

/// A planned move.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handoff {
    /// To whom.
    pub to: NodeId,
    /// Its disk when the move was planned.
    pub disk: DiskId,
    /// The version of the shard's record that the plan made. Each plan has its own, so that who
    /// works on one that was given up does not take the next one, to the same target, for it.
    pub plan: u64,
}

/// Whether a shard can be served, from the records alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// It never had a primary, and holds nothing.
    Unassigned,
    /// Its primary is a member under the claimed disk and start.
    Served,
    /// Its primary's node came back under the claimed disk: it wants a new epoch.
    Restarted,
    /// Its primary's node is not heard from. An in-sync copy takes over; without one, the shard
    /// waits for it.
    Down,
    /// Its primary's node came back with another disk. An in-sync copy takes over; without one, the
    /// shard waits for the old disk: its claim is kept, nothing is ever promoted that may lack what
    /// was acknowledged.
    DiskLost,
}

/// What can be proposed. Refused ones change nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Creates the cluster; only the first takes effect.
    Init {
        /// Its id.
        cluster: ClusterId,
        /// How many shards, for ever.
        shards: u32,
        /// Standbys per shard.
        standbys: u8,
        /// The least in-sync set.
        min_insync: u8,
        /// How kinds group.
        grouping: Grouping,
    },
    /// A node joins, or comes back after a restart.
    Register {
        /// Its name.
        node: NodeId,
        /// Itself, `Up`.
        member: Member,
        /// Its kinds.
        grouping: Grouping,
    },
    /// A member was not heard from.
    SetDown {
        /// The member.
        node: NodeId,
        /// The start that was not heard from; another one is alive.
        boot: BootId,
    },
    /// A member wants to leave: its shards are handed over first.
    Drain {
        /// The member.
        node: NodeId,
    },
    /// A drained member stays after all.
    Undrain {
        /// The member.
        node: NodeId,
    },
    /// A member that holds no shard leaves for good.
    Leave {
        /// The member.
        node: NodeId,
    },
    /// The placement computed new targets.
    SetTargets {
        /// The state's version that it was computed from.
        from_version: u64,
        /// What changed.
        targets: Vec<(ShardId, Vec<NodeId>)>,
    },
    /// Makes a node the primary of shards that have none, restarts a primary under a new epoch, or
    /// lets a copy that is in sync take over.
    Promote {
        /// For each shard what is expected of its record, and the new claim.
        shards: Vec<(ShardId, Expect, Claim)>,
    },
    /// Plans moves.
    BeginHandoff {
        /// For each shard what is expected of its record, and where it goes.
        shards: Vec<(ShardId, Expect, Handoff)>,
    },
    /// The target holds everything and the source has stopped: the target takes over.
    CompleteHandoff {
        /// The shard.
        shard: ShardId,
        /// What is expected of its record.
        expect: Expect,
        /// The claim of the target.
        to: Claim,
    },
    /// The source gives a move up and serves on, in the same epoch.
    AbortHandoff {
        /// The shard.
        shard: ShardId,
        /// What is expected of its record.
        expect: Expect,
    },
    /// The primary says who is in sync with it. It lets a member go only when enough of those that
    /// remain have acknowledged its epoch, and waits for the old set and for the new one until it
    /// knows which holds. It asks again, also for an equal set, until the version of the record
    /// moves: then none of its older proposals can succeed any more.
    ProposeInSync {
        /// The shard.
        shard: ShardId,
        /// What is expected of its record.
        expect: Expect,
        /// The primary that proposes.
        from: Claim,
        /// Who is in sync, the primary included.
        in_sync: BTreeMap<NodeId, DiskId>,
    },
}

/// What a compare-and-set command expects of a shard's record. Every accepted change of the record
/// makes it stale, also a change of targets during a move: who gets [`ProposeRefused::Stale`] reads
/// again and, when its own part still holds, asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expect {
    /// Its epoch.
    pub epoch: Epoch,
    /// Its version.
    pub version: u64,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The state's version after it.
    pub version: u64,
    /// What happened, for the event log.
    pub events: Vec<Event>,
}

/// Why a proposal was refused. The state is as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProposeRefused {
    /// The cluster is already initialised.
    #[error("the cluster is already initialised as {cluster}")]
    Initialised {
        /// As which.
        cluster: ClusterId,
    },
    /// The cluster is not initialised.
    #[error("the cluster is not initialised")]
    NotInitialised,
    /// A live member has this name on another disk.
    #[error("node name {node} is in use by a live member with another data directory")]
    NameInUse {
        /// The name.
        node: NodeId,
    },
    /// A kind groups its keys differently from the cluster's.
    #[error(
        "kind {kind} groups its keys differently from the cluster's; stored state would strand"
    )]
    Grouping {
        /// The kind.
        kind: String,
    },
    /// An older start than the registered one: an earlier process is still about.
    #[error("start {given:?} of node {node} is older than the registered {registered:?}")]
    OldBoot {
        /// The node.
        node: NodeId,
        /// The start given.
        given: BootId,
        /// The start registered.
        registered: BootId,
    },
    /// No such member.
    #[error("no member is named {node}")]
    NoMember {
        /// The name.
        node: NodeId,
    },
    /// The member still holds shards.
    #[error("member {node} still holds {shards} shards")]
    HoldsShards {
        /// The member.
        node: NodeId,
        /// How many.
        shards: u32,
    },
    /// The record changed since it was read: read again, decide again.
    #[error("the record changed since it was read")]
    Stale,
    /// The command breaks a rule; says which.
    #[error("refused: {reason}")]
    Rule {
        /// The rule.
        reason: String,
    },
    /// There is no leader now, or this node could not reach it. Outcome unknown for commands sent.
    #[error("no leader: {reason}")]
    NoLeader {
        /// Why.
        reason: String,
    },
}
