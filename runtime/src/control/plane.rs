//! The control plane of a node, wired: store, consensus, director, membership, and what peers ask.
//!
//! ```text
//!   start    opens the store, starts consensus and the actors; takes part in nothing yet
//!   service  what the transport calls for each question of a peer, from the start on
//!   join     becomes a member; then the node serves
//! ```
//!
//! It starts and lives on the control thread: its tasks share that thread's runtime.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::Addr;
use mainstay_protocol::control::{
    Applied, ClusterState, Command, Grouping, Member, ProposeRefused,
};
use mainstay_protocol::id::{ClusterId, DiskId, NodeId};
use mainstay_protocol::membership::{Candidate, JoinRefused, Wire, check_join};
use mainstay_protocol::message::{Caller, ControlAnswer, ControlBody};
use tokio::sync::watch;

use super::ControlHandle;
use super::actor::{self, ControlActor};
use super::consensus::{self, Consensus, Fatal, OnEvents, Timing};
use super::succession::{self, Succession};
use crate::config::{ClusterOptions, Detection};
use crate::membership::{
    self, Agreement, AgreementFuture, JoinError, Joiner, LeaveError, MembershipHandle, Patience,
    PeerCaller, ReadProgress,
};
use crate::storage::control::{ControlStore, ControlStoreError, Slot};

/// Writes the cluster's id to the identity of the data directory, durably. Called on a thread
/// that may block.
pub type KeepCluster = Arc<dyn Fn(ClusterId) -> std::io::Result<()> + Send + Sync>;

/// What the control plane is made of.
pub struct Setup {
    /// The node's name.
    pub node: NodeId,
    /// The node as it registers: disk, start, addresses, zone, weight, lanes; `Up`.
    pub member: Member,
    /// The cluster that the data directory belongs to.
    pub cluster: Option<ClusterId>,
    /// How the node's kinds group.
    pub grouping: Grouping,
    /// Where `control.redb` lives.
    pub data_dir: PathBuf,
    /// Creating and joining.
    pub options: ClusterOptions,
    /// How deaths are noticed.
    pub detection: Detection,
    /// When a leader counts as gone.
    pub timing: Timing,
    /// When a start gives up.
    pub patience: Patience,
    /// The way to peers.
    pub caller: Arc<dyn PeerCaller>,
    /// Keeps the cluster's id.
    pub keep: KeepCluster,
    /// How fresh the node's threads are.
    pub progress: ReadProgress,
    /// Hears of events as they are applied here.
    pub on_events: OnEvents,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Why the control plane did not start.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error("the control store did not open")]
    Store(#[from] ControlStoreError),
    /// The library.
    #[error(transparent)]
    Consensus(#[from] Fatal),
}

impl StartError {
    /// The number under which the operator finds it explained.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Consensus(_) => "MS-1107",
        }
    }
}

/// The control plane of a node.
#[derive(Debug)]
pub struct ControlPlane {
    agreement: Arc<Agreed>,
    membership: MembershipHandle,
    actor: Addr<ControlActor>,
    joiner: Joiner,
}

impl ControlPlane {
    /// Opens the store and starts everything. Must be called on the control thread, inside its
    /// actix system.
    ///
    /// # Errors
    /// [`StartError`]. Nothing runs then.
    pub async fn start(setup: Setup) -> Result<Self, StartError> {
        let store = ControlStore::open(&setup.data_dir, setup.cluster.is_some())?;
        let consensus = Consensus::start(consensus::Parts {
            node: setup.node.clone(),
            disk: setup.member.disk,
            addr: setup.member.peer_addr.clone(),
            store: store.clone(),
            caller: Arc::clone(&setup.caller),
            timing: setup.timing,
            on_events: setup.on_events,
        })
        .await?;
        let control = ControlHandle::new(setup.node.clone(), consensus, Arc::clone(&setup.caller));
        let membership = membership::start(membership::Parts {
            me: candidate(
                &setup.node,
                &setup.member,
                setup.cluster,
                setup.options.expect,
                setup.grouping,
            ),
            state: control.state(),
            caller: Arc::clone(&setup.caller),
            detection: setup.detection,
            progress: setup.progress,
        });
        let succession = Succession {
            control: control.clone(),
            caller: Arc::clone(&setup.caller),
            live: membership.live(),
        };
        tokio::spawn(succession.run());
        let actor = ControlActor::start(actor::Parts {
            control: control.clone(),
            live: membership.live(),
            voters: setup.options.voters,
            expect: setup.options.expect,
        });
        let agreement = Arc::new(Agreed {
            control,
            store,
            keep: setup.keep,
            takes_part: Arc::new(AtomicBool::new(setup.cluster.is_some())),
        });
        let joiner = Joiner {
            known: Arc::clone(membership.known()),
            agreement: Arc::clone(&agreement) as Arc<dyn Agreement>,
            caller: setup.caller,
            options: setup.options,
            member: setup.member,
            patience: setup.patience,
        };
        Ok(Self { agreement, membership, actor, joiner })
    }

