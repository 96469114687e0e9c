//! A running node: the only room that knows all others, and the handle through which a program,
//! the HTTP ingress and the command line reach the cluster.
//!
//! ```text
//!   thread               runs
//!   mainstay-control     consensus, membership, heartbeats, the director: what other nodes wait for
//!   arbiter, one a core  lanes: the users' entities, and the request connections that call them
//!   mainstay-ingress     HTTP, handshakes, outgoing requests, copies of moving shards
//!   storage threads      journal, snapshots, loads, the control log
//! ```
//! User code shares no thread with what other nodes wait for.

mod admin;
mod doors;
mod peers;
mod phase;
mod proposals;
mod start;
#[cfg(test)]
mod tests;
mod threads;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::Addr;
use futures_util::future::join_all;
use mainstay_protocol::control::{Claim, ClusterState};
use mainstay_protocol::id::NodeId;
use tokio::sync::watch;

use crate::call::{Call, CallFuture, CallPort};
use crate::client::Ref;
use crate::clock;
use crate::control::ControlHandle;
use crate::control::plane::ControlPlane;
use crate::entity::{Entity, Registry};
use crate::events::EventLog;
use crate::ingress::{Door, DoorPort, Permit};
use crate::lane::{LaneActor, LaneInbox, StopLane};
use crate::replication::Replication;
use crate::router::Router;
use crate::storage::{Journal, State, Storage};

pub use admin::{AdminError, EntityRow, Inspection, NodeView};
pub use phase::Phase;
pub use start::StartError;

/// How long the lanes may take to their end.
const LANES_END: Duration = Duration::from_secs(10);

/// A running node. Cheap to clone; the node runs until [`Cluster::shutdown`].
#[derive(Debug, Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    me: Claim,
    zone: String,
    peer_addr: String,
    started_at: mainstay_protocol::time::Instant,
    registry: Arc<Registry>,
    router: Router,
    door: Door,
    port: Arc<dyn CallPort>,
    control: ControlHandle,
    plane: Arc<ControlPlane>,
    events: EventLog,
    lanes: Vec<Lane>,
    journal: Journal,
    state: State,
    phase: watch::Sender<Phase>,
    ending: Mutex<Option<Ending>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("node", &self.me.node).finish_non_exhaustive()
    }
}

/// A lane, from outside.
#[derive(Debug, Clone)]
struct Lane {
    inbox: LaneInbox,
    addr: Addr<LaneActor>,
}

/// What only the end of a node takes apart.
#[derive(Debug)]
struct Ending {
    storage: Arc<Storage>,
    replication: Replication,
    ingress: Ingress,
    control: tokio::runtime::Handle,
    system: actix::System,
    system_thread: std::thread::JoinHandle<()>,
}

/// The runtime of the ingress. Dropping it never waits, so that a node may be let go anywhere, also
/// inside another runtime.
#[derive(Debug)]
struct Ingress(Option<tokio::runtime::Runtime>);

impl Ingress {
    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.0.as_ref().expect("only the drop takes the runtime out")
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// Starts a node: recovers its data, listens, and begins to look for its cluster. Returns when
    /// it listens; [`Cluster::ready`] tells when it serves. Blocks while data is recovered.
    ///
    /// # Errors
    /// [`StartError`], by what is wrong. Nothing runs then.
    pub fn start(config: crate::config::Config, registry: Registry) -> Result<Self, StartError> {
        // On a thread of its own, so that it may be called inside an async runtime too.
        std::thread::spawn(move || start::start(config, registry))
            .join()
            .unwrap_or_else(|_| Err(StartError::Thread("the start panicked".to_owned())))
    }

    /// The node's name.
    pub fn node(&self) -> &NodeId {
        &self.0.me.node
    }

    /// Where it really listens for peers and Rust clients.
    pub fn peer_addr(&self) -> &str {
        &self.0.peer_addr
    }

