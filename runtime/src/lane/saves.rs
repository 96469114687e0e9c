//! When a lane moves committed states into the snapshots, and what becomes of it.

use std::time::Duration;

use mainstay_protocol::id::ShardId;
use mainstay_protocol::time::Instant;

use super::Input;
use super::core::Core;
use crate::clock;
use crate::shard::ShardHost;
use crate::shard::commit::Saved;
use crate::storage::CheckpointBatch;

/// Bytes of states that one save takes, and what one shard brings beyond.
const SAVE_BYTES: u64 = 8 << 20;

/// The saves of a lane: one at a time.
#[derive(Debug)]
pub(super) struct Saves {
    every: Duration,
    begun_at: Instant,
    /// The last shard that was saved; the next save begins behind it.
    last: ShardId,
    under_way: bool,
    /// More is to be saved than one save takes, or a shard on its way out waits for it: the next
    /// one need not be due.
    pub(super) wanted: bool,
    /// The last one failed, which was logged.
    fail: bool,
}

impl Saves {
    pub(super) fn new(every: Duration) -> Self {
        let begun_at = clock::now();
        Self { every, begun_at, last: ShardId(0), under_way: false, wanted: false, fail: false }
    }

    /// Whether a save is to begin now.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.under_way || !self.wanted && now.saturating_since(self.begun_at) < self.every {
            return false;
        }
        (self.wanted, self.begun_at) = (false, now);
        true
    }
}

impl Core {
    /// A shard of this lane that keeps a journal that is too long from being cut is saved first.
    pub(super) fn look_for_pins(&mut self) {
        let mut overdue = self.env.journal.overdue().into_iter();
        if let Some(shard) = overdue.find(|shard| self.shards.contains_key(shard)) {
            // a save begins behind the last one; before shard 0 is behind the highest
            self.saves.last = ShardId(shard.0.wrapping_sub(1));
            self.saves.wanted = true;
        }
    }

    /// Moves committed states of some shards into the snapshots: one batch at a time, the shards
    /// after the last ones first.
    pub(super) fn save_some(&mut self) {
        let lane = self.env.lane;
        let mut batch = CheckpointBatch { lane, ..CheckpointBatch::default() };
        let (mut parts, mut bytes) = (Vec::new(), 0);
        let (before, after) = {
            let mut all: Vec<_> = self.shards.keys().copied().collect();
            let at = all.partition_point(|shard| *shard <= self.saves.last);
            let after = all.split_off(at);
            (all, after)
        };
        for shard in after.into_iter().chain(before) {
            let Some(saving) = self.shards.get_mut(&shard).and_then(ShardHost::begin_save) else {
                continue;
            };
            saving.add_to(&mut batch);
            bytes += saving.bytes();
            parts.push(saving);
            self.saves.last = shard;
            if bytes >= SAVE_BYTES {
                self.saves.wanted = true;
                break;
            }
        }
        if parts.is_empty() {
            return;
        }
        self.saves.under_way = true;
        let inbox = self.env.inbox.clone();
        let done = move |result| drop(inbox.push(Input::Saved(Saved { parts, result })));
        self.env.state.checkpoint(batch, Box::new(done));
    }

    /// A save is over.
    pub(super) fn handle_saved(&mut self, saved: Saved) {
        self.saves.under_way = false;
        let failed = saved.result.as_ref().err();
        match failed {
            // Said once: on a full disk every tick fails.
            Some(error) if !self.saves.fail => {
                tracing::warn!(%error, "a snapshot failed; the journal keeps what it holds");
            }
            None if self.saves.fail => tracing::info!("snapshots are taken again"),
            Some(_) | None => {}
        }
        self.saves.fail = failed.is_some();
        for part in saved.parts {
            let shard = part.mark.shard;
            if let Some(host) = self.shards.get_mut(&shard) {
                host.handle_saved(&self.env, part, saved.result.is_ok());
            }
            self.touch(shard);
            self.look_at_departure(shard);
            self.let_go_if_fed(shard);
        }
    }
}
