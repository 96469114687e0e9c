//! Removes what is stored of shards that live elsewhere, until it is gone.
//!
//! A removal that fails is tried again for as long as nothing of the shard is wanted here: a copy
//! that arrives, or arrived, has removed everything else by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_protocol::id::{Epoch, ShardId};
use mainstay_protocol::shard::handoff;
use mainstay_protocol::time::Instant;

use super::Input;
use super::core::Core;
use crate::storage::StorageError;

/// How long to wait before removals that failed are tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Removals that failed: the shards, with the epoch of what is stored.
#[derive(Debug, Default)]
pub(super) struct Drops {
    failed: BTreeMap<ShardId, Epoch>,
    tried_at: Instant,
}

impl Core {
    /// Lets go of a shard, here and on disk.
    pub(super) fn drop_shard(&mut self, shard: ShardId) {
        let Some(host) = self.shards.get_mut(&shard) else { return };
        let stored = host.waiting_epoch().unwrap_or_default();
        let before = host.dirty().map_or(0, |dirty| dirty.bytes());
        self.env.dirty_changed(before, 0);
        self.shards.remove(&shard);
        self.drop_stored(shard, stored, false);
    }

    fn drop_stored(&self, shard: ShardId, stored: Epoch, again: bool) {
        let inbox = self.env.inbox.clone();
        let done = move |result: Result<(), StorageError>| {
            let Err(error) = result else { return };
            if !again {
                tracing::warn!(%shard, %error, "the copy of a moved shard stays on disk for now");
            }
            drop(inbox.push(Input::DropFailed(shard, stored)));
        };
        self.env.state.drop_shard(shard, Box::new(done));
    }

    /// What is stored of a shard could not be removed.
    pub(super) fn handle_drop_failed(&mut self, shard: ShardId, stored: Epoch) {
        self.drops.failed.insert(shard, stored);
    }

    /// Tries removals again that failed, where the map still wants them.
    pub(super) fn drop_again(&mut self, now: Instant) {
        let drops = &mut self.drops;
        if drops.failed.is_empty() || now.saturating_since(drops.tried_at) < TRY_AGAIN {
            return;
        }
        drops.tried_at = now;
        for (shard, stored) in std::mem::take(&mut drops.failed) {
            if self.shards.contains_key(&shard) {
                continue; // it came back
            }
            let Some(config) = self.map.shards.get(shard.0 as usize) else { continue };
            if handoff::is_stranded(config, stored, &self.env.me) {
                self.drop_stored(shard, stored, true);
            } else {
                self.drops.failed.insert(shard, stored);
            }
        }
    }
}
