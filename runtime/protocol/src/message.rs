//! What travels between processes: the handshake, requests and replies, control messages.
//!
//! A frame is `u32 length (little endian, of what follows) | u8 tag | body`. The body is compact
//! MessagePack of one of the types here; payloads inside are opaque bytes in named MessagePack.
//!
//! | tag | body | from, to |
//! |--:|---|---|
//! | 1 | [`Hello`] | whoever connects, first frame |
//! | 2 | [`Welcome`] | the accepter, first frame |
//! | 3 | [`Reject`] | the accepter, instead of a welcome; then it closes |
//! | 10 | [`Request`] | caller to owner |
//! | 11 | [`Reply`] | owner to caller; gives the request's credits back |
//! | 12 | [`Cancel`] | caller to owner: nobody waits for this request any more |
//! | 20 | [`ControlRequest`] | either way on a control connection |
//! | 21 | [`ControlReply`] | its answer |
//! | 30, 31 | shard states, and their answers | see `snapshot` |
//! | 40 | appends | primary's node to a standby's; no MessagePack, see `replication::wire` |
//! | 41 | answers | the way back |

mod control;
mod request;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{
    BootId, ClusterId, DiskId, Epoch, IdempotencyKey, Key, KindId, MethodId, NodeId, RequestId,
    Seq, ShardId, Token,
};
use crate::replication::freshness::Freshness;

pub use self::control::{ConsensusCall, ControlAnswer, ControlBody, ControlReply, ControlRequest};

/// The wire version that this build speaks; it also understands the one before, from version 2 on.
pub const WIRE_VERSION: u16 = 1;
/// The first bytes of a [`Hello`], so that a stranger on the port is told apart at once.
pub const MAGIC: [u8; 4] = *b"MSTY";

/// The tag of a frame. See the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// A [`Hello`].
    Hello = 1,
    /// A [`Welcome`].
    Welcome = 2,
    /// A [`Reject`].
    Reject = 3,
    /// A [`Request`].
    Request = 10,
    /// A [`Reply`].
    Reply = 11,
    /// A [`Cancel`].
    Cancel = 12,
    /// A [`ControlRequest`].
    ControlRequest = 20,
    /// A [`ControlReply`].
    ControlReply = 21,
    /// A chunk of a shard's state on a snapshot connection.
    Snapshot = 30,
    /// The answer to a snapshot message.
    SnapshotReply = 31,
    /// Appends of shards; see `replication::wire`.
    Appends = 40,
    /// Answers to appends; see `replication::wire`.
    Answers = 41,
}

impl Tag {
    /// The tag of this byte, if it is one.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Reject,
            10 => Self::Request,
            11 => Self::Reply,
            12 => Self::Cancel,
            20 => Self::ControlRequest,
            21 => Self::ControlReply,
            30 => Self::Snapshot,
            31 => Self::SnapshotReply,
            40 => Self::Appends,
            41 => Self::Answers,
            _ => return None,
        })
    }
}

/// What a connection is for. Different things never share one, so that a heartbeat is never behind
/// a snapshot. A build that does not know one of them refuses it as [`Reject::Malformed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Requests to the shards of one lane of the accepter.
    Requests {
        /// The accepter's lane.
        lane: u16,
    },
    /// Heartbeats, consensus, joining, the map.
    Control,
    /// Shard state on the move.
    Snapshots,
    /// The caller's primaries feed standbys of the accepter.
    Replication,
}

/// Who is calling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Caller {
    /// A member, or a process that wants to become one (then it knows no cluster yet).
    Node {
        /// Its stable name.
        node: NodeId,
        /// Its data directory.
        disk: DiskId,
        /// Its start.
        boot: BootId,
    },
    /// A client program: it calls entities and reads the map, nothing else.
    Client {
        /// What it calls itself, for logs.
        name: String,
    },
}

