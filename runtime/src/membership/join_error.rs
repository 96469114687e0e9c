//! Why a node did not become a member.

use std::time::Duration;

use mainstay_protocol::control::ProposeRefused;
use mainstay_protocol::id::{ClusterId, NodeId};
use mainstay_protocol::membership::BootstrapError;

/// Why a node did not become a member. Nothing was changed in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// None of the join addresses answered in time. Is one of them up, and is this its peer port?
    #[error("no member was reached at {} within {} s", join.join(", "), patience.as_secs())]
    NoMemberReachable {
        /// The addresses.
        join: Vec<String>,
        /// How long they were asked.
        patience: Duration,
    },
    /// A live member has this name. Give this node another, or stop that one.
    #[error("node name {node} is in use by a live member with another data directory")]
    NameInUse {
        /// The name.
        node: NodeId,
    },
    /// The data directory belongs to another cluster than the one that was reached.
    #[error("the data belongs to cluster {own}, but {addr} belongs to cluster {found}")]
    OtherCluster {
        /// The cluster of the data.
        own: ClusterId,
        /// Who was reached.
        addr: String,
        /// Its cluster.
        found: ClusterId,
    },
    /// What the nodes that were reached say contradicts itself, and waiting did not help.
    #[error("the nodes that were reached do not agree")]
    Contradiction(#[source] BootstrapError),
    /// A kind groups its keys differently from the cluster's: its stored state would strand.
    #[error("kind {kind} groups its keys differently from the cluster's")]
    Grouping {
        /// The kind.
        kind: String,
    },
    /// No common wire version with a member. Upgrade the older side first.
    #[error("{addr} speaks wire versions {min} to {max}, this build does not")]
    WireVersion {
        /// Who was reached.
        addr: String,
        /// The oldest version that it speaks.
        min: u16,
        /// The newest.
        max: u16,
    },
    /// There is no cluster to join, and this node was not told to form one. Name members to join,
    /// or let it form a cluster.
    #[error("no cluster to join, and none to form")]
    NoCluster,
    /// The cluster refused this node for another reason.
    #[error("the cluster refused this node")]
    Refused(#[source] ProposeRefused),
    /// This node could not keep what it must remember. The disk is at fault.
    #[error("this node could not write down what it decided: {reason}")]
    Disk {
        /// What the disk says.
        reason: String,
    },
}

impl JoinError {
    /// The number under which the operator finds it explained.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoMemberReachable { .. } => "MS-1201",
            Self::NameInUse { .. } | Self::Contradiction(BootstrapError::NameInUse { .. }) => {
                "MS-1202"
            }
            Self::OtherCluster { .. }
            | Self::Contradiction(
                BootstrapError::OtherCluster { .. } | BootstrapError::TwoClusters { .. },
            ) => "MS-1203",
            Self::Grouping { .. } | Self::Contradiction(BootstrapError::Grouping { .. }) => {
                "MS-1204"
            }
            Self::WireVersion { .. } => "MS-1205",
            Self::NoCluster
            | Self::Refused(_)
            | Self::Contradiction(
                BootstrapError::TooMany { .. } | BootstrapError::ExpectDiffers { .. },
            ) => "MS-1206",
            Self::Disk { .. } => "MS-1109",
        }
    }
}
