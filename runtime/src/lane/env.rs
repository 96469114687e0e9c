//! What the shards of a lane share: the way to storage, the kinds, the buffers, the limits.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mainstay_protocol::control::{Claim, Command};
use mainstay_protocol::dedup;
use mainstay_protocol::id::{NodeId, ShardId};
use mainstay_protocol::message::{Failure, Outcome};
use mainstay_protocol::passivation::Passivation;
use mainstay_protocol::shard::{self as rules, Slot};
use tokio::sync::Semaphore;

use super::LaneInbox;
use super::kinds::Kinds;
use crate::call::{Call, CallFuture, CallPort};
use crate::config;
use crate::shard::copies::Told;
use crate::shard::handoff::Departure;
use crate::shard::looks::Look;
use crate::storage::{Journal, State};

/// One shard may take this part of what is free of the lane's budget for dedup records, between
/// two ticks: shards are used very unequally, and none is refused while there is room.
pub(super) const DEDUP_SHARE: u64 = 8;

/// What all shards of a lane share.
pub struct Env {
    /// The lane's number.
    pub lane: u16,
    /// This start of this node, as it claims shards.
    pub me: Claim,
    /// The way back into the lane.
    pub inbox: LaneInbox,
    /// The journal.
    pub journal: Journal,
    /// Checkpointed state.
    pub state: State,
    /// The kinds and their counters.
    pub kinds: Kinds,
    /// Which entities to let go.
    pub passivation: Passivation<(ShardId, Slot)>,
    /// The way out of turns.
    pub port: Arc<dyn CallPort>,
    /// The way out of turns that have none.
    pub no_port: Arc<dyn CallPort>,
    /// Room for blocking turns, of all lanes together.
    pub blocking: Arc<Semaphore>,
    /// Encoded states are built here.
    pub scratch: Vec<u8>,
    /// A turn longer than this counts as slow.
    pub slow_turn: Duration,
    /// What waits, at most; shares of this lane.
    pub limits: config::Limits,
    /// The version of the map that the lane acted on.
    pub map_version: u64,
    /// Shards of the cluster.
    pub shards_total: u32,
    /// Tells who moves shards that one is ready to go.
    pub departures: Arc<dyn Fn(Departure) + Send + Sync>,
    /// Tells those who feed other copies how shards go on.
    pub told: Arc<dyn Fn(Vec<Told>) + Send + Sync>,
    /// Asks those who follow other primaries' shards to show one to a query, unless they are gone.
    pub look: Arc<dyn Fn(Look) -> Result<(), Box<Look>> + Send + Sync>,
    /// Proposes a command to the control plane; what becomes of it is in the map.
    pub propose: Arc<dyn Fn(ShardId, Command) + Send + Sync>,
    /// Bytes of state that no snapshot holds, over all shards of the lane.
    pub dirty_bytes: Cell<u64>,
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("lane", &self.lane).finish_non_exhaustive()
    }
}

/// The way out of an inline turn or a query: there is none, since neither can wait.
#[derive(Debug)]
pub struct NoPort;

impl CallPort for NoPort {
    fn call(&self, _: Call) -> CallFuture {
        let reason = "only an async command can call other entities".to_owned();
        let failure = Failure::Unavailable { outcome: Outcome::NotExecuted, reason };
        std::future::ready(Err(failure)).boxed()
    }
}

impl Env {
    /// The limits of each shard of this lane.
    pub fn shard_limits(&self) -> rules::Config {
        // What is free of it is shared out anew at every tick.
        let bytes_max = self.limits.dedup_bytes / DEDUP_SHARE;
        rules::Config {
            uncommitted_entries_max: self.limits.uncommitted_entries,
            dedup: dedup::Config { bytes_max, retention: self.limits.dedup_retention },
            hash_seed: u64::from(self.lane) ^ self.me.boot.0,
            ..rules::Config::default()
        }
    }

    /// Notes that a shard of this lane has more, or fewer, bytes that no snapshot holds.
    pub fn dirty_changed(&self, before: u64, after: u64) {
        let bytes = self.dirty_bytes.get() + after;
        debug_assert!(bytes >= before, "what is taken away was counted");
        self.dirty_bytes.set(bytes.saturating_sub(before));
    }

    /// Whether commands may come in: there is disk, and the journal and snapshots keep up.
    ///
    /// # Errors
    /// What to tell the caller.
    pub fn check_writable(&self) -> Result<(), Failure> {
        if let Some(error) = self.journal.stopped() {
            let reason = format!("this node takes no writes any more: {error}");
            return Err(Failure::Unavailable { outcome: Outcome::NotExecuted, reason });
        }
        let overloaded = |bound: &str, retry_after_ms| {
            Err(Failure::Overloaded { retry_after_ms, bound: bound.to_owned() })
        };
        if !self.journal.writable() {
            return overloaded("disk", 1_000);
        }
        if !self.journal.has_room() {
            return overloaded("uncommitted", 50);
        }
        if self.dirty_bytes.get() > self.limits.dirty_bytes {
            return overloaded("memory", 50);
        }
        Ok(())
    }

    /// The answer to whoever asks a shard that does not serve here.
    pub fn not_primary(&self, primary: Option<NodeId>) -> Failure {
        Failure::NotPrimary { map_version: self.map_version, primary }
    }
}
