//! Facts of the state machine, random commands against its promises, and random lives of a
//! cluster that the director must settle.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

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

// -- the state machine --

#[test]
fn nothing_happens_before_there_is_a_cluster_and_it_is_created_once() {
    let mut state = ClusterState::new();
    assert_eq!(refused(&mut state, register(1, disk(1, 0), 1)), ProposeRefused::NotInitialised);
    for (shards, standbys, min) in [(0, 0, 1), (limits::SHARDS_MAX + 1, 0, 1), (4, 1, 0), (4, 1, 3)]
    {
        assert!(is_rule(&refused(&mut state, init(shards, standbys, min))));
    }
    let events = apply(&mut state, init(4, 1, 2));
    assert_eq!(events, [Event::ClusterCreated { cluster: CLUSTER.to_string(), shards: 4 }]);
    let again = ProposeRefused::Initialised { cluster: CLUSTER };
    assert_eq!(refused(&mut state, init(8, 0, 1)), again);
}

#[test]
fn a_registration_says_what_it_was() {
    let mut state = cluster(1, 4);
    let joined = vec![Event::MemberJoined { node: node(2) }];
    assert_eq!(apply(&mut state, register(2, disk(2, 0), 5)), joined);
    let version = state.version;
    assert_eq!(apply(&mut state, register(2, disk(2, 0), 5)), []);
    assert_eq!(state.version, version, "the same again changes nothing");
    let restarted = vec![Event::MemberRestarted { node: node(2) }];
    assert_eq!(apply(&mut state, register(2, disk(2, 0), 6)), restarted);
    apply(&mut state, down(2, 6));
    assert_eq!(apply(&mut state, register(2, disk(2, 0), 6)), restarted, "heard again");
    apply(&mut state, down(2, 6));
    assert_eq!(apply(&mut state, register(2, disk(2, 1), 1)), joined, "with a new disk");
}

#[test]
fn a_registration_is_refused_by_what_is_wrong() {
    let mut state = cluster(1, 4);
    apply(&mut state, register(2, disk(2, 0), 5));
    let older = refused(&mut state, register(2, disk(2, 0), 4));
    let expected =
        ProposeRefused::OldBoot { node: node(2), given: BootId(4), registered: BootId(5) };
    assert_eq!(older, expected);
    let in_use = ProposeRefused::NameInUse { node: node(2) };
    assert_eq!(refused(&mut state, register(2, disk(2, 1), 9)), in_use);
    assert!(is_rule(&refused(&mut state, register(3, disk(2, 0), 9))), "another member's disk");

    let grouping = |digest| Grouping::from([("order".to_owned(), GroupingDigest(digest))]);
    let member = member(disk(3, 0), 1);
    let joining = |digest| Command::Register {
        node: node(3),
        member: member.clone(),
        grouping: grouping(digest),
    };
    apply(&mut state, joining(7));
    let differs = ProposeRefused::Grouping { kind: "order".to_owned() };
    assert_eq!(refused(&mut state, joining(8)), differs);
    let lanes = Command::Register {
        node: node(4),
        member: Member { lanes: 0, ..member.clone() },
        grouping: Grouping::new(),
    };
    assert!(is_rule(&refused(&mut state, lanes)));
}

#[test]
fn a_late_report_of_an_earlier_start_takes_nobody_down() {
    let mut state = cluster(1, 4);
    apply(&mut state, register(1, disk(1, 0), 2));
    assert_eq!(refused(&mut state, down(1, 1)), ProposeRefused::Stale);
    let stranger = ProposeRefused::NoMember { node: node(9) };
    assert_eq!(refused(&mut state, down(9, 1)), stranger);
}

#[test]
fn a_restarted_primary_serves_under_a_new_epoch_only() {
    let mut state = cluster(1, 2);
    let before = state.shards[0].clone();
    assert!(is_rule(&refused(&mut state.clone(), promote(&state, FIRST, 1))), "it serves already");
    apply(&mut state, register(1, disk(1, 0), 2));
    assert_eq!(state.health(&state.shards[0]), Health::Restarted);
    let command = promote(&state, FIRST, 1);
    apply(&mut state, command.clone());
    assert_eq!(state.shards[0].epoch, Epoch(before.epoch.0 + 1));
    assert_eq!(state.shards[0].in_sync, before.in_sync, "a promotion removes nobody");
    assert_eq!(state.health(&state.shards[0]), Health::Served);
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale);
}

