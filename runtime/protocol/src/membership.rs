//! Who is a member: what a node says before it joins, and what the cluster answers.
//!
//! A node that starts asks the addresses it was given who they are, and decides by [`bootstrap`]:
//!
//! ```text
//!   its data belongs to a cluster ----------------------------------> Resume
//!   somebody heard belongs to a cluster ----------------------------> Join it
//!   exactly `expect` fresh nodes that all know the same names,
//!     and this one has the lowest name -----------------------------> Form a new one
//!   otherwise ------------------------------------------------------> Wait, and say for what
//! ```
//!
//! The third line is the rule of Pekko's cluster bootstrap with a fixed number in place of a
//! margin of time: two of the candidates cannot both think themselves the lowest of one set of
//! names. Left open: 2 x `expect` fresh nodes, in two halves that cannot see each other, form two
//! clusters; their handshakes refuse each other afterwards, nothing is merged.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::control::{ClusterState, MemberState, grouping_conflict};
use crate::id::{BootId, ClusterId, DiskId, NodeId};
use crate::limits;

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

/// A node says more about itself than any node has to say. It is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a node says too much about itself: {count} {what}, the limit is {max}")]
pub struct TooMuch {
    /// Of what: "kinds", "known nodes", ...
    pub what: &'static str,
    /// How much.
    pub count: usize,
    /// The limit.
    pub max: usize,
}

impl Candidate {
    /// Checks the sizes of what a stranger said, before any of it is kept.
    ///
    /// # Errors
    /// [`TooMuch`], by the first limit that is passed.
    pub fn check(&self) -> Result<(), TooMuch> {
        let kind_bytes = self.grouping.keys().map(String::len).max().unwrap_or(0);
        let sizes = [
            ("known nodes", self.known.len(), limits::MEMBERS_MAX),
            ("kinds", self.grouping.len(), limits::KINDS_MAX),
            ("bytes of a kind's name", kind_bytes, limits::NAME_BYTES_MAX),
            ("bytes of address", self.peer_addr.len(), limits::ADDR_BYTES_MAX),
        ];
        match sizes.into_iter().find(|(_, count, max)| count > max) {
            Some((what, count, max)) => Err(TooMuch { what, count, max }),
            None => Ok(()),
        }
    }
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
    /// Milliseconds that the commit under way of its journal has taken.
    pub storage_age_ms: u32,
    /// Its disk is short of space: it takes no commands, and nothing may be moved to it.
    pub disk_full: bool,
    /// Bytes of state in its memory.
    pub state_bytes: u64,
}

/// What a node does about its membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bootstrap {
    /// It is a member already: it goes on with the consensus state on its disk.
    Resume {
        /// The cluster of its data.
        cluster: ClusterId,
    },
    /// It registers with an existing cluster.
    Join {
        /// The cluster.
        cluster: ClusterId,
        /// Members to ask: `host:port`, by name of the member.
        via: Vec<String>,
    },
    /// It creates a new cluster, and the others join it.
    Form,
    /// Nothing yet: it asks again.
    Wait(WaitingFor),
}

/// What a fresh node waits for, for its log and its status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WaitingFor {
    /// It never forms a cluster, and nobody it hears belongs to one.
    #[error("a member to join; this node forms no cluster by itself")]
    Member,
    /// Fewer fresh nodes than expected are heard.
    #[error("{heard} of {expect} expected nodes are heard")]
    Nodes {
        /// Itself included.
        heard: u32,
        /// How many are to be.
        expect: u32,
    },
    /// Another one does not know the same nodes yet.
    #[error("node {node} does not know the same nodes yet")]
    SameView {
        /// The first such node, by name.
        node: NodeId,
    },
    /// All is ready; the node with the lowest name forms the cluster.
    #[error("node {node} to form the cluster")]
    Lowest {
        /// That node.
        node: NodeId,
    },
}

