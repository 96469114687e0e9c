//! What is searched: small clusters, each with room for one kind of trouble.

use mainstay_protocol::id::{Epoch, Seq};

use super::world::{Step, World};
use super::{Limits, Planted};

/// A small cluster, and what may happen in it.
#[derive(Debug, Clone, Copy)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// Nodes.
    nodes: usize,
    /// It begins when every node is in the set and the first noop is committed; otherwise when the
    /// first primary begins, with as many copies as a write needs.
    all_in_sync: bool,
    /// How often what.
    limits: Limits,
}

const NONE: Limits =
    Limits { epochs: 0, writes: 0, crashes: 0, disks: 0, sets: 0, proposals: 1, entries: 1 };

/// What the tests search.
pub const SMALL: [Scope; 6] = [
    Scope {
        name: "two nodes take turns",
        nodes: 2,
        all_in_sync: false,
        limits: Limits { epochs: 2, writes: 0, ..NONE },
    },
    Scope {
        name: "two nodes, one crashes",
        nodes: 2,
        all_in_sync: false,
        limits: Limits { epochs: 1, writes: 1, crashes: 1, ..NONE },
    },
    Scope {
        name: "a copy joins",
        nodes: 3,
        all_in_sync: false,
        limits: Limits { writes: 1, sets: 1, ..NONE },
    },
    Scope {
        name: "a copy leaves",
        nodes: 3,
        all_in_sync: true,
        limits: Limits { writes: 1, sets: 1, ..NONE },
    },
    Scope {
        name: "a disk is replaced",
        nodes: 3,
        all_in_sync: true,
        limits: Limits { crashes: 1, disks: 1, sets: 2, ..NONE },
    },
    Scope {
        name: "a copy outside of the set follows",
        nodes: 3,
        all_in_sync: false,
        limits: Limits { epochs: 1, ..NONE },
    },
];

/// What `make exhaustive` searches, in addition.
pub const LARGE: [Scope; 5] = [
    Scope {
        name: "two nodes write and take turns",
        nodes: 2,
        all_in_sync: false,
        limits: Limits { epochs: 2, writes: 1, ..NONE },
    },
    Scope {
        name: "two nodes, a crash, long appends",
        nodes: 2,
        all_in_sync: false,
        limits: Limits { epochs: 1, writes: 2, crashes: 1, entries: 2, ..NONE },
    },
    Scope {
        name: "a standby of three takes over",
        nodes: 3,
        all_in_sync: true,
        limits: Limits { epochs: 1, writes: 1, ..NONE },
    },
    Scope {
        name: "a copy joins and takes over",
        nodes: 3,
        all_in_sync: false,
        limits: Limits { epochs: 1, sets: 1, ..NONE },
    },
    Scope {
        name: "a disk of three is replaced, a copy leaves and joins",
        nodes: 3,
        all_in_sync: true,
        limits: Limits { crashes: 1, disks: 1, sets: 2, proposals: 2, ..NONE },
    },
];

impl Scope {
    /// The first state.
    pub(super) fn begin(&self, planted: Option<Planted>) -> World {
        let limits = Limits { sets: self.limits.sets + 1, ..self.limits };
        let mut world = World::new(self.nodes, limits, planted);
        if self.all_in_sync {
            self.join_all(&mut world);
        }
        world.left = self.limits;
        world
    }

    fn join_all(&self, world: &mut World) {
        let mut must = |step: &Step| {
            let taken = world.take(step);
            assert!(matches!(taken, Ok(true)), "the beginning fails at {step:?}: {taken:?}");
            (world.plane.proposals.first().cloned(), world.plane.state.version, world.nodes.clone())
        };
        must(&Step::Sync(0));
        for to in 1..self.nodes {
            must(&Step::Append(Epoch(1), to, 0, 1));
            let (.., nodes) = must(&Step::Sync(to));
            must(&Step::Ack(Epoch(1), to, nodes[to].disk, Seq(1)));
        }
        let (proposal, ..) = must(&Step::Propose(0, false));
        let (epoch, version, set) = proposal.expect("everybody is to join");
        let (_, version, _) = must(&Step::Decide(epoch, version, set));
        must(&Step::Map(0, version));
    }
}
