//! Facts of the state machine, random commands against its promises, and random lives of a
//! cluster that the director must settle.

mod commands;
mod director_plans;
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
/// do their part. Returns the moves that ended.
fn settle(state: &mut ClusterState) -> u32 {
    let mut moved = 0;
    for _ in 0..1_000 {
        let commands = plan(state, &View::new(), director::Config::default());
        let idle = commands.is_empty();
        for command in commands {
            apply(state, command);
        }
        let under_way: Vec<_> =
            (0..).zip(&state.shards).filter(|(_, config)| config.handoff.is_some()).collect();
        assert!(under_way.len() <= 8, "bounded moves");
        if idle && under_way.is_empty() {
            return moved;
        }
        let shards: Vec<_> = under_way.into_iter().map(|(shard, _)| ShardId(shard)).collect();
        for shard in shards {
            if let Some(command) = completion(state, shard) {
                apply(state, command);
                moved += 1;
            }
        }
    }
    panic!("the cluster does not settle");
}

/// What the source of a move proposes when everything is copied, if both ends are there.
fn completion(state: &ClusterState, shard: ShardId) -> Option<Command> {
    let config = state.shard(shard)?;
    let handoff = config.handoff.as_ref()?;
    let to = state.claim_of(&handoff.to).filter(|claim| claim.disk == handoff.disk)?;
    let both_there = state.health(config) == Health::Served
        && state.members[&handoff.to].state != MemberState::Down;
    let expect = config.expect();
    both_there.then_some(Command::CompleteHandoff { shard, expect, to })
}

/// A settled cluster of `members` members on their first disks and starts, without standbys.
fn cluster(members: u8, shards: u32) -> ClusterState {
    let mut state = ClusterState::new();
    apply(&mut state, init(shards, 0, 1));
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
