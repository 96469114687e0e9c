//! What the cluster agrees on, as the rooms of a node use it.
//!
//! ```text
//!   propose --> is this node the leader? --yes--> consensus --> state, on every node
//!                      | no                                        |
//!                      +--> control connection to the leader       v
//!                                                     watch::Receiver<Arc<ClusterState>>
//! ```
//!
//! Nothing here is on the data path: reads are of the local state, which may lag, and every
//! command is a compare-and-set, so that acting on an old state does no harm.

pub mod actor;
pub mod consensus;
pub mod plane;
mod succession;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::backoff;
use mainstay_protocol::control::{Applied, ClusterState, Command, ProposeRefused};
use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{ControlAnswer, ControlBody};
use mainstay_protocol::time::Instant;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use self::consensus::{COMMAND_BYTES_MAX, Consensus, Fatal, View, WriteError};
use crate::clock;
use crate::membership::{AskFailure, PeerCaller};
use crate::metrics::Counted;

/// Proposals of this node without an answer.
const PROPOSALS_MAX: usize = 256;
/// How long a proposal looks for a leader and waits for its answer.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks for a leader.
const RETRY: backoff::Config =
    backoff::Config { base: Duration::from_millis(50), cap: Duration::from_millis(500) };

/// The control plane of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    consensus: Consensus,
    caller: Arc<dyn PeerCaller>,
    permits: Semaphore,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("node", &self.node).finish_non_exhaustive()
    }
}

/// How one try to propose ended.
enum Tried {
    /// With a result of the state machine, or with an outcome that is not known.
    Done(Result<Applied, ProposeRefused>),
    /// Nothing was written anywhere: try again.
    NotSent(String),
}

impl ControlHandle {
    pub(crate) fn new(node: NodeId, consensus: Consensus, caller: Arc<dyn PeerCaller>) -> Self {
        let permits = Semaphore::new(PROPOSALS_MAX);
        Self { inner: Arc::new(Inner { node, consensus, caller, permits }) }
    }