    /// Becomes a member, then stays registered for as long as the node lives.
    ///
    /// # Errors
    /// [`JoinError`]; the node stops then.
    pub async fn join(&self) -> Result<ClusterId, JoinError> {
        let cluster = self.joiner.run().await?;
        tokio::spawn(self.joiner.clone().stay());
        Ok(cluster)
    }

    /// The control plane, for other rooms.
    pub fn control(&self) -> ControlHandle {
        self.agreement.control.clone()
    }

    /// The membership, for other rooms.
    pub fn membership(&self) -> MembershipHandle {
        self.membership.clone()
    }

    /// What answers peers.
    pub fn service(&self) -> ControlService {
        ControlService {
            agreement: Arc::clone(&self.agreement),
            membership: self.membership.clone(),
        }
    }

    /// Drains a member, waits until it holds nothing, and takes it out of the cluster.
    ///
    /// # Errors
    /// [`LeaveError`].
    pub async fn leave(&self, node: &NodeId, patience: Duration) -> Result<(), LeaveError> {
        membership::leave(&*self.agreement, &*self.joiner.caller, node, patience).await
    }

    /// Lets a draining member take part again.
    ///
    /// # Errors
    /// [`LeaveError`].
    pub async fn undrain(&self, node: &NodeId) -> Result<(), LeaveError> {
        membership::undrain(&*self.agreement, node).await
    }

    /// Stops taking part, and closes the store.
    pub async fn shutdown(&self) {
        self.actor.try_send(actor::Stop).unwrap_or_default();
        self.membership.stop();
        self.agreement.control.consensus().shutdown().await;
        self.agreement.store.close().await;
    }
}

#[cfg(test)]
impl ControlPlane {
    /// The first half of forming a cluster, after which a test kills the node.
    pub(super) async fn found_for_test(&self, cluster: ClusterId) {
        self.agreement.found(cluster).await.unwrap();
    }
}

fn candidate(
    node: &NodeId,
    member: &Member,
    cluster: Option<ClusterId>,
    expect: u32,
    grouping: Grouping,
) -> Candidate {
    Candidate {
        node: node.clone(),
        disk: member.disk,
        boot: member.boot,
        cluster,
        peer_addr: member.peer_addr.clone(),
        expect,
        known: Vec::new(),
        grouping,
    }
}

/// The control plane as the membership sees it.
struct Agreed {
    control: ControlHandle,
    store: ControlStore,
    keep: KeepCluster,
    /// Consensus messages are answered: this node belongs to a cluster, and remembers it.
    takes_part: Arc<AtomicBool>,
}

impl std::fmt::Debug for Agreed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agreed").field("control", &self.control).finish_non_exhaustive()
    }
}

impl Agreement for Agreed {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.control.state()
    }

    fn propose(&self, command: Command) -> AgreementFuture<Result<Applied, ProposeRefused>> {
        let control = self.control.clone();
        Box::pin(async move { control.propose(command).await })
    }

    fn has_leader(&self) -> bool {
        self.control.view().borrow().leader.is_some()
    }

    fn founding(&self) -> AgreementFuture<Result<Option<ClusterId>, String>> {
        let store = self.store.clone();
        Box::pin(async move {
            let Some(bytes) = store.get(Slot::Founding).await.map_err(|e| e.to_string())? else {
                return Ok(None);
            };
            let id = <[u8; 16]>::try_from(bytes).map_err(|_| "the founding record is damaged")?;
            Ok(Some(ClusterId::from_bytes(id)))
        })
    }

    fn found(&self, cluster: ClusterId) -> AgreementFuture<Result<(), String>> {
        let (store, control) = (self.store.clone(), self.control.clone());
        let takes_part = Arc::clone(&self.takes_part);
        Box::pin(async move {
            let record = cluster.as_bytes().to_vec();
            store.put(Slot::Founding, record).await.map_err(|error| error.to_string())?;
            takes_part.store(true, Ordering::SeqCst);
            control.consensus().initialize().await.map_err(|error| error.to_string())
        })
    }

    fn keep(&self, cluster: ClusterId) -> AgreementFuture<Result<(), String>> {
        let keep = Arc::clone(&self.keep);
        let takes_part = Arc::clone(&self.takes_part);
        Box::pin(async move {
            let kept = tokio::task::spawn_blocking(move || keep(cluster)).await;
            kept.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            takes_part.store(true, Ordering::SeqCst);
            Ok(())
        })
    }

    fn learn(&self, them: &Candidate) {
        let consensus = self.control.consensus();
        consensus.learn(them.disk, them.boot, &them.node, &them.peer_addr);
    }

    fn await_unseated(&self, disk: DiskId, patience: Duration) -> AgreementFuture<()> {
        let control = self.control.clone();
        Box::pin(async move { control.consensus().await_unseated(disk, patience).await })
    }
}

