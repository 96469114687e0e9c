//! A planned move of a shard: what its source, its mover and its target do, and when a copy counts.
//!
//! ```text
//!   No --map plans a move--> Stopping --drained, saved--> Ready (the mover copies)
//!    ^                          |  ^                         |  |
//!    |                          |  +-- the mover gave up ----+  |
//!    +----- the map gave the move up, in the same epoch --------+--> the map names the target: gone
//! ```
//! Lane, mover and target look at the map at different moments, and each may miss a plan between
//! two others. So every plan has a number: a mover works for one plan, says when it gives that one
//! up, and the lane then goes by the map that it has. A plan that is given up and made again is
//! another plan and needs a copy of its own, for writes may have come between.

use crate::control::{Claim, Handoff, ShardConfig};
use crate::id::{Epoch, NodeId};
use crate::snapshot::{Head, Reason};

/// How far a shard is on its way out.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Departing {
    /// It stays.
    #[default]
    No,
    /// It takes nothing in; what is inside ends.
    Stopping {
        /// Where it goes.
        to: Handoff,
    },
    /// The mover has been told.
    Ready {
        /// Where it goes.
        to: Handoff,
    },
}

/// What a lane does about a change of the plan.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Take nothing in any more, and let what is inside end.
    Begin,
    /// Take requests in again.
    Resume,
    /// Go on.
    Nothing,
}

impl Departing {
    /// The map plans this now. A shard that cannot be saved, since its disk is short of space,
    /// stays where it can at least be read; once a mover copies it, the move goes its way.
    pub fn handle_plan(&mut self, planned: Option<&Handoff>, can_save: bool) -> Step {
        let planned = planned.filter(|_| can_save || matches!(self, Self::Ready { .. }));
        match (&*self, planned) {
            (Self::No, Some(to)) => {
                *self = Self::Stopping { to: to.clone() };
                Step::Begin
            }
            (Self::Stopping { .. } | Self::Ready { .. }, None) => {
                *self = Self::No;
                Step::Resume
            }
            (Self::Stopping { to } | Self::Ready { to }, Some(other)) if to != other => {
                *self = Self::Stopping { to: other.clone() };
                Step::Nothing
            }
            (Self::No, None) | (Self::Stopping { .. } | Self::Ready { .. }, Some(_)) => {
                Step::Nothing
            }
        }
    }

    /// Everything has ended and is saved: send a mover for this plan. `None` when no move waits for
    /// that.
    pub fn handle_saved(&mut self) -> Option<Handoff> {
        let Self::Stopping { to } = self else { return None };
        let to = to.clone();
        *self = Self::Ready { to: to.clone() };
        Some(to)
    }

    /// The mover of this plan ended without having moved the shard.
    pub fn handle_mover_gave_up(&mut self, plan: &Handoff) {
        if let Self::Ready { to } = self
            && to == plan
        {
            *self = Self::Stopping { to: to.clone() };
        }
    }

    /// It is to be saved, and then to go.
    pub const fn is_stopping(&self) -> bool {
        matches!(self, Self::Stopping { .. })
    }

    /// It takes nothing in.
    pub fn is_under_way(&self) -> bool {
        *self != Self::No
    }
}

/// Whether the map names this very start of a node as the primary.
pub fn is_claimed(config: &ShardConfig, me: &Claim) -> bool {
    config.primary.as_ref() == Some(me)
}

/// Whether what a node has stored of a shard is of no use any more: a later epoch than the one that
/// wrote it lives elsewhere, and holds everything. A map that is behind says nothing of the kind.
pub fn is_stranded(config: &ShardConfig, stored: Epoch, me: &Claim) -> bool {
    let elsewhere = config.primary.as_ref().is_some_and(|claim| claim.node != me.node);
    let in_sync = config.in_sync.get(&me.node) == Some(&me.disk);
    config.epoch > stored && elsewhere && !in_sync && !is_arriving(config, &me.node)
}