/// The first frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// The oldest wire version that the caller speaks.
    pub wire_min: u16,
    /// The newest wire version that the caller speaks.
    pub wire_max: u16,
    /// The caller's cluster; `None` for a client, and for a node that has not joined one.
    pub cluster: Option<ClusterId>,
    /// Who calls.
    pub caller: Caller,
    /// The node that the caller means to reach, checked by the accepter: addresses get reused.
    pub to: Option<NodeId>,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// A window of credits, in messages and bytes. Both are taken by each request and given back by
/// its reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Requests without a reply.
    pub messages: u32,
    /// Bytes of requests without a reply.
    pub bytes: u64,
}

/// The accepter's yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The wire version of this connection: the newest that both speak.
    pub wire: u16,
    /// The accepter's cluster; `None` while it has not joined one (control connections only).
    pub cluster: Option<ClusterId>,
    /// The accepter.
    pub node: NodeId,
    /// Its start.
    pub boot: BootId,
    /// How many lanes it has; request connections are opened to each.
    pub lanes: u16,
    /// What may be outstanding on this connection.
    pub window: Window,
    /// The version of the map that the accepter holds.
    pub map_version: u64,
}

/// Why a handshake was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Reject {
    /// No common wire version. Upgrade the older side first.
    #[error("no common wire version: the peer speaks {min} to {max}")]
    Version {
        /// The oldest version that the accepter speaks.
        min: u16,
        /// The newest.
        max: u16,
    },
    /// The caller belongs to another cluster. Nothing was changed.
    #[error("the peer belongs to cluster {accepter}, the caller to {caller}")]
    Cluster {
        /// The accepter's cluster.
        accepter: ClusterId,
        /// The caller's.
        caller: ClusterId,
    },
    /// Another node answers at this address. Refresh the map.
    #[error("this address is node {is}, not {meant}")]
    Node {
        /// Who answers.
        is: NodeId,
        /// Who was meant.
        meant: NodeId,
    },
    /// No such lane. Refresh the map.
    #[error("lane {lane} does not exist, the peer has {lanes}")]
    Lane {
        /// The lane asked for.
        lane: u16,
        /// How many there are.
        lanes: u16,
    },
    /// The accepter has as many connections as it takes, or is shutting down. Try later.
    #[error("the peer takes no more connections: {reason}")]
    Busy {
        /// Why.
        reason: String,
    },
    /// The first frame was no hello of this protocol.
    #[error("not a Mainstay handshake: {reason}")]
    Malformed {
        /// What was wrong with it.
        reason: String,
    },
}

/// Whether a request changes its entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// May change state: runs at the primary only, is logged and deduplicated.
    Command,
    /// Cannot change state.
    Query,
}

/// What to do when there is no room: wait within the deadline, or refuse at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pressure {
    /// Wait for room until the deadline.
    Wait,
    /// Refuse at once with `Overloaded`.
    Refuse,
}

/// A W3C trace context: which trace this belongs to, and the span that caused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    /// 128-bit trace id, never zero.
    pub trace: u128,
    /// 64-bit id of the parent span, never zero.
    pub span: u64,
    /// The caller records this trace.
    pub sampled: bool,
}

/// One call on its way to the owner of its entity.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// Names the call on this connection; the reply repeats it.
    pub correlation: u64,
    /// Names the call for ever.
    pub id: RequestId,
    /// The shard that the caller's map says; the owner checks it.
    pub shard: ShardId,
    /// The epoch that the caller's map says; 0 when it does not know.
    pub epoch: Epoch,
    /// The entity's kind.
    pub kind: KindId,
    /// The entity's key.
    pub key: Key,
    /// The method.
    pub method: MethodId,
    /// Command or query.
    pub mode: Mode,
    /// Wait for room or refuse.
    pub pressure: Pressure,
    /// Microseconds until the deadline, counted from arrival. A deadline always exists.
    pub remaining_us: u64,
    /// The caller's idempotency key, commands only.
    pub idempotency: Option<IdempotencyKey>,
    /// The entities whose turns wait for this call, oldest first, as `EntityId::hash64`.
    pub chain: Vec<u64>,
    /// How often this request was sent before.
    pub attempt: u16,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
    /// The kind of the calling entity, for the locality account.
    pub from_kind: Option<KindId>,
    /// The arguments, in named MessagePack.
    pub payload: Bytes,
    /// The version at which alone the command may run; 0 is that of an entity never written. Not
    /// on the wire when absent: a build that does not know it refuses the request, and cannot run
    /// it unconditionally.
    #[serde(default)]
    pub if_version: Option<Seq>,
    /// How fresh a state a query wants to see; `None` for the default. Not on the wire when absent,
    /// either. Boxed, since few queries say so and all requests are moved about.
    #[serde(default)]
    pub freshness: Option<Box<Freshness>>,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's correlation.
    pub correlation: u64,
    /// What came of it.
    pub result: Result<Success, Failure>,
}