/// Answers what peers and clients ask on control connections. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlService {
    agreement: Arc<Agreed>,
    membership: MembershipHandle,
}

impl ControlService {
    /// Answers one question.
    ///
    /// # Errors
    /// Why there is no answer, in words; nothing was changed then.
    pub async fn handle(&self, body: ControlBody, from: &Caller) -> Result<ControlAnswer, String> {
        let control = &self.agreement.control;
        let node = match from {
            Caller::Node { node, .. } => Some(node),
            Caller::Client { .. } => None,
        };
        match body {
            ControlBody::Map { have } => Ok(ControlAnswer::Map(newer(&control.current(), have))),
            ControlBody::Discover(asker) => {
                asker.check().map_err(|refused| refused.to_string())?;
                // anybody may ask who this is; only who shook hands under a name is believed
                let says_itself = speaks_for_itself(&asker, from);
                if says_itself
                    && asker.cluster.is_some()
                    && asker.cluster == control.current().cluster
                {
                    self.agreement.learn(&asker);
                }
                let asker = says_itself.then_some(asker);
                Ok(ControlAnswer::Candidate(self.membership.handle_discover(asker)))
            }
            ControlBody::Heartbeat(heartbeat) if node == Some(&heartbeat.node) => {
                let version = control.current().version;
                Ok(self.membership.handle_heartbeat(&heartbeat, version))
            }
            ControlBody::Consensus { what, body } if node.is_some() => {
                if !self.agreement.takes_part.load(Ordering::SeqCst) {
                    return Err("this node belongs to no cluster yet".to_owned());
                }
                Ok(ControlAnswer::Consensus(control.consensus().handle(what, &body).await?))
            }
            ControlBody::Propose(command) if node.is_some() => {
                Ok(ControlAnswer::Proposed(self.propose(command, node).await?))
            }
            ControlBody::IsDead { node: other, boot } if node.is_some() => {
                let live = self.membership.live();
                let dead = succession::is_dead(&live.borrow(), &other, boot);
                Ok(ControlAnswer::IsDead(dead))
            }
            ControlBody::Heartbeat(_)
            | ControlBody::Consensus { .. }
            | ControlBody::Propose(_)
            | ControlBody::IsDead { .. } => {
                Err("only a node may ask this, and only for itself".to_owned())
            }
        }
    }

    /// A member sends its proposals to the leader itself. A node that registers may not know the
    /// leader: its one command is passed on, once, since the leader hears it from this node.
    async fn propose(
        &self,
        command: Command,
        from: Option<&NodeId>,
    ) -> Result<Result<Applied, ProposeRefused>, String> {
        let control = &self.agreement.control;
        if let Command::Register { node, member, grouping } = &command
            && Some(node) == from
        {
            if let Some(reason) = wire_conflict(&control.current(), node, member, grouping) {
                return Ok(Err(ProposeRefused::Rule { reason }));
            }
            if !control.is_leader() {
                return Ok(control.propose(command).await);
            }
        }
        control.write_for_peer(command).await
    }
}

/// Whether a node speaks to every member, which the agreed state does not judge.
fn wire_conflict(
    state: &ClusterState,
    node: &NodeId,
    member: &Member,
    grouping: &Grouping,
) -> Option<String> {
    let candidate = candidate(node, member, state.cluster, 0, grouping.clone());
    match check_join(state, &candidate, Wire::of(member.wire_max)) {
        Err(refused @ JoinRefused::Wire { .. }) => Some(refused.to_string()),
        Ok(()) | Err(_) => None,
    }
}

/// Whether this is said by the very start of the very disk that it is about.
fn speaks_for_itself(candidate: &Candidate, from: &Caller) -> bool {
    match from {
        Caller::Node { node, disk, boot } => {
            candidate.node == *node && candidate.disk == *disk && candidate.boot == *boot
        }
        Caller::Client { .. } => false,
    }
}

fn newer(state: &ClusterState, have: u64) -> Option<Box<ClusterState>> {
    (state.version > have).then(|| Box::new(state.clone()))
}
