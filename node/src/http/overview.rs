//! What the map says, for people and programs: status, members, shards. See [`super::views`].

use std::collections::BTreeMap;

use mainstay::protocol::control::{ClusterState, MemberState, ShardConfig};
use mainstay::protocol::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::backend::{Check, NodeView, Phase};

/// `mainstay.status/v1`: one screen about a node and its cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `mainstay.status/v1`.
    pub schema: String,
    /// All checks hold, and every shard is served.
    pub healthy: bool,
    /// The node that answers.
    pub node: StatusNode,
    /// Its cluster.
    pub cluster: StatusCluster,
    /// What was checked.
    pub checks: Vec<CheckRow>,
}

/// The node of a [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusNode {
    /// Its name.
    pub name: NodeId,
    /// Its release.
    pub version: String,
    /// What it is doing.
    pub phase: Phase,
    /// Its failure zone, or empty.
    pub zone: String,
    /// How long it runs.
    pub uptime_seconds: f64,
    /// Its lanes.
    pub lanes: u16,
    /// Shards that it serves.
    pub shards: u32,
    /// Entities in memory.
    pub entities: u64,
    /// Bytes of their state.
    pub state_bytes: u64,
    /// Requests inside it now.
    pub requests: u64,
}

/// The cluster of a [`Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusCluster {
    /// Its id, once it was created.
    pub id: Option<String>,
    /// The consensus leader, as far as the node knows.
    pub leader: Option<NodeId>,
    /// The version of the shard map.
    pub map_version: u64,
    /// Members that take part.
    pub members_up: u32,
    /// Members that hand their shards over.
    pub members_draining: u32,
    /// Members that are not heard from.
    pub members_down: u32,
    /// All shards.
    pub shards: u32,
    /// Shards that nobody serves.
    pub shards_unavailable: u32,
    /// Shards on the move.
    pub shards_moving: u32,
    /// Shards that have fewer copies than they want.
    pub shards_under_replicated: u32,
    /// How many members may be lost at once without losing a shard.
    pub members_may_fail: u32,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckRow {
    /// Its name.
    pub name: String,
    /// It holds.
    pub ok: bool,
    /// What was seen.
    pub text: String,
}

/// `mainstay.nodes/v1`: the members.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nodes {
    /// `mainstay.nodes/v1`.
    pub schema: String,
    /// By name.
    pub nodes: Vec<NodeRow>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRow {
    /// Its name.
    pub name: NodeId,
    /// `up`, `draining` or `down`.
    pub state: String,
    /// It leads the consensus, as far as the answering node knows.
    pub leader: bool,
    /// Its failure zone, or empty.
    pub zone: String,
    /// Its share of the shards.
    pub weight: u8,
    /// Its lanes.
    pub lanes: u16,
    /// Where peers reach it.
    pub peers: String,
    /// Where callers reach it.
    pub api: String,
    /// Shards that it serves.
    pub primaries: u32,
    /// Shards that it holds a copy of without serving them.
    pub standbys: u32,
    /// Shards that the placement wants it to serve.
    pub wanted: u32,
    /// Shards on their way to it.
    pub arriving: u32,
    /// Shards on their way from it.
    pub leaving: u32,
}

/// `mainstay.shards/v1`: a page of shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shards {
    /// `mainstay.shards/v1`.
    pub schema: String,
    /// How many there are in all.
    pub total: u32,
    /// This page, by number.
    pub shards: Vec<ShardRow>,
    /// The last one of this page, when more follow.
    pub next: Option<u32>,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardRow {
    /// Its number.
    pub shard: u32,
    /// Its epoch.
    pub epoch: u64,
    /// Who holds the claim to serve it.
    pub primary: Option<NodeId>,
    /// That member is there and serves.
    pub available: bool,
    /// Who holds every committed entry.
    pub in_sync: Vec<NodeId>,
    /// Where the placement wants it.
    pub targets: Vec<NodeId>,
    /// Where it is moving.
    pub moving_to: Option<NodeId>,
}

impl Status {
    /// The status that follows from what a node and its map say.
    pub fn of(node: &NodeView, state: &ClusterState) -> Self {
        let mut cluster = StatusCluster::of(state);
        cluster.leader.clone_from(&node.leader);
        let checks: Vec<CheckRow> = node.checks.iter().map(CheckRow::of).collect();
        let served = state.shards.iter().filter(|shard| serves(&node.name, shard)).count();
        let healthy = checks.iter().all(|check| check.ok) && cluster.shards_unavailable == 0;
        Self {
            schema: "mainstay.status/v1".to_owned(),
            healthy,
            node: StatusNode {
                name: node.name.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                phase: node.phase,
                zone: node.zone.clone(),
                uptime_seconds: node.uptime.as_secs_f64(),
                lanes: node.lanes,
                shards: count(served),
                entities: node.entities,
                state_bytes: node.state_bytes,
                requests: node.requests,
            },
            cluster,
            checks,
        }
    }
}

