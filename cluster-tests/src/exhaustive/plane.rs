//! The control plane of the search: the real state machine, and what was agreed on before.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use mainstay_protocol::control::{Claim, ClusterState, Command, Expect, Member, MemberState};
use mainstay_protocol::id::{BootId, ClusterId, DiskId, Epoch, NodeId};

use super::node::SHARD;

/// Who is in sync, by claim.
pub(super) type Set = BTreeMap<NodeId, DiskId>;

/// A proposed set on its way: the epoch of who proposes, the version it is for, and the set.
pub(super) type Proposal = (Epoch, u64, Set);

#[derive(Debug, Clone)]
pub(super) struct Plane {
    pub(super) state: Arc<ClusterState>,
    /// Older maps that are still on their way to somebody who would act on them.
    pub(super) maps: Vec<Arc<ClusterState>>,
    /// Proposals that may be accepted yet.
    pub(super) proposals: BTreeSet<Proposal>,
}

impl Plane {
    /// A cluster of one shard whose members are these.
    pub(super) fn new(claims: &[Claim], min_insync: u8) -> Self {
        let mut this = Self { state: Arc::default(), maps: Vec::new(), proposals: BTreeSet::new() };
        let standbys = u8::try_from(claims.len() - 1).unwrap_or(u8::MAX);
        let cluster = ClusterId::from_bytes([1; 16]);
        let grouping = BTreeMap::new();
        this.must(Command::Init { cluster, shards: 1, standbys, min_insync, grouping });
        for claim in claims {
            this.register(claim);
        }
        let nodes = claims.iter().map(|claim| claim.node.clone()).collect();
        let from_version = this.state.version;
        this.must(Command::SetTargets { from_version, targets: vec![(SHARD, nodes)] });
        this.maps.clear();
        this
    }

    fn apply(&mut self, command: Command) -> bool {
        let mut state = ClusterState::clone(&self.state);
        if state.apply(command).is_err() || state == *self.state {
            return false;
        }
        self.maps.push(std::mem::replace(&mut self.state, Arc::new(state)));
        true
    }

    fn must(&mut self, command: Command) {
        let told = format!("{command:?}");
        assert!(self.apply(command), "refused: {told}");
    }

    pub(super) fn expect(&self) -> Expect {
        self.state.shards[0].expect()
    }

    /// A start of a node registers; another disk does after the one before is down.
    pub(super) fn register(&mut self, claim: &Claim) {
        let Claim { node, disk, boot } = claim.clone();
        let known = self.state.members.get(&node).filter(|known| known.disk != disk);
        if let Some(boot) = known.map(|known| known.boot) {
            self.must(Command::SetDown { node: node.clone(), boot });
        }
        let (peer_addr, http_addr, zone) = ("p".to_owned(), "h".to_owned(), String::new());
        let state = MemberState::Up;
        let (weight, lanes, wire_max) = (1, 1, 1);
        let member =
            Member { disk, boot, peer_addr, http_addr, zone, weight, lanes, state, wire_max };
        self.must(Command::Register { node, member, grouping: BTreeMap::new() });
    }

    /// Makes a node the primary, if the rules allow it.
    pub(super) fn promote(&mut self, node: &NodeId) -> bool {
        let Some(claim) = self.state.claim_of(node) else { return false };
        self.apply(Command::Promote { shards: vec![(SHARD, self.expect(), claim)] })
    }

    /// A proposal of this primary arrives.
    pub(super) fn decide(&mut self, proposal: &Proposal, from: Claim) -> bool {
        let (epoch, version, in_sync) = proposal.clone();
        let expect = Expect { epoch, version };
        self.apply(Command::ProposeInSync { shard: SHARD, expect, from, in_sync })
    }

    /// Proposals for an older record are refused for ever, so that they need not be kept. That
    /// they are refused is seen here.
    pub(super) fn drop_stale(&mut self, claim_of: impl Fn(Epoch) -> Option<Claim>) -> bool {
        let now = self.expect();
        let (kept, stale): (BTreeSet<_>, BTreeSet<_>) = std::mem::take(&mut self.proposals)
            .into_iter()
            .partition(|(epoch, version, _)| Expect { epoch: *epoch, version: *version } == now);
        self.proposals = kept;
        let accepted =
            |it: &Proposal| claim_of(it.0).is_some_and(|from| self.clone().decide(it, from));
        !stale.iter().any(accepted)
    }

    /// The map that may still arrive under this version.
    pub(super) fn map(&self, version: u64) -> Option<&Arc<ClusterState>> {
        self.maps.iter().chain([&self.state]).find(|map| map.version == version)
    }
}

fn hash_map<H: Hasher>(map: &ClusterState, hasher: &mut H) {
    let config = &map.shards[0];
    let primary = config.primary.as_ref().map(|claim| (&claim.node, claim.disk, claim.boot));
    (map.version, config.epoch, config.version, primary, &config.in_sync).hash(hasher);
    for Member { disk, boot, state, .. } in map.members.values() {
        (disk, boot, *state == MemberState::Down).hash(hasher);
    }
}

impl Hash for Plane {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.proposals.hash(hasher);
        for map in self.maps.iter().chain([&self.state]) {
            hash_map(map, hasher);
        }
    }
}

/// Whether a map came after this start of a node registered.
pub(super) fn knows(map: &ClusterState, claim: &Claim) -> bool {
    let member = map.members.get(&claim.node);
    let BootId(boot) = claim.boot;
    member.is_some_and(|member| member.disk == claim.disk && member.boot.0 >= boot)
}
