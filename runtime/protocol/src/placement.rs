//! Where each shard should be: the ring's choice, within a bound on the load of each node.
//!
//! [`place`] is a function of the members and of the targets before; the control leader computes
//! it and commits the result, nobody computes it to route. A primary goes to the first node of the
//! shard's walk that has room, where room is 1.05 x the fair share by weight (Mirrokni, Thorup,
//! Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018). The targets before decide
//! what the ring leaves open, so that little moves:
//!
//! ```text
//!   1. shards that are at their ring node stay there, while it has room
//!   2. a node with less than its fair share gets the others that the ring gives it
//!   3. of the rest, who is at a node with room stays there
//!   4. who cannot stay goes to its ring node, or walks on to the first with room
//! ```
//!
//! Placing again with the result as "before" changes nothing: that is what lets a director stop.
//! Standbys are the next distinct nodes of the walk, in distinct zones as far as there are any; so
//! the first of them is where the ring would put the shard if the primary left.

use std::collections::BTreeMap;

use crate::id::{NodeId, ShardId};
use crate::ring::Ring;

/// A member that takes shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub node: NodeId,
    /// Its share: twice the weight, twice the shards. 0 takes none.
    pub weight: u8,
    /// Its failure zone; empty is a zone of its own.
    pub zone: String,
}

/// The targets of each shard: primary first, distinct nodes, at most `copies`. `before` are the
/// targets so far, one list per shard, empty for none. Every list is empty when no seat has
/// weight.
pub fn place(seats: &[Seat], copies: usize, before: &[Vec<NodeId>]) -> Vec<Vec<NodeId>> {
    let nodes: Vec<_> = seats.iter().map(|seat| (seat.node.clone(), seat.weight)).collect();
    let ring = Ring::new(&nodes);
    let zones = Zones::new(seats);
    let primaries = place_primaries(seats, &ring, before);
    let mut targets = Vec::with_capacity(before.len());
    for (shard, primary) in shards().zip(primaries) {
        let nodes = primary
            .map_or_else(Vec::new, |primary| zones.spread(primary, copies, ring.walk(shard)));
        targets.push(nodes.into_iter().map(|at| seats[at].node.clone()).collect());
    }
    targets
}

/// So many percent of a seat's fair share by weight, rounded up.
fn share_of(seats: &[Seat], seat: &Seat, shards: usize, percent: u64) -> usize {
    let all: u64 = seats.iter().map(|seat| u64::from(seat.weight)).sum();
    let share = shards as u64 * u64::from(seat.weight) * percent;
    usize::try_from(share.div_ceil((all * 100).max(1))).unwrap_or(usize::MAX)
}

/// The load that a seat takes, in percent of its fair share.
const LOAD_PERCENT: u64 = 105;

fn shards() -> impl Iterator<Item = ShardId> {
    (0..).map(ShardId)
}

fn place_primaries(seats: &[Seat], ring: &Ring, before: &[Vec<NodeId>]) -> Vec<Option<usize>> {
    let at: BTreeMap<&NodeId, usize> =
        seats.iter().enumerate().map(|(at, seat)| (&seat.node, at)).collect();
    let was: Vec<Option<usize>> =
        before.iter().map(|nodes| at.get(nodes.first()?).copied()).collect();
    let natural: Vec<Option<usize>> =
        shards().take(before.len()).map(|shard| ring.walk(shard).next()).collect();
    let share = |percent: u64| -> Vec<usize> {
        seats.iter().map(|seat| share_of(seats, seat, before.len(), percent)).collect()
    };
    let (fair, most) = (share(100), share(LOAD_PERCENT));
    let mut seating = Seating { seated: vec![None; before.len()], load: vec![0; seats.len()] };
    let at_home = natural.iter().zip(&was).map(|(natural, was)| natural.filter(|_| natural == was));
    seating.seat(at_home, &most);
    seating.seat(natural.iter().copied(), &fair);
    seating.seat(was.iter().copied(), &most);
    seating.seat(natural.iter().copied(), &most);
    for (shard, id) in (0..before.len()).zip(shards()) {
        if seating.seated[shard].is_none() {
            let free = ring.walk(id).find(|&node| seating.load[node] < most[node]);
            seating.take(shard, free, &most);
        }
    }
    seating.seated
}

