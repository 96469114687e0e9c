//! What a handler is given beside its arguments: who it is, what time it is, the way out.

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::id::{EntityId, Key, RequestId};
use mainstay_protocol::message::TraceContext;
use mainstay_protocol::time::LogTime;

use super::host::TurnContext;
use super::{Entity, Ref};

/// The context of one turn.
#[derive(Debug)]
pub struct Cx<'t> {
    turn: &'t TurnContext,
}

impl<'t> Cx<'t> {
    /// The context of this turn.
    pub const fn new(turn: &'t TurnContext) -> Self {
        Self { turn }
    }

    /// The key of the entity whose turn it is.
    pub fn key(&self) -> &Key {
        &self.turn.entity.key
    }

    /// The entity whose turn it is.
    pub fn entity(&self) -> &EntityId {
        &self.turn.entity
    }

    /// The request that the turn answers. A repeated one has the same.
    pub fn request(&self) -> RequestId {
        self.turn.request
    }

    /// Log time: the only clock that a handler should trust. It never runs backwards within a
    /// shard, whichever node is its primary.
    pub fn now(&self) -> LogTime {
        self.turn.now
    }

    /// How long the caller still waited when the turn began.
    pub fn remaining(&self) -> Duration {
        self.turn.remaining
    }

    /// The trace that the turn belongs to.
    pub fn trace(&self) -> Option<TraceContext> {
        self.turn.trace
    }

    /// Another entity, to call from an `async fn`. No I/O happens before a call is awaited, and
    /// nothing leaves before what this turn has read is committed.
    pub fn get<E: Entity>(&self, key: &str) -> E::Ref {
        Ref::<E>::new(Arc::clone(&self.turn.port), key).into()
    }
}