#[test]
fn nobody_without_the_data_is_promoted() {
    let mut state = cluster(2, 8);
    let shard = shard_of(&state, 1);
    assert!(is_rule(&refused(&mut state.clone(), promote(&state, shard, 2))));
    apply(&mut state, down(1, 1));
    apply(&mut state, register(1, disk(1, 1), 9));
    assert_eq!(state.health(state.shard(shard).unwrap()), Health::DiskLost);
    let command = promote(&state, shard, 1);
    assert!(is_rule(&refused(&mut state, command)), "the disk that holds the data is gone");
    assert!(state.held_by(&node(1)) > 0, "its claims stay");

    settle(&mut state);
    assert_eq!(state.health(state.shard(shard).unwrap()), Health::DiskLost);
    apply(&mut state, down(1, 9));
    apply(&mut state, register(1, disk(1, 0), 2));
    settle(&mut state);
    assert_eq!(state.health(state.shard(shard).unwrap()), Health::Served, "the old disk is back");
}

#[test]
fn an_older_start_of_a_disk_that_returns_is_refused() {
    let mut state = cluster(1, 2);
    apply(&mut state, register(1, disk(1, 0), 5));
    settle(&mut state);
    apply(&mut state, down(1, 5));
    apply(&mut state, register(1, disk(1, 1), 1));
    apply(&mut state, down(1, 1));
    let refused = refused(&mut state, register(1, disk(1, 0), 4));
    assert!(matches!(refused, ProposeRefused::OldBoot { registered: BootId(5), .. }));
}

#[test]
fn a_shard_starts_with_min_insync_copies() {
    let mut state = ClusterState::new();
    apply(&mut state, init(4, 2, 2));
    apply(&mut state, register(1, disk(1, 0), 1));
    settle(&mut state);
    assert_eq!(state.shards[0].primary, None, "one member is not two copies");
    let command = promote(&state, FIRST, 1);
    assert!(is_rule(&refused(&mut state, command)));
    apply(&mut state, register(2, disk(2, 0), 1));
    settle(&mut state);
    assert!(state.shards.iter().all(|config| config.in_sync.len() == 2));

    // any in-sync member may take over, and removes nobody by that
    let old = primaries(&state)[0].clone();
    let other = if old == node(1) { 2 } else { 1 };
    let command = promote(&state, FIRST, other);
    apply(&mut state, command);
    assert_eq!(state.shards[0].in_sync.len(), 2);
}

#[test]
fn a_move_ends_with_a_new_epoch_at_its_target() {
    let mut state = cluster(2, 8);
    let shard = shard_of(&state, 1);
    let command = begin(&state, shard, 2);
    let began = Event::HandoffBegan { shard, from: node(1), to: node(2) };
    assert_eq!(apply(&mut state, command.clone()), [began]);
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale);
    let again = begin(&state, shard, 2);
    assert!(is_rule(&refused(&mut state, again)), "one move at a time");

    let before = state.shard(shard).unwrap().clone();
    let command = completion(&state, shard).unwrap();
    apply(&mut state, command.clone());
    let after = state.shard(shard).unwrap();
    assert_eq!((after.epoch.0, &after.handoff), (before.epoch.0 + 1, &None));
    assert_eq!(after.in_sync, [(node(2), disk(2, 0))].into(), "the one copy is the target's");
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale);
}

#[test]
fn a_move_that_was_given_up_cannot_end_and_the_source_keeps_its_epoch() {
    let mut state = cluster(2, 8);
    let shard = shard_of(&state, 1);
    let epoch = state.shard(shard).unwrap().epoch;
    let command = begin(&state, shard, 2);
    apply(&mut state, command);
    let late = completion(&state, shard).unwrap();
    let expect = state.shard(shard).unwrap().expect();
    apply(&mut state, Command::AbortHandoff { shard, expect });
    assert_eq!(refused(&mut state, late), ProposeRefused::Stale);
    assert_eq!(state.shard(shard).unwrap().epoch, epoch);
    let expect = state.shard(shard).unwrap().expect();
    assert!(is_rule(&refused(&mut state, Command::AbortHandoff { shard, expect })));
}

