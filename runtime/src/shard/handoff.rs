//! A planned move, at its source: stop, let everything end, save, tell the mover.
//!
//! ```text
//!   No --map plans a move--> Stopping --drained, saved--> Ready (the mover copies)
//!    ^                          |                            |
//!    +----- the map gave the move up, in the same epoch -----+--> the map names the target: gone
//! ```
//! Between `Stopping` and the target's first epoch nobody serves the shard: callers are told to
//! look again, and do so by themselves.

use mainstay_protocol::control::{Handoff, ShardConfig};
use mainstay_protocol::id::{Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::shard::Done;
use mainstay_protocol::time::LogTime;

use super::dirty::Remembered;
use super::{Serving, Stage};
use crate::lane::env::Env;

/// How far a shard is on its way out.
#[derive(Debug, Default)]
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

/// A shard that is ready to be copied: it stands still, and all of it is in the tables.
#[derive(Debug)]
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
}

impl Serving {
    /// The map plans a move, or gives one up.
    pub(crate) fn handle_plan(&mut self, env: &mut Env, config: &ShardConfig) {
        match (&self.handoff, &config.handoff) {
            (Departing::No, Some(to)) => self.begin_departure(env, to.clone()),
            (Departing::Stopping { .. } | Departing::Ready { .. }, None) => {
                self.handoff = Departing::No;
                self.primary.resume_admission();
            }
            // The move was given up and planned anew between two looks at it: the mover of the old
            // plan ends by itself.
            (Departing::Stopping { to } | Departing::Ready { to }, Some(other)) if to != other => {
                self.handoff = Departing::Stopping { to: other.clone() };
                self.touched = true;
            }
            (Departing::No, None)
            | (Departing::Stopping { .. } | Departing::Ready { .. }, Some(_)) => {}
        }
    }

    fn begin_departure(&mut self, env: &mut Env, to: Handoff) {
        let refusal = env.not_primary(None::<NodeId>);
        self.handoff = Departing::Stopping { to };
        self.primary.stop_admission(refusal.clone());
        // Turns that can be called back run again at the target, under the same request id.
        let (back, stay): (Vec<_>, Vec<_>) =
            self.give_up_turns().into_iter().partition(|(_, turn)| turn.revocable(env));
        self.running.extend(stay);
        for (slot, turn) in back {
            let failure = refusal.clone();
            if self.is_resident(slot) {
                self.take_resident(env, slot);
            }
            self.end_turn(env, slot, turn, Done::NotActivated { failure });
        }
        self.touched = true;
    }

    /// Everything is out, committed and saved: ready to be copied. Says so once.
    pub(crate) fn poll_departure(&mut self) -> Option<Departure> {
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
            Stage::Opening | Stage::Serving(_) | Stage::Closing(_) | Stage::Leaving => None,
        }
    }
}
