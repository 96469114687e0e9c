//! The ring: consistent hashing from a shard to its nodes, nearest first.
//!
//! Each node stands on the ring at 256 points per unit of weight; a shard belongs to the first
//! point at or after its own place, and its further copies to the next distinct nodes. A node that
//! joins takes shards from everyone and gives none around (Karger et al., "Consistent Hashing and
//! Random Trees", STOC 1997; virtual nodes as in Dynamo, SOSP 2007).
//!
//! The `hashring` crate sorts the points and finds the first. It is handled with care:
//!
//! * its hash is what `Hash` writes, so points and shards write explicit little-endian bytes, into
//!   `xxh3`; golden tests pin the result, since every member must compute the same ring;
//! * points go in sorted, all at once: `add` sorts again per point, and points of equal hash keep
//!   the order in which they came;
//! * `get_with_replicas` copies the whole ring, and returns points, not distinct nodes; it is
//!   called once per ring, for the order of the points, and the walk skips the nodes seen.
//!
//! Nobody routes by the ring: it only feeds [`crate::placement`], whose result is committed.

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::HashRing;
use xxhash_rust::xxh3::Xxh3Default;

use crate::id::{NodeId, ShardId};
use crate::limits;

/// The points of a set of nodes.
#[derive(Debug, Clone)]
pub struct Ring {
    points: HashRing<Point, Pinned>,
    /// The node of each point, in ring order.
    order: Vec<usize>,
    /// Where the points of each node stand in `order`.
    places: Vec<Vec<usize>>,
}

impl Ring {
    /// The ring of these nodes and weights. A node is named by its place in `nodes` from here on;
    /// the ring itself depends on names and weights only. A node of weight 0 has no point.
    pub fn new(nodes: &[(NodeId, u8)]) -> Self {
        let mut sorted: Vec<usize> = (0..nodes.len()).collect();
        sorted.sort_by_key(|&at| &nodes[at].0);
        let points = sorted.iter().flat_map(|&at| {
            let (name, weight) = &nodes[at];
            let replicas = u32::from(*weight) * limits::RING_POINTS_PER_WEIGHT;
            (0..replicas).map(move |replica| Point { name: name.clone(), replica, node: at })
        });
        let mut ring = HashRing::with_hasher(Pinned);
        ring.batch_add(points.collect());

        let last = ring.len().saturating_sub(1);
        let points = ring.get_with_replicas(&Place(ShardId(0)), last).unwrap_or_default();
        debug_assert_eq!(points.len(), ring.len(), "every point once");
        let mut places: Vec<Vec<usize>> =
            nodes.iter().map(|(_, weight)| vec![0; points_of(*weight)]).collect();
        for (at, point) in points.iter().enumerate() {
            places[point.node][point.replica as usize] = at;
        }
        Self { points: ring, order: points.iter().map(|point| point.node).collect(), places }
    }

    /// The nodes of a shard, nearest first, each once, as places in the list that the ring was
    /// made of.
    pub fn walk(&self, shard: ShardId) -> impl Iterator<Item = usize> {
        let first = self.points.get(&Place(shard));
        let at = first.map_or(0, |point| self.places[point.node][point.replica as usize]);
        let mut seen = vec![false; self.places.len()];
        let mut left = self.places.iter().filter(|points| !points.is_empty()).count();
        let mut points = self.order[at..].iter().chain(&self.order[..at]);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let node = *points.find(|node| !seen[**node])?;
            seen[node] = true;
            Some(node)
        })
    }
}

fn points_of(weight: u8) -> usize {
    usize::from(weight) * limits::RING_POINTS_PER_WEIGHT as usize
}

/// One point of a node.
#[derive(Debug, Clone)]
struct Point {
    name: NodeId,
    replica: u32,
    /// Its place in the caller's list; no part of the hash.
    node: usize,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(b"node");
        state.write(&self.replica.to_le_bytes());
        state.write(self.name.as_str().as_bytes());
    }
}

/// The place of a shard.
struct Place(ShardId);

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(b"shard");
        state.write(&self.0.0.to_le_bytes());
    }
}

/// `xxh3` with its default secret and no seed.
#[derive(Debug, Clone, Copy)]
struct Pinned;

impl BuildHasher for Pinned {
    type Hasher = Xxh3Default;

