//! What a lane does at every tick: lets idle entities go, saves, shares budgets, tells its gauges.

use mainstay_protocol::time::Instant;

use super::core::Core;
use super::env::DEDUP_SHARE;
use super::kinds::Kind;
use crate::clock;
use crate::metrics::float;
use crate::shard::ShardHost;

/// Entities that one tick lets go because they idle.
const PASSIVATIONS_PER_TICK: u32 = 1_024;
/// Entities that one tick lets go because memory is short: more than a lane can activate meanwhile.
const EVICTIONS_PER_TICK: u32 = 65_536;

impl Core {
    /// Time passed.
    pub(super) fn handle_tick(&mut self) {
        let now = clock::now();
        let writable = self.env.journal.writable();
        if std::mem::take(&mut self.look_again) || writable != self.was_writable {
            self.was_writable = writable;
            self.look_at_map();
        }
        self.let_idle_go(now);
        self.share_dedup_budget();
        self.look_for_pins();
        self.drop_again(now);
        if self.saves.is_due(now) {
            self.save_some();
        }
        self.look_at_copies(now);
        for host in self.shards.values() {
            if let Some(serving) = host.is_serving() {
                serving.note_waiting(&mut self.env, now);
            }
        }
        self.env.kinds.iter_mut().for_each(Kind::flush);
        let serving = self.shards.values().filter(|host| host.is_serving().is_some()).count();
        self.shards_gauge.set(float(serving as u64));
        self.bytes_gauge.set(float(self.env.passivation.bytes()));
    }

    /// Has every shard forget what expired, and gives it what it uses of the lane's budget for
    /// dedup records and a part of what is free.
    fn share_dedup_budget(&mut self) {
        let wall = clock::wall();
        for serving in self.shards.values_mut().filter_map(ShardHost::serving) {
            serving.primary.pass_time(wall);
        }
        let used: u64 = self
            .shards
            .values()
            .filter_map(ShardHost::is_serving)
            .map(|serving| serving.primary.dedup().bytes())
            .sum();
        let part = self.env.limits.dedup_bytes.saturating_sub(used) / DEDUP_SHARE;
        for host in self.shards.values_mut() {
            if let Some(serving) = host.serving() {
                let bytes = serving.primary.dedup().bytes();
                serving.primary.set_dedup_bytes_max(bytes + part);
            }
        }
    }

    fn let_idle_go(&mut self, now: Instant) {
        let mut stay = Vec::new();
        for gone in 0..EVICTIONS_PER_TICK {
            let over = self.env.passivation.over_budget();
            if gone >= PASSIVATIONS_PER_TICK && !over {
                break;
            }
            let Some((_, (shard, slot))) = self.env.passivation.poll_candidate(now) else { break };
            let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) else {
                continue;
            };
            match serving.passivate(&mut self.env, slot) {
                Some(kind) if over => self.env.kinds.at(kind).passivated_memory.add(1),
                Some(kind) => self.env.kinds.at(kind).passivated_idle.add(1),
                None => stay.push((shard, slot)),
            }
        }
        for (shard, slot) in stay {
            if let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) {
                serving.stays(&mut self.env, slot, now);
            }
        }
    }
}