    /// The kinds that it hosts.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.0.registry
    }

    /// A reference to an entity: no I/O, no create step.
    pub fn get<E: Entity>(&self, key: &str) -> E::Ref {
        Ref::<E>::new(self.port(), key).into()
    }

    /// The way to all entities, through this node's door: waits for room, or refuses.
    pub fn port(&self) -> Arc<dyn CallPort> {
        Arc::clone(&self.0.port)
    }

    /// Carries a call whose room was reserved at [`Cluster::door`] before.
    pub fn route(&self, call: Call) -> CallFuture {
        self.0.router.call(call)
    }

    /// The credits of this node.
    pub fn door(&self) -> &Door {
        &self.0.door
    }

    /// Waits for room for a request of this many bytes.
    pub async fn reserve(&self, bytes: u64) -> Permit {
        self.0.door.reserve(bytes).await
    }

    /// What the cluster has agreed on, as this node knows it.
    pub fn map(&self) -> Arc<ClusterState> {
        self.0.control.current()
    }

    /// The control plane.
    pub fn control(&self) -> &ControlHandle {
        &self.0.control
    }

    /// The event log of this node.
    pub fn events(&self) -> &EventLog {
        &self.0.events
    }

    /// What the node is doing, and every change of it.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.0.phase.subscribe()
    }

    /// Waits until this node is a member and serves what the map gives it. Also comes back when
    /// it left its cluster before that: then [`Cluster::ended`] has nothing to wait for.
    ///
    /// # Errors
    /// [`StartError`] when it cannot join or go on; or was told to end.
    pub async fn ready(&self) -> Result<(), Arc<StartError>> {
        tokio::select! {
            biased;
            over = self.over() => match over {
                Phase::Failed(error) => Err(error),
                Phase::Stopping => Err(Arc::new(StartError::Stopped)),
                Phase::Left | Phase::Joining | Phase::Member => Ok(()),
            },
            () = self.serving() => Ok(()),
        }
    }

    /// Waits until the node does not serve any more: it left its cluster, or was told to end.
    ///
    /// # Errors
    /// [`StartError`] when it cannot go on. It still runs: shut it down, then start it again.
    pub async fn ended(&self) -> Result<(), Arc<StartError>> {
        match self.over().await {
            Phase::Failed(error) => Err(error),
            Phase::Left | Phase::Stopping | Phase::Joining | Phase::Member => Ok(()),
        }
    }

    /// The first phase in which the node serves no more.
    async fn over(&self) -> Phase {
        let mut phase = self.phase();
        let over = phase.wait_for(Phase::is_over).await;
        over.map_or(Phase::Stopping, |phase| phase.clone())
    }

    async fn serving(&self) {
        let mut phase = self.phase();
        // Its sender is in this very handle.
        drop(phase.wait_for(|phase| *phase == Phase::Member).await);
        while !self.serves().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// [`Cluster::ready`] for programs without a runtime. Must not be called inside one.
    ///
    /// # Errors
    /// As there.
    pub fn ready_blocking(&self) -> Result<(), Arc<StartError>> {
        let this = self.clone();
        let wait = async move { this.ready().await };
        run_apart(wait).unwrap_or_else(|| Err(Arc::new(StartError::Stopped)))
    }

    /// Ends the node in order: no new turns, everything answered and durable, storage closed.
    /// The second call does nothing.
    pub async fn shutdown(&self) {
        self.0.phase.send_replace(Phase::Stopping);
        let lanes = self.0.lanes.iter().map(|lane| lane.addr.send(StopLane));
        // A lane that is gone has nothing left to end. One that waits for a disk without space, or
        // for a handler that does not come back, is left: what it acknowledged is in the journal.
        if tokio::time::timeout(LANES_END, join_all(lanes)).await.is_err() {
            tracing::warn!("the lanes did not come to their end, the node ends without");
        }
        let ending = self.0.ending.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(ending) = ending else { return };
        let plane = Arc::clone(&self.0.plane);
        drop(tokio::time::timeout(Duration::from_secs(2), ending.replication.stop()).await);
        let closed = ending.control.spawn(async move { plane.shutdown().await });
        drop(tokio::time::timeout(Duration::from_secs(2), closed).await);
        // Joining threads blocks.
        let ended = std::thread::spawn(move || ending.end());
        while !ended.is_finished() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// [`Cluster::shutdown`] for programs without a runtime. Must not be called inside one.
    pub fn shutdown_blocking(&self) {
        let this = self.clone();
        run_apart(async move { this.shutdown().await });
    }

    fn uptime(&self) -> Duration {
        clock::now().saturating_since(self.0.started_at)
    }
}

impl Ending {
    fn end(self) {
        let Self { storage, replication, ingress, system, system_thread, control: _ } = self;
        drop(replication);
        drop(ingress);
        system.stop();
        if system_thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
        if let Ok(storage) = Arc::try_unwrap(storage) {
            storage.close();
        } else {
            tracing::warn!("storage is still in use; it closes with its last user");
        }
    }
}

/// Runs a future on a small runtime and thread of its own; `None` when it panicked.
fn run_apart<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Option<T> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        Some(runtime.block_on(future))
    });
    thread.join().ok().flatten()
}

/// The door, then the router.
fn port_of(door: &Door, router: &Router) -> Arc<dyn CallPort> {
    Arc::new(DoorPort::new(door.clone(), Arc::new(router.clone())))
}