/// Why a node may not form, join or resume. Nothing was changed; an operator must decide.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// The node's data belongs to another cluster than the nodes it was sent to.
    #[error("the data directory belongs to cluster {own}, but {node} is of cluster {other}")]
    OtherCluster {
        /// The cluster of the data.
        own: ClusterId,
        /// A node that was heard.
        node: NodeId,
        /// Its cluster.
        other: ClusterId,
    },
    /// The nodes that it was sent to are of two clusters.
    #[error("the nodes to join are of two clusters: {one} and {other}")]
    TwoClusters {
        /// One of them.
        one: ClusterId,
        /// The other.
        other: ClusterId,
    },
    /// Two fresh nodes have one name.
    #[error("two nodes with different data directories are named {node}")]
    NameInUse {
        /// The name.
        node: NodeId,
    },
    /// More fresh nodes are there than expected; none knows which of them are to form the cluster.
    #[error("{heard} fresh nodes are heard, {expect} were expected")]
    TooMany {
        /// Itself included.
        heard: u32,
        /// How many were to be.
        expect: u32,
    },
    /// Two fresh nodes expect different numbers.
    #[error("this node expects {own} nodes, {node} expects {theirs}")]
    ExpectDiffers {
        /// This node's number.
        own: u32,
        /// The other node.
        node: NodeId,
        /// Its number.
        theirs: u32,
    },
    /// Two fresh nodes group the keys of a kind differently.
    #[error("this node and {node} group the keys of kind {kind} differently")]
    Grouping {
        /// The other node.
        node: NodeId,
        /// The kind.
        kind: String,
    },
}

/// Decides what a node that starts does, from what it is and from whom it heard. Whoever was heard
/// more than once is given once, as heard last; itself may be among them.
///
/// # Errors
/// [`BootstrapError`] when waiting cannot help: what was heard contradicts itself.
pub fn bootstrap(own: &Candidate, heard: &[Candidate]) -> Result<Bootstrap, BootstrapError> {
    let cluster = cluster_of(heard)?;
    match (own.cluster, cluster) {
        (Some(own), Some((node, other))) if own != other => {
            Err(BootstrapError::OtherCluster { own, node: node.clone(), other })
        }
        (Some(cluster), _) => Ok(Bootstrap::Resume { cluster }),
        (None, Some((_, cluster))) => {
            let members = heard.iter().filter(|candidate| candidate.cluster.is_some());
            let mut via: Vec<_> =
                members.map(|member| (&member.node, member.peer_addr.clone())).collect();
            via.sort();
            Ok(Bootstrap::Join { cluster, via: via.into_iter().map(|(_, addr)| addr).collect() })
        }
        (None, None) => form(own, heard),
    }
}

/// The one cluster that any of them belongs to, and one of its nodes.
fn cluster_of(heard: &[Candidate]) -> Result<Option<(&NodeId, ClusterId)>, BootstrapError> {
    let members = heard.iter().filter_map(|one| Some((&one.node, one.cluster?)));
    let mut found: Option<(&NodeId, ClusterId)> = None;
    for (node, cluster) in members {
        match found {
            Some((_, one)) if one != cluster => {
                return Err(BootstrapError::TwoClusters { one, other: cluster });
            }
            _ => found = Some((node, cluster)),
        }
    }
    Ok(found)
}

/// Whether fresh nodes among themselves form a cluster.
fn form(own: &Candidate, heard: &[Candidate]) -> Result<Bootstrap, BootstrapError> {
    if own.expect == 0 {
        return Ok(Bootstrap::Wait(WaitingFor::Member));
    }
    let others: Vec<_> = heard.iter().filter(|other| other.disk != own.disk).collect();
    let mut names = BTreeSet::from([&own.node]);
    for other in &others {
        if !names.insert(&other.node) {
            return Err(BootstrapError::NameInUse { node: other.node.clone() });
        }
        if other.expect != own.expect {
            let (node, theirs) = (other.node.clone(), other.expect);
            return Err(BootstrapError::ExpectDiffers { own: own.expect, node, theirs });
        }
        if let Some(kind) = grouping_conflict(&own.grouping, &other.grouping) {
            let (node, kind) = (other.node.clone(), kind.to_owned());
            return Err(BootstrapError::Grouping { node, kind });
        }
    }
    let expect = own.expect;
    let heard = u32::try_from(names.len()).unwrap_or(u32::MAX);
    if heard > expect {
        return Err(BootstrapError::TooMany { heard, expect });
    }
    if heard < expect {
        return Ok(Bootstrap::Wait(WaitingFor::Nodes { heard, expect }));
    }
    let knows_all = |one: &Candidate| one.known.iter().collect::<BTreeSet<_>>() == names;
    let lagging = others.iter().copied().chain([own]).filter(|one| !knows_all(one));
    if let Some(one) = lagging.min_by_key(|one| &one.node) {
        return Ok(Bootstrap::Wait(WaitingFor::SameView { node: one.node.clone() }));
    }
    let lowest = names.first().expect("the set holds this node");
    if **lowest == own.node {
        return Ok(Bootstrap::Form);
    }
    Ok(Bootstrap::Wait(WaitingFor::Lowest { node: (*lowest).clone() }))
}

