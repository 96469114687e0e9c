//! A call as the rooms pass it on: bytes in, bytes out, and the closed set of what can go wrong.
//!
//! Typed references ([`crate::client`]) encode into these and decode out of them; the HTTP ingress
//! does the same with JSON. Below, nothing knows the user's types.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{IdempotencyKey, Key, KindId, MethodId, NodeId, RequestId, Seq};
use mainstay_protocol::message::{Failure, Mode, Pressure, Success, TraceContext};
use mainstay_protocol::replication::freshness::Freshness;

/// One call, encoded.
#[derive(Debug, Clone)]
pub struct Call {
    /// The entity's kind.
    pub kind: KindId,
    /// The entity's key.
    pub key: Key,
    /// The method.
    pub method: MethodId,
    /// Command or query.
    pub mode: Mode,
    /// How fresh a state a query wants to see; `None` for the default. Of no meaning for a command.
    pub freshness: Option<Freshness>,
    /// The arguments, in named MessagePack.
    pub payload: Bytes,
    /// The caller's idempotency key, commands only.
    pub idempotency: Option<IdempotencyKey>,
    /// The version at which alone the command may run.
    pub if_version: Option<Seq>,
    /// How long the caller waits. A deadline always exists.
    pub deadline: Duration,
    /// Wait for room or refuse at once.
    pub pressure: Pressure,
    /// What may be repeated when the outcome allows it.
    pub retry: Retry,
    /// The trace that this call belongs to.
    pub trace: Option<TraceContext>,
    /// The id of the request; made at the entrance when absent.
    pub id: Option<RequestId>,
    /// The entities whose turns wait for this call, oldest first (`EntityId::hash64`).
    pub chain: Vec<u64>,
    /// The kind of the calling entity, for the locality account.
    pub from_kind: Option<KindId>,
}

/// Which failures a call may repeat by itself, within its deadline and the retry budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// Only what certainly did not run and costs nobody: a stale map.
    #[default]
    StaleMap,
    /// Also `Overloaded`, `Unavailable` and lost connections when nothing ran, or when the call
    /// is a query or carries an idempotency key.
    Safe,
}

/// The answer to a call, and where it came from.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Value, token, replayed.
    pub success: Success,
    /// Who answered; `None` for this process itself.
    pub served_by: Option<NodeId>,
}

/// What every call's future is.
pub type CallFuture = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

/// Something that can carry a call to its entity: the router of a node, an external client, or a
/// turn (which adds its call chain, its gate and derived keys).
pub trait CallPort: Send + Sync {
    /// Carries the call. The failure says what is known about its effect.
    fn call(&self, call: Call) -> CallFuture;
}

/// The deadline of a call that names none.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);
