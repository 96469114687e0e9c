//! What nodes say to each other, to the control plane and to clients, and what a seed settles.

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{Claim, ClusterState, Expect};
use mainstay_protocol::id::{BootId, DiskId, Epoch};
use mainstay_protocol::message::{Failure, Success};
use mainstay_protocol::mutants::Mutant;
use mainstay_protocol::replication::feed;
use mainstay_protocol::replication::{Answer, Append, Position, Timing};
use mainstay_protocol::shard;

use crate::cluster_sim::plane::Set;
use crate::sim::clients::{Call, Habits};
use crate::sim::cluster::Stored;

/// What a node sends.
#[derive(Debug, Clone)]
pub enum Wire {
    /// Entries, or a heartbeat.
    Append(Append),
    /// To an append.
    Answer(Answer),
    /// The states up to a place.
    Copy(Epoch, Position, Vec<Stored>),
    /// Whether a copy arrived.
    Copied(Epoch, bool),
    /// A client's call, and the time that is left for it.
    Request(Call, Duration),
    /// To a call.
    Reply(u64, Reply),
    /// A node lives, and holds this version of the map.
    Beat(BootId, u64),
    /// A node wants to be a member.
    Register(DiskId, BootId),
    /// The map.
    Map(Arc<ClusterState>),
    /// A primary proposes its set.
    Propose(Claim, Expect, Set),
    /// A source has stopped.
    Complete(Expect, Claim),
}

/// What a client hears.
#[derive(Debug, Clone)]
pub enum Reply {
    /// The reply of the entity.
    Result(Result<Success, Failure>),
    /// Nothing was done: ask elsewhere, or later.
    NotExecuted,
    /// The node does not know.
    Unknown,
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// A node.
    Node(usize),
    /// The control plane.
    Plane,
    /// A client.
    Client(u64),
}

/// Limits and times of one seed.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Of promises and leases.
    pub timing: Timing,
    /// Of feeds.
    pub feed: feed::Config,
    /// Of the shard.
    pub shard: shard::Config,
    /// Of clients.
    pub habits: Habits,
    /// Entries that a new primary has at hand for others.
    pub tail: u64,
    /// Entries in one of its segments.
    pub segment: usize,
    /// The least in-sync set.
    pub min_insync: u8,
    /// A rule that is broken.
    pub mutant: Option<Mutant>,
    /// A restarted primary goes on in its epoch.
    pub same_epoch_after_restart: bool,
}
