//! The shard: dedup, mailboxes, turns, log and watermark, decided together.
//!
//! One [`primary::Primary`] is one shard in one epoch on its primary. The lane that owns it drives
//! it like this, and decides nothing itself:
//!
//! ```text
//!   requests ----> handle_request --+-> Err(Refused)           answer at once
//!                                   +-> queued | waiting | joined | replayed
//!   lane's loop <-- next_turn          one entity after the other; run the handler on its state
//!               --> handle_turn_done   what became of it; the caller (T) goes back in
//!   once a pass <-- take_segment       to the journal and to the standbys
//!   journal     --> handle_durable     this node holds everything up to a seq
//!   feed        --> handle_holds       another copy does
//!               --> handle_heard       another copy knows of no newer epoch
//!   map         --> handle_copies      the in-sync set, as agreed
//!   a timer     <-- poll_proposal      another set, for the control plane
//!   once a pass <-- poll_release       callers whose reply may leave, in order, with the reply
//!   one timer   <-> poll_timeout, handle_timeout
//! ```
//!
//! `T` is the lane's own: the payload, and where the reply goes. It moves in with the request, out
//! with the [`Turn`], in again with [`Done`], and out with the [`Release`]; it is never cloned. Every
//! caller leaves exactly once: refused, released, cancelled, or in [`SteppedDown`].
//!
//! **What a reply waits for.** A turn that changed state, or whose request carried an idempotency
//! key, is an entry with a seq. Its reply, and *every* reply of that entity (a query's, a refusal's,
//! a repetition's), waits until the watermark has reached the highest seq of that entity: nothing
//! that a lost primary could take back is ever seen outside. All replies of an epoch wait for its
//! noop, so that what was recovered is held by the whole in-sync set first. Requests are accepted
//! and run before that.
//!
//! **An entity's row.**
//!
//! ```text
//!            handle_request             next_turn
//!    (none) ---------------> ready ------------------> running
//!       ^                    ^   ^---- more queued ------|
//!       |    handle_request  |                           | nothing queued
//!       +------ idle --------+   <-----------------------+
//!    remove_row (nothing uncommitted)
//! ```
//! Its number, [`Slot`], stays the same while the row lives: the lane keeps the activation under it
//! in a `Vec`. A turn with [`Turn::fresh`] is the first one in a slot: activate before it runs, with
//! `handle_activated`, or end it with [`Done::NotActivated`]. A row that was never activated leaves
//! by itself; the others stay until `remove_row`.

mod admission;
mod copies;
pub mod handoff;
mod log;
mod pending;
mod quarantine;
mod rows;
mod turns;
pub mod primary;

use std::time::Duration;

use bytes::Bytes;

use crate::dedup;
use crate::entry::{Change, DedupRecord, StoredReply};
use crate::id::{EntityId, Epoch, IdempotencyKey, MethodId, NodeId, Seq, ShardId, Token};
use crate::mailbox::{SourceId, Ticket};
use crate::message::{Failure, Mode, Pressure, Success};
use crate::replication::Timing;
use crate::replication::freshness::Freshness;
use crate::replication::in_sync::Copies;
use crate::time::{Instant, LogTime};

pub use pending::Held;

/// The limits of one shard.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Entries that are not committed, and commands that are admitted and may become one. Beyond
    /// it commands are refused: the disk or a standby is slow.
    pub uncommitted_entries_max: u32,
    /// Bytes of entries that are not committed. Beyond it commands are refused and no turn starts;
    /// it can be passed by one entry, and by what async turns bring.
    pub uncommitted_bytes_max: u64,
    /// Requests that are inside, from admission to release. Beyond it all are refused.
    pub requests_max: u32,
    /// What a refused caller is told to wait.
    pub retry_after: Duration,
    /// The records that make commands take effect once.
    pub dedup: dedup::Config,
    /// Spreads hashes; take a random one per process. It changes no decision.
    pub hash_seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uncommitted_entries_max: 4096,
            uncommitted_bytes_max: 16 << 20,
            requests_max: 16_384,
            retry_after: Duration::from_millis(20),
            dedup: dedup::Config::default(),
            hash_seed: 0,
        }
    }
}

/// Which shard, in which epoch, with whom.
#[derive(Debug, Clone)]
pub struct Post {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that the map gave to this primary.
    pub epoch: Epoch,
    /// This node, a member of the set.
    pub me: NodeId,
    /// The copies, as the control plane has them; this node is in the in-sync set.
    pub copies: Copies,
    /// The least size of the set that may acknowledge.
    pub min_insync: u8,
    /// How long leases last, and when a copy is too slow.
    pub timing: Timing,
    /// Nobody is answered before: this node promised that to the primary before. `ZERO` for none.
    pub serve_from: Instant,
}

/// What the journal had of the shard.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The last entry.
    pub last: Seq,
    /// The log time of the last entry.
    pub log_time: LogTime,
    /// The dedup records, in any order.
    pub dedup: Vec<(EntityId, LogTime, DedupRecord)>,
}