#[test]
fn a_move_to_a_target_that_restarted_or_died_does_not_end() {
    let mut state = cluster(2, 8);
    let shard = shard_of(&state, 1);
    let command = begin(&state, shard, 2);
    apply(&mut state, command);
    let copied = completion(&state, shard).unwrap();
    apply(&mut state, register(2, disk(2, 0), 2));
    assert_eq!(refused(&mut state, copied), ProposeRefused::Stale, "copied to an earlier process");
    let copied = Command::CompleteHandoff {
        shard,
        expect: state.shard(shard).unwrap().expect(),
        to: state.claim_of(&node(2)).unwrap(),
    };
    apply(&mut state, down(2, 2));
    assert!(is_rule(&refused(&mut state, copied)));
}

#[test]
fn a_move_leads_to_a_member_that_is_up_from_one_that_serves() {
    let mut state = cluster(2, 8);
    let shard = shard_of(&state, 1);
    let command = begin(&state, shard, 1);
    assert!(is_rule(&refused(&mut state, command)), "it is there already");
    let command = begin(&state, shard, 2);
    apply(&mut state, down(2, 1));
    assert!(is_rule(&refused(&mut state, command)), "the target is down");
    apply(&mut state, register(2, disk(2, 1), 1));
    let mut with_old_disk = begin(&state, shard, 2);
    if let Command::BeginHandoff { shards } = &mut with_old_disk {
        shards[0].2.disk = disk(2, 0);
    }
    assert_eq!(refused(&mut state, with_old_disk), ProposeRefused::Stale);
    apply(&mut state, register(1, disk(1, 0), 2));
    let command = begin(&state, shard, 2);
    assert!(is_rule(&refused(&mut state, command)), "the source restarted");
}

#[test]
fn targets_of_an_earlier_membership_are_stale() {
    let mut state = cluster(2, 8);
    let targets = vec![(FIRST, vec![node(2)]), (ShardId(1), vec![node(1)])];
    let command = Command::SetTargets { from_version: state.version, targets };
    let shard = shard_of(&state, 1);
    let moving = begin(&state, shard, 2);
    apply(&mut state, moving);
    apply(&mut state.clone(), command.clone());
    apply(&mut state, register(3, disk(3, 0), 1));
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale);
}

#[test]
fn targets_are_distinct_members_that_stay() {
    let mut state = cluster(2, 8);
    apply(&mut state, Command::Drain { node: node(2) });
    let set = |state: &ClusterState, targets: Vec<(ShardId, Vec<NodeId>)>| Command::SetTargets {
        from_version: state.version,
        targets,
    };
    for targets in [
        vec![(FIRST, vec![])],
        vec![(FIRST, vec![node(1), node(1)])],
        vec![(FIRST, vec![node(2)])],
        vec![(ShardId(99), vec![node(1)])],
        vec![(FIRST, vec![node(1)]), (FIRST, vec![node(1)])],
    ] {
        let command = set(&state, targets);
        assert!(is_rule(&refused(&mut state, command)));
    }
    let command = set(&state, vec![(FIRST, vec![node(9)])]);
    assert_eq!(refused(&mut state, command), ProposeRefused::NoMember { node: node(9) });
}

#[test]
fn a_batch_is_refused_as_a_whole() {
    let mut state = cluster(1, 4);
    apply(&mut state, register(1, disk(1, 0), 2));
    let claim = state.claim_of(&node(1)).unwrap();
    let expect = state.shards[0].expect();
    let stale = Expect { version: expect.version + 1, ..expect };
    let shards = vec![(FIRST, expect, claim.clone()), (ShardId(1), stale, claim.clone())];
    assert_eq!(refused(&mut state, Command::Promote { shards }), ProposeRefused::Stale);
    let shards = vec![(FIRST, expect, claim.clone()), (FIRST, expect, claim)];
    assert!(is_rule(&refused(&mut state, Command::Promote { shards })));
}