impl StatusCluster {
    fn of(state: &ClusterState) -> Self {
        let members =
            |wanted| count(state.members.values().filter(|member| member.state == wanted).count());
        let shards = |holds: &dyn Fn(&ShardConfig) -> bool| {
            count(state.shards.iter().filter(|shard| holds(shard)).count())
        };
        let copies = 1 + usize::from(state.standbys);
        let fewest = state.shards.iter().map(|shard| shard.in_sync.len()).min().unwrap_or(0);
        Self {
            id: state.cluster.map(|id| id.to_string()),
            leader: None,
            map_version: state.version,
            members_up: members(MemberState::Up),
            members_draining: members(MemberState::Draining),
            members_down: members(MemberState::Down),
            shards: count(state.shards.len()),
            shards_unavailable: shards(&|shard| !available(state, shard)),
            shards_moving: shards(&|shard| shard.handoff.is_some()),
            shards_under_replicated: shards(&|shard| shard.in_sync.len() < copies),
            members_may_fail: count(fewest.saturating_sub(1)),
        }
    }
}

impl CheckRow {
    /// A check, as a row.
    pub fn of(check: &Check) -> Self {
        Self { name: check.name.to_owned(), ok: check.ok, text: check.text.clone() }
    }
}

impl Nodes {
    /// The members in `state`.
    pub fn of(state: &ClusterState, leader: Option<&NodeId>) -> Self {
        let mut rows: BTreeMap<&NodeId, NodeRow> = BTreeMap::new();
        for (name, member) in &state.members {
            let state = match member.state {
                MemberState::Up => "up",
                MemberState::Draining => "draining",
                MemberState::Down => "down",
            };
            let row = NodeRow {
                name: name.clone(),
                state: state.to_owned(),
                leader: leader == Some(name),
                zone: member.zone.clone(),
                weight: member.weight,
                lanes: member.lanes,
                peers: member.peer_addr.clone(),
                api: member.http_addr.clone(),
                primaries: 0,
                standbys: 0,
                wanted: 0,
                arriving: 0,
                leaving: 0,
            };
            rows.insert(name, row);
        }
        for shard in &state.shards {
            add_shard(&mut rows, shard);
        }
        Self { schema: "mainstay.nodes/v1".to_owned(), nodes: rows.into_values().collect() }
    }
}

fn add_shard(rows: &mut BTreeMap<&NodeId, NodeRow>, shard: &ShardConfig) {
    let primary = shard.primary.as_ref().map(|claim| &claim.node);
    for holder in shard.in_sync.keys() {
        if let Some(row) = rows.get_mut(holder).filter(|_| Some(holder) != primary) {
            row.standbys += 1;
        }
    }
    let moves = shard.handoff.as_ref();
    if let Some(row) = primary.and_then(|node| rows.get_mut(node)) {
        row.primaries += 1;
        row.leaving += u32::from(moves.is_some());
    }
    if let Some(row) = moves.and_then(|handoff| rows.get_mut(&handoff.to)) {
        row.arriving += 1;
    }
    if let Some(row) = shard.targets.first().and_then(|node| rows.get_mut(node)) {
        row.wanted += 1;
    }
}

impl Shards {
    /// At most `limit` shards after `after`.
    pub fn of(state: &ClusterState, after: Option<u32>, limit: u32) -> Self {
        let first = after.map_or(0, |after| after.saturating_add(1));
        let total = count(state.shards.len());
        let end = first.saturating_add(limit).min(total);
        let shards: Vec<ShardRow> = (first..end)
            .zip(state.shards.iter().skip(first as usize))
            .map(|(number, shard)| ShardRow {
                shard: number,
                epoch: shard.epoch.0,
                primary: shard.primary.as_ref().map(|claim| claim.node.clone()),
                available: available(state, shard),
                in_sync: shard.in_sync.keys().cloned().collect(),
                targets: shard.targets.clone(),
                moving_to: shard.handoff.as_ref().map(|handoff| handoff.to.clone()),
            })
            .collect();
        let next = shards.last().map(|row| row.shard).filter(|last| last + 1 < total);
        Self { schema: "mainstay.shards/v1".to_owned(), total, shards, next }
    }
}

/// Whether somebody serves the shard: the claim's node is there, with the claim's disk and start.
pub fn available(state: &ClusterState, shard: &ShardConfig) -> bool {
    shard.primary.as_ref().is_some_and(|claim| {
        state.members.get(&claim.node).is_some_and(|member| {
            member.state != MemberState::Down
                && member.disk == claim.disk
                && member.boot == claim.boot
        })
    })
}

fn serves(node: &NodeId, shard: &ShardConfig) -> bool {
    shard.primary.as_ref().is_some_and(|claim| claim.node == *node)
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
