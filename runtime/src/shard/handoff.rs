//! A planned move, at its source: stop, let everything end, save, tell the mover.
//!
//! ```text
//!   No --map plans a move--> Stopping --drained, saved--> Ready (the mover copies)
//!    ^                          |  ^                         |  |
//!    |                          |  +-- the mover gave up ----+  |
//!    +----- the map gave the move up, in the same epoch --------+--> the map names the target: gone
//! ```
//! Lane and mover look at the map at different moments, and either may miss a plan between two
//! others. So every plan has a number, the mover of one says when it gives up, and the lane then
//! goes by the map that it has.
//!
//! Between `Stopping` and the target's first epoch nobody serves the shard: callers are told to
//! look again, and do so by themselves.

use mainstay_protocol::control::{Handoff, ShardConfig};
use mainstay_protocol::id::{Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::shard::Done;
use mainstay_protocol::time::LogTime;

use super::dirty::Remembered;
use super::{Serving, Stage};
use crate::lane::Input;
use crate::lane::env::Env;

/// How far a shard is on its way out.
#[derive(Debug, Default, PartialEq, Eq)]
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
enum Step {
    Begin,
    Resume,
    Nothing,
}

impl Departing {
    /// The map plans this now. A shard that cannot be saved, since its disk is short of space,
    /// stays where it can at least be read; once a mover copies it, the move goes its way.
    fn handle_plan(&mut self, planned: Option<&Handoff>, can_save: bool) -> Step {
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

    /// The mover of this plan ended without having moved the shard.
    fn handle_mover_gave_up(&mut self, plan: &Handoff) {
        if let Self::Ready { to } = self
            && to == plan
        {
            *self = Self::Stopping { to: to.clone() };
        }
    }
}

/// A shard that is ready to be copied: it stands still, and all of it is in the tables.
pub struct Departure {
    /// The shard.
    pub shard: ShardId,
    /// Where it goes.
    pub to: Handoff,
    /// The epoch in which it stopped.
    pub epoch: Epoch,
    /// Its last entry.
    pub last: Seq,
    /// Its log time.
    pub log_time: LogTime,
    /// Its records that make commands take effect once.
    pub dedup: Vec<Remembered>,
    /// To be called when the mover ends without having moved the shard.
    pub gave_up: Box<dyn FnOnce() + Send + Sync>,
}

impl std::fmt::Debug for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Departure").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Serving {
    /// The map plans a move, or gives one up.
    pub(crate) fn handle_plan(&mut self, env: &mut Env, config: &ShardConfig) {
        let can_save = env.journal.writable();
        match self.handoff.handle_plan(config.handoff.as_ref(), can_save) {
            Step::Begin => self.begin_departure(env),
            Step::Resume => self.primary.resume_admission(),
            Step::Nothing => {}
        }
        self.touched = true;
    }

    /// The mover of this plan gave up; the map says sooner or later what is to be done.
    pub(crate) fn handle_mover_gave_up(&mut self, plan: &Handoff) {
        self.handoff.handle_mover_gave_up(plan);
        self.touched = true;
    }

    /// On its way out: what would take long is left for the target to run.
    pub(crate) fn departs(&self) -> bool {
        self.handoff != Departing::No
    }

    fn begin_departure(&mut self, env: &mut Env) {
        let refusal = env.not_primary(None::<NodeId>);
        self.primary.stop_admission(refusal.clone());
        // Turns that can be called back run again at the target, under the same request id.
        let (back, stay): (Vec<_>, Vec<_>) =
            self.give_up_turns().into_iter().partition(|(_, turn)| turn.revocable(env));
        self.running.extend(stay);
        for (slot, turn) in back {
            let failure = refusal.clone();
            let done = if self.is_resident(slot) {
                self.undo(env, slot, &turn).unwrap_or(Done::Failed { failure })
            } else {
                Done::NotActivated { failure }
            };
            self.end_turn(env, slot, turn, done);
        }
    }

    /// Everything is out, committed and saved: ready to be copied. Says so once.
    pub(crate) fn poll_departure(&mut self, env: &Env) -> Option<Departure> {
        let Departing::Stopping { to } = &self.handoff else { return None };
        if !self.primary.is_drained() || self.in_flight > 0 || !self.dirty.clean() {
            return None;
        }
        let kept = self.primary.dedup().iter();
        let departure = Departure {
            shard: self.shard,
            to: to.clone(),
            epoch: self.epoch,
            last: self.primary.last(),
            log_time: self.primary.log_time(),
            dedup: kept
                .map(|kept| (kept.entity.clone(), kept.log_time, kept.record.clone()))
                .collect(),
            gave_up: {
                let (inbox, shard, to) = (env.inbox.clone(), self.shard, to.clone());
                Box::new(move || drop(inbox.push(Input::MoverGaveUp(shard, to))))
            },
        };
        self.handoff = Departing::Ready { to: departure.to.clone() };
        Some(departure)
    }

    /// On its way out, and still has something to save.
    pub(crate) const fn wants_save(&self) -> bool {
        matches!(self.handoff, Departing::Stopping { .. })
    }
}

impl super::ShardHost {
    /// The epoch and log time of what waits here, for its snapshots.
    pub(crate) fn stood(&self) -> Option<(LogTime, Epoch)> {
        match &self.stage {
            Stage::Waiting(records) => Some((records.log_time, records.epoch)),
            Stage::Opening(_) | Stage::Serving(_) | Stage::Closing(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_protocol::id::DiskId;

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
}
