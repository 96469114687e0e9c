//! Who is in sync: what the primary of a shard may propose, and what nobody may.

use super::*;

/// Three members with a copy of every shard each, and a shard of which n1 is the primary.
fn three_copies() -> (ClusterState, ShardId) {
    let state = replicated(3, 16, 2, 2);
    let shard = shard_of(&state, 1);
    assert_eq!(in_sync(&state, shard), claims(&[(1, 0), (2, 0), (3, 0)]));
    (state, shard)
}

/// As [`three_copies`], with n3 let go.
fn two_of_three_copies() -> (ClusterState, ShardId) {
    let (mut state, shard) = three_copies();
    let command = propose(&state, shard, &[(1, 0), (2, 0)]);
    apply(&mut state, command);
    (state, shard)
}

fn in_sync(state: &ClusterState, shard: ShardId) -> BTreeMap<NodeId, DiskId> {
    state.shard(shard).unwrap().in_sync.clone()
}

fn changed(shard: ShardId, added: &[u8], removed: &[u8]) -> Event {
    let nodes = |of: &[u8]| of.iter().map(|at| node(*at)).collect();
    Event::InSyncChanged { shard, added: nodes(added), removed: nodes(removed) }
}

/// Loses the disk of a node: it comes back with the next one.
fn wipe(state: &mut ClusterState, at: u8) {
    apply(state, down(at, 1));
    apply(state, register(at, disk(at, 1), 1));
}

#[test]
fn the_primary_lets_a_copy_go_and_takes_it_in_again() {
    let (mut state, shard) = three_copies();
    let before = state.shard(shard).unwrap().clone();
    let command = propose(&state, shard, &[(1, 0), (2, 0)]);
    assert_eq!(apply(&mut state, command.clone()), [changed(shard, &[], &[3])]);
    let after = ShardConfig {
        version: before.version + 1,
        in_sync: claims(&[(1, 0), (2, 0)]),
        ..before.clone()
    };
    assert_eq!(state.shard(shard), Some(&after));
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale);

    let command = propose(&state, shard, &[(1, 0), (2, 0), (3, 0)]);
    assert_eq!(apply(&mut state, command), [changed(shard, &[3], &[])]);
    assert_eq!(in_sync(&state, shard), before.in_sync);
}

/// The primary asks again until the version moves: what it asked for before can come late.
#[test]
fn an_equal_set_makes_older_proposals_stale() {
    let (mut state, shard) = three_copies();
    let older = propose(&state, shard, &[(1, 0), (2, 0)]);
    let equal = propose(&state, shard, &[(1, 0), (2, 0), (3, 0)]);
    assert_eq!(apply(&mut state, equal.clone()), []);
    assert_eq!(refused(&mut state, older), ProposeRefused::Stale);
    assert_eq!(refused(&mut state, equal), ProposeRefused::Stale);
    assert_eq!(in_sync(&state, shard), claims(&[(1, 0), (2, 0), (3, 0)]));
}

#[test]
fn nobody_but_the_registered_primary_proposes() {
    let (mut state, shard) = three_copies();
    let command = propose(&state, shard, &[(1, 0), (2, 0)]);
    let by = |claim: Claim| {
        let Command::ProposeInSync { shard, expect, in_sync, .. } = command.clone() else {
            unreachable!()
        };
        Command::ProposeInSync { shard, expect, from: claim, in_sync }
    };
    let other = by(state.claim_of(&node(2)).unwrap());
    assert!(is_rule(&refused(&mut state, other)));

    let mut dead = state.clone();
    apply(&mut dead, down(1, 1));
    assert!(is_rule(&refused(&mut dead, command.clone())), "its copies may take over by now");

    let mut restarted = state.clone();
    apply(&mut restarted, register(1, disk(1, 0), 2));
    assert_eq!(refused(&mut restarted, command.clone()), ProposeRefused::Stale);
    let unclaimed = by(restarted.claim_of(&node(1)).unwrap());
    assert!(is_rule(&refused(&mut restarted, unclaimed)), "its new start wants a new epoch first");

    wipe(&mut state, 1);
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale, "its disk is not the claimed");
}

#[test]
fn the_primary_stays_in_its_set_under_its_disk() {
    let (mut state, shard) = three_copies();
    for set in [&[(2, 0), (3, 0)][..], &[(1, 1), (2, 0), (3, 0)]] {
        let command = propose(&state, shard, set);
        assert!(is_rule(&refused(&mut state, command)));
    }
}

