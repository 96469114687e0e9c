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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::{Grouping, GroupingDigest, Member};

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
    const OTHER: ClusterId = ClusterId::from_bytes([2; 16]);

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    /// A fresh candidate that knows these names; its disk is made of its name.
    fn fresh(name: &str, expect: u32, known: &[&str]) -> Candidate {
        let mut disk = [0; 16];
        disk[..name.len()].copy_from_slice(name.as_bytes());
        Candidate {
            node: node(name),
            disk: DiskId::from_bytes(disk),
            boot: BootId(1),
            cluster: None,
            peer_addr: format!("{name}:7000"),
            expect,
            known: known.iter().map(|name| node(name)).collect(),
            grouping: Grouping::new(),
        }
    }

    fn member(name: &str, cluster: ClusterId) -> Candidate {
        Candidate { cluster: Some(cluster), ..fresh(name, 3, &[]) }
    }

    fn three() -> [Candidate; 3] {
        ["n1", "n2", "n3"].map(|name| fresh(name, 3, &["n1", "n2", "n3"]))
    }

    #[test]
    fn what_is_larger_than_any_node_is_is_refused() {
        let fine = fresh("n1", 3, &["n1", "n2"]);
        assert_eq!(fine.check(), Ok(()));
        let long_addr = Candidate { peer_addr: "x".repeat(10_000), ..fine.clone() };
        let crowd = Candidate { known: vec![node("n1"); 1_000_000], ..fine.clone() };
        let long_kind = Grouping::from([("x".repeat(10_000), GroupingDigest(1))]);
        let long_kind = Candidate { grouping: long_kind, ..fine.clone() };
        let kinds = (0..100_000).map(|kind| (format!("k{kind}"), GroupingDigest(1)));
        let kinds = Candidate { grouping: kinds.collect(), ..fine };
        for (candidate, what) in [
            (long_addr, "bytes of address"),
            (crowd, "known nodes"),
            (long_kind, "bytes of a kind's name"),
            (kinds, "kinds"),
        ] {
            assert_eq!(candidate.check().unwrap_err().what, what);
        }
    }

    #[test]
    fn the_lowest_of_the_expected_nodes_forms_the_cluster() {
        let all = three();
        assert_eq!(bootstrap(&all[0], &all), Ok(Bootstrap::Form));
        let waits = Bootstrap::Wait(WaitingFor::Lowest { node: node("n1") });
        assert_eq!(bootstrap(&all[1], &all), Ok(waits.clone()));
        assert_eq!(bootstrap(&all[2], &all), Ok(waits));
    }

    #[test]
    fn nobody_forms_while_somebody_is_missing_or_knows_less() {
        let [own, second, third] = three();
        let waits = Bootstrap::Wait(WaitingFor::Nodes { heard: 2, expect: 3 });
        assert_eq!(bootstrap(&own, std::slice::from_ref(&second)), Ok(waits));
        let behind = fresh("n3", 3, &["n2", "n3"]);
        let waits = Bootstrap::Wait(WaitingFor::SameView { node: node("n3") });
        assert_eq!(bootstrap(&own, &[second, behind]), Ok(waits));
        let [_, second, _] = three();
        let unsure = fresh("n1", 3, &["n1", "n2"]);
        let waits = Bootstrap::Wait(WaitingFor::SameView { node: node("n1") });
        assert_eq!(bootstrap(&unsure, &[second, third]), Ok(waits));
    }

    #[test]
    fn one_node_that_expects_itself_forms_at_once() {
        assert_eq!(bootstrap(&fresh("n1", 1, &["n1"]), &[]), Ok(Bootstrap::Form));
    }

    #[test]
    fn a_node_that_expects_nobody_waits_for_a_member() {
        let all = [fresh("n1", 0, &["n1"]), fresh("n2", 0, &["n2"])];
        assert_eq!(bootstrap(&all[0], &all), Ok(Bootstrap::Wait(WaitingFor::Member)));
    }

    #[test]
    fn whoever_hears_a_member_joins_and_never_forms() {
        let [own, second, _] = three();
        let heard = [second, member("n9", CLUSTER), member("n3", CLUSTER)];
        let via = vec!["n3:7000".to_owned(), "n9:7000".to_owned()];
        assert_eq!(bootstrap(&own, &heard), Ok(Bootstrap::Join { cluster: CLUSTER, via }));
    }

    #[test]
    fn data_of_another_cluster_is_refused() {
        let own = member("n1", OTHER);
        let error = BootstrapError::OtherCluster { own: OTHER, node: node("n2"), other: CLUSTER };
        assert_eq!(bootstrap(&own, &[member("n2", CLUSTER)]), Err(error));
        let error = BootstrapError::TwoClusters { one: CLUSTER, other: OTHER };
        let heard = [member("n2", CLUSTER), member("n3", OTHER)];
        assert_eq!(bootstrap(&fresh("n1", 3, &[]), &heard), Err(error));
    }

    #[test]
    fn a_member_resumes_alone_or_among_its_own() {
        let own = member("n1", CLUSTER);
        let resumes = Ok(Bootstrap::Resume { cluster: CLUSTER });
        assert_eq!(bootstrap(&own, &[]), resumes);
        assert_eq!(bootstrap(&own, &[fresh("n2", 3, &[]), member("n3", CLUSTER)]), resumes);
    }

    #[test]
    fn contradictions_are_errors_and_not_waited_for() {
        let [own, second, third] = three();
        let fourth = fresh("n4", 3, &[]);
        let heard = [second.clone(), third, fourth];
        let error = BootstrapError::TooMany { heard: 4, expect: 3 };
        assert_eq!(bootstrap(&own, &heard), Err(error));

        let namesake = Candidate { disk: DiskId::from_bytes([9; 16]), ..own.clone() };
        let error = BootstrapError::NameInUse { node: node("n1") };
        assert_eq!(bootstrap(&own, &[namesake]), Err(error));

        let other = fresh("n2", 5, &[]);
        let error = BootstrapError::ExpectDiffers { own: 3, node: node("n2"), theirs: 5 };
        assert_eq!(bootstrap(&own, &[other]), Err(error));

        let grouped = |digest| [("order".to_owned(), GroupingDigest(digest))].into();
        let own = Candidate { grouping: grouped(1), ..own };
        let second = Candidate { grouping: grouped(2), ..second };
        let error = BootstrapError::Grouping { node: node("n2"), kind: "order".to_owned() };
        assert_eq!(bootstrap(&own, &[second]), Err(error));
    }

    fn cluster_of_one() -> ClusterState {
        let member = Member {
            disk: fresh("n1", 3, &[]).disk,
            boot: BootId(5),
            peer_addr: "n1:7000".to_owned(),
            http_addr: String::new(),
            zone: String::new(),
            weight: 1,
            lanes: 1,
            state: MemberState::Up,
            wire_max: 3,
        };
        ClusterState {
            cluster: Some(CLUSTER),
            grouping: [("order".to_owned(), GroupingDigest(1))].into(),
            members: [(node("n1"), member)].into(),
            ..ClusterState::new()
        }
    }

    fn check(candidate: &Candidate, wire: Wire) -> Result<(), JoinRefused> {
        check_join(&cluster_of_one(), candidate, wire)
    }

    #[test]
    fn a_fresh_node_and_a_member_of_this_cluster_may_join() {
        assert_eq!(check(&fresh("n2", 3, &[]), Wire::of(3)), Ok(()));
        assert_eq!(check(&member("n2", CLUSTER), Wire::of(4)), Ok(()));
        let back = Candidate { boot: BootId(6), ..member("n1", CLUSTER) };
        assert_eq!(check(&back, Wire::of(9)), Ok(()), "alone, with itself upgraded");
    }

    #[test]
    fn a_join_is_refused_by_what_is_wrong() {
        let joining = fresh("n2", 3, &[]);
        let refused = check_join(&ClusterState::new(), &joining, Wire::of(3));
        assert_eq!(refused, Err(JoinRefused::NoCluster));

        let refused = JoinRefused::OtherCluster { ours: CLUSTER, theirs: OTHER };
        assert_eq!(check(&member("n2", OTHER), Wire::of(3)), Err(refused));

        let namesake = Candidate { disk: DiskId::from_bytes([9; 16]), ..fresh("n1", 3, &[]) };
        let refused = JoinRefused::NameInUse { node: node("n1") };
        assert_eq!(check(&namesake, Wire::of(3)), Err(refused));
        let old = Candidate { boot: BootId(4), ..fresh("n1", 3, &[]) };
        let refused = JoinRefused::OldBoot { node: node("n1") };
        assert_eq!(check(&old, Wire::of(3)), Err(refused));

        let grouping = [("order".to_owned(), GroupingDigest(2))].into();
        let refused = JoinRefused::Grouping { kind: "order".to_owned() };
        assert_eq!(check(&Candidate { grouping, ..joining.clone() }, Wire::of(3)), Err(refused));

        let refused = JoinRefused::Wire { member: node("n1"), theirs: 3, min: 4, max: 5 };
        assert_eq!(check(&joining, Wire::of(5)), Err(refused));
        assert!(check(&joining, Wire { min: 1, max: 1 }).is_err());
    }

    #[test]
    fn a_node_with_a_new_disk_may_come_back_once_it_is_down() {
        let mut state = cluster_of_one();
        let wiped = Candidate { disk: DiskId::from_bytes([9; 16]), ..fresh("n1", 3, &[]) };
        assert!(check_join(&state, &wiped, Wire::of(3)).is_err());
        state.members.get_mut(&node("n1")).unwrap().state = MemberState::Down;
        assert_eq!(check_join(&state, &wiped, Wire::of(3)), Ok(()));
    }

    proptest! {
        /// Whoever hears whom, and however late: of the nodes of one configuration at most one
        /// thinks that it forms the cluster.
        #[test]
        fn at_most_one_node_forms(
            expect in 1_u32..5, count in 1_usize..7,
            hears in prop::collection::vec(any::<u64>(), 7), views in prop::collection::vec(any::<u64>(), 7),
        ) {
            let name = |at: usize| format!("n{at}");
            let known = |seer: usize, mask: u64| -> Vec<NodeId> {
                let seen = (0..count).filter(|at| *at == seer || mask >> at & 1 == 1);
                seen.map(|at| node(&name(at))).collect()
            };
            // a view that was told may be older than what its owner hears by now, not newer
            let told: Vec<Candidate> = (0..count).map(|at| Candidate {
                known: known(at, hears[at] & views[at]),
                ..fresh(&name(at), expect, &[])
            }).collect();
            let forms = |at: usize| {
                let heard: Vec<_> = (0..count)
                    .filter(|other| hears[at] >> other & 1 == 1)
                    .map(|other| told[other].clone())
                    .collect();
                let own = Candidate { known: known(at, hears[at]), ..told[at].clone() };
                bootstrap(&own, &heard) == Ok(Bootstrap::Form)
            };
            // two disjoint sets of `expect` nodes are two configurations: not this promise
            if count < 2 * expect as usize {
                prop_assert!((0..count).filter(|&at| forms(at)).count() <= 1);
            }
        }
    }
}