#[test]
fn a_member_leaves_only_when_it_holds_nothing() {
    let mut state = cluster(3, 16);
    let leave = Command::Leave { node: node(3) };
    assert!(is_rule(&refused(&mut state, leave.clone())), "it is up");
    apply(&mut state, Command::Drain { node: node(3) });
    let shards = u32::try_from(held(&state, 3)).unwrap();
    let holds = ProposeRefused::HoldsShards { node: node(3), shards };
    assert_eq!(refused(&mut state, leave), holds);
    settle(&mut state);
    assert!(!state.members.contains_key(&node(3)), "the director let it go");
    assert!(state.draining.is_empty());
    assert!(state.shards.iter().all(|config| !config.targets.contains(&node(3))));
}

#[test]
fn a_draining_member_drains_on_after_a_restart_until_told_otherwise() {
    let mut state = cluster(2, 8);
    apply(&mut state, Command::Drain { node: node(2) });
    apply(&mut state, down(2, 1));
    apply(&mut state, register(2, disk(2, 0), 2));
    assert_eq!(state.members[&node(2)].state, MemberState::Draining);
    assert!(is_rule(&refused(&mut state, Command::Drain { node: node(1) })), "nobody else is up");
    apply(&mut state, Command::Undrain { node: node(2) });
    assert_eq!(state.members[&node(2)].state, MemberState::Up);
}

// -- the director --

#[test]
fn a_new_cluster_waits_for_the_members_it_expects() {
    let mut state = ClusterState::new();
    apply(&mut state, init(64, 0, 1));
    apply(&mut state, register(1, disk(1, 0), 1));
    let config = director::Config { members_min: 2, ..director::Config::default() };
    assert_eq!(plan(&state, &View::new(), config), []);
    apply(&mut state, register(2, disk(2, 0), 1));
    assert_eq!(plan(&state, &View::new(), config).len(), 1);
    assert_eq!(settle(&mut state), 0, "nothing has to move");
    assert!(held(&state, 1) > 20 && held(&state, 2) > 20);
}

#[test]
fn a_join_moves_its_share_a_few_at_a_time() {
    let mut state = cluster(3, 256);
    apply(&mut state, register(4, disk(4, 0), 1));
    let moved = settle(&mut state);
    assert!((48..=80).contains(&moved), "a quarter of 256, about: {moved}");
    assert!(held(&state, 4) >= 48);
}

#[test]
fn a_restart_promotes_its_own_shards_and_moves_none() {
    let mut state = cluster(3, 64);
    let before: Vec<_> = primaries(&state).into_iter().cloned().collect();
    let dead: View = [(node(2), (BootId(1), Verdict::Dead))].into();
    let config = director::Config::default();
    assert_eq!(plan(&state, &dead, config), [down(2, 1)]);
    apply(&mut state, down(2, 1));
    assert_eq!(plan(&state, &dead, config), [], "its shards wait for it");
    apply(&mut state, register(2, disk(2, 0), 2));
    let commands = plan(&state, &dead, config);
    assert_eq!(commands.len(), 1, "the verdict on its earlier start says nothing");
    let Command::Promote { shards } = &commands[0] else { panic!("{commands:?}") };
    assert_eq!(shards.len(), held(&state, 2));
    assert_eq!(settle(&mut state), 0);
    assert_eq!(primaries(&state), before.iter().collect::<Vec<_>>());
}

#[test]
fn a_move_is_given_up_when_its_target_is_not_there() {
    let mut state = cluster(3, 64);
    apply(&mut state, register(4, disk(4, 0), 1));
    let config = director::Config { moves_max: 3, ..director::Config::default() };
    for _ in 0..2 {
        for command in plan(&state, &View::new(), config) {
            apply(&mut state, command);
        }
    }
    let moving = |state: &ClusterState| {
        state.shards.iter().filter(|config| config.handoff.is_some()).count()
    };
    assert_eq!(moving(&state), 3);
    assert_eq!(plan(&state, &View::new(), config), [], "three at a time");
    let suspect: View = [(node(4), (BootId(1), Verdict::Suspect))].into();
    for command in plan(&state, &suspect, config) {
        apply(&mut state, command);
    }
    for command in plan(&state, &suspect, config) {
        apply(&mut state, command);
    }
    let to_suspect =
        |config: &ShardConfig| config.handoff.as_ref().is_some_and(|handoff| handoff.to == node(4));
    assert!(!state.shards.iter().any(to_suspect), "nothing is given to a suspect");
}

