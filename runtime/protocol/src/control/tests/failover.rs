//! What the director does for shards with standbys: failover, moves, and whole copies again.

use super::*;

/// Every member is judged by its registered start: these are dead, the others alive.
fn judged(state: &ClusterState, dead: &[u8]) -> View {
    let verdict = |name: &NodeId| {
        let is_dead = dead.iter().any(|at| node(*at) == *name);
        if is_dead { Verdict::Dead } else { Verdict::Alive }
    };
    let members = state.members.iter();
    members.map(|(name, member)| (name.clone(), (member.boot, verdict(name)))).collect()
}

fn planned(state: &ClusterState, view: &View) -> Vec<Command> {
    plan(state, view, director::Config::default())
}

/// Applies one plan as a whole: no command of it is refused.
fn direct(state: &mut ClusterState, view: &View) -> Vec<Event> {
    planned(state, view).into_iter().flat_map(|command| apply(state, command)).collect()
}

/// Whom a plan makes the primary of this shard.
fn successor(state: &ClusterState, view: &View, shard: ShardId) -> Option<NodeId> {
    let promoted = planned(state, view).into_iter().find_map(|command| {
        let Command::Promote { shards } = command else { return None };
        shards.into_iter().find(|(promoted, ..)| *promoted == shard)
    });
    promoted.map(|(.., claim)| claim.node)
}

fn set_targets(state: &mut ClusterState, shard: ShardId, nodes: &[u8]) {
    let targets = vec![(shard, nodes.iter().map(|at| node(*at)).collect())];
    apply(state, Command::SetTargets { from_version: state.version, targets });
}

fn set_in_sync(state: &mut ClusterState, shard: ShardId, of: &[(u8, u8)]) {
    let command = propose(state, shard, of);
    apply(state, command);
}

/// The shards that the next plan moves to a node.
fn moves_to(state: &ClusterState, at: u8) -> Vec<ShardId> {
    let moves = planned(state, &View::new()).into_iter().filter_map(|command| match command {
        Command::BeginHandoff { shards } => Some(shards),
        _ => None,
    });
    let there = moves.flatten().filter(|(.., handoff)| handoff.to == node(at));
    there.map(|(shard, ..)| shard).collect()
}

/// Every shard is served where it is wanted, and its targets are in sync, nobody else is.
fn assert_whole(state: &ClusterState, copies: usize) {
    for config in &state.shards {
        assert_eq!(state.health(config), Health::Served);
        assert_eq!(config.primary.as_ref().map(|claim| &claim.node), config.targets.first());
        let wanted = config.targets.iter().map(|name| (name.clone(), state.members[name].disk));
        assert_eq!(config.in_sync, wanted.collect());
        assert_eq!(config.in_sync.len(), copies);
    }
}

#[test]
fn shards_of_a_dead_primary_are_given_to_copies_by_the_plan_that_finds_it_dead() {
    let mut state = replicated(3, 32, 2, 2);
    let (before, lost) = (state.clone(), held(&state, 1));
    assert!(lost > 0);
    let view = judged(&state, &[1]);
    let commands = planned(&state, &view);
    assert_eq!(commands[0], down(1, 1));
    let [_, Command::Promote { shards }] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(shards.len(), lost);
    direct(&mut state, &view);
    assert_eq!(held(&state, 1), 0);
    for (old, new) in before.shards.iter().zip(&state.shards) {
        assert_eq!(state.health(new), Health::Served);
        assert_eq!(new.in_sync, old.in_sync, "a promotion removes nobody");
        if old.primary != new.primary {
            assert_eq!(new.primary.as_ref().unwrap().node, old.targets[1]);
            assert_eq!(new.epoch.0, old.epoch.0 + 1);
        }
    }
}

#[test]
fn the_first_target_that_is_in_sync_and_heard_takes_over() {
    let mut state = replicated(4, 32, 3, 2);
    let shard = shard_of(&state, 1);
    set_targets(&mut state, shard, &[1, 4]);
    let next = |state: &ClusterState, dead: &[u8]| successor(state, &judged(state, dead), shard);
    assert_eq!(next(&state, &[1]), Some(node(4)));
    assert_eq!(next(&state, &[1, 4]), Some(node(2)), "then by name");
    assert_eq!(next(&state, &[1, 2, 4]), Some(node(3)));
    assert_eq!(next(&state, &[4]), None, "the primary lives");

    let mut view = judged(&state, &[1]);
    view.insert(node(4), (BootId(1), Verdict::Suspect));
    assert_eq!(successor(&state, &view, shard), Some(node(2)), "n4 is not heard");
    view.insert(node(4), (BootId(2), Verdict::Alive));
    assert_eq!(successor(&state, &view, shard), Some(node(2)), "another start of n4 is heard");
    view.remove(&node(4));
    assert_eq!(successor(&state, &view, shard), Some(node(4)), "the leader judges itself never");

    apply(&mut state, Command::Drain { node: node(4) });
    assert_eq!(next(&state, &[1]), Some(node(4)), "one that drains can serve");
    set_in_sync(&mut state, shard, &[(1, 0), (2, 0), (3, 0)]);
    assert_eq!(next(&state, &[1]), Some(node(2)), "one that is not in sync cannot");
}

