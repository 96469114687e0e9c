//! The states of standbys on their way into the snapshots, and what else is looked after in a while.

use std::ops::Bound;
use std::sync::Arc;

use mainstay_protocol::id::ShardId;
use mainstay_protocol::time::Instant;

use super::Input;
use super::keeper::Keeper;
use super::part::Part;
use crate::clock;
use crate::metrics::float;
use crate::shard::commit::Saving;
use crate::storage::{CheckpointBatch, StorageError};

/// Bytes of states that one save takes, and what one shard brings beyond.
const SAVE_BYTES: u64 = 8 << 20;

impl Keeper {
    pub(super) fn handle_tick(&mut self) {
        let now = clock::now();
        let (mut dirty, mut due, mut followed) = (0, 0, 0_u64);
        let (mut failed, mut waiting) = (Vec::new(), Vec::new());
        for (shard, part) in &mut self.parts {
            match part {
                Part::Following(following) => {
                    dirty += following.shadow.dirty_bytes();
                    due += following.shadow.due();
                    followed += 1;
                    if following.shadow.due() > 0 {
                        waiting.push(*shard); // a read may have been refused
                    }
                }
                Part::Opening(opening) if opening.failed => failed.push(*shard),
                Part::Opening(_) | Part::Leading(_) | Part::Dropping(_) => {}
            }
        }
        (self.dirty_now, self.due_now) = (dirty, due);
        self.told_empty = self.parts.is_empty();
        self.followed_gauge.set(float(followed));
        for shard in waiting {
            self.with_following(shard, |following, _| following.apply());
        }
        self.tell_lags(now);
        for shard in failed {
            let Some(Part::Opening(opening)) = self.parts.remove(&shard) else { continue };
            self.open(shard, opening.found, None);
        }
        let overdue = self.env.journal.overdue();
        if let Some(shard) = overdue.into_iter().find(|shard| self.parts.contains_key(shard)) {
            self.last_saved = ShardId(shard.0.wrapping_sub(1));
            self.save_some(now);
        } else if dirty > self.dirty_bytes / 2
            || now.saturating_since(self.saved_at) >= self.save_every
        {
            self.save_some(now);
        }
    }

    /// Moves applied states of some shards into the snapshots: one batch at a time, the shards
    /// after the last ones first.
    pub(super) fn save_some(&mut self, now: Instant) {
        if self.saving {
            return;
        }
        self.saved_at = now;
        let mut batch = CheckpointBatch::default();
        let (mut parts, mut bytes) = (Vec::new(), 0);
        let after = self.parts.range((Bound::Excluded(self.last_saved), Bound::Unbounded));
        let before = self.parts.range(..=self.last_saved);
        let order: Vec<_> = after.chain(before).map(|(shard, _)| *shard).collect();
        for shard in order {
            let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else {
                continue;
            };
            if !following.takes() || following.saving.is_some() {
                continue;
            }
            let epoch = following.standby.promised();
            let Some(saving) = following.shadow.begin_save(epoch) else { continue };
            saving.add_to(&mut batch);
            bytes += saving.bytes();
            let saving = Arc::new(saving);
            following.saving = Some(Arc::clone(&saving));
            parts.push((following.life, saving));
            self.last_saved = shard;
            if bytes >= SAVE_BYTES {
                break;
            }
        }
        if parts.is_empty() {
            return;
        }
        self.saving = true;
        let inbox = self.env.inbox.clone();
        let done = move |result| drop(inbox.push(Input::Saved(parts, result)));
        self.env.state.checkpoint(batch, Box::new(done));
    }

    pub(super) fn handle_saved(
        &mut self,
        saved: Vec<(u64, Arc<Saving>)>,
        error: Option<&StorageError>,
    ) {
        self.saving = false;
        if let Some(error) = error {
            tracing::warn!(%error, "a snapshot of standbys failed; the journal keeps what it holds");
        }
        for (life, saving) in saved {
            let shard = saving.mark.shard;
            let Some(following) = self.parts.get_mut(&shard).and_then(Part::following) else {
                continue;
            };
            let mine = following.saving.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, &saving));
            if following.life != life || !mine {
                continue; // given up meanwhile, or everything here was replaced
            }
            following.saving = None;
            following.shadow.handle_saved(&saving, error.is_none());
            if error.is_none() {
                following.standby.forget_below(saving.mark.applied.seq);
            }
        }
    }
}