/// Whether a copy of the shard is about to arrive at a node that holds nothing of it that counts:
/// what it has from before must be let go first, never to be served, saved or dropped again.
pub fn is_arriving(config: &ShardConfig, me: &NodeId) -> bool {
    let planned = config.handoff.as_ref().is_some_and(|plan| plan.to == *me);
    planned && !config.in_sync.contains_key(me)
}

/// Whether a copy belongs to the move that the map plans now, from its primary to this node.
pub fn is_expected(config: &ShardConfig, me: &NodeId, from: &NodeId, copy: &Head) -> bool {
    let primary = config.primary.as_ref().is_some_and(|claim| claim.node == *from);
    let moves = |number| copy.reason == Reason::Move { plan: number };
    let plan = config.handoff.as_ref().is_some_and(|plan| moves(plan.plan));
    primary && plan && is_arriving(config, me) && config.epoch == copy.epoch
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::id::DiskId;

    fn plan(node: &str, plan: u64) -> Handoff {
        Handoff { to: NodeId::new(node).unwrap(), disk: DiskId::from_bytes([1; 16]), plan }
    }

    fn to(node: &str) -> Handoff {
        plan(node, 1)
    }

    /// A drain under load stood still: the director gave a plan up and made another, the lane saw
    /// only the second, and the shard went on to be ready for a target that nobody expected.
    #[test]
    fn a_move_planned_anew_for_another_target_starts_over() {
        let mut departing = Departing::No;
        assert_eq!(departing.handle_plan(Some(&to("n2")), true), Step::Begin);
        departing = Departing::Ready { to: to("n2") };
        assert_eq!(departing.handle_plan(Some(&to("n3")), true), Step::Nothing);
        assert_eq!(departing, Departing::Stopping { to: to("n3") });
    }

    /// The mover may see that a plan is gone, and the lane only that it is there again.
    #[test]
    fn a_mover_that_gave_up_is_sent_again_while_the_lane_sees_a_plan() {
        let mut departing = Departing::Ready { to: to("n2") };
        departing.handle_mover_gave_up(&to("n2"));
        assert_eq!(departing, Departing::Stopping { to: to("n2") });
    }

    /// A target froze, the plan was given up, the shard took writes, and the same move was planned
    /// again: the copy of the first mover lacks those writes.
    #[test]
    fn a_plan_that_is_made_again_needs_a_copy_of_its_own() {
        let mut departing = Departing::Ready { to: plan("n2", 1) };
        assert_eq!(departing.handle_plan(Some(&plan("n2", 3)), true), Step::Nothing);
        assert_eq!(departing, Departing::Stopping { to: plan("n2", 3) });
    }

    /// The mover of a plan that is gone must not send a second one beside the mover of the next.
    #[test]
    fn a_mover_speaks_for_its_own_plan_only() {
        let mut departing = Departing::Ready { to: plan("n3", 2) };
        departing.handle_mover_gave_up(&plan("n2", 1));
        assert_eq!(departing, Departing::Ready { to: plan("n3", 2) });
    }

    #[test]
    fn a_shard_that_cannot_be_saved_stays_unless_it_is_being_copied() {
        let mut departing = Departing::No;
        assert_eq!(departing.handle_plan(Some(&to("n2")), false), Step::Nothing);
        assert_eq!(departing.handle_plan(Some(&to("n2")), true), Step::Begin);
        assert_eq!(departing.handle_plan(Some(&to("n2")), false), Step::Resume);
        departing = Departing::Ready { to: to("n2") };
        assert_eq!(departing.handle_plan(Some(&to("n2")), false), Step::Nothing);
    }

    #[test]
    fn a_plan_that_is_given_up_lets_requests_in_again() {
        let mut departing = Departing::Ready { to: to("n2") };
        assert_eq!(departing.handle_plan(None, true), Step::Resume);
        departing.handle_mover_gave_up(&to("n2"));
        assert_eq!(departing, Departing::No);
    }

    /// What lane, movers and map are like in between; every order of their steps is walked.
    #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
    struct World {
        /// How far the map is, and how far the lane has seen it: places in the history.
        map: usize,
        seen: usize,
        departing: Departing,
        /// The shard's last entry.
        last: u64,
        /// Movers under way: the plan, and the entry that the copy holds.
        movers: Vec<(Handoff, u64)>,
        /// Movers that gave up, and the lane does not know yet.
        gave_up: Vec<Handoff>,
    }

    const WRITES_MAX: u64 = 3;

    /// Every world that one step leads to.
    fn steps(world: &World, history: &[Option<Handoff>]) -> Vec<World> {
        let mut next = Vec::new();
        let mut step = |act: &dyn Fn(&mut World)| {
            let mut after = world.clone();
            act(&mut after);
            next.push(after);
        };
        if world.map + 1 < history.len() {
            step(&|world| world.map += 1);
        }
        let unseen = history.iter().enumerate().take(world.map + 1).skip(world.seen + 1);
        for (seen, plan) in unseen {
            step(&|world| {
                world.seen = seen;
                world.departing.handle_plan(plan.as_ref(), true);
            });
        }
        if world.departing.is_stopping() {
            step(&|world| {
                let to = world.departing.handle_saved().unwrap();
                world.movers.push((to, world.last));
            });
        }
        if !world.departing.is_under_way() && world.last < WRITES_MAX {
            step(&|world| world.last += 1);
        }
        for at in 0..world.movers.len() {
            if history[world.map].as_ref() != Some(&world.movers[at].0) {
                step(&|world| {
                    let (plan, _) = world.movers.remove(at);
                    world.gave_up.push(plan);
                });
            }
        }
        for at in 0..world.gave_up.len() {
            step(&|world| {
                let plan = world.gave_up.remove(at);
                world.departing.handle_mover_gave_up(&plan);
            });
        }
        next
    }

    /// Walks every order of steps from the beginning; calls `see` with each world, and whether
    /// nothing is left to happen in it.
    fn walk(history: &[Option<Handoff>], mut see: impl FnMut(&World, bool)) -> usize {
        let first = World {
            map: 0,
            seen: 0,
            departing: Departing::No,
            last: 0,
            movers: Vec::new(),
            gave_up: Vec::new(),
        };
        let mut seen = BTreeSet::from([first.clone()]);
        let mut todo = vec![first];
        while let Some(world) = todo.pop() {
            let next = steps(&world, history);
            see(&world, next.is_empty());
            todo.extend(next.into_iter().filter(|next| seen.insert(next.clone())));
        }
        seen.len()
    }

    fn histories() -> [Vec<Option<Handoff>>; 3] {
        let plan = |to, number| Some(plan(to, number));
        [
            vec![None, plan("n2", 1), None, plan("n2", 3), None, plan("n2", 5)],
            vec![None, plan("n2", 1), None, plan("n3", 3), None, plan("n2", 5)],
            vec![None, plan("n2", 1), plan("n3", 2), None, plan("n3", 4), None],
        ]
    }

    #[test]
    fn no_order_of_steps_completes_a_move_with_a_copy_that_lacks_a_write() {
        for history in histories() {
            let worlds = walk(&history, |world, _| {
                for (plan, copied) in &world.movers {
                    if history[world.map].as_ref() == Some(plan) {
                        assert_eq!(*copied, world.last, "{world:?}");
                    }
                }
            });
            assert!(worlds > 100, "only {worlds} worlds");
        }
    }

    #[test]
    fn every_order_of_steps_ends_with_one_mover_for_the_plan_that_stands() {
        for history in histories() {
            let mut ends = 0;
            walk(&history, |world, ended| {
                if !ended {
                    return;
                }
                ends += 1;
                let movers: Vec<_> = world.movers.iter().map(|(plan, _)| plan).collect();
                assert_eq!(movers, Vec::from_iter(history.last().unwrap()), "{world:?}");
                assert_eq!(world.departing.is_under_way(), !movers.is_empty());
            });
            assert!(ends > 0);
        }
    }
}