/// Which shards have a primary, and how many each seat has.
struct Seating {
    seated: Vec<Option<usize>>,
    load: Vec<usize>,
}

impl Seating {
    /// Offers each shard a seat, in order; see [`Self::take`].
    fn seat(&mut self, offers: impl Iterator<Item = Option<usize>>, most: &[usize]) {
        for (shard, seat) in offers.enumerate() {
            self.take(shard, seat, most);
        }
    }

    /// Seats a shard that has no seat, if it is offered one that has less than its most.
    fn take(&mut self, shard: usize, seat: Option<usize>, most: &[usize]) {
        let Some(seat) = seat else { return };
        if self.seated[shard].is_none() && self.load[seat] < most[seat] {
            self.seated[shard] = Some(seat);
            self.load[seat] += 1;
        }
    }
}

/// The zone of each seat, as a number; seats without a zone have one each.
struct Zones {
    of: Vec<usize>,
    count: usize,
}

impl Zones {
    fn new(seats: &[Seat]) -> Self {
        let mut names = BTreeMap::new();
        let mut count = 0;
        let mut fresh = || {
            count += 1;
            count - 1
        };
        let mut of = Vec::with_capacity(seats.len());
        for seat in seats {
            of.push(if seat.zone.is_empty() {
                fresh()
            } else {
                *names.entry(seat.zone.as_str()).or_insert_with(&mut fresh)
            });
        }
        Self { of, count }
    }