#[test]
fn a_move_that_nobody_wants_any_more_is_given_up() {
    let mut state = cluster(2, 16);
    apply(&mut state, Command::Drain { node: node(2) });
    let at_first = held(&state, 2);
    let direct = |state: &mut ClusterState| {
        for command in plan(state, &View::new(), director::Config::default()) {
            apply(state, command);
        }
        state.shards.iter().filter(|config| config.handoff.is_some()).count()
    };
    direct(&mut state);
    assert_eq!(direct(&mut state), at_first.min(8));
    apply(&mut state, Command::Undrain { node: node(2) });
    direct(&mut state);
    assert_eq!(direct(&mut state), 0);
    assert!(settle(&mut state) <= 1, "what it kept stays, but for what goes beyond its fair share");
    assert!(held(&state, 2) + 1 >= at_first);
}

#[test]
fn a_shard_without_data_starts_elsewhere_when_its_target_is_down() {
    let mut state = ClusterState::new();
    apply(&mut state, init(8, 0, 1));
    apply(&mut state, register(1, disk(1, 0), 1));
    apply(&mut state, register(2, disk(2, 0), 1));
    let config = director::Config::default();
    let commands = plan(&state, &View::new(), config);
    assert!(matches!(commands[..], [Command::SetTargets { .. }]));
    apply(&mut state, commands[0].clone());
    let suspect: View = [(node(2), (BootId(1), Verdict::Suspect))].into();
    for command in plan(&state, &suspect, config) {
        apply(&mut state, command);
    }
    assert_eq!(held(&state, 1), 8);
    assert!(settle(&mut state) > 0, "they move once it is heard again");
}

// -- random commands --

/// One drawn step: what to propose, about whom, with which expectation.
#[derive(Debug, Clone)]
struct Draw {
    what: u8,
    node: u8,
    generation: u8,
    boot: u64,
    shard: u32,
    stale: bool,
}

const NODES: u8 = 4;
const SHARDS: u32 = 6;

fn any_draw() -> impl Strategy<Value = Draw> {
    let stale = prop::bool::weighted(0.1);
    (0_u8..14, 1..=NODES, 0_u8..2, 1_u64..5, 0..SHARDS, stale).prop_map(
        |(what, node, generation, boot, shard, stale)| Draw {
            what,
            node,
            generation,
            boot,
            shard,
            stale,
        },
    )
}

