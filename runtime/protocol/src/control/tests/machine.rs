//! What the state machine does with each command, and refuses.

use super::*;

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