/// The wire versions that a process speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wire {
    /// The oldest.
    pub min: u16,
    /// The newest.
    pub max: u16,
}

impl Wire {
    /// What a build speaks whose newest version is `max`: that one and the one before.
    pub fn of(max: u16) -> Self {
        Self { min: max.saturating_sub(1).max(1), max }
    }

    /// Whether two processes have a version in common.
    pub const fn meets(self, other: Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// Why a node may not join. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefused {
    /// The node asked belongs to no cluster. Ask another one, or later.
    #[error("there is no cluster here to join")]
    NoCluster,
    /// The joining node's data belongs to another cluster. Give it an empty data directory, or
    /// send it to its own cluster.
    #[error("the data directory belongs to cluster {theirs}, this is cluster {ours}")]
    OtherCluster {
        /// This cluster.
        ours: ClusterId,
        /// That of the joining node's data.
        theirs: ClusterId,
    },
    /// A member has this name on another data directory, and is not known to be down. Choose
    /// another name; or, if it is the same node with a new disk, try again once it counts as down.
    #[error("node name {node} is in use by a member with another data directory")]
    NameInUse {
        /// The name.
        node: NodeId,
    },
    /// A later start of the joining node registered already: an earlier process is still about.
    #[error("a later start of node {node} is registered")]
    OldBoot {
        /// The node.
        node: NodeId,
    },
    /// A kind groups its keys differently from the cluster's; stored state would strand.
    #[error("kind {kind} groups its keys differently from the cluster's")]
    Grouping {
        /// The kind.
        kind: String,
    },
    /// A member and the joining node have no wire version in common. Upgrade the older one first.
    #[error("member {member} speaks wire versions up to {theirs}, the joining node {min} to {max}")]
    Wire {
        /// The member.
        member: NodeId,
        /// The newest version that it speaks.
        theirs: u16,
        /// The oldest version that the joining node speaks.
        min: u16,
        /// The newest.
        max: u16,
    },
}

/// Checks a node before its registration is proposed, so that it hears the reason from whomever it
/// asks. The state machine checks again what must hold in the agreed order.
///
/// # Errors
/// [`JoinRefused`] by the first rule that it breaks.
pub fn check_join(
    state: &ClusterState,
    candidate: &Candidate,
    wire: Wire,
) -> Result<(), JoinRefused> {
    let Some(ours) = state.cluster else { return Err(JoinRefused::NoCluster) };
    if let Some(theirs) = candidate.cluster.filter(|theirs| *theirs != ours) {
        return Err(JoinRefused::OtherCluster { ours, theirs });
    }
    if let Some(known) = state.members.get(&candidate.node) {
        let node = candidate.node.clone();
        if known.disk != candidate.disk && known.state != MemberState::Down {
            return Err(JoinRefused::NameInUse { node });
        }
        if known.disk == candidate.disk && candidate.boot < known.boot {
            return Err(JoinRefused::OldBoot { node });
        }
    }
    if let Some(kind) = grouping_conflict(&candidate.grouping, &state.grouping) {
        return Err(JoinRefused::Grouping { kind: kind.to_owned() });
    }
    let mut others = state.members.iter().filter(|(node, _)| **node != candidate.node);
    match others.find(|(_, member)| !wire.meets(Wire::of(member.wire_max))) {
        None => Ok(()),
        Some((member, theirs)) => Err(JoinRefused::Wire {
            member: member.clone(),
            theirs: theirs.wire_max,
            min: wire.min,
            max: wire.max,
        }),
    }
}

#[cfg(test)]
mod tests;