    /// Proposes a command to the cluster, here or at the leader, and waits until it is applied.
    /// Looks for a leader for a few seconds; a command that was sent is never sent again.
    ///
    /// # Errors
    /// What the state machine refuses; and `NoLeader` when there was none in time, when this node
    /// has too many proposals under way, or when the outcome is not known: read the state.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeRefused> {
        let Ok(_permit) = self.inner.permits.try_acquire() else {
            return Err(no_leader(format!("{PROPOSALS_MAX} proposals are under way")));
        };
        // a caller may drop this future
        let _pending = Counted::new(metrics::gauge!("mainstay_raft_proposals_pending"));
        let started = clock::now();
        let result = self.propose_until(&command, started + PROPOSE_TIMEOUT).await;
        metrics::histogram!("mainstay_raft_proposal_duration_seconds")
            .record(clock::now().saturating_since(started));
        count_proposal(match &result {
            Ok(_) => "committed",
            Err(ProposeRefused::NoLeader { .. }) => "failed",
            Err(_) => "refused",
        });
        result
    }

    /// Proposes a command that this node planned as the leader: to itself alone. Whoever leads after
    /// it makes plans of its own, and what a deposed leader thought of others was wrong, perhaps.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn propose_here(&self, command: Command) -> Result<Applied, ProposeRefused> {
        if !self.is_leader() {
            return Err(no_leader("this node does not lead any more".to_owned()));
        }
        match self.write(command, PROPOSE_TIMEOUT).await {
            Tried::Done(result) => result,
            Tried::NotSent(reason) => Err(no_leader(reason)),
        }
    }

    /// The state that this node has applied. It changes after every applied command.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.consensus.state()
    }

    /// The state at this moment.
    pub fn current(&self) -> Arc<ClusterState> {
        Arc::clone(&self.inner.consensus.state().borrow())
    }

    /// Where consensus stands, as this node sees it.
    pub fn view(&self) -> watch::Receiver<View> {
        self.inner.consensus.view()
    }

    /// The leader, as far as this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        let leader = self.view().borrow().leader?;
        self.inner.consensus.find(leader).map(|(node, _)| node)
    }

    /// Whether this node leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        self.view().borrow().leading
    }

    /// Waits until consensus stops for good, which a node does not outlive.
    pub async fn stopped(&self) -> Fatal {
        let mut view = self.view();
        let reason = match view.wait_for(|view| view.fatal.is_some()).await {
            Ok(view) => view.fatal.clone().unwrap_or_default(),
            Err(_) => "its task ended".to_owned(),
        };
        Fatal { reason }
    }

    pub(crate) fn consensus(&self) -> &Consensus {
        &self.inner.consensus
    }

    async fn propose_until(
        &self,
        command: &Command,
        end: Instant,
    ) -> Result<Applied, ProposeRefused> {
        let bytes = consensus::command_bytes(command);
        if bytes > COMMAND_BYTES_MAX {
            let reason = format!("the command has {bytes} bytes, the limit is {COMMAND_BYTES_MAX}");
            return Err(ProposeRefused::Rule { reason });
        }
        let mut failures = 0;
        loop {
            let remaining = end.saturating_since(clock::now());
            match self.try_propose(command, remaining).await {
                Tried::Done(result) => return result,
                Tried::NotSent(reason) if remaining.is_zero() => return Err(no_leader(reason)),
                Tried::NotSent(_) => self.await_leader(RETRY.delay(failures, random())).await,
            }
            failures += 1;
        }
    }

    async fn try_propose(&self, command: &Command, remaining: Duration) -> Tried {
        let view = self.view().borrow().clone();
        if view.fatal.is_some() {
            return Tried::Done(Err(no_leader("consensus stopped".to_owned())));
        }
        if view.leading {
            return self.write(command.clone(), remaining).await;
        }
        let leader = view.leader.and_then(|id| self.inner.consensus.find(id));
        let Some((node, addr)) = leader else {
            return Tried::NotSent("no leader is known".to_owned());
        };
        if node == self.inner.node {
            return Tried::NotSent("the known leader is this node's lost disk".to_owned());
        }
        count_proposal("forwarded");
        let body = ControlBody::Propose(command.clone());
        match self.inner.caller.ask(&addr, Some(node), body, remaining).await {
            Ok(ControlAnswer::Proposed(result)) => Tried::Done(result),
            Ok(_) => Tried::Done(Err(no_leader("the leader answered another question".to_owned()))),
            Err(AskFailure::NoAnswer { reason }) => {
                Tried::Done(Err(no_leader(format!("outcome unknown: {reason}"))))
            }
            Err(failure) => Tried::NotSent(failure.to_string()),
        }
    }

    async fn write(&self, command: Command, remaining: Duration) -> Tried {
        match timeout(remaining, self.inner.consensus.write(command)).await {
            Ok(Ok(result)) => Tried::Done(result),
            Ok(Err(WriteError::NotLeader)) => {
                Tried::NotSent("this node does not lead any more".to_owned())
            }
            Ok(Err(WriteError::Stopped)) => {
                Tried::Done(Err(no_leader("outcome unknown: consensus stopped".to_owned())))
            }
            Err(_) => Tried::Done(Err(no_leader(
                "outcome unknown: no quorum answered in time".to_owned(),
            ))),
        }
    }

    /// Writes a command that another node sent because it takes this one for the leader.
    pub(crate) async fn write_for_peer(
        &self,
        command: Command,
    ) -> Result<Result<Applied, ProposeRefused>, String> {
        let Ok(_permit) = self.inner.permits.try_acquire() else {
            return Err(format!("{PROPOSALS_MAX} proposals are under way"));
        };
        if !self.is_leader() {
            return Err("this node does not lead".to_owned());
        }
        match self.write(command, PROPOSE_TIMEOUT).await {
            Tried::Done(result) => Ok(result),
            Tried::NotSent(reason) => Err(reason),
        }
    }

    /// Waits for `span`, or until the leader changes.
    async fn await_leader(&self, span: Duration) {
        let mut view = self.view();
        let leader = view.borrow().leader;
        tokio::select! {
            () = tokio::time::sleep(span.max(Duration::from_millis(5))) => {}
            Ok(_) = view.wait_for(|view| view.leader != leader) => {}
        }
    }
}

fn no_leader(reason: String) -> ProposeRefused {
    ProposeRefused::NoLeader { reason }
}

fn count_proposal(outcome: &'static str) {
    metrics::counter!("mainstay_raft_proposals_total", "outcome" => outcome).increment(1);
}

fn random() -> u64 {
    fastrand::u64(..)
}
