//! Facts of the state machine, random commands against its promises, and random lives of a
//! cluster that the director must settle.

mod commands;
mod director_plans;
mod failover;
mod in_sync;
mod lives;
mod machine;

use std::collections::{BTreeMap, BTreeSet};

use super::director::{self, View, plan};
use super::*;
use crate::failure_detector::Verdict;
use crate::limits;

const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
const FIRST: ShardId = ShardId(0);

fn node(at: u8) -> NodeId {
    NodeId::new(&format!("n{at}")).unwrap()
}

/// The `generation`-th data directory of a node.
fn disk(at: u8, generation: u8) -> DiskId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[at, generation]);
    DiskId::from_bytes(bytes)
}

fn member(disk: DiskId, boot: u64) -> Member {
    Member {
        disk,
        boot: BootId(boot),
        peer_addr: "host:7000".to_owned(),
        http_addr: "host:8080".to_owned(),
        zone: String::new(),
        weight: 1,
        lanes: 2,
        state: MemberState::Up,
        wire_max: 1,
    }
}

fn init(shards: u32, standbys: u8, min_insync: u8) -> Command {
    Command::Init { cluster: CLUSTER, shards, standbys, min_insync, grouping: Grouping::new() }
}

fn register(at: u8, disk: DiskId, boot: u64) -> Command {
    Command::Register { node: node(at), member: member(disk, boot), grouping: Grouping::new() }
}

fn down(at: u8, boot: u64) -> Command {
    Command::SetDown { node: node(at), boot: BootId(boot) }
}

#[expect(clippy::needless_pass_by_value, reason = "as `ClusterState::apply`")]
fn apply(state: &mut ClusterState, command: Command) -> Vec<Event> {
    state.apply(command.clone()).unwrap_or_else(|refused| panic!("{command:?}: {refused}")).events
}

/// Applies a command that must be refused, and checks that it changes nothing.
fn refused(state: &mut ClusterState, command: Command) -> ProposeRefused {
    let before = state.clone();
    let refused = state.apply(command).expect_err("it breaks a rule");
    assert_eq!(*state, before, "a refused command changes nothing");
    refused
}

fn is_rule(refused: &ProposeRefused) -> bool {
    matches!(refused, ProposeRefused::Rule { .. })
}

/// Applies the director's plans until there is none, with every member alive; the sources of moves
/// and the primaries of shards with standbys do their part. Returns the moves that ended.
fn settle(state: &mut ClusterState) -> u32 {
    let mut moved = 0;
    for _ in 0..1_000 {
        let before = state.version;
        for command in plan(state, &View::new(), director::Config::default()) {
            apply(state, command);
        }
        let moving = state.shards.iter().filter(|config| config.handoff.is_some()).count();
        assert!(moving <= 8, "bounded moves");
        for shard in (0..u32::try_from(state.shards.len()).unwrap()).map(ShardId) {
            if let Some(command) = proposal(state, shard, |_| true) {
                apply(state, command);
            }
            if let Some(command) = completion(state, shard) {
                apply(state, command);
                moved += 1;
            }
        }
        if state.version == before {
            assert_eq!(moving, 0, "every move ends");
            return moved;
        }
    }
    panic!("the cluster does not settle");
}

/// What the source of a move proposes when the target holds everything, if both ends are there.
fn completion(state: &ClusterState, shard: ShardId) -> Option<Command> {
    let config = state.shard(shard)?;
    let handoff = config.handoff.as_ref()?;
    let to = state.claim_of(&handoff.to).filter(|claim| claim.disk == handoff.disk)?;
    let both_there = state.health(config) == Health::Served
        && state.members[&handoff.to].state != MemberState::Down;
    let expect = config.expect();
    both_there.then_some(Command::CompleteHandoff { shard, expect, to })
}

/// What the primary of a shard with standbys proposes once every target that is `there` has caught
/// up: these, or all that it has when these are too few. `None` when it has what it wants.
fn proposal(
    state: &ClusterState,
    shard: ShardId,
    there: impl Fn(&Claim) -> bool,
) -> Option<Command> {
    let config = state.shard(shard)?;
    let from = config.primary.clone().filter(&there)?;
    if state.standbys == 0 || state.health(config) != Health::Served {
        return None;
    }
    let up = config.targets.iter().filter(|node| state.members[*node].state == MemberState::Up);
    let caught_up = up.filter_map(|node| state.claim_of(node)).filter(&there);
    let mut in_sync = BTreeMap::from([(from.node.clone(), from.disk)]);
    in_sync.extend(caught_up.map(|claim| (claim.node, claim.disk)));
    if in_sync.len() < usize::from(state.min_insync) {
        in_sync = config.in_sync.clone().into_iter().chain(in_sync).collect();
    }
    let expect = config.expect();
    let news = in_sync != config.in_sync;
    news.then_some(Command::ProposeInSync { shard, expect, from, in_sync })
}

/// A settled cluster of `members` members on their first disks and starts, without standbys.
fn cluster(members: u8, shards: u32) -> ClusterState {
    replicated(members, shards, 0, 1)
}

/// As [`cluster`], with standbys.
fn replicated(members: u8, shards: u32, standbys: u8, min_insync: u8) -> ClusterState {
    let mut state = ClusterState::new();
    apply(&mut state, init(shards, standbys, min_insync));
    for at in 1..=members {
        apply(&mut state, register(at, disk(at, 0), 1));
    }
    settle(&mut state);
    state
}

fn primaries(state: &ClusterState) -> Vec<&NodeId> {
    state.shards.iter().map(|config| &config.primary.as_ref().unwrap().node).collect()
}

fn held(state: &ClusterState, at: u8) -> usize {
    primaries(state).iter().filter(|name| ***name == node(at)).count()
}

fn promote(state: &ClusterState, shard: ShardId, at: u8) -> Command {
    let expect = state.shard(shard).unwrap().expect();
    Command::Promote { shards: vec![(shard, expect, state.claim_of(&node(at)).unwrap())] }
}

/// What the primary of a shard proposes: these nodes, each under the given of its disks.
fn propose(state: &ClusterState, shard: ShardId, in_sync: &[(u8, u8)]) -> Command {
    let config = state.shard(shard).unwrap();
    let from = config.primary.clone().unwrap();
    Command::ProposeInSync { shard, expect: config.expect(), from, in_sync: claims(in_sync) }
}

fn claims(of: &[(u8, u8)]) -> BTreeMap<NodeId, DiskId> {
    of.iter().map(|&(at, generation)| (node(at), disk(at, generation))).collect()
}

fn begin(state: &ClusterState, shard: ShardId, at: u8) -> Command {
    let expect = state.shard(shard).unwrap().expect();
    let disk = state.members[&node(at)].disk;
    let handoff = Handoff { to: node(at), disk, plan: expect.version + 1 };
    Command::BeginHandoff { shards: vec![(shard, expect, handoff)] }
}

/// A shard that this node is primary of.
fn shard_of(state: &ClusterState, at: u8) -> ShardId {
    let place = primaries(state).iter().position(|name| **name == node(at)).unwrap();
    ShardId(u32::try_from(place).unwrap())
}
