//! What the HTTP layer needs of a running node, and nothing else.
//!
//! The cluster handle implements [`Backend`]; tests implement it with a fake. [`Launch`] makes one
//! out of settings: the registry of a program's entities does.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mainstay::call::{Call, CallFuture};
pub use mainstay::cluster::{EntityRow, Inspection};
use mainstay::config::Config;
use mainstay::entity::host::KindHost;
use mainstay::events::EventRecord;
use mainstay::protocol::control::ClusterState;
use mainstay::protocol::id::{BootId, EntityId, KindId, NodeId};
use tokio::sync::broadcast;

/// A future that is its own type.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A running node.
pub trait Backend: Send + Sync + 'static {
    /// Waits until the node is a member and serves what the map gives it. Calls may come in then.
    fn ready(&self) -> BoxFuture<Result<(), LaunchError>>;

    /// Waits until the node ends without having been told to by this process; an error when it
    /// cannot go on. It is shut down after that.
    fn ended(&self) -> BoxFuture<Result<(), LaunchError>>;

    /// The kinds that this node hosts, by name.
    fn kinds(&self) -> Vec<Arc<dyn KindHost>>;

    /// The kind of this name.
    fn kind(&self, name: &str) -> Option<Arc<dyn KindHost>>;

    /// Carries a call to its entity.
    fn call(&self, call: Call) -> CallFuture;

    /// Waits until the node takes a request of this many bytes. Asked before a body is read, so
    /// that a node at its limit leaves bodies in the senders' sockets. Dropping the future gives
    /// the place in the queue up.
    fn reserve(&self, bytes: u64) -> BoxFuture<Box<dyn Permit>>;

    /// Takes room for a request of this many bytes if there is some at once.
    fn try_reserve(&self, bytes: u64) -> Option<Box<dyn Permit>>;

    /// What the cluster has agreed on, as this node knows it.
    fn state(&self) -> Arc<ClusterState>;

    /// This node, now.
    fn node(&self) -> NodeView;

    /// The kept events with a greater id than `after`, and all that follow, without a gap.
    fn events(&self, after: u64) -> EventFeed;

    /// Stored and active entities of one kind on this node, in key order.
    fn scan(&self, scan: Scan) -> BoxFuture<Result<Vec<EntityRow>, AdminError>>;

    /// One entity, as this node knows it.
    fn inspect(&self, entity: EntityId) -> BoxFuture<Result<Inspection, AdminError>>;

    /// Changes who takes part.
    fn change_member(&self, change: MemberChange) -> BoxFuture<Result<(), AdminError>>;

    /// Who called whom from here, and how far away, since the node started: the pairs that cost
    /// most remote bytes, dearest first.
    fn locality(&self) -> Vec<LocalityRow>;

    /// Ends everything in order: no new turns, journal flushed, storage closed.
    fn shutdown(&self) -> BoxFuture<()>;
}

/// Room for one request, given back when dropped.
pub trait Permit: Send {
    /// Gives back what is above `bytes`: a body of unknown length is reserved at its largest.
    fn shrink_to(&mut self, bytes: u64);
}

/// Starts a node.
pub trait Launch: Send + 'static {
    /// The names of the kinds that it will host.
    fn kinds(&self) -> Vec<&'static str>;

    /// Starts one with these settings, on the tokio runtime that runs this. It has recovered its
    /// data then, and begins to look for its cluster; [`Backend::ready`] tells when it serves. To be
    /// awaited to its end: a node that was started is shut down in order.
    fn launch(self: Box<Self>, config: Config) -> BoxFuture<Result<Arc<dyn Backend>, LaunchError>>;
}

/// Why a node did not start. Nothing was changed unless the text says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct LaunchError {
    /// The error code: `MS-1203`.
    pub code: &'static str,
    /// What happened, in one sentence.
    pub text: String,
    /// The things involved, each with its name: `data dir`, `joining`.
    pub facts: Vec<(&'static str, String)>,
    /// What to do, as commands where there are some.
    pub help: Vec<String>,
}

/// What a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Recovering its data.
    Starting,
    /// Looking for its cluster.
    Joining,
    /// Serving.
    Ready,
    /// Handing its shards over.
    Draining,
    /// Ending.
    Stopping,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
        })
    }
}

/// A node, at one moment.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its name.
    pub name: NodeId,
    /// Its start.
    pub boot: BootId,
    /// Its failure zone, or empty.
    pub zone: String,
    /// What it is doing.
    pub phase: Phase,
    /// How long it runs.
    pub uptime: Duration,
    /// Its lanes.
    pub lanes: u16,
    /// The consensus leader, as far as it knows.
    pub leader: Option<NodeId>,
    /// Where it really listens for peers.
    pub peers_addr: String,
    /// Entities in memory.
    pub entities: u64,
    /// Bytes of their state.
    pub state_bytes: u64,
    /// Requests inside it now.
    pub requests: u64,
    /// Its checks.
    pub checks: Vec<Check>,
}

/// Something that must hold for a node to be alive, started or ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name, one word: `lanes`, `journal`, `member`.
    pub name: &'static str,
    /// Which probe it belongs to.
    pub probe: Probe,
    /// It holds.
    pub ok: bool,
    /// What was seen, for people: `slowest lane 3 ms ago`.
    pub text: String,
}

/// The probes; a later one asks for all that earlier ones ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// The process makes progress. Depends on no peer and no disk: failing it restarts the node.
    Live,
    /// Recovery is done.
    Started,
    /// Calls may be sent here.
    Ready,
}

/// The events that are kept, and those to come.
#[derive(Debug)]
pub struct EventFeed {
    /// Kept ones, oldest first.
    pub kept: Vec<EventRecord>,
    /// What follows them. A reader that is too slow misses some: ids then jump.
    pub live: broadcast::Receiver<EventRecord>,
}

/// Which entities to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The kind.
    pub kind: KindId,
    /// Only keys that begin so.
    pub prefix: String,
    /// Only keys after this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// A change of who takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// Hands its shards over, then leaves.
    Drain(NodeId),
    /// Stays after all.
    Undrain(NodeId),
    /// Leaves for good; refused while it holds shards.
    Remove(NodeId),
}

impl MemberChange {
    /// Whom it is about.
    pub fn node(&self) -> &NodeId {
        match self {
            Self::Drain(node) | Self::Undrain(node) | Self::Remove(node) => node,
        }
    }
}

/// Calls from one kind to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalityRow {
    /// The calling kind; `None` for callers outside.
    pub from: Option<KindId>,
    /// The called kind.
    pub to: KindId,
    /// Answered on this node.
    pub local: u64,
    /// Bytes of their arguments and values.
    pub local_bytes: u64,
    /// Answered on another.
    pub remote: u64,
    /// Bytes of their arguments and values.
    pub remote_bytes: u64,
}

/// Why an admin request was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// It names something that does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What: `member n9`.
        what: String,
    },
    /// It names no member.
    #[error("{node} is no member: it left the cluster, was removed, or never joined")]
    NoMember {
        /// The name.
        node: NodeId,
    },
    /// The cluster's rules forbid it, or another change came first.
    #[error("{reason}")]
    Conflict {
        /// Which rule.
        reason: String,
    },
    /// It cannot be decided now: no leader, storage busy, shutting down. Try again.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}
