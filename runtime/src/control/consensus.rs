//! The consensus library, wrapped: only this file and its folder know it.
//!
//! ```text
//!   propose --> write ----> log store --> control.redb
//!                  |            |
//!                  v            v
//!               links       state machine --> watch of Arc<ClusterState>, events
//! ```
//!
//! One group for the whole cluster: a few voters, every other member a learner, so that each node
//! has the state locally. A member takes part under its disk's id: a wiped node is another member.
//! Log and state are bounded: a snapshot every `SNAPSHOT_EVERY` entries, then the log is cut.

mod network;
mod store;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::control::{Applied, ClusterState, Command, ProposeRefused};
use mainstay_protocol::id::{BootId, DiskId, NodeId};
use mainstay_protocol::message::ConsensusCall;
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{ChangeMembers, ServerState, SnapshotPolicy};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use self::network::{AddressBook, Addressed, Links};
pub use self::store::OnEvents;
use self::store::{LogStore, StateMachine};
use self::types::{Peer, Raft, RaftMetrics, decode, encode};
use crate::membership::PeerCaller;
use crate::metrics::float;
use crate::storage::control::ControlStore;

/// Entries between two snapshots of the state.
const SNAPSHOT_EVERY: u64 = 1_000;
/// Entries that stay behind a snapshot, for members that are a little late.
const KEEP_ENTRIES: u64 = 500;
/// Bytes of one chunk of a snapshot: small enough that a heartbeat is never long behind it.
const CHUNK_BYTES: u64 = 256 << 10;
/// How long a chunk may take.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one command: the longest batches of a large map stay below it, and any message that
/// carries it stays below a frame.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;
/// A member this many entries behind the leader's log may become a voter.
const CAUGHT_UP: u64 = 100;

/// When consensus counts its leader as gone.
///
/// A follower elects at its last message from the leader + `election_max` + a span of
/// `election_min..election_max` that each start draws, looked at every 1.5 `heartbeat`, so the default
/// takes 0.9 to 1.2 s. A leader whose node is found dead is followed sooner (`succession`); the timers
/// are for one that lives and does nothing. An append that takes longer than `heartbeat` is sent again,
/// which is why it is long for a heartbeat: a disk that stalls for a moment would make every append
/// late, and each of them is news of the leader. One heartbeat may be lost within `election_max`.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long an append may take. Heartbeats of the leader are 1.5 times as far apart.
    pub heartbeat: Duration,
    /// The shortest random wait before an election.
    pub election_min: Duration,
    /// The longest, and the time for which a heard leader is not voted out.
    pub election_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(500),
        }
    }
}

/// Consensus cannot run. The node stops.
#[derive(Debug, Clone, thiserror::Error)]
#[error("consensus stopped: {reason}")]
pub struct Fatal {
    /// What the library says.
    pub reason: String,
}

/// Why a write has no result.
#[derive(Debug, Clone)]
pub(crate) enum WriteError {
    /// Another node leads, or none does. Nothing was written.
    NotLeader,
    /// Consensus stopped; what was written may still be committed by others.
    Stopped,
}

/// Where consensus stands, as this node sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// The leader's consensus id.
    pub leader: Option<u64>,
    /// This node leads.
    pub leading: bool,
    /// The term.
    pub term: u64,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who follows without a vote.
    pub learners: BTreeSet<u64>,
    /// The voters are being changed: until that is agreed, the old ones are needed too.
    pub changing: bool,
    /// Consensus stopped with this.
    pub fatal: Option<String>,
}

/// What consensus is made of.
pub(crate) struct Parts {
    pub(crate) node: NodeId,
    pub(crate) disk: DiskId,
    pub(crate) addr: String,
    pub(crate) store: ControlStore,
    pub(crate) caller: Arc<dyn PeerCaller>,
    pub(crate) timing: Timing,
    pub(crate) on_events: OnEvents,
}

/// Consensus on this node.
#[derive(Clone)]
pub(crate) struct Consensus {
    id: u64,
    me: Peer,
    raft: Raft,
    book: Arc<AddressBook>,
    state: watch::Receiver<Arc<ClusterState>>,
    view: watch::Receiver<View>,
}

