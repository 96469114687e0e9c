//! Looks: queries at a shard's standby, on their way from its lane to those who follow it and back.
//!
//! ```text
//!   request --> lane --Look--> who follows the shard: has this copy applied enough?
//!                 ^                    | wait a little | dirty states | tables
//!                 +-------Seen---------+
//!                 the query runs here, as all user code does
//! ```
//! A look carries its request with it, so that its caller is answered whatever becomes of it. What
//! bounds looks is what bounds requests: each holds its caller's permit. The states that they are
//! shown have a bound of their own, [`SHOWN_MAX`].

use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{EntityId, Seq, ShardId, Token};
use mainstay_protocol::time::{Instant, LogTime};
use tokio::sync::OwnedSemaphorePermit;

use super::admission::Target;
use crate::transport::reply::Envelope;

/// States of one node that are being read for looks, or are on their way to a lane. Of the largest
/// they take half a gibibyte, of usual ones next to nothing.
pub const SHOWN_MAX: usize = 64;
/// How long a look waits at a standby, at most: two heartbeats, by which a standby learns what is
/// committed. Who waits longer asks the primary.
pub const PATIENCE: Duration = Duration::from_millis(50);

/// A query that wants to be shown what a standby has.
#[derive(Debug)]
pub struct Look {
    /// The shard.
    pub shard: ShardId,
    /// The entity.
    pub entity: EntityId,
    /// What the state must include.
    pub token: Token,
    /// Until then it waits for that.
    pub until: Instant,
    /// Its method.
    pub target: Target,
    /// The request.
    pub envelope: Envelope,
}

/// What came of a look.
#[derive(Debug)]
pub struct Seen {
    /// The look.
    pub look: Look,
    /// What is shown to it.
    pub shown: Shown,
}

/// What is shown to a look.
#[derive(Debug)]
pub enum Shown {
    /// A committed state.
    State(ShownState),
    /// This copy has not applied enough.
    Behind {
        /// Where it stands; `None` when it is not whole.
        have: Option<Token>,
    },
    /// This node does not follow the shard.
    Elsewhere,
    /// As many states are shown as may be.
    Full,
    /// The state cannot be read.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// A committed state of an entity, its version, and where its shard stood.
#[derive(Debug)]
pub struct ShownState {
    /// The encoded state; `None` for an entity that was never written.
    pub bytes: Option<Bytes>,
    /// The entry that made it; 0 for an entity that was never written.
    pub version: Seq,
    /// Where the copy stood: all that the shard did up to there is in it.
    pub place: Token,
    /// The log time there.
    pub log_time: LogTime,
    /// Its place among the states that are shown.
    pub room: OwnedSemaphorePermit,
}

impl ShownState {
    /// What an answer says of it: the entity's version, as its primary says it, in the epoch of the
    /// newest entry that the copy has.
    pub fn token(&self) -> Token {
        Token { seq: self.version, ..self.place }
    }
}
