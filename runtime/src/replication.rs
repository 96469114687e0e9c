//! The other copies of shards: this node's standbys, and the feeds of the shards that it serves.
//!
//! ```text
//!             Goes: segments, watermark                 appends
//!   lanes -----------------------------> Feed  ------------------------->  other nodes
//!     ^  <------------------------------       <------------------------
//!     |        Heard: holds, promises                   answers
//!     |
//!     +-- Promoted -- Standby, Shadow <----------- appends ---------------  other nodes
//!     +-- Left -----> (one per shard)  ----------- answers -------------->
//!                        |       ^
//!                      Persist   | durable
//!                        v       |
//!                       the journal
//! ```
//! All of it runs on one thread, which no user code ever shares: other nodes wait for it. A shard
//! of this node is either *followed* here, or *led*: then its lane has the primary, and this room
//! feeds the others. Which of them it is follows from the map; what a standby, a feed and a primary
//! do is in the rules ([`mainstay_protocol::replication`]).
//!
//! A cluster without standbys has none of this: its lanes keep their shards themselves.

mod arriving;
mod ascents;
pub mod auditing;
pub mod copying;
mod following;
mod keeper;
mod lags;
mod leading;
mod looking;
mod part;
mod saving;
mod shadow;
mod writes;

use std::collections::BTreeMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use mainstay_protocol::control::{Claim, ClusterState};
use mainstay_protocol::dedup;
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::replication::standby;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use crate::events::EventLog;
use crate::lane::LaneInbox;
use crate::lane::inbox::Inbox;
use crate::shard::commit::Saving;
use crate::shard::copies::Told;
use crate::shard::looks::Look;
use crate::storage::{Journal, JournalNews, State, StorageError, StoredState};
use crate::transport;
use crate::transport::handshake::Identity;
use crate::transport::replication::{AcceptedReplication, Appended, Replicator, serve};
pub use arriving::Arriving;
use auditing::Audit;
use auditing::answers::{Audited, Replacing};
use copying::CopyIn;
use copying::arrivals::Offer;
use keeper::Keeper;
pub use looking::Reading;
pub use part::Found;
use part::Opened;
use shadow::{Start, Wanted};

/// Frames of appends that wait for the thread; each connection has its own bound in bytes besides.
const APPENDED_QUEUED_MAX: usize = 256;
/// News of connections that wait for the thread.
const EVENTS_QUEUED_MAX: usize = 256;

/// What reaches this room, beside appends and answers.
#[derive(Debug)]
pub enum Input {
    /// A lane tells how its shards go on.
    Told(Vec<Told>),
    /// The journal answers a batch of standbys.
    Journal(JournalNews),
    /// A shard was read, for this life of it.
    Opened(ShardId, u64, Result<Box<Opened>, StorageError>),
    /// A base was read, for this life of a shard.
    Read(ShardId, u64, Wanted, Result<Option<StoredState>, StorageError>),
    /// A save is over.
    Saved(Vec<(u64, Arc<Saving>)>, Result<(), StorageError>),
    /// What was here of a shard is removed, or stays.
    Removed(ShardId, Result<(), StorageError>),
    /// The turn of a copy of a led shard's states to this node has come.
    CopyTurn((ShardId, Epoch), NodeId, OwnedSemaphorePermit),
    /// A copy of the states to this node ended; and whether it arrived.
    Copied(ShardId, Epoch, NodeId, bool),
    /// A copy of a shard's states wants to begin here.
    CopyBegins(Offer, oneshot::Sender<Option<standby::Ticket>>),
    /// A copy is whole and durable.
    CopyEnds(ShardId, standby::Ticket, Box<Start>, oneshot::Sender<bool>),
    /// A copy broke off.
    CopyBroke(ShardId, standby::Ticket),
    /// Rows of a primary take the place of those here: how many do.
    Replace(Replacing, oneshot::Sender<u32>),
    /// A query wants to be shown what is here; and the room for it, once it waited for that.
    Look(Box<Look>, Option<OwnedSemaphorePermit>),
    /// The tables were read for one.
    Looked(Box<Reading>, Result<Option<StoredState>, StorageError>),
    /// One waited for room for too long.
    NoRoom(Box<Look>),
    /// End.
    Stop(oneshot::Sender<()>),
}

/// The way into this room. Cheap to clone.
pub type ReplicationInbox = Inbox<Input>;