/// The command of a draw, mostly one that fits the state.
fn command_of(state: &ClusterState, draw: &Draw) -> Command {
    let (name, shard) = (node(draw.node), ShardId(draw.shard));
    let config = state.shard(shard).cloned().unwrap_or_else(ShardConfig::fresh);
    let mut expect = config.expect();
    expect.version += u64::from(draw.stale);
    let any_disk = disk(draw.node, draw.generation);
    let known = state.members.get(&name).map_or(BootId(draw.boot), |member| member.boot);
    let claim = state.claim_of(&name).filter(|_| !draw.stale).unwrap_or_else(|| Claim {
        node: name.clone(),
        disk: any_disk,
        boot: BootId(draw.boot),
    });
    match draw.what {
        0..=2 => register(draw.node, any_disk, draw.boot),
        3 => Command::SetDown { node: name, boot: known },
        4 => Command::Drain { node: name },
        5 => Command::Undrain { node: name },
        6 => Command::Leave { node: name },
        7 => Command::SetTargets {
            from_version: state.version - u64::from(draw.stale),
            targets: vec![(shard, vec![name])],
        },
        8 | 9 => Command::Promote { shards: vec![(shard, expect, claim)] },
        10 => {
            let handoff = Handoff { to: name, disk: claim.disk, plan: expect.version + 1 };
            Command::BeginHandoff { shards: vec![(shard, expect, handoff)] }
        }
        11 => Command::CompleteHandoff { shard, expect, to: claim },
        12 => completion(state, shard).unwrap_or(Command::AbortHandoff { shard, expect }),
        _ => Command::AbortHandoff { shard, expect },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is proposed in whatever order: a refused command changes nothing, an accepted one
    /// keeps the invariants, and what may never happen does not.
    #[test]
    fn commands_keep_the_promises(
        draws in prop::collection::vec(any_draw(), 1..120),
        (standbys, min_insync) in prop::sample::select(vec![(0, 1), (1, 1), (1, 2), (2, 2)]),
    ) {
        let mut state = ClusterState::new();
        apply(&mut state, init(SHARDS, standbys, min_insync));
        let mut served: BTreeMap<(ShardId, Epoch), Claim> = BTreeMap::new();
        for draw in &draws {
            let before = state.clone();
            let result = state.apply(command_of(&before, draw));
            prop_assert_eq!(state.check_invariants(), Ok(()));
            let Ok(applied) = result else {
                prop_assert_eq!(&state, &before, "a refused command changes nothing");
                continue;
            };
            prop_assert_eq!(applied.version, state.version);
            prop_assert_eq!(state.version, before.version + u64::from(state != before));
            for ((shard, old), new) in before.shards().zip(&state.shards) {
                prop_assert!(new.epoch >= old.epoch, "epochs never decrease (I3)");
                prop_assert_eq!(new.version, old.version + u64::from(new != old));
                if new.primary != old.primary {
                    prop_assert_eq!(new.epoch.0, old.epoch.0 + 1, "a new primary, a new epoch");
                }
                if let Some(claim) = &new.primary {
                    let first = served.entry((shard, new.epoch)).or_insert_with(|| claim.clone());
                    prop_assert_eq!(&*first, claim, "one primary per epoch (I5)");
                    let had_it = old.primary.is_none()
                        || old.in_sync.get(&claim.node) == Some(&claim.disk)
                        || old.handoff.as_ref().is_some_and(|handoff| {
                            (&handoff.to, handoff.disk) == (&claim.node, claim.disk)
                        });
                    prop_assert!(had_it, "a primary holds what was acknowledged (I4)");
                }
                prop_assert!(old.primary.is_none() || new.primary.is_some(), "claims stay");
            }
        }
    }
}

// -- random lives --

/// What really runs, beside what the cluster knows.
#[derive(Debug, Clone, Copy)]
struct Process {
    generation: u8,
    boot: u64,
    alive: bool,
}

struct World {
    state: ClusterState,
    processes: BTreeMap<u8, Process>,
    config: director::Config,
}

impl World {
    fn new(members: u8, shards: u32, moves_max: usize) -> Self {
        let mut state = ClusterState::new();
        apply(&mut state, init(shards, 0, 1));
        let config = director::Config { moves_max, members_min: 0 };
        let mut world = Self { state, processes: BTreeMap::new(), config };
        for at in 1..=members {
            world.start(at, false);
        }
        world
    }

    /// Starts a node, or starts it again; with an empty data directory when `wiped`.
    fn start(&mut self, at: u8, wiped: bool) {
        let fresh = Process { generation: 0, boot: 0, alive: true };
        let process = self.processes.entry(at).or_insert(fresh);
        process.alive = true;
        process.boot += 1;
        process.generation += u8::from(wiped && process.boot > 1);
        self.register(at);
    }

    /// A process registers, as it does until it is a member; it may be refused for now.
    fn register(&mut self, at: u8) {
        let process = self.processes[&at];
        if process.alive {
            let command = register(at, disk(at, process.generation), process.boot);
            let refused = self.state.apply(command).err();
            assert!(refused.is_none_or(|why| matches!(why, ProposeRefused::NameInUse { .. })));
        }
    }

    fn view(&self) -> View {
        let judge = |(name, member): (&NodeId, &Member)| {
            let alive = self.processes.iter().any(|(at, process)| {
                process.alive
                    && node(*at) == *name
                    && disk(*at, process.generation) == member.disk
                    && BootId(process.boot) == member.boot
            });
            let verdict = if alive { Verdict::Alive } else { Verdict::Dead };
            (name.clone(), (member.boot, verdict))
        };
        self.state.members.iter().map(judge).collect()
    }

    /// One round of the director. A plan is never refused by the state that it was made for.
    fn direct(&mut self) -> usize {
        let commands = plan(&self.state, &self.view(), self.config);
        let count = commands.len();
        for command in commands {
            apply(&mut self.state, command);
        }
        let moving = self.state.shards.iter().filter(|config| config.handoff.is_some()).count();
        assert!(moving <= self.config.moves_max, "bounded moves");
        count
    }

    fn complete(&mut self, shard: u32) -> bool {
        let command = completion(&self.state, ShardId(shard));
        command.is_some_and(|command| self.state.apply(command).is_ok())
    }

    fn step(&mut self, draw: &Draw) {
        let name = node(draw.node);
        match draw.what {
            0 => self.start(draw.node, draw.stale),
            1 => {
                if let Some(process) = self.processes.get_mut(&draw.node) {
                    process.alive = false;
                }
            }
            // refusals of an operator's commands are answers to the operator
            2 => drop(self.state.apply(Command::Drain { node: name })),
            3 => drop(self.state.apply(Command::Undrain { node: name })),
            4 => {
                let boot = self.state.members.get(&name).map_or(BootId(0), |member| member.boot);
                drop(self.state.apply(Command::SetDown { node: name, boot }));
            }
            5 => {
                let command = command_of(&self.state, &Draw { what: 13, ..draw.clone() });
                drop(self.state.apply(command));
            }
            6..=9 => drop(self.complete(draw.shard)),
            _ => drop(self.direct()),
        }
    }

    /// Faults end: everyone runs and registers, sources end their moves. Returns the moves made
    /// until the director has nothing more to propose.
    fn heal(&mut self) -> u32 {
        let mut moved = 0;
        let members = |world: &Self| -> Vec<u8> { world.processes.keys().copied().collect() };
        for at in members(self) {
            if !self.processes[&at].alive {
                self.start(at, false);
            }
        }
        for _ in 0..500 {
            let before = self.state.version;
            let planned = self.direct();
            for at in members(self) {
                // a node that left for good has been told so and stopped
                let left = !self.state.members.contains_key(&node(at));
                if left && self.processes[&at].boot > 0 && planned == 0 {
                    self.processes.remove(&at);
                } else {
                    self.register(at);
                }
            }
            let shards = u32::try_from(self.state.shards.len()).unwrap();
            let completed = (0..shards).filter(|&shard| self.complete(shard)).count();
            moved += u32::try_from(completed).unwrap();
            if self.state.version == before && self.settled() {
                return moved;
            }
        }
        panic!("does not settle: {:#?}", plan(&self.state, &self.view(), self.config));
    }

    /// Every shard is where it is wanted, except what was on lost disks.
    fn settled(&self) -> bool {
        let all_there = self.view().values().all(|(_, verdict)| *verdict == Verdict::Alive);
        let quiet = |config: &ShardConfig| match self.state.health(config) {
            Health::DiskLost => config.handoff.is_none(),
            Health::Served => {
                let primary = config.primary.as_ref().map(|claim| &claim.node);
                config.handoff.is_none() && primary == config.targets.first()
            }
            Health::Unassigned | Health::Restarted | Health::Down => false,
        };
        all_there && self.state.shards.iter().all(quiet)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Members come, die, restart, lose their disks, drain; reports are false; moves end or do
    /// not. Once that is over, the director brings every shard to its target, with few moves, and
    /// then rests.
    #[test]
    fn the_director_settles_every_cluster(
        members in 1_u8..4, shards in 1_u32..24, moves_max in 1_usize..9,
        draws in prop::collection::vec(any_draw(), 0..80),
    ) {
        let mut world = World::new(members, shards, moves_max);
        for draw in &draws {
            world.step(&Draw { shard: draw.shard % shards, ..draw.clone() });
        }
        let moved = world.heal();
        prop_assert!(moved <= 2 * shards + 8, "{} moves of {} shards", moved, shards);
        prop_assert_eq!(world.direct(), 0);
        let lost = world.state.shards.iter()
            .filter(|config| world.state.health(config) == Health::DiskLost);
        let holders: BTreeSet<_> =
            lost.flat_map(|config| config.in_sync.keys()).cloned().collect();
        prop_assert!(world.state.draining.iter().all(|node| holders.contains(node)),
            "only a member with lost claims drains for ever");
    }
}
