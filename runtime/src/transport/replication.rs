//! Replication between nodes: appends out, answers back.
//!
//! ```text
//!   the primaries' node                              a standby's node
//!   Replicator::send -> queue -- frames of appends --> decoded -> Appended -> inbox
//!   events <- Connected, Answers, Lost <-- frames of answers -- AnswerSender::send
//! ```
//! One connection per peer and direction of feeding, opened by the side that feeds and kept until
//! the peer is forgotten. What is queued while a frame is written shares the next frame, whatever
//! its shard. What was on its way when a connection ended is lost: the feeds send it again.
//!
//! All of it runs on a thread of its own ([`runtime`]): a standby's answer never waits for user
//! code. A stopped process accepts bytes for long, so the other end says how many frames it heard,
//! and one that leaves a frame unheard for long is cut. One that is slow, but lives, stays as long
//! as it takes a byte now and then: whether it is too slow is for the primary's patience to judge.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use mainstay_protocol::id::{BootId, DiskId, NodeId};
use mainstay_protocol::message::Caller;
use mainstay_protocol::replication::wire::{self, DecodeError, EncodeError};
use mainstay_protocol::replication::{Answer, Append};
use tokio::sync::mpsc;

use super::Config;
use super::frame::FrameError;
use super::handshake::{DialError, Identity};

mod feeding;
mod halves;
mod serving;

use feeding::Line;
pub use serving::{AcceptedReplication, AnswerSender, Appended, Room, serve};

/// The thread of all replication connections.
///
/// # Errors
/// What the system says when there is no thread to be had.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("mainstay-replication")
        .enable_all()
        .build()
}

/// A node that feeds standbys here, as its handshake said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feeder {
    /// Its stable name.
    pub node: NodeId,
    /// Its data directory.
    pub disk: DiskId,
    /// Its start.
    pub boot: BootId,
}

impl Feeder {
    /// The caller, unless it is a client.
    pub(super) fn of(caller: Caller) -> Option<Self> {
        match caller {
            Caller::Node { node, disk, boot } => Some(Self { node, disk, boot }),
            Caller::Client { .. } => None,
        }
    }
}

/// News of the connections to peers. Those of one peer come in order: after `Connected` any number
/// of `Answers`, then `Lost`.
#[derive(Debug)]
pub enum Event {
    /// Appends may be sent. What was sent before may be lost.
    Connected {
        /// The peer.
        node: NodeId,
        /// Its start.
        boot: BootId,
    },
    /// Its standbys answered.
    Answers {
        /// The peer.
        node: NodeId,
        /// What they say, in order.
        answers: Vec<Answer>,
    },
    /// The connection ended. What was queued is gone.
    Lost {
        /// The peer.
        node: NodeId,
        /// Why.
        why: Ended,
    },
    /// An attempt to connect failed. The next one is made after a while.
    Unreachable {
        /// The peer.
        node: NodeId,
        /// Why.
        error: DialError,
    },
}

/// Why a replication connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    ByPeer,
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What came is no frame, or not one that may come here.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// A frame came whose body does not decode.
    #[error("the peer broke the protocol: {0}")]
    Decode(#[from] DecodeError),
    /// The peer heard more frames than were sent, or fewer than before.
    #[error("the peer heard {heard} frames of {sent}")]
    Heard {
        /// What it says.
        heard: u64,
        /// What was sent.
        sent: u64,
    },
    /// Frames were sent, and nothing came back for long: the process is stopped, or the way to it
    /// is cut.
    #[error("the peer does not hear")]
    Silent,
    /// The socket took no byte for long.
    #[error("the peer does not read")]
    SlowReader,
    /// The peer did not end a frame in time.
    #[error("the peer did not end a frame in time")]
    SlowWriter,
    /// More waited to be sent than the windows of feeds allow.
    #[error("{bytes} bytes wait for the peer: a feed overstepped its window")]
    Overflow {
        /// How much.
        bytes: usize,
    },
    /// Nothing came for long: the peer is gone without a word.
    #[error("the connection was idle")]
    Idle,
    /// Nobody here wants it any more.
    #[error("the connection is not wanted any more")]
    Forgotten,
}

