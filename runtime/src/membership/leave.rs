//! Leaving on purpose: hand everything over, then be no member.

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{ClusterState, Command, MemberState, ProposeRefused};
use mainstay_protocol::id::{DiskId, NodeId};
use mainstay_protocol::message::{ControlAnswer, ControlBody};
use mainstay_protocol::time::Instant;
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Agreement, PeerCaller};
use crate::clock;

/// Between two proposals that found no leader.
const RETRY: Duration = Duration::from_millis(200);
/// How long one member is asked for its state, and how many are.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);
const ASKED_MAX: usize = 3;
/// How often a member makes sure that it still is one.
const LOOK: Duration = Duration::from_secs(5);
/// How often in a row it must be missing: a registration may be under way.
const SIGHTINGS: u32 = 2;
/// How long consensus has to give the seat to another member.
pub(crate) const UNSEATED: Duration = Duration::from_secs(5);

/// Why a node did not leave. It is still a member; [`undrain`] makes it take part again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaveError {
    /// No other member could take the shards. Nothing was changed.
    #[error("{node} is the last member that is up; its shards have nowhere to go")]
    LastMember {
        /// The node.
        node: NodeId,
    },
    /// The time was up. It is draining, and goes on handing over.
    #[error("{node} still holds {shards} shards")]
    HoldsShards {
        /// The node.
        node: NodeId,
        /// How many.
        shards: u32,
    },
    /// The cluster refused.
    #[error("the cluster refused")]
    Refused(#[source] ProposeRefused),
}

/// Drains a member, waits until it holds nothing, and takes it out of the cluster.
///
/// # Errors
/// `LastMember`, `HoldsShards` when `patience` ran out, or what the cluster refuses.
pub async fn leave(
    agreement: &dyn Agreement,
    caller: &dyn PeerCaller,
    node: &NodeId,
    patience: Duration,
) -> Result<(), LeaveError> {
    let end = clock::now() + patience;
    let before = Arc::clone(&agreement.state().borrow());
    if !others_up(&before, node) {
        return Err(LeaveError::LastMember { node: node.clone() });
    }
    let disk = before.members.get(node).map(|member| member.disk);
    propose(agreement, Command::Drain { node: node.clone() }, end).await?;
    loop {
        let state = newest(&agreement.state(), caller, node).await;
        if !state.members.contains_key(node) {
            break;
        }
        let shards = state.held_by(node);
        if shards == 0 {
            match propose(agreement, Command::Leave { node: node.clone() }, end).await {
                // the control leader took it out first
                Ok(()) | Err(LeaveError::Refused(ProposeRefused::NoMember { .. })) => break,
                // a last move came in between
                Err(LeaveError::Refused(ProposeRefused::HoldsShards { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        if clock::now() >= end {
            return Err(LeaveError::HoldsShards { node: node.clone(), shards });
        }
        let mut state = agreement.state();
        state.borrow_and_update();
        timeout(RETRY, state.changed()).await.map(drop).unwrap_or_default();
    }
    if let Some(disk) = disk {
        agreement.await_unseated(disk, UNSEATED.min(end.saturating_since(clock::now()))).await;
    }
    Ok(())
}

/// Waits until this node, with this disk, is no member any more: it was drained and let go, or
/// removed. Asks the others, often while it drains.
pub(crate) async fn departed(
    mut state: watch::Receiver<Arc<ClusterState>>,
    caller: &dyn PeerCaller,
    node: &NodeId,
    disk: DiskId,
) {
    let member = |state: &ClusterState| state.members.get(node).is_some_and(|m| m.disk == disk);
    let stays =
        |state: &Arc<ClusterState>| member(state.as_ref()) && !state.draining.contains(node);
    let mut missing = 0;
    while missing < SIGHTINGS {
        if missing == 0 {
            timeout(LOOK, state.wait_for(|state| !stays(state)))
                .await
                .map(drop)
                .unwrap_or_default();
        }
        tokio::time::sleep(RETRY).await;
        let newest = newest(&state, caller, node).await;
        missing = if member(newest.as_ref()) { 0 } else { missing + 1 };
    }
}

/// The newest state that this node or another member holds: consensus tells nothing more to a
/// member that it let go, not even that.
async fn newest(
    state: &watch::Receiver<Arc<ClusterState>>,
    caller: &dyn PeerCaller,
    leaver: &NodeId,
) -> Arc<ClusterState> {
    let own = Arc::clone(&state.borrow());
    let others =
        own.members.iter().filter(|(node, m)| *node != leaver && m.state == MemberState::Up);
    for (node, member) in others.take(ASKED_MAX) {
        let body = ControlBody::Map { have: own.version };
        let asked = caller.ask(&member.peer_addr, Some(node.clone()), body, ASK_TIMEOUT).await;
        if let Ok(ControlAnswer::Map(Some(state))) = asked {
            return Arc::from(state);
        }
    }
    own
}

/// Lets a draining member take part again.
///
/// # Errors
/// What the cluster refuses.
pub async fn undrain(agreement: &dyn Agreement, node: &NodeId) -> Result<(), LeaveError> {
    let end = clock::now() + Duration::from_secs(5);
    propose(agreement, Command::Undrain { node: node.clone() }, end).await
}

async fn propose(
    agreement: &dyn Agreement,
    command: Command,
    end: Instant,
) -> Result<(), LeaveError> {
    loop {
        match agreement.propose(command.clone()).await {
            Ok(_) => return Ok(()),
            // these commands do the same twice as once
            Err(ProposeRefused::NoLeader { .. }) if clock::now() < end => {
                tokio::time::sleep(RETRY).await;
            }
            Err(refused) => return Err(LeaveError::Refused(refused)),
        }
    }
}

fn others_up(state: &ClusterState, node: &NodeId) -> bool {
    state.members.iter().any(|(other, m)| other != node && m.state == MemberState::Up)
}
