//! What two nodes ask each other beside the data path: heartbeats, consensus, proposals, the map.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::control::ClusterState;
use crate::id::{BootId, NodeId};

/// A question on a control connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlRequest {
    /// Repeated by the reply.
    pub correlation: u64,
    /// The question.
    pub body: ControlBody,
}

/// The answer to a [`ControlRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlReply {
    /// The request's correlation.
    pub correlation: u64,
    /// The answer, or why there is none.
    pub body: Result<ControlAnswer, String>,
}

/// What is asked on a control connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ControlBody {
    /// I live; this is how fresh my threads are. Nodes only.
    Heartbeat(crate::membership::Heartbeat),
    /// A consensus message, opaque to everything but the consensus room. Nodes only.
    Consensus {
        /// Which of the library's messages.
        what: ConsensusCall,
        /// Its body, as the consensus room encodes it.
        body: Bytes,
    },
    /// Who are you, which cluster, whom do you know? Asked before joining or bootstrapping.
    Discover(crate::membership::Candidate),
    /// Please propose this to the cluster. Nodes only.
    Propose(crate::control::Command),
    /// The map, if it is newer than this version.
    Map {
        /// The version that the asker holds; 0 for none.
        have: u64,
    },
    /// Is this start of a node dead, as far as you can tell? Asked before an election is forced.
    /// Nodes only.
    IsDead {
        /// The node.
        node: NodeId,
        /// The start of it that the asker takes for dead.
        boot: BootId,
    },
}

/// Which message of the consensus library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsensusCall {
    /// Log replication and heartbeats of the leader.
    Append,
    /// A vote.
    Vote,
    /// A snapshot of the control state.
    Snapshot,
}

/// What is answered on a control connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ControlAnswer {
    /// To a heartbeat.
    Alive {
        /// The answerer's start.
        boot: BootId,
        /// The version of the map that it holds.
        map_version: u64,
    },
    /// To a consensus message.
    Consensus(Bytes),
    /// To a discovery.
    Candidate(crate::membership::Candidate),
    /// To a proposal.
    Proposed(Result<crate::control::Applied, crate::control::ProposeRefused>),
    /// To a map request; `None` when the asker's is as new.
    Map(Option<Box<ClusterState>>),
    /// Whether the answerer takes that start for dead, too.
    IsDead(bool),
}