impl Ended {
    /// A word from a closed set, for metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::ByPeer | Self::Forgotten => "closed",
            Self::Io(_) => "io",
            Self::Frame(_) | Self::Decode(_) | Self::Heard { .. } => "protocol",
            Self::Silent => "silent",
            Self::SlowReader => "slow_reader",
            Self::SlowWriter => "slow_writer",
            Self::Overflow { .. } => "window",
            Self::Idle => "idle",
        }
    }
}

/// Why an append was not queued. It was not sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection now. `Event::Connected` says when there is.
    #[error("there is no connection to {node}")]
    NotConnected {
        /// The peer.
        node: NodeId,
    },
    /// It is none that may be sent. The connection is as before.
    #[error("the append cannot be sent: {0}")]
    Unsendable(#[from] EncodeError),
    /// Too much waits already. The connection ends, and with it all that waits.
    #[error("{bytes} bytes wait for {node}")]
    Overflow {
        /// The peer.
        node: NodeId,
        /// How much.
        bytes: usize,
    },
}

/// The feeding side of all replication connections of a node. Clones share it.
#[derive(Debug, Clone)]
pub struct Replicator(Arc<Set>);

#[derive(Debug)]
struct Set {
    identity: Arc<Identity>,
    config: Config,
    runtime: tokio::runtime::Handle,
    events: mpsc::Sender<Event>,
    lines: RwLock<BTreeMap<NodeId, Arc<Line>>>,
}

impl Replicator {
    /// No connections yet. They live on `runtime`, and tell `events`: while it is full, nothing
    /// more is read.
    pub fn new(
        identity: Arc<Identity>,
        config: Config,
        runtime: tokio::runtime::Handle,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let lines = RwLock::default();
        Self(Arc::new(Set { identity, config, runtime, events, lines }))
    }

    /// Keeps a connection to this node, reached at `addr`, until it is forgotten.
    pub fn connect(&self, node: &NodeId, addr: &str) {
        let mut lines = self.0.lines.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(node) {
            line.want(addr);
            return;
        }
        let line = Arc::new(Line::new(node.clone(), addr.to_owned()));
        lines.insert(node.clone(), Arc::clone(&line));
        drop(lines);
        self.0.runtime.spawn(feeding::run(Arc::clone(&self.0), line));
    }

    /// Ends and forgets the connections to nodes for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(&NodeId) -> bool) {
        let lines = self.0.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.values().filter(|line| !keep(&line.node)).for_each(|line| line.forget());
    }

    /// Ends and forgets all connections.
    pub fn close(&self) {
        self.retain(|_| false);
    }

    /// Queues an append for this node. Never blocks.
    ///
    /// # Errors
    /// [`SendError`]; the append was not sent.
    pub fn send(&self, to: &NodeId, append: Append) -> Result<(), SendError> {
        let bytes = wire::check(&append)?;
        let lines = self.0.lines.read().unwrap_or_else(PoisonError::into_inner);
        match lines.get(to) {
            Some(line) => line.send(append, bytes, self.0.config.append_queue_bytes),
            None => Err(SendError::NotConnected { node: to.clone() }),
        }
    }

    /// Bytes that wait for this node. For tests and status pages.
    pub fn queued_bytes(&self, node: &NodeId) -> usize {
        let lines = self.0.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.get(node).map_or(0, |line| line.queued_bytes())
    }
}

impl Set {
    /// Lets a line go that nobody wants; `false` when somebody does again.
    fn let_go(&self, line: &Line) -> bool {
        let mut lines = self.lines.write().unwrap_or_else(PoisonError::into_inner);
        let goes = !line.is_wanted();
        if goes {
            lines.remove(&line.node);
        }
        goes
    }
}