/// A request, as far as the rules need it.
#[derive(Debug, Clone)]
pub struct Ask {
    /// For whom.
    pub entity: EntityId,
    /// Which method.
    pub method: MethodId,
    /// Command or query.
    pub mode: Mode,
    /// How fresh a state a query wants to see; `None` for the default.
    pub freshness: Option<Freshness>,
    /// Wait for room or be refused.
    pub pressure: Pressure,
    /// The caller's idempotency key; of no meaning for a query.
    pub idempotency: Option<IdempotencyKey>,
    /// `xxh3_64` of the payload.
    pub payload_hash: u64,
    /// The version at which alone a command may run; of no meaning for a query.
    pub if_version: Option<Seq>,
    /// When the caller gives up: after it the request does not start.
    pub deadline: Instant,
    /// Letters in the entity's mailbox, at most: its kind's option.
    pub mailbox: u32,
    /// Where it comes from.
    pub source: SourceId,
    /// Requests of this source that may wait before one entity, beside those in its mailbox.
    pub source_share: u32,
}

/// The place of an entity's row: the lane keeps the activation under the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Names one turn; a turn's end under another name is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnId {
    at: u32,
    number: u64,
}

/// What became of a request at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// It is in the entity's mailbox. The ticket cancels it.
    Queued(Ticket),
    /// It waits for room in the mailbox. The ticket cancels it.
    Waiting(Ticket),
    /// A call with its key is in flight: it gets the same reply.
    Joined,
    /// A call with its key took effect before: the stored reply comes out of `poll_release`.
    Replayed,
}

/// A request that was not taken, with its caller. Nothing was changed.
#[derive(Debug)]
pub struct Refused<T> {
    /// What to tell the caller; the outcome is "not executed".
    pub failure: Failure,
    /// The caller.
    pub item: T,
}

/// A turn to run.
#[derive(Debug)]
pub struct Turn<T> {
    /// Its name, for its end.
    pub id: TurnId,
    /// The entity's row.
    pub slot: Slot,
    /// The first turn in this slot: activate the entity before it runs.
    pub fresh: bool,
    /// The log time that the handler sees.
    pub log_time: LogTime,
    /// The request.
    pub ask: Ask,
    /// The caller.
    pub item: T,
}

/// What became of a turn. A state of more than [`limits::STATE_BYTES_MAX`] and a value or error of
/// more than [`limits::PAYLOAD_BYTES_MAX`] are the scene's to find: it takes the state back and
/// ends the turn as [`Done::Failed`].
///
/// [`limits::STATE_BYTES_MAX`]: crate::limits::STATE_BYTES_MAX
/// [`limits::PAYLOAD_BYTES_MAX`]: crate::limits::PAYLOAD_BYTES_MAX
#[derive(Debug)]
pub enum Done {
    /// A command gave a value, and changed the state like this ([`Change::None`]: not at all).
    Command {
        /// What became of the encoded state.
        change: Change,
        /// The value.
        value: Bytes,
    },
    /// A query gave a value.
    Query {
        /// The value.
        value: Bytes,
    },
    /// The entity refused, in a command or a query; its state is as before the turn.
    Refused {
        /// The entity's own error.
        error: Bytes,
    },
    /// The handler panicked; the state is as before the turn.
    Panicked,
    /// The entity is at another version than the command names: its handler was not run.
    Unmet,
    /// The turn was not entered or was given up; the state is as before, and nothing is logged:
    /// arguments that do not decode, a turn beyond its time, a handoff.
    Failed {
        /// What to tell the caller.
        failure: Failure,
    },
    /// The entity could not be activated. Its next turn is fresh again.
    NotActivated {
        /// What to tell the caller.
        failure: Failure,
    },
}

/// What a turn's end led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committing {
    /// The entry that it became, if it became one: the state that the entity now has is that of
    /// this seq.
    pub entry: Option<Seq>,
    /// What the reply waits for.
    pub gate: Seq,
}

/// A turn's end that does not belong to a running turn: it ended before. Nothing was changed.
#[derive(Debug)]
pub struct StaleTurn<T> {
    /// The caller.
    pub item: T,
}

/// A caller whose reply may leave.
#[derive(Debug)]
pub struct Release<T> {
    /// The caller.
    pub item: T,
    /// The reply.
    pub result: Result<Success, Failure>,
}

/// Everyone who was inside when the primary stepped down.
#[derive(Debug)]
pub struct SteppedDown<T> {
    /// Their reply could leave before: send it.
    pub released: Vec<Release<T>>,
    /// Did not run and will not: answer `NotPrimary`.
    pub not_executed: Vec<T>,
    /// Ran, and the entry may or may not survive; or the reply may have come from such an entry:
    /// answer `Unavailable` with outcome unknown. The callers of turns that run are with the lane,
    /// and get the same answer.
    pub unknown: Vec<T>,
}

/// Counters of one shard since its epoch began, for metrics and status pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Turns handed out.
    pub turns: u64,
    /// Replies given from the dedup table.
    pub replayed: u64,
    /// Requests that joined one in flight.
    pub joined: u64,
    /// Requests whose deadline passed before their turn.
    pub expired: u64,
    /// Requests refused for want of room.
    pub overloaded: u64,
    /// Turns that panicked.
    pub panics: u64,
}

/// The public form of a stored reply.
fn reply_of(reply: &StoredReply, token: Token) -> Result<Success, Failure> {
    let (replayed, place) = (true, None);
    match reply {
        StoredReply::Value(value) => Ok(Success { value: value.clone(), token, replayed, place }),
        StoredReply::App(error) => Err(Failure::App { error: error.clone(), token, replayed }),
        StoredReply::Quarantined => Err(Failure::Panicked { quarantined: true }),
    }
}

#[cfg(test)]
mod tests;
