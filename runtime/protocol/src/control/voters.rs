//! Which members vote in consensus: an odd number of them, spread over the zones.
//!
//! One change at a time, each a step that is safe alone: a member first follows without a vote,
//! then votes, and whoever is no member any more is removed last. Consensus members are disks: a
//! node that comes back with an empty directory is another member, and its old one loses its seat.
//!
//! A seat moves when its holder is no member, drains, or is down while another member is ready. A
//! dead voter is never just dropped: that would make the quorum smaller, not the cluster safer.
//!
//! A seat moves to another zone, too, when that has two seats fewer and a member that is ready:
//! however members came and went, the loss of a zone is survived wherever their zones allow it.

use std::cmp::Reverse;
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
///
/// Each seat goes to the zone that has fewest, within it to the leader, then to who votes, then by
/// name: asked again of its own answer it gives the same one. Seats that no member in sight can
/// take stay with voters that are down.
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
    let votes = |id: &u64| group.voters.contains(id);
    let mut ready: Vec<u64> = group.learners.intersection(&group.caught_up).copied().collect();
    ready.extend(&group.voters);
    ready.retain(|id| state(id) == Some(MemberState::Up));
    let mut chosen: Vec<u64> = Vec::new();
    while chosen.len() < size && !ready.is_empty() {
        let next = ready
            .iter()
            .copied()
            .min_by_key(|id| {
                let crowd = chosen.iter().filter(|other| is_one_zone(members, *id, **other));
                let keeps = (*id == group.leader, votes(id));
                (crowd.count(), Reverse(keeps), members.get(id).map(|(node, _)| *node))
            })
            .expect("the loop runs while one is left");
        ready.retain(|id| *id != next);
        chosen.push(next);
    }
    let mut down: Vec<u64> = group.voters.iter().copied().collect();
    down.retain(|id| state(id) == Some(MemberState::Down));
    down.sort_by_key(|id| members.get(id).map(|(node, _)| *node));
    chosen.extend(down.into_iter().take(size - chosen.len()));
    chosen.truncate(odd_at_most(chosen.len()));
    // fewer voters than there are and should be: somebody is on the way, wait for them
    let enough = chosen.len() >= size.min(group.voters.len()) && !chosen.is_empty();
    enough.then(|| chosen.into_iter().collect())
}

/// Whether two members may be lost together. Who names no zone is alone in one.
fn is_one_zone(members: &BTreeMap<u64, (&NodeId, &Member)>, one: u64, other: u64) -> bool {
    let zone = |id| members.get(&id).map(|(_, member)| member.zone.as_str());
    zone(one) == zone(other) && zone(one) != Some("")
}

fn odd_at_most(count: usize) -> usize {
    if count == 0 { 0 } else { count - usize::from(count.is_multiple_of(2)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    /// Members 1, 2, .. in these zones, a letter each; a dot is none.
    fn zoned(zones: &str) -> ClusterState {
        let numbers: Vec<u8> = (1..).take(zones.len()).collect();
        let mut state = cluster(&numbers);
        for (number, zone) in numbers.into_iter().zip(zones.chars()) {
            member(&mut state, number).zone =
                if zone == '.' { String::new() } else { zone.to_string() };
        }
        state
    }

    #[test]
    fn a_seat_moves_to_a_zone_that_comes_late() {
        let before = group(&[1, 2, 3], &[4, 5]);

        assert_eq!(settle(&zoned("aaabc"), before, 3).voters, ids(&[1, 4, 5]));
    }

    #[test]
    fn the_leader_keeps_its_seat_in_a_crowded_zone() {
        let mut before = group(&[1, 2, 3], &[4]);
        before.leader = id(2);

        assert_eq!(settle(&zoned("aabc"), before, 3).voters, ids(&[2, 3, 4]));
    }

    #[test]
    fn a_zone_that_returns_gets_its_seat_back() {
        let mut state = zoned("aabbcc");
        for lost in [5, 6] {
            member(&mut state, lost).state = MemberState::Down;
        }
        let without = settle(&state, group(&[1, 3, 5], &[2, 4, 6]), 3);
        assert_eq!(without.voters, ids(&[1, 2, 3]));
        for back in [5, 6] {
            member(&mut state, back).state = MemberState::Up;
        }

        assert_eq!(settle(&state, without, 3).voters, ids(&[1, 3, 5]));
    }

    #[test]
    fn five_seats_in_three_zones_are_two_two_and_one() {
        let settled = settle(&zoned("aaaabbc"), group(&[1], &[]), 5);

        assert_eq!(settled.voters, ids(&[1, 2, 5, 6, 7]));
    }

    #[test]
    fn who_names_no_zone_is_alone_in_one() {
        assert_eq!(settle(&zoned("aa.."), group(&[1, 2, 3], &[4]), 3).voters, ids(&[1, 3, 4]));
    }

    #[test]
    fn two_zones_make_no_seat_move_to_and_fro() {
        for (voters, learners) in [([1, 2, 3], [4]), ([1, 3, 4], [2])] {
            assert_eq!(plan(&zoned("aabb"), &group(&voters, &learners), 3), None);
        }
    }

    proptest! {
        #![proptest_config(crate::properties::cases(128))]

        /// Whoever leads: no zone has a majority of the seats, if any choice leaves none with one.
        #[test]
        fn no_zone_has_a_majority_where_zones_allow(
            zones in "[abc.]{1,9}", first in 0_u8..9, target in prop::sample::select(vec![1, 3, 5]),
        ) {
            let (state, many) = (zoned(&zones), u8::try_from(zones.len()).unwrap());
            let mut before = group(&[], &[]);
            before.leader = id(first % many + 1);
            before.voters = BTreeSet::from([before.leader]);

            let settled = settle(&state, before, target);

            let of = |zone: char| zones.chars().filter(|other| *other == zone).count();
            let seats = |zone: char| {
                let at = |number: &u8| zones.chars().nth(usize::from(*number) - 1) == Some(zone);
                (1..=many).filter(at).filter(|number| settled.voters.contains(&id(*number))).count()
            };
            let size = settled.voters.len();
            prop_assert_eq!(size, odd_at_most(usize::from(many.min(target))));
            let minority = size / 2;
            let room: usize = "abc".chars().map(|zone| of(zone).min(minority)).sum();
            if minority > 0 && room + of('.') >= size {
                for zone in "abc".chars() {
                    prop_assert!(seats(zone) <= minority, "{} of {size} in {zone}", seats(zone));
                }
            }
        }
    }

    #[test]
    fn the_last_member_votes_even_while_it_drains() {
        let mut state = cluster(&[1]);
        member(&mut state, 1).state = MemberState::Draining;

        assert_eq!(plan(&state, &group(&[1], &[]), 3), None);
    }
}