/// A caller gives up: a request that waits in a queue need not run. One that runs, runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The request's correlation.
    pub correlation: u64,
}

/// A call that was executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Success {
    /// The method's value, in named MessagePack.
    pub value: Bytes,
    /// Where the entity stood: a later read can ask to include it.
    pub token: Token,
    /// The answer is the stored one of an earlier call with the same idempotency key.
    pub replayed: bool,
    /// Where the whole shard stood, told to a query of some age by the primary; not on the wire when
    /// absent. The token says less: when its own entity changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Seq>,
}

/// What is known about a call that gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// It did not run and will not.
    NotExecuted,
    /// It ran, and its effect stays.
    Executed,
    /// It may have run, or may still. Ask again with the same idempotency key.
    Unknown,
}

/// Why a call has no value. Each variant says what is true and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// The entity refused: its own error, in named MessagePack. State, timers, outbox are as
    /// before.
    App {
        /// The error.
        error: Bytes,
        /// Where the entity stood.
        token: Token,
        /// The refusal is the stored one of an earlier call with the same idempotency key.
        replayed: bool,
    },
    /// No room: mailbox, window or byte budget. Not executed; try after the given time.
    Overloaded {
        /// Milliseconds to wait before the next try.
        retry_after_ms: u64,
        /// Which bound was reached: "mailbox", "window", "memory", "uncommitted", "dedup",
        /// "shard", "disk".
        bound: String,
    },
    /// The deadline passed.
    Deadline {
        /// Not executed when it passed in a queue, unknown when the turn had begun.
        outcome: Outcome,
    },
    /// This node is not the shard's primary (any more, or not yet). Not executed.
    NotPrimary {
        /// The version of the map that the refuser holds.
        map_version: u64,
        /// Who is, as far as it knows.
        primary: Option<NodeId>,
    },
    /// The shard cannot serve: no primary, storage failed, the primary stepped down.
    Unavailable {
        /// Whether it may have run.
        outcome: Outcome,
        /// Why, in one sentence.
        reason: String,
    },
    /// This node does not know the kind, or the kind has no such method. Not executed.
    Unknown {
        /// "kind" or "method".
        what: String,
    },
    /// The arguments do not decode. Not executed.
    Malformed {
        /// What is wrong, and where.
        reason: String,
    },
    /// The idempotency key was used with another payload or method, or a call under it is under way
    /// with another condition. Not executed.
    KeyConflict,
    /// The entity is at another version than the command was to run at. Not executed, and not
    /// recorded; a version that has passed does not come back.
    VersionMismatch {
        /// Where the entity stood.
        token: Token,
    },
    /// The entity is already on this call's chain: A calls B calls A. Not executed.
    Reentrant,
    /// The handler panicked. State is as before; three panics on one input quarantine the input.
    Panicked {
        /// The input will not be tried again.
        quarantined: bool,
    },
    /// A stored or sent state is of a version that this build cannot read.
    Version {
        /// What was found and what is understood.
        reason: String,
    },
    /// No copy that could be asked shows a state as fresh as the query wants it. Not executed. Told
    /// only to queries that want some [`Freshness`].
    Stale {
        /// What is wanted, and what there is.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
