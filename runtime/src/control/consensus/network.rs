//! Consensus messages over control connections.
//!
//! A message names the disk that it is meant for: the node at an address may be another one by
//! now, or the same one with an empty directory, and must not answer for the old.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::control::ClusterState;
use mainstay_protocol::id::{BootId, DiskId, NodeId};
use mainstay_protocol::limits;
use mainstay_protocol::message::{ConsensusCall, ControlAnswer, ControlBody};
use openraft::AnyError;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{Peer, Types, decode, encode};
use crate::membership::PeerCaller;

/// The first and the longest wait before a peer that did not answer is asked again. The longest
/// is shorter than an election, so that a peer that comes back hears its leader first.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(300));

/// Where each disk's node listens: by its newest start that anything was heard of.
#[derive(Debug, Default)]
pub(crate) struct AddressBook {
    rows: Mutex<BTreeMap<u64, (BootId, Peer)>>,
}

impl AddressBook {
    /// Learns where a node says that it is.
    pub(crate) fn learn(&self, disk: DiskId, boot: BootId, node: &NodeId, addr: &str) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let id = disk.consensus_id();
        let known = rows.get(&id).map(|(boot, _)| *boot);
        if known.is_none() && rows.len() >= limits::MEMBERS_MAX {
            return;
        }
        if known.is_none_or(|known| known <= boot) {
            let peer = Peer { node: Some(node.clone()), addr: addr.to_owned() };
            rows.insert(id, (boot, peer));
        }
    }

    /// Learns the members' addresses, and forgets who is no member.
    pub(crate) fn learn_members(&self, state: &ClusterState) {
        for (node, member) in &state.members {
            self.learn(member.disk, member.boot, node, &member.peer_addr);
        }
        let ids: BTreeSet<u64> = state.members.values().map(|m| m.disk.consensus_id()).collect();
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.retain(|id, _| ids.contains(id));
    }

    /// Where a disk's node is.
    pub(crate) fn find(&self, id: u64) -> Option<Peer> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.get(&id).map(|(_, peer)| peer.clone())
    }
}

/// A message with the consensus id that it is meant for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Addressed<T> {
    pub(super) to: u64,
    pub(super) message: T,
}

/// Makes the links to peers.
#[derive(Clone)]
pub(super) struct Links {
    pub(super) book: Arc<AddressBook>,
    pub(super) caller: Arc<dyn PeerCaller>,
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Link {
        Link { target, joined_at: node.clone(), links: self.clone() }
    }
}

/// The way to one peer.
pub(super) struct Link {
    target: u64,
    joined_at: Peer,
    links: Links,
}

type CallError<E = openraft::error::Infallible> = RPCError<u64, Peer, RaftError<u64, E>>;

impl Link {
    async fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        what: ConsensusCall,
        message: Q,
        timeout: Duration,
    ) -> Result<R, Unreachable> {
        let peer = self.links.book.find(self.target).unwrap_or_else(|| self.joined_at.clone());
        let body = Bytes::from(encode(&Addressed { to: self.target, message }));
        let body = ControlBody::Consensus { what, body };
        match self.links.caller.ask(&peer.addr, peer.node, body, timeout).await {
            Ok(ControlAnswer::Consensus(bytes)) => {
                decode(&bytes).map_err(|error| Unreachable::new(&error))
            }
            Ok(other) => Err(unreachable(&format!("an answer to another question: {other:?}"))),
            Err(failure) => Err(Unreachable::new(&failure)),
        }
    }
}

fn unreachable(why: &str) -> Unreachable {
    Unreachable::from(AnyError::error(why))
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        message: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        Ok(self.call(ConsensusCall::Append, message, option.hard_ttl()).await?)
    }

    async fn install_snapshot(
        &mut self,
        message: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, CallError<InstallSnapshotError>> {
        let last = message.done;
        let answer: Result<InstallSnapshotResponse<u64>, InstallSnapshotError> =
            self.call(ConsensusCall::Snapshot, message, option.hard_ttl()).await?;
        if last {
            let outcome = if answer.is_ok() { "ok" } else { "refused" };
            metrics::counter!("mainstay_raft_snapshots_total", "direction" => "sent", "outcome" => outcome)
                .increment(1);
        }
        answer.map_err(|error| {
            RPCError::RemoteError(RemoteError::new(self.target, RaftError::APIError(error)))
        })
    }

    async fn vote(
        &mut self,
        message: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        Ok(self.call(ConsensusCall::Vote, message, option.hard_ttl()).await?)
    }

    fn backoff(&self) -> Backoff {
        let (first, longest) = BACKOFF;
        let spans = std::iter::successors(Some(first), move |span| Some((*span * 2).min(longest)));
        Backoff::new(spans.map(|span| span.mul_f64(0.75 + fastrand::f64() / 4.0)))
    }
}