impl std::fmt::Debug for Consensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consensus").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Consensus {
    /// Starts from what the store holds. A fresh store takes part in nothing until it is formed
    /// or a leader adds it.
    pub(crate) async fn start(parts: Parts) -> Result<Self, Fatal> {
        let book = Arc::new(AddressBook::default());
        let (published, state) = watch::channel(Arc::new(ClusterState::new()));
        let live = Arc::new(AtomicBool::new(false));
        let store = parts.store.clone();
        let machine = StateMachine::load(store, published, Arc::clone(&live), parts.on_events)
            .await
            .map_err(|error| fatal(&error))?;
        let links = Links { book: Arc::clone(&book), caller: parts.caller };
        let id = parts.disk.consensus_id();
        let log = LogStore(parts.store);
        let config = Arc::new(config(parts.timing));
        let raft =
            Raft::new(id, config, links, log, machine).await.map_err(|error| fatal(&error))?;
        live.store(true, Ordering::Relaxed);
        book.learn_members(&state.borrow());
        let (view_sender, view) = watch::channel(View::default());
        tokio::spawn(follow_metrics(id, raft.metrics(), view_sender));
        tokio::spawn(follow_members(state.clone(), Arc::clone(&book)));
        let me = Peer { node: Some(parts.node), addr: parts.addr };
        Ok(Self { id, me, raft, book, state, view })
    }

    /// The state that this node has applied.
    pub(crate) fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.clone()
    }

    /// Where consensus stands.
    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Makes this node the only voter of a new group; nothing happens when it already was.
    pub(crate) async fn initialize(&self) -> Result<(), Fatal> {
        let members = BTreeMap::from([(self.id, self.me.clone())]);
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(fatal(&error)),
        }
    }

    /// Writes a command on the leader. Dropped early, its outcome is unknown.
    pub(crate) async fn write(
        &self,
        command: Command,
    ) -> Result<Result<Applied, ProposeRefused>, WriteError> {
        match self.raft.client_write(command).await {
            Ok(response) => Ok(response.data.0.expect("a command's entry has an outcome")),
            Err(error) => Err(write_error(error)),
        }
    }

    /// Adds a member without a vote; the leader sends it the state.
    pub(crate) async fn add_learner(
        &self,
        disk: DiskId,
        node: &NodeId,
        addr: &str,
    ) -> Result<(), WriteError> {
        let peer = Peer { node: Some(node.clone()), addr: addr.to_owned() };
        let added = self.raft.add_learner(disk.consensus_id(), peer, false).await;
        added.map(drop).map_err(write_error)
    }

    /// Makes exactly these members the voters; the others follow on.
    pub(crate) async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), WriteError> {
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.raft.change_membership(change, true).await.map(drop).map_err(write_error)
    }

    /// Removes members that have no vote.
    pub(crate) async fn remove(&self, ids: BTreeSet<u64>) -> Result<(), WriteError> {
        let change = ChangeMembers::RemoveNodes(ids);
        self.raft.change_membership(change, true).await.map(drop).map_err(write_error)
    }

    /// Who is close enough to the end of the leader's log to vote; empty when this is no leader.
    pub(crate) fn caught_up(&self) -> BTreeSet<u64> {
        lag(&self.raft.metrics().borrow())
            .filter_map(|(id, behind)| behind.is_some_and(|b| b <= CAUGHT_UP).then_some(id))
            .collect()
    }

    /// Where a consensus member is: its name and its address.
    pub(crate) fn find(&self, id: u64) -> Option<(NodeId, String)> {
        let peer = self.book.find(id)?;
        Some((peer.node?, peer.addr))
    }

    /// Learns where a node of this cluster says that it is.
    pub(crate) fn learn(&self, disk: DiskId, boot: BootId, node: &NodeId, addr: &str) {
        self.book.learn(disk, boot, node, addr);
    }

    /// Answers a message of another member.
    pub(crate) async fn handle(&self, what: ConsensusCall, body: &[u8]) -> Result<Bytes, String> {
        let answer = match what {
            ConsensusCall::Append => {
                let message = self.addressed(body)?;
                encode(&self.raft.append_entries(message).await.map_err(|e| e.to_string())?)
            }
            ConsensusCall::Vote => {
                let message = self.addressed(body)?;
                encode(&self.raft.vote(message).await.map_err(|e| e.to_string())?)
            }
            ConsensusCall::Snapshot => {
                let message = self.addressed(body)?;
                match self.raft.install_snapshot(message).await {
                    Ok(answer) => encode(&Ok::<_, openraft::error::InstallSnapshotError>(answer)),
                    Err(RaftError::APIError(error)) => {
                        encode(&Err::<openraft::raft::InstallSnapshotResponse<u64>, _>(error))
                    }
                    Err(RaftError::Fatal(error)) => return Err(error.to_string()),
                }
            }
        };
        Ok(answer.into())
    }

    fn addressed<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, String> {
        let body: Addressed<T> = decode(body).map_err(|error| error.to_string())?;
        if body.to == self.id {
            return Ok(body.message);
        }
        Err(format!("this is consensus member {}, not {}", self.id, body.to))
    }

    /// Reports figures that change with every entry; called now and then.
    pub(crate) async fn report(&self) {
        let committed = self.raft.with_raft_state(|state| state.committed.map(|id| id.index)).await;
        if let Ok(Some(index)) = committed {
            gauge("mainstay_raft_commit_index", index);
        }
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        if let Some(applied) = metrics.last_applied {
            gauge("mainstay_raft_applied_index", applied.index);
        }
        for (id, behind) in lag(&metrics) {
            if let (Some((node, _)), Some(behind)) = (self.find(id), behind) {
                let peer = node.as_str().to_owned();
                metrics::gauge!("mainstay_raft_peer_lag_entries", "peer" => peer)
                    .set(float(behind));
            }
        }
    }

    /// The id under which this node votes.
    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// The term, after all that consensus was asked before. `None` when it stopped.
    pub(crate) async fn term(&self) -> Option<u64> {
        self.raft.with_raft_state(|state| state.vote_ref().leader_id().term).await.ok()
    }

    /// Stands for election at once, unless this node leads.
    pub(crate) async fn elect(&self) {
        if let Err(error) = self.raft.trigger().elect().await {
            tracing::debug!(%error, "consensus stopped before an election");
        }
    }

    /// Waits until a disk has no vote, or `patience` is over.
    pub(crate) async fn await_unseated(&self, disk: DiskId, patience: Duration) {
        let (mut view, id) = (self.view(), disk.consensus_id());
        let unseated = view.wait_for(|view| !view.voters.contains(&id));
        if tokio::time::timeout(patience, unseated).await.is_err() {
            tracing::warn!(%disk, "a member left while it still had a vote");
        }
    }

    /// Stops taking part.
    pub(crate) async fn shutdown(&self) {
        self.raft.shutdown().await.ok();
    }
}