/// What this room needs of its node.
pub struct Setup {
    /// This start of this node.
    pub me: Claim,
    /// The way in, handed to others before.
    pub inbox: ReplicationInbox,
    /// The lanes.
    pub lanes: Vec<LaneInbox>,
    /// The journal.
    pub journal: Journal,
    /// The tables.
    pub state: State,
    /// The map.
    pub map: watch::Receiver<Arc<ClusterState>>,
    /// Who this node is to peers.
    pub identity: Arc<Identity>,
    /// How it connects.
    pub transport: transport::Config,
    /// What the journal had of each shard at the start.
    pub found: BTreeMap<ShardId, Found>,
    /// How long records that make commands take effect once are kept.
    pub dedup: dedup::Config,
    /// Bytes of applied states that no snapshot holds, at most: beyond it nothing more is taken.
    pub dirty_bytes: u64,
    /// How often applied states go into snapshots.
    pub save_every: Duration,
    /// How often all states of a shard are compared with those of its other copies.
    pub audit_every: Duration,
    /// Where what they differ in is told.
    pub events: EventLog,
    /// For what other nodes do not wait for.
    pub background: tokio::runtime::Handle,
    /// To be called when a connection to a node closed that was open.
    pub lost: Arc<dyn Fn(&NodeId) + Send + Sync>,
    /// To be called when this node must end before it does harm.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    /// Where copies of states arrive.
    pub arriving: CopyIn<Arriving>,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Setup {
    fn audit(&self) -> Audit {
        Audit {
            me: self.me.clone(),
            state: self.state.clone(),
            map: self.map.clone(),
            identity: Arc::clone(&self.identity),
            transport: self.transport.clone(),
            events: self.events.clone(),
            every: self.audit_every,
        }
    }

    fn audited(&self) -> Audited {
        let (state, map) = (self.state.clone(), self.map.clone());
        Audited { state, map, standbys: self.inbox.clone() }
    }
}

/// The running room. Dropping it ends it at once.
#[derive(Debug)]
pub struct Replication {
    inbox: ReplicationInbox,
    arriving: CopyIn<Arriving>,
    audited: Audited,
    appended: mpsc::Sender<Appended>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Replication {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the system says when there is no thread to be had.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let runtime = transport::replication::runtime()?;
        let (appended, appends) = mpsc::channel(APPENDED_QUEUED_MAX);
        let (tell, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        let (inbox, arriving) = (setup.inbox.clone(), setup.arriving.clone());
        let replicator = Replicator::new(
            Arc::clone(&setup.identity),
            setup.transport.clone(),
            runtime.handle().clone(),
            tell,
        );
        let maps = setup.map.clone();
        drop(setup.background.spawn(setup.audit().run()));
        let audited = setup.audited();
        let keeper = Keeper::new(setup, replicator, runtime.handle().clone());
        drop(runtime.spawn(keep(keeper.run(appends, events, maps))));
        Ok(Self { inbox, arriving, audited, appended, runtime: Some(runtime) })
    }

    /// What takes accepted connections.
    pub fn acceptor(&self) -> impl Fn(AcceptedReplication) + Send + Sync + 'static {
        let runtime = self.runtime.as_ref().map(|runtime| runtime.handle().clone());
        let appended = self.appended.clone();
        move |accepted| {
            if let Some(runtime) = &runtime {
                drop(runtime.spawn(serve(accepted, appended.clone())));
            }
        }
    }

    /// Where copies of states arrive.
    pub fn arriving(&self) -> CopyIn<Arriving> {
        self.arriving.clone()
    }

    /// What answers the audits of primaries.
    pub fn audited(&self) -> Audited {
        self.audited.clone()
    }

    /// What tells this room how lanes' shards go on.
    pub fn teller(&self) -> impl Fn(Vec<Told>) + Send + Sync + 'static {
        let inbox = self.inbox.clone();
        move |told| drop(inbox.push(Input::Told(told)))
    }

    /// What asks this room to show a query what a standby has. Once the room has ended it gives the
    /// look back.
    pub fn looker(&self) -> impl Fn(Look) -> Result<(), Box<Look>> + Send + Sync + 'static {
        let inbox = self.inbox.clone();
        move |look| match inbox.push(Input::Look(Box::new(look), None)) {
            Err(Input::Look(look, _)) => Err(look),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Ends the room: nothing more is taken or sent.
    pub async fn stop(&self) {
        let (stopped, wait) = oneshot::channel();
        if self.inbox.push(Input::Stop(stopped)).is_ok() {
            drop(wait.await);
        }
    }
}

/// Runs this room. No user code runs here: a panic is a broken invariant, as in a lane. The process
/// ends, since a node that went on would be taken for alive while nothing of it is held or fed.
async fn keep(room: impl Future<Output = ()>) {
    if AssertUnwindSafe(room).catch_unwind().await.is_err() {
        tracing::error!("the room of the other copies broke an invariant; the process ends");
        std::process::abort();
    }
}

impl Drop for Replication {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