    fn build_hasher(&self) -> Xxh3Default {
        Xxh3Default::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn nodes(names: &[&str]) -> Vec<(NodeId, u8)> {
        names.iter().map(|name| (NodeId::new(name).unwrap(), 1)).collect()
    }

    fn firsts(ring: &Ring, shards: u32) -> Vec<usize> {
        (0..shards).map(|shard| ring.walk(ShardId(shard)).next().unwrap()).collect()
    }

    #[test]
    fn points_and_shards_hash_to_pinned_bytes() {
        let point = Point { name: NodeId::new("n1").unwrap(), replica: 258, node: 9 };
        assert_eq!(Pinned.hash_one(&point), xxh3_64(b"node\x02\x01\0\0n1"));
        assert_eq!(Pinned.hash_one(Place(ShardId(7))), xxh3_64(b"shard\x07\0\0\0"));
        assert_eq!(Pinned.hash_one(&point), GOLDEN_POINT);
        assert_eq!(Pinned.hash_one(Place(ShardId(7))), GOLDEN_SHARD);
    }

    const GOLDEN_POINT: u64 = 12_536_658_074_736_080_586;
    const GOLDEN_SHARD: u64 = 13_251_588_155_351_607_377;

    #[test]
    fn the_ring_is_pinned() {
        let ring = Ring::new(&nodes(&["n1", "n2", "n3"]));
        assert_eq!(firsts(&ring, 24), GOLDEN_FIRSTS);
        let walks: Vec<u8> = firsts(&ring, 1024).iter().map(|node| b"012"[*node]).collect();
        assert_eq!(xxh3_64(&walks), GOLDEN_RING);
    }

    const GOLDEN_FIRSTS: [usize; 24] =
        [2, 2, 1, 0, 1, 1, 2, 2, 2, 1, 1, 0, 2, 1, 0, 2, 1, 0, 1, 0, 1, 1, 2, 0];
    const GOLDEN_RING: u64 = 12_830_746_914_422_241_383;

    #[test]
    fn the_order_of_the_list_changes_names_only() {
        let (ahead, back) = (nodes(&["a", "b", "c"]), nodes(&["c", "b", "a"]));
        let (one, other) = (Ring::new(&ahead), Ring::new(&back));
        for shard in (0..500).map(ShardId) {
            let one: Vec<_> = one.walk(shard).map(|node| &ahead[node].0).collect();
            let other: Vec<_> = other.walk(shard).map(|node| &back[node].0).collect();
            assert_eq!(one, other);
        }
    }

    #[test]
    fn a_walk_meets_every_node_once() {
        let ring = Ring::new(&nodes(&["a", "b", "c", "d", "e"]));
        for shard in (0..200).map(ShardId) {
            let mut met: Vec<_> = ring.walk(shard).collect();
            met.sort_unstable();
            assert_eq!(met, [0, 1, 2, 3, 4]);
        }
    }

    #[test]
    fn nobody_and_the_weightless_hold_nothing() {
        assert_eq!(Ring::new(&[]).walk(ShardId(1)).count(), 0);
        let mut two = nodes(&["a", "b"]);
        two[0].1 = 0;
        assert_eq!(Ring::new(&two).walk(ShardId(1)).collect::<Vec<_>>(), [1]);
        two[1].1 = 0;
        assert_eq!(Ring::new(&two).walk(ShardId(1)).count(), 0);
    }

    #[test]
    fn weight_is_a_share() {
        let mut three = nodes(&["a", "b", "c"]);
        three[2].1 = 2;
        let firsts = firsts(&Ring::new(&three), 8192);
        let share = firsts.iter().filter(|&&node| node == 2).count();
        assert!((3700..4500).contains(&share), "half of 8192, about: {share}");
    }

    proptest! {
        #![proptest_config(crate::properties::cases(32))]

        /// A new node takes about its share, and nothing moves between the others.
        #[test]
        fn adding_a_node_moves_its_share_and_only_to_it(
            names in prop::collection::btree_set("[a-z]{1,8}", 2..12),
        ) {
            const SHARDS: u32 = 4096;
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let all = nodes(&names);
            let new = all.len() - 1;
            let (before, after) = (Ring::new(&all[..new]), Ring::new(&all));
            let (before, after) = (firsts(&before, SHARDS), firsts(&after, SHARDS));
            let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
            prop_assert!(moved.iter().all(|(_, to)| **to == new));
            let ideal = SHARDS as usize / all.len();
            prop_assert!(moved.len() <= ideal + ideal * 2 / 5, "{} of {}", moved.len(), ideal);
        }
    }
}
