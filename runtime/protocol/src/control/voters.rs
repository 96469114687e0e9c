//! Which members vote in consensus: an odd number of them, spread over the zones.
//!
//! One change at a time, each a step that is safe alone: a member first follows without a vote,
//! then votes, and whoever is no member any more is removed last. Consensus members are disks: a
//! node that comes back with an empty directory is another member, and its old one loses its seat.
//!
//! A seat moves when its holder is no member, drains, or is down while another member is ready. A
//! dead voter is never just dropped: that would make the quorum smaller, not the cluster safer.

use std::collections::{BTreeMap, BTreeSet};

use crate::control::{ClusterState, Member, MemberState};
use crate::id::NodeId;

/// The consensus group as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// This node, which leads it.
    pub leader: u64,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who follows without a vote.
    pub learners: BTreeSet<u64>,
    /// Who holds nearly all of the log.
    pub caught_up: BTreeSet<u64>,
    /// A change of voters is half done; the voters are the old and the new ones. A leader that
    /// died in it left it to the next.
    pub changing: bool,
}

/// The next step towards the group that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// This member follows, without a vote.
    Add(NodeId),
    /// These vote, and nobody else.
    SetVoters(BTreeSet<u64>),
    /// These are no members any more.
    Remove(BTreeSet<u64>),
}

/// The next step, if any, towards `target` voters (1, 3 or 5).
pub fn plan(state: &ClusterState, group: &Group, target: u8) -> Option<Change> {
    let members: BTreeMap<u64, (&NodeId, &Member)> =
        state.members.iter().map(|(node, m)| (m.disk.consensus_id(), (node, m))).collect();
    // by name, not by id, so that joins are handled in an order that an operator can follow
    let stranger = state.members.iter().find(|(_, member)| {
        let id = member.disk.consensus_id();
        !group.voters.contains(&id) && !group.learners.contains(&id)
    });
    if let Some((node, _)) = stranger {
        return Some(Change::Add(node.clone()));
    }
    if let Some(voters) = wanted_voters(&members, group, target)
        && (voters != group.voters || group.changing)
    {
        return Some(Change::SetVoters(voters));
    }
    let gone: BTreeSet<u64> =
        group.learners.iter().filter(|id| !members.contains_key(id)).copied().collect();
    (!gone.is_empty()).then_some(Change::Remove(gone))
}

/// Who should vote, or `None` when the cluster is not ready for any other set than it has.
fn wanted_voters(
    members: &BTreeMap<u64, (&NodeId, &Member)>,
    group: &Group,
    target: u8,
) -> Option<BTreeSet<u64>> {
    let staying = members.values().filter(|(_, m)| m.state != MemberState::Draining).count();
    let size = odd_at_most(staying.min(usize::from(target)));
    if size == 0 {
        return None;
    }
    let state = |id: &u64| members.get(id).map(|(_, member)| member.state);
    // who keeps a seat first: the leader, then who is up, then who is down; each by name
    let mut seats: Vec<u64> = group.voters.iter().copied().collect();
    seats.retain(|id| matches!(state(id), Some(MemberState::Up | MemberState::Down)));
    seats.sort_by_key(|id| {
        let down = state(id) == Some(MemberState::Down);
        (down, *id != group.leader, members.get(id).map(|(node, _)| *node))
    });
    let up = seats.iter().filter(|id| state(id) == Some(MemberState::Up)).count();
    let mut chosen: Vec<u64> = seats.drain(..up.min(size)).collect();
    let mut spare: Vec<u64> = group.learners.intersection(&group.caught_up).copied().collect();
    spare.retain(|id| state(id) == Some(MemberState::Up));
    while chosen.len() < size && !spare.is_empty() {
        let zones: BTreeSet<&str> = chosen.iter().filter_map(|id| zone(members, *id)).collect();
        let next = spare
            .iter()
            .copied()
            .min_by_key(|id| {
                let known = zone(members, *id).is_some_and(|zone| zones.contains(zone));
                (known, members.get(id).map(|(node, _)| *node))
            })
            .expect("the loop runs while one is left");
        spare.retain(|id| *id != next);
        chosen.push(next);
    }
    chosen.extend(seats.into_iter().take(size - chosen.len()));
    chosen.truncate(odd_at_most(chosen.len()));
    // fewer voters than there are and should be: somebody is on the way, wait for them
    let enough = chosen.len() >= size.min(group.voters.len()) && !chosen.is_empty();
    enough.then(|| chosen.into_iter().collect())
}

fn zone<'a>(members: &BTreeMap<u64, (&NodeId, &'a Member)>, id: u64) -> Option<&'a str> {
    members.get(&id).map(|(_, member)| member.zone.as_str())
}

