//! What the director plans, and that its plans end.

use super::*;

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

/// A member whose disk was full kept as many moves as there may be at once, and ended none: the
/// cluster moved nothing any more.
#[test]
fn a_source_that_cannot_let_go_keeps_nobody_else_from_moving() {
    let mut state = cluster(3, 64);
    for drained in [1, 2] {
        apply(&mut state, Command::Drain { node: node(drained) });
    }
    let config = director::Config { moves_max: 3, ..director::Config::default() };
    let direct = |state: &mut ClusterState, view: &View| {
        for command in plan(state, view, config) {
            apply(state, command);
        }
    };
    let moving = |state: &ClusterState| -> Vec<NodeId> {
        let shards = state.shards.iter().filter(|config| config.handoff.is_some());
        shards.map(|config| config.primary.as_ref().unwrap().node.clone()).collect()
    };
    for _ in 0..2 {
        direct(&mut state, &View::new());
    }
    let stuck = moving(&state)[0].clone();
    assert_eq!(moving(&state).len(), 3);
    let suspect: View = [(stuck.clone(), (BootId(1), Verdict::Suspect))].into();
    for _ in 0..2 {
        direct(&mut state, &suspect);
    }
    let sources = moving(&state);
    assert_eq!(sources.len(), 3, "others have the room");
    assert!(!sources.contains(&stuck), "{sources:?}");
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