#[test]
fn without_a_copy_that_is_in_sync_a_primary_is_waited_for() {
    let mut state = replicated(3, 16, 2, 2);
    let shard = shard_of(&state, 1);
    set_in_sync(&mut state, shard, &[(1, 0), (2, 0)]);
    let view = judged(&state, &[1, 2]);
    direct(&mut state, &view);
    assert_eq!(state.health(state.shard(shard).unwrap()), Health::Down);
    assert_eq!(successor(&state, &view, shard), None, "n3 lacks what was acknowledged");

    let mut wiped = state.clone();
    apply(&mut wiped, register(2, disk(2, 1), 1));
    assert_eq!(successor(&wiped, &judged(&wiped, &[1]), shard), None, "so does a new disk");

    apply(&mut state, register(2, disk(2, 0), 2));
    assert_eq!(successor(&state, &judged(&state, &[1]), shard), Some(node(2)));
    apply(&mut state, register(1, disk(1, 0), 2));
    assert_eq!(successor(&state, &judged(&state, &[]), shard), Some(node(1)), "it is back itself");
}

/// A primary whose disk was replaced is heard, and serves nothing.
#[test]
fn a_primary_that_lost_its_disk_is_succeeded_though_it_is_heard() {
    let mut state = replicated(2, 8, 1, 2);
    let shard = shard_of(&state, 1);
    apply(&mut state, down(1, 1));
    apply(&mut state, down(2, 1));
    apply(&mut state, register(1, disk(1, 1), 1));
    assert_eq!(state.health(state.shard(shard).unwrap()), Health::DiskLost);
    assert_eq!(successor(&state, &judged(&state, &[]), shard), None);
    apply(&mut state, register(2, disk(2, 0), 2));
    assert_eq!(successor(&state, &judged(&state, &[]), shard), Some(node(2)));
    settle(&mut state);
    assert_whole(&state, 2);
}

#[test]
fn a_move_ends_with_the_primary_that_made_it() {
    let mut state = replicated(3, 16, 2, 2);
    let shard = shard_of(&state, 1);
    set_targets(&mut state, shard, &[2, 1, 3]);
    let command = begin(&state, shard, 2);
    apply(&mut state, command);
    let view = judged(&state, &[1]);
    let mut known = state.clone();
    assert!(direct(&mut state, &view).contains(&Event::HandoffAborted { shard }));
    assert_eq!(primaries(&state)[shard.0 as usize], &node(2));

    apply(&mut known, down(1, 1));
    let events = direct(&mut known, &view);
    let given_up = events.iter().filter(|event| **event == Event::HandoffAborted { shard });
    assert_eq!(given_up.count(), 1, "by the promotion, not beside it");
}

#[test]
fn with_standbys_a_shard_moves_once_its_target_is_in_sync() {
    let mut state = replicated(3, 32, 1, 1);
    apply(&mut state, register(4, disk(4, 0), 1));
    let wanted = |config: &&ShardConfig| config.targets.first() == Some(&node(4));
    direct(&mut state, &View::new());
    assert!(state.shards.iter().filter(wanted).count() > 0);
    assert_eq!(moves_to(&state, 4), [], "n4 holds nothing yet");
    let (shard, _) = state.shards().find(|(_, config)| wanted(config)).unwrap();
    let command = proposal(&state, shard, |_| true).unwrap();
    apply(&mut state, command);
    assert_eq!(moves_to(&state, 4), [shard]);
    assert!(settle(&mut state) > 0);
    assert_whole(&state, 2);
}

#[test]
fn a_drained_member_leaves_when_no_set_has_it() {
    let mut state = replicated(4, 32, 2, 2);
    apply(&mut state, Command::Drain { node: node(4) });
    let leave = Command::Leave { node: node(4) };
    assert!(matches!(refused(&mut state, leave), ProposeRefused::HoldsShards { .. }));
    settle(&mut state);
    assert!(!state.members.contains_key(&node(4)));
    assert_whole(&state, 3);
}

/// A set of the least size has none to spare: it takes no writes until somebody replaces the dead.
#[test]
fn a_dead_member_is_replaced_in_every_set() {
    let mut state = replicated(4, 32, 1, 2);
    let view = judged(&state, &[1]);
    direct(&mut state, &view);
    settle(&mut state);
    assert_whole(&state, 2);
    assert_eq!(state.held_by(&node(1)), 0);
}

#[test]
fn a_cluster_that_lost_a_member_or_its_disk_is_whole_again_after_its_return() {
    for (members, standbys, min_insync) in
        [(2, 1, 1), (2, 1, 2), (3, 1, 2), (3, 2, 1), (3, 2, 2), (4, 2, 2), (4, 1, 2)]
    {
        let copies = usize::from(standbys) + 1;
        let mut state = replicated(members, 24, standbys, min_insync);
        assert_whole(&state, copies);
        for at in 1..=members {
            let view = judged(&state, &[at]);
            direct(&mut state, &view);
            assert_eq!(held(&state, at), 0, "another one serves");
            assert!(state.shards.iter().all(|config| state.health(config) == Health::Served));
            settle(&mut state);
            apply(&mut state, register(at, disk(at, 1), 1));
            settle(&mut state);
            assert_whole(&state, copies);
        }
    }
}

#[test]
fn one_command_promotes_so_many_shards_at_most() {
    let shards = u32::try_from(limits::PROMOTED_SHARDS_MAX).unwrap() + 100;
    let mut state = cluster(1, shards);
    apply(&mut state, register(1, disk(1, 0), 2));
    let promoted = planned(&state, &View::new()).into_iter().map(|command| match command {
        Command::Promote { shards } => shards.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(promoted.collect::<Vec<_>>(), [limits::PROMOTED_SHARDS_MAX, 100]);
}