    /// The primary and the nodes of the walk, one per zone while there are zones, then the nearest
    /// of the others.
    fn spread(
        &self,
        primary: usize,
        copies: usize,
        walk: impl Iterator<Item = usize>,
    ) -> Vec<usize> {
        let mut chosen = vec![primary];
        let mut others = Vec::new();
        for node in walk.filter(|&node| node != primary) {
            let zones_used = chosen.len() == self.count;
            if chosen.len() >= copies || zones_used && chosen.len() + others.len() >= copies {
                break;
            }
            if chosen.iter().any(|&taken| self.of[taken] == self.of[node]) {
                others.push(node);
            } else {
                chosen.push(node);
            }
        }
        others.truncate(copies.saturating_sub(chosen.len()));
        chosen.extend(others);
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn seat(name: &str) -> Seat {
        Seat { node: NodeId::new(name).unwrap(), weight: 1, zone: String::new() }
    }

    fn seats(names: &[&str]) -> Vec<Seat> {
        names.iter().map(|name| seat(name)).collect()
    }

    fn fresh(shards: usize) -> Vec<Vec<NodeId>> {
        vec![Vec::new(); shards]
    }

    fn load(targets: &[Vec<NodeId>], seat: &Seat) -> usize {
        targets.iter().filter(|nodes| nodes.first() == Some(&seat.node)).count()
    }

    fn moved(before: &[Vec<NodeId>], after: &[Vec<NodeId>]) -> usize {
        before.iter().zip(after).filter(|(a, b)| a.first() != b.first()).count()
    }

    /// Twenty namings of a cluster of three that gets a fourth member, and how many of the 1,024
    /// primaries move by joining and by leaving again.
    fn moves_of_a_fourth() -> Vec<(usize, usize)> {
        let mut moves = Vec::new();
        for naming in 0..20 {
            let names: Vec<_> = (1..=4).map(|node| format!("cluster-{naming}-n{node}")).collect();
            let four = seats(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let three = place(&four[..3], 1, &fresh(1024));
            let joined = place(&four, 1, &three);
            let left = place(&four[..3], 1, &joined);
            moves.push((moved(&three, &joined), moved(&joined, &left)));
        }
        moves
    }

    #[test]
    fn a_fourth_member_moves_at_most_115_percent_of_the_ideal() {
        let moves = moves_of_a_fourth();
        let ideal = 20 * 1024 / 4;
        let joining: usize = moves.iter().map(|(join, _)| join).sum();
        let leaving: usize = moves.iter().map(|(_, leave)| leave).sum();
        assert!(joining * 100 <= ideal * 115, "joining moved {joining}, ideal {ideal}");
        assert!(leaving * 100 <= ideal * 115, "leaving moved {leaving}, ideal {ideal}");
        assert!(joining * 100 >= ideal * 90, "the new member gets its share: {joining} of {ideal}");
    }

    #[test]
    fn placement_is_pinned() {
        let three = seats(&["n1", "n2", "n3"]);
        let targets = place(&three, 2, &fresh(1024));
        let line: String = targets.iter().flatten().map(NodeId::as_str).collect();
        assert_eq!(xxhash_rust::xxh3::xxh3_64(line.as_bytes()), GOLDEN_TARGETS);
        let loads: Vec<_> = three.iter().map(|seat| load(&targets, seat)).collect();
        assert_eq!(loads, GOLDEN_LOADS);
    }

    const GOLDEN_TARGETS: u64 = 15_977_847_098_552_734_733;
    const GOLDEN_LOADS: [usize; 3] = [328, 351, 345];

    #[test]
    fn who_is_elsewhere_with_room_stays_while_its_ring_node_has_its_share() {
        let three = seats(&["n1", "n2", "n3"]);
        let mut before = place(&three, 1, &fresh(1024));
        let (fair, [n1, n2, _]) = (1024 / 3, GOLDEN_LOADS);
        assert!(n1 < fair && n2 > fair + 1);
        let of_n2 = before.iter().position(|nodes| nodes[0] == three[1].node).unwrap();
        before[of_n2] = vec![three[0].node.clone()];
        assert_eq!(place(&three, 1, &before), before);
    }

    #[test]
    fn copies_are_in_distinct_zones_while_there_are_any() {
        let mut six = seats(&["a", "b", "c", "d", "e", "f"]);
        for (at, seat) in six.iter_mut().enumerate() {
            seat.zone = ["east", "west"][at % 2].to_owned();
        }
        let zone = |node: &NodeId| &six.iter().find(|seat| seat.node == *node).unwrap().zone;
        for nodes in place(&six, 3, &fresh(256)) {
            assert_eq!(nodes.len(), 3);
            assert_ne!(zone(&nodes[0]), zone(&nodes[1]), "two zones, two copies in them");
        }
    }

    #[test]
    fn too_few_members_give_fewer_copies() {
        let targets = place(&seats(&["a", "b"]), 3, &fresh(16));
        assert!(targets.iter().all(|nodes| nodes.len() == 2));
        assert!(place(&[], 3, &fresh(16)).iter().all(Vec::is_empty));
    }

    #[test]
    fn the_weightless_take_nothing() {
        let mut two = seats(&["a", "b"]);
        two[0].weight = 0;
        let targets = place(&two, 2, &place(&seats(&["a", "b"]), 2, &fresh(64)));
        assert!(targets.iter().all(|nodes| nodes == &[two[1].node.clone()]));
    }

    fn any_seats() -> impl Strategy<Value = Vec<Seat>> {
        let one = ("[a-z]{1,6}", 1_u8..4, prop::sample::select(vec!["", "x", "y", "z"]));
        prop::collection::vec(one, 1..9).prop_map(|seats| {
            let mut names = BTreeSet::new();
            let fresh = seats.into_iter().filter(|(name, ..)| names.insert(name.clone()));
            fresh
                .map(|(name, weight, zone)| Seat { weight, zone: zone.to_owned(), ..seat(&name) })
                .collect()
        })
    }

    proptest! {
        #![proptest_config(crate::properties::cases(48))]

        /// Whatever the members and the history: everything is placed, within the bounds, and
        /// placing again changes nothing.
        #[test]
        fn placement_is_bounded_and_settles(
            histories in prop::collection::vec(any_seats(), 1..4),
            shards in 1_usize..300, copies in 1_usize..4,
        ) {
            let mut targets = fresh(shards);
            for seats in histories {
                targets = place(&seats, copies, &targets);
                for nodes in &targets {
                    prop_assert_eq!(nodes.len(), copies.min(seats.len()));
                    prop_assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), nodes.len());
                }
                for seat in &seats {
                    prop_assert!(load(&targets, seat) <= share_of(&seats, seat, shards, LOAD_PERCENT));
                }
                prop_assert_eq!(&place(&seats, copies, &targets), &targets);
            }
        }
    }
}