#[cfg(test)]
impl Consensus {
    /// The last entry of the log.
    pub(super) fn last_log(&self) -> Option<u64> {
        self.raft.metrics().borrow().last_log_index
    }

    /// How many entries the log holds.
    pub(super) fn log_len(&self) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.last_log_index.unwrap_or(0) - metrics.purged.map_or(0, |id| id.index)
    }
}

fn config(timing: Timing) -> openraft::Config {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "mainstay".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(CHUNK_TIMEOUT),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        snapshot_max_chunk_size: CHUNK_BYTES,
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        replication_lag_threshold: SNAPSHOT_EVERY * 2,
        purge_batch_size: 64,
        ..openraft::Config::default()
    }
}

fn fatal(error: &dyn std::fmt::Display) -> Fatal {
    Fatal { reason: error.to_string() }
}

fn write_error(error: RaftError<u64, ClientWriteError<u64, Peer>>) -> WriteError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => WriteError::NotLeader,
        // a change of voters is under way, or is already so: the next tick looks again
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => {
            tracing::debug!(%error, "change of consensus members refused");
            WriteError::NotLeader
        }
        RaftError::Fatal(_) => WriteError::Stopped,
    }
}

/// How many entries each follower is behind, if it was ever reached; empty when this is no leader.
fn lag(metrics: &RaftMetrics) -> impl Iterator<Item = (u64, Option<u64>)> {
    let last = metrics.last_log_index.unwrap_or(0);
    let rows = metrics.replication.iter().flatten();
    rows.map(move |(id, matched)| (*id, matched.map(|m| last.saturating_sub(m.index))))
}

async fn follow_metrics(
    id: u64,
    mut metrics: watch::Receiver<RaftMetrics>,
    sender: watch::Sender<View>,
) {
    loop {
        let before = sender.borrow().clone();
        let (view, follows) = {
            let latest = metrics.borrow_and_update();
            let view = view(id, &latest);
            let another = view.leader.filter(|_| view.leader != before.leader);
            (view, another.map(|leader| name(&latest, leader)))
        };
        if view != before {
            if let Some(leader) = follows {
                metrics::counter!("mainstay_raft_leader_changes_total").increment(1);
                tracing::info!(leader, term = view.term, "consensus has a leader");
            }
            gauge("mainstay_raft_has_leader", u64::from(view.leader.is_some()));
            gauge("mainstay_raft_is_leader", u64::from(view.leading));
            let votes = view.voters.contains(&id) && !view.changing;
            gauge("mainstay_raft_is_voter", u64::from(votes));
            gauge("mainstay_raft_term", view.term);
            sender.send_replace(view);
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn name(metrics: &RaftMetrics, id: u64) -> String {
    let peer = metrics.membership_config.membership().get_node(&id);
    peer.and_then(|peer| peer.node.as_ref()).map_or_else(|| id.to_string(), ToString::to_string)
}

fn view(id: u64, metrics: &RaftMetrics) -> View {
    let membership = metrics.membership_config.membership();
    View {
        leader: metrics.current_leader,
        leading: metrics.state == ServerState::Leader && metrics.current_leader == Some(id),
        term: metrics.current_term,
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        changing: membership.get_joint_config().len() > 1,
        fatal: metrics.running_state.as_ref().err().map(ToString::to_string),
    }
}

async fn follow_members(mut state: watch::Receiver<Arc<ClusterState>>, book: Arc<AddressBook>) {
    while state.changed().await.is_ok() {
        let state = Arc::clone(&state.borrow_and_update());
        book.learn_members(&state);
    }
}

fn gauge(name: &'static str, value: u64) {
    metrics::gauge!(name).set(float(value));
}

/// How many bytes a command takes in the log.
pub(crate) fn command_bytes(command: &Command) -> usize {
    encode(command).len()
}

#[cfg(test)]
mod tests;