fn odd_at_most(count: usize) -> usize {
    if count == 0 { 0 } else { count - usize::from(count.is_multiple_of(2)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{BootId, DiskId};

    fn disk(number: u8) -> DiskId {
        DiskId::from_bytes([number; 16])
    }

    fn id(number: u8) -> u64 {
        disk(number).consensus_id()
    }

    fn ids(numbers: &[u8]) -> BTreeSet<u64> {
        numbers.iter().map(|number| id(*number)).collect()
    }

    fn cluster(numbers: &[u8]) -> ClusterState {
        let mut state = ClusterState::new();
        for number in numbers {
            let node = NodeId::new(&format!("n{number}")).unwrap();
            let member = Member {
                disk: disk(*number),
                boot: BootId(1),
                peer_addr: String::new(),
                http_addr: String::new(),
                zone: String::new(),
                weight: 1,
                lanes: 1,
                state: MemberState::Up,
                wire_max: 1,
            };
            state.members.insert(node, member);
        }
        state
    }

    fn member(state: &mut ClusterState, number: u8) -> &mut Member {
        state.members.get_mut(&NodeId::new(&format!("n{number}")).unwrap()).unwrap()
    }

    fn group(voters: &[u8], learners: &[u8]) -> Group {
        let caught_up = voters.iter().chain(learners).map(|number| id(*number)).collect();
        Group {
            leader: id(1),
            voters: ids(voters),
            learners: ids(learners),
            caught_up,
            changing: false,
        }
    }

    /// Runs the plan until nothing changes.
    fn settle(state: &ClusterState, mut group: Group, target: u8) -> Group {
        for _ in 0..20 {
            match plan(state, &group, target) {
                None => return group,
                Some(Change::Add(node)) => {
                    let id = state.members[&node].disk.consensus_id();
                    group.learners.insert(id);
                    group.caught_up.insert(id);
                }
                Some(Change::SetVoters(voters)) => {
                    let all: BTreeSet<u64> = group.voters.union(&group.learners).copied().collect();
                    assert!(voters.is_subset(&all), "a voter was never a learner");
                    group.learners = all.difference(&voters).copied().collect();
                    group.voters = voters;
                }
                Some(Change::Remove(gone)) => {
                    group.learners.retain(|id| !gone.contains(id));
                }
            }
        }
        panic!("the plan does not settle: {group:?}");
    }

    #[test]
    fn voters_grow_to_the_target_and_the_rest_follow() {
        let settled = settle(&cluster(&[1, 2, 3, 4, 5]), group(&[1], &[]), 3);

        assert_eq!(settled.voters, ids(&[1, 2, 3]));
        assert_eq!(settled.learners, ids(&[4, 5]));
    }

    #[test]
    fn two_members_have_one_voter() {
        assert_eq!(settle(&cluster(&[1, 2]), group(&[1], &[]), 3).voters, ids(&[1]));
    }

    #[test]
    fn a_half_done_change_is_finished() {
        let mut half_done = group(&[1, 2, 3], &[]);
        half_done.changing = true;

        let change = plan(&cluster(&[1, 2, 3]), &half_done, 3);

        assert_eq!(change, Some(Change::SetVoters(ids(&[1, 2, 3]))));
    }

    #[test]
    fn who_lags_gets_no_seat() {
        let mut behind = group(&[1], &[2, 3]);
        behind.caught_up.remove(&id(3));

        assert_eq!(plan(&cluster(&[1, 2, 3]), &behind, 3), None);
    }

    #[test]
    fn a_dead_voter_keeps_its_seat_until_another_member_is_ready() {
        let mut state = cluster(&[1, 2, 3]);
        member(&mut state, 3).state = MemberState::Down;
        assert_eq!(plan(&state, &group(&[1, 2, 3], &[]), 3), None);

        let mut state = cluster(&[1, 2, 3, 4]);
        member(&mut state, 3).state = MemberState::Down;
        let change = plan(&state, &group(&[1, 2, 3], &[4]), 3);
        assert_eq!(change, Some(Change::SetVoters(ids(&[1, 2, 4]))));
    }

    #[test]
    fn a_wiped_node_takes_its_old_seat_under_its_new_id() {
        let mut state = cluster(&[1, 2, 3]);
        member(&mut state, 3).disk = disk(33);

        let settled = settle(&state, group(&[1, 2, 3], &[]), 3);

        assert_eq!(settled.voters, ids(&[1, 2, 33]));
        assert_eq!(settled.learners, ids(&[]));
    }

    #[test]
    fn the_group_waits_for_a_wiped_node_that_still_catches_up() {
        let mut state = cluster(&[1, 2, 3]);
        member(&mut state, 3).disk = disk(33);
        let mut behind = group(&[1, 2, 3], &[33]);
        behind.caught_up.remove(&id(33));

        assert_eq!(plan(&state, &behind, 3), None);
    }

    #[test]
    fn a_member_that_left_loses_its_seat() {
        let settled = settle(&cluster(&[1, 2]), group(&[1, 2, 3], &[]), 3);

        assert_eq!(settled.voters, ids(&[1]));
        assert_eq!(settled.learners, ids(&[2]));
    }

    #[test]
    fn a_draining_leader_hands_its_seat_over() {
        let mut state = cluster(&[1, 2, 3, 4]);
        member(&mut state, 1).state = MemberState::Draining;

        let change = plan(&state, &group(&[1, 2, 3], &[4]), 3);

        assert_eq!(change, Some(Change::SetVoters(ids(&[2, 3, 4]))));
    }

    #[test]
    fn seats_are_spread_over_zones() {
        let mut state = cluster(&[1, 2, 3, 4]);
        for (number, zone) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
            zone.clone_into(&mut member(&mut state, number).zone);
        }

        assert_eq!(settle(&state, group(&[1], &[]), 3).voters, ids(&[1, 3, 4]));
    }

    #[test]
    fn the_last_member_votes_even_while_it_drains() {
        let mut state = cluster(&[1]);
        member(&mut state, 1).state = MemberState::Draining;

        assert_eq!(plan(&state, &group(&[1], &[]), 3), None);
    }
}
