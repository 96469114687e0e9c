//! A planned move, at its source: stop, let everything end, save, tell the mover. What is decided
//! is in [`mainstay_protocol::shard::handoff`].
//!
//! Between the stop and the target's first epoch nobody serves the shard: callers are told to look
//! again, and do so by themselves.

use std::time::Duration;

use mainstay_protocol::backoff;
use mainstay_protocol::control::{Handoff, ShardConfig};
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::shard::Done;
use mainstay_protocol::shard::handoff::Step;
use mainstay_protocol::time::{Instant, LogTime};

use super::dirty::Remembered;
use super::{Serving, Stage, unknown};
use crate::clock;
use crate::lane::Input;
use crate::lane::env::Env;

/// A shard that is ready to be copied: it stands still, and all of it is in the tables.
pub struct Departure {
    /// The shard.
    pub shard: ShardId,
    /// Where it goes.
    pub to: Handoff,
    /// The epoch in which it stopped.
    pub epoch: Epoch,
    /// Its last entry, and who wrote it.
    pub last: Position,
    /// Its log time.
    pub log_time: LogTime,
    /// Its records that make commands take effect once.
    pub dedup: Vec<Remembered>,
    /// To be called before the mover proposes to give the move up, since no copy arrives.
    pub failed: Box<dyn Fn() + Send + Sync>,
    /// To be called when the mover ends without having moved the shard.
    pub gave_up: Box<dyn FnOnce() + Send + Sync>,
}

impl std::fmt::Debug for Departure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Departure").field("shard", &self.shard).finish_non_exhaustive()
    }
}

/// How long a shard is not carried to a target that copies of it did not arrive at. Each try leaves
/// it unserved for a while.
const PAUSE: backoff::Config =
    backoff::Config { base: Duration::from_secs(30), cap: Duration::from_secs(600) };

/// The target that copies failed to, and how long the shard stays for that.
#[derive(Debug)]
pub(crate) struct Pause {
    to: NodeId,
    failures: u32,
    until: Instant,
}

impl Pause {
    fn after(before: Option<Self>, to: &NodeId, now: Instant) -> Self {
        let before = before.filter(|before| before.to == *to);
        let failures = before.map_or(0, |before| before.failures.saturating_add(1));
        Self { to: to.clone(), failures, until: now + PAUSE.ceiling(failures) }
    }

    fn holds(&self, plan: &Handoff, now: Instant) -> bool {
        self.to == plan.to && now < self.until
    }
}

impl Serving {
    /// The map plans a move, or gives one up. Whether to look at the plan again in a while.
    pub(crate) fn handle_plan(&mut self, env: &mut Env, config: &ShardConfig) -> bool {
        let planned = config.handoff.as_ref();
        // A pause keeps a move from beginning. One that has begun ends when the map says so: its
        // mover may have completed it, in a map that this lane has not seen.
        let paused = !self.departs()
            && planned
                .zip(self.pause.as_ref())
                .is_some_and(|(plan, pause)| pause.holds(plan, clock::now()));
        let can_go = env.journal.writable() && !paused;
        match self.handoff.handle_plan(planned, can_go) {
            Step::Begin => self.begin_departure(env),
            Step::Resume => self.primary.resume_admission(),
            Step::Nothing => {}
        }
        self.touched = true;
        paused
    }

    /// No copy arrives: the map is about to give the move up, and the next plan for that target
    /// waits while the shard is served.
    pub(crate) fn handle_copy_failed(&mut self, plan: &Handoff) {
        self.pause = Some(Pause::after(self.pause.take(), &plan.to, clock::now()));
    }

    /// The mover of this plan gave up; the map says sooner or later what is to be done.
    pub(crate) fn handle_mover_gave_up(&mut self, plan: &Handoff) {
        self.handoff.handle_mover_gave_up(plan);
        self.touched = true;
    }

    /// On its way out: what would take long is left for the target to run.
    pub(crate) fn departs(&self) -> bool {
        self.handoff.is_under_way()
    }

    fn begin_departure(&mut self, env: &mut Env) {
        let refusal = env.not_primary(None::<NodeId>);
        self.primary.stop_admission(refusal.clone());
        // Turns that can be called back run again at the target, under the same request id. What
        // one of them asked of others may have taken effect: without a key of its own, it is not
        // certain that whoever runs it again asks the same.
        let (back, stay): (Vec<_>, Vec<_>) =
            self.give_up_turns().into_iter().partition(|(_, turn)| turn.revocable(env));
        self.running.extend(stay);
        for (slot, turn) in back {
            let failure = if turn.leaves_no_trace() { refusal.clone() } else { unknown() };
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
        if !self.handoff.is_stopping() || !self.primary.is_drained() || self.in_flight > 0 {
            return None;
        }
        // A copy that is in sync takes over as it is; others get one, out of the snapshots.
        let swaps = self.feeding.is_some();
        if !swaps && !self.dirty.clean() {
            return None;
        }
        let last = self.dirty.settled();
        debug_assert!(swaps || last.seq == self.primary.last(), "everything is saved");
        let to = self.handoff.handle_saved()?;
        let kept = self.primary.dedup().iter().filter(|_| !swaps);
        Some(Departure {
            shard: self.shard,
            to: to.clone(),
            epoch: self.epoch,
            last,
            log_time: self.primary.log_time(),
            dedup: kept
                .map(|kept| (kept.entity.clone(), kept.log_time, kept.record.clone()))
                .collect(),
            failed: {
                let (inbox, shard, to) = (env.inbox.clone(), self.shard, to.clone());
                Box::new(move || drop(inbox.push(Input::CopyFailed(shard, to.clone()))))
            },
            gave_up: {
                let (inbox, shard) = (env.inbox.clone(), self.shard);
                Box::new(move || drop(inbox.push(Input::MoverGaveUp(shard, to))))
            },
        })
    }

    /// On its way out, and still has something to save.
    pub(crate) const fn wants_save(&self) -> bool {
        self.handoff.is_stopping()
    }
}

impl super::ShardHost {
    /// The epoch and log time of what waits here, for its snapshots.
    pub(crate) fn stood(&self) -> Option<(LogTime, Epoch)> {
        match &self.stage {
            // What is given back is saved by those who follow it.
            Stage::Waiting(_) if self.fed => None,
            Stage::Waiting(records) => Some((records.log_time, records.epoch)),
            Stage::Opening(_) | Stage::Serving(_) | Stage::Closing(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_protocol::id::DiskId;

    #[test]
    fn a_target_is_left_alone_for_longer_after_every_failure() {
        let plan = |to: &str| Handoff {
            to: NodeId::new(to).unwrap(),
            disk: DiskId::from_bytes([1; 16]),
            plan: 1,
        };
        let mut now = Instant::from_nanos(1);
        let mut pause = Pause::after(None, &plan("n2").to, now);
        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            let span = Duration::from_secs(seconds);
            assert!(pause.holds(&plan("n2"), now + span / 2));
            assert!(!pause.holds(&plan("n3"), now), "others may be tried");
            now = now + span;
            assert!(!pause.holds(&plan("n2"), now));
            pause = Pause::after(Some(pause), &plan("n2").to, now);
        }
        pause = Pause::after(Some(pause), &plan("n3").to, now);
        assert!(!pause.holds(&plan("n3"), now + Duration::from_secs(30)));
    }
}