#[test]
fn who_joins_is_a_member_under_its_disk_that_is_up_and_stays() {
    let (mut state, shard) = two_of_three_copies();
    let command = propose(&state, shard, &[(1, 0), (2, 0), (9, 0)]);
    assert_eq!(refused(&mut state, command), ProposeRefused::NoMember { node: node(9) });
    let command = propose(&state, shard, &[(1, 0), (2, 0), (3, 1)]);
    assert_eq!(refused(&mut state, command), ProposeRefused::Stale, "not its disk");

    let joins = propose(&state, shard, &[(1, 0), (2, 0), (3, 0)]);
    apply(&mut state, down(3, 1));
    assert!(is_rule(&refused(&mut state, joins.clone())), "it is down");
    apply(&mut state, register(3, disk(3, 0), 1));
    apply(&mut state, Command::Drain { node: node(3) });
    assert!(is_rule(&refused(&mut state, joins.clone())), "it drains");
    apply(&mut state, Command::Undrain { node: node(3) });
    assert_eq!(apply(&mut state, joins), [changed(shard, &[3], &[])]);
}

#[test]
fn who_is_in_the_set_may_stay_whatever_became_of_it() {
    let (mut state, shard) = three_copies();
    apply(&mut state, Command::Drain { node: node(3) });
    wipe(&mut state, 2);
    apply(&mut state, down(2, 1));
    let command = propose(&state, shard, &[(1, 0), (2, 0), (3, 0)]);
    assert_eq!(apply(&mut state, command), []);
}

#[test]
fn a_set_that_loses_a_copy_keeps_the_least_and_one_that_loses_none_may_grow() {
    let (mut state, shard) = two_of_three_copies();
    let command = propose(&state, shard, &[(1, 0)]);
    assert!(is_rule(&refused(&mut state, command)), "one copy is not two");
    apply(&mut state, down(2, 1));
    let command = propose(&state, shard, &[(1, 0)]);
    assert!(is_rule(&refused(&mut state, command)), "who is alive does not change the least");
    let command = propose(&state, shard, &[(1, 0), (2, 0), (3, 0)]);
    apply(&mut state, command);
    let command = propose(&state, shard, &[(1, 0), (3, 0)]);
    assert_eq!(apply(&mut state, command), [changed(shard, &[], &[2])]);
}

#[test]
fn a_copy_may_be_replaced_in_one_step() {
    let (mut state, shard) = two_of_three_copies();
    apply(&mut state, down(2, 1));
    let command = propose(&state, shard, &[(1, 0), (3, 0)]);
    assert_eq!(apply(&mut state, command), [changed(shard, &[3], &[2])]);

    wipe(&mut state, 3);
    let command = propose(&state, shard, &[(1, 0), (3, 1)]);
    assert_eq!(apply(&mut state, command), [changed(shard, &[3], &[3])], "another disk");
}

#[test]
fn a_lost_disk_counts_for_nothing_when_another_copy_goes() {
    let (mut state, shard) = three_copies();
    wipe(&mut state, 2);
    let command = propose(&state, shard, &[(1, 0), (2, 0)]);
    assert!(is_rule(&refused(&mut state, command)), "only n1 holds anything then");
    let command = propose(&state, shard, &[(1, 0), (3, 0)]);
    assert_eq!(apply(&mut state, command), [changed(shard, &[], &[2])]);
}

#[test]
fn with_standbys_a_move_leads_to_a_copy_that_is_in_sync() {
    let (mut state, shard) = two_of_three_copies();
    let command = begin(&state, shard, 3);
    assert!(is_rule(&refused(&mut state, command)), "n3 holds nothing");
    let all = [(1, 0), (2, 0), (3, 0)];
    let command = propose(&state, shard, &all);
    apply(&mut state, command);
    let command = begin(&state, shard, 3);
    apply(&mut state, command);
    let command = propose(&state, shard, &[(1, 0), (2, 0)]);
    let given_up = [changed(shard, &[], &[3]), Event::HandoffAborted { shard }];
    assert_eq!(apply(&mut state, command), given_up);

    let command = propose(&state, shard, &all);
    apply(&mut state, command);
    let command = begin(&state, shard, 3);
    apply(&mut state, command);
    let command = propose(&state, shard, &[(1, 0), (3, 0)]);
    assert_eq!(apply(&mut state, command), [changed(shard, &[], &[2])], "the move goes on");
    let command = completion(&state, shard).unwrap();
    apply(&mut state, command);
    assert_eq!(primaries(&state)[shard.0 as usize], &node(3));
    assert_eq!(in_sync(&state, shard), claims(&[(1, 0), (3, 0)]), "a move removes nobody");
}

#[test]
fn without_standbys_the_primary_is_the_only_copy() {
    let mut state = cluster(2, 8);
    let shard = shard_of(&state, 1);
    let command = propose(&state, shard, &[(1, 0), (2, 0)]);
    assert!(is_rule(&refused(&mut state, command)));
    let command = propose(&state, shard, &[(1, 0)]);
    assert_eq!(apply(&mut state, command), []);
}
