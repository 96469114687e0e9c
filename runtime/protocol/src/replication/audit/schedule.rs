//! When which slice of which shard is compared: every shard once in a period, evenly, and no more
//! than one slice at a time.
//!
//! ```text
//!   round of a shard   |--slice--slice--slice--...--slice--|      |--slice--...
//!                      began                         the end      began + period
//! ```
//! How many slices a shard has is known once a round of it was made: the next one spreads them. The
//! first one goes on as fast as it may, and begins at a time of its own, so that the shards of a
//! node that starts do not all begin at once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{EntityId, ShardId};
use crate::time::Instant;

/// Parts of a period over which first rounds are spread.
const PARTS: u32 = 64;
/// What a slice that was not compared waits for, as a part of the period.
const RETRY_PART: u32 = 32;
/// The longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The rounds of all shards that a node is the primary of.
#[derive(Debug)]
pub struct Schedule {
    period: Duration,
    rounds: BTreeMap<ShardId, Round>,
}

/// One round of a shard.
#[derive(Debug)]
struct Round {
    began: Instant,
    /// Slices that are compared, and how many the round before had.
    done: u32,
    expected: u32,
    /// The last entity of the last one.
    after: Option<EntityId>,
    /// Not before then, after a slice that was not compared.
    retry_at: Instant,
    /// When the last round ended that was made whole, or the shard was first seen.
    whole_at: Instant,
}

impl Round {
    fn due(&self, period: Duration) -> Instant {
        // More slices than were expected go on as fast as they may.
        let done = if self.done < self.expected { self.done } else { 0 };
        let part = f64::from(done) / f64::from(self.expected.max(1));
        (self.began + period.mul_f64(part)).max(self.retry_at)
    }
}

impl Schedule {
    /// Every shard is compared once in a period.
    pub const fn new(period: Duration) -> Self {
        Self { period, rounds: BTreeMap::new() }
    }

    /// These shards are compared from now on, and no others.
    pub fn handle_shards(&mut self, shards: impl IntoIterator<Item = ShardId>, now: Instant) {
        let mut before = std::mem::take(&mut self.rounds);
        for shard in shards {
            let round = before.remove(&shard).unwrap_or_else(|| {
                let part = shard.0.wrapping_mul(0x9e37_79b9) >> 26;
                debug_assert!(part < PARTS, "six bits");
                let began = now + self.period * part / PARTS;
                let (retry_at, whole_at) = (began, now);
                Round { began, done: 0, expected: 1, after: None, retry_at, whole_at }
            });
            self.rounds.insert(shard, round);
        }
    }

    /// The slice that is due: its shard, and the entity after which it begins.
    pub fn poll_due(&self, now: Instant) -> Option<(ShardId, Option<EntityId>)> {
        let (shard, round) = self.next()?;
        (round.due(self.period) <= now).then(|| (shard, round.after.clone()))
    }

    /// When one is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next().map(|(_, round)| round.due(self.period))
    }

    fn next(&self) -> Option<(ShardId, &Round)> {
        let rounds = self.rounds.iter().map(|(shard, round)| (*shard, round));
        rounds.min_by_key(|(_, round)| round.due(self.period))
    }

    /// The slice of a shard that was due is compared. It reached to this entity, or to the end of
    /// the shard: then the round is over.
    pub fn handle_compared(&mut self, shard: ShardId, upto: Option<EntityId>, now: Instant) {
        let period = self.period;
        let Some(round) = self.rounds.get_mut(&shard) else { return };
        round.done = round.done.saturating_add(1);
        let ended = upto.is_none();
        round.after = upto;
        if ended {
            round.expected = round.done;
            (round.done, round.whole_at) = (0, now);
            // A round that took longer is followed by the next one at once.
            round.began = (round.began + period).max(now);
        }
    }

    /// The slice that was due could not be compared: it is due again in a while.
    pub fn handle_failed(&mut self, shard: ShardId, now: Instant) {
        let wait = (self.period / RETRY_PART).min(RETRY_MAX);
        if let Some(round) = self.rounds.get_mut(&shard) {
            round.retry_at = now + wait;
        }
    }

    /// How long ago the shard was compared whole for which that is longest ago.
    pub fn oldest(&self, now: Instant) -> Duration {
        let ages = self.rounds.values().map(|round| now.saturating_since(round.whole_at));
        ages.max().unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Key, KindId};

    const PERIOD: Duration = Duration::from_secs(64);

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1_000)
    }

    fn entity(key: u32) -> EntityId {
        EntityId { kind: KindId(1), key: Key::new(&format!("{key:04}")).unwrap() }
    }

    /// Compares slices of one shard as they are due; says when, until `to`.
    fn run(schedule: &mut Schedule, slices: u32, to: Instant) -> Vec<Instant> {
        let mut times = Vec::new();
        let mut done = 0;
        while let Some(due) = schedule.poll_timeout().filter(|due| *due < to) {
            let (shard, after) = schedule.poll_due(due).unwrap();
            assert_eq!(after, (done > 0).then(|| entity(done)), "it goes on where it ended");
            done = (done + 1) % slices;
            schedule.handle_compared(shard, (done > 0).then(|| entity(done)), due);
            times.push(due);
        }
        times
    }

    #[test]
    fn every_slice_is_compared_once_in_a_period_and_they_are_spread_over_it() {
        let mut schedule = Schedule::new(PERIOD);
        schedule.handle_shards([ShardId(0)], at(0));
        let times = run(&mut schedule, 8, at(64 * 3));
        assert_eq!(times.len(), 8 * 3);
        assert!(times[..8].iter().all(|time| *time < at(64)));
        let second: Vec<_> = (0..8).map(|part| at(64 + 8 * part)).collect();
        assert_eq!(times[8..16], second);
        assert_eq!(schedule.oldest(at(64 * 3)), Duration::from_secs(8));
    }

    #[test]
    fn shards_that_are_seen_together_begin_at_times_of_their_own() {
        let mut schedule = Schedule::new(PERIOD);
        schedule.handle_shards((0..64).map(ShardId), at(0));
        let dues: std::collections::BTreeSet<_> =
            schedule.rounds.values().map(|round| round.due(PERIOD)).collect();
        assert!(dues.len() > 32, "{} times", dues.len());
        assert!(dues.iter().all(|due| *due < at(64)), "all within a period");
    }

    #[test]
    fn a_slice_that_was_not_compared_waits_and_is_not_left_out() {
        let mut schedule = Schedule::new(PERIOD);
        schedule.handle_shards([ShardId(0)], at(0));
        schedule.handle_failed(ShardId(0), at(0));
        assert_eq!(schedule.poll_due(at(1)), None);
        assert_eq!(schedule.poll_due(at(2)), Some((ShardId(0), None)));
        assert_eq!(schedule.oldest(at(90)), Duration::from_secs(90));
    }

    #[test]
    fn a_shard_that_is_served_elsewhere_is_forgotten() {
        let mut schedule = Schedule::new(PERIOD);
        schedule.handle_shards([ShardId(0), ShardId(1)], at(0));
        schedule.handle_compared(ShardId(0), Some(entity(1)), at(0));
        schedule.handle_shards([ShardId(1)], at(1));
        schedule.handle_shards([ShardId(0), ShardId(1)], at(2));
        assert_eq!(schedule.rounds[&ShardId(0)].after, None);
        schedule.handle_shards([], at(3));
        assert_eq!(schedule.poll_timeout(), None);
    }
}
