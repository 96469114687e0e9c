//! Shards with other copies, at their lane: it serves what is promoted here, tells how it goes on,
//! and gives it back when the map says so. Who follows a shard is none of its business.

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{ClusterState, ShardConfig};
use mainstay_protocol::id::ShardId;
use mainstay_protocol::replication::in_sync::Copies;
use mainstay_protocol::shard::handoff;
use mainstay_protocol::time::Instant;

use super::core::Core;
use crate::clock;
use crate::shard::ShardHost;
use crate::shard::copies::{Heard, Promoted, Told, Word};

/// How often every shard is looked at.
const LOOK_AT_ALL: Duration = Duration::from_secs(1);

impl Core {
    /// A standby of this node was promoted: its shard is served here, unless the map has gone on.
    pub(super) fn handle_promoted(&mut self, promoted: Promoted) {
        let (shard, epoch) = (promoted.shard, promoted.epoch);
        if promoted.map.version > self.map.version {
            self.handle_map(Arc::clone(&promoted.map));
        }
        let map = Arc::clone(&self.map);
        let config = map.shard(shard).filter(|config| {
            let claimed = handoff::is_claimed(config, &self.env.me);
            claimed && config.epoch == epoch && self.is_in_sync(config) && self.stopping.is_none()
        });
        let Some(config) = config else {
            self.told.push(Told::Left { shard, records: Box::new(promoted.records) });
            return;
        };
        debug_assert!(!self.shards.contains_key(&shard), "a shard is promoted after it was left");
        let copies = Copies::of(&map, config);
        let serve_from = promoted.serve_from;
        let host = ShardHost::promoted(&self.env, promoted, copies, map.min_insync);
        self.shards.insert(shard, host);
        self.touch(shard);
        self.wake_at(serve_from);
    }

    fn is_in_sync(&self, config: &ShardConfig) -> bool {
        config.is_in_sync(&self.env.me.node, self.env.me.disk)
    }

    /// Acts on what the map says of a shard with other copies.
    pub(super) fn handle_fed(
        &mut self,
        shard: ShardId,
        (map, config): (&Arc<ClusterState>, &ShardConfig),
    ) {
        let claimed = handoff::is_claimed(config, &self.env.me) && self.stopping.is_none();
        let stays = claimed && self.is_in_sync(config);
        let Some(host) = self.shards.get_mut(&shard) else { return };
        if let Some(serving) = host.serving() {
            if config.epoch < serving.epoch {
                return; // the map that promoted it is on its way here
            }
            if stays && serving.epoch == config.epoch {
                serving.handle_copies(&self.env, Copies::of(map, config));
                self.look_again |= serving.handle_plan(&mut self.env, config);
                self.touch(shard);
                self.propose(shard, clock::now());
                return;
            }
            self.close(shard);
        }
        self.let_go(shard);
    }

    /// A save of it is over, which was the last thing under way perhaps.
    pub(super) fn let_go_if_fed(&mut self, shard: ShardId) {
        let serves = |host: &ShardHost| host.is_serving().is_some();
        if self.map.standbys > 0 && !self.shards.get(&shard).is_none_or(serves) {
            self.let_go(shard);
        }
    }

    /// Gives a shard back that is not served any more, once nothing of it is under way.
    pub(super) fn let_go(&mut self, shard: ShardId) {
        let Some(host) = self.shards.remove(&shard) else { return };
        match host.into_records() {
            Ok((records, fed)) => {
                self.env.dirty_changed(records.dirty.bytes(), 0);
                if fed {
                    self.told.push(Told::Left { shard, records: Box::new(records) });
                }
            }
            Err(host) => drop(self.shards.insert(shard, host)),
        }
    }

    /// Other copies said something.
    pub(super) fn handle_heard(&mut self, heard: Vec<Heard>) {
        let now = clock::now();
        for Heard { shard, epoch, what } in heard {
            let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) else {
                continue;
            };
            if serving.epoch != epoch {
                continue;
            }
            let wants_save = matches!(what, Word::WantsSaved(_));
            if !serving.handle_heard(&self.env, what, now) {
                self.depose(shard);
                continue;
            }
            self.saves.wanted |= wants_save;
            self.touch(shard);
        }
    }

    /// There is a newer primary, which this lane's map does not know yet.
    fn depose(&mut self, shard: ShardId) {
        tracing::info!(%shard, "a newer primary is known: this one steps down");
        self.close(shard);
        self.let_go(shard);
    }

    /// Looks at shards with other copies: who is slow, who joins, what waits. Those that something
    /// happened to were looked at when it happened, and those with a time to be looked at when it
    /// came; the others get their look now and then, so that none depends on that alone.
    pub(super) fn look_at_copies(&mut self, now: Instant) {
        if self.map.standbys == 0 {
            return;
        }
        let all = now.saturating_since(self.all_looked_at) >= LOOK_AT_ALL;
        if all {
            self.all_looked_at = now;
        }
        let (mut due, mut gone) = (Vec::new(), Vec::new());
        for (shard, host) in &self.shards {
            let Some(serving) = host.is_serving() else {
                gone.push(*shard);
                continue;
            };
            self.saves.wanted |= serving.is_save_wanted();
            let time_is_up = serving.primary.poll_timeout().is_some_and(|at| at <= now);
            if all || time_is_up || serving.primary.wants_round() {
                due.push(*shard);
            }
        }
        for shard in due {
            self.propose(shard, now);
        }
        for shard in gone {
            self.let_go(shard);
        }
    }

    pub(super) fn propose(&mut self, shard: ShardId, now: Instant) {
        let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) else {
            return;
        };
        let proposal = serving.poll_proposal(&self.env, now);
        if serving.touched {
            self.touched.push(shard);
        }
        if let Some(command) = proposal {
            (self.env.propose)(shard, command);
        }
    }
}
