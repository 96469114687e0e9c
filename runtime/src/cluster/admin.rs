//! A node as its operators see it: its state, its entities, its part in the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::control::{Command, MemberState, ProposeRefused};
use mainstay_protocol::id::{BootId, EntityId, Key, KindId, NodeId, Seq, ShardId};
use mainstay_protocol::shard::handoff::is_claimed;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::start::LANE_PATIENCE;
use super::{Cluster, Phase, peers};
use crate::clock;
use crate::entity::host;
use crate::lane::inspect::{EntityView, Inspect, LaneView, ListedEntity, Listing};
use crate::lane::{Input, lane_of};
use crate::replication::copying::pages::answered;
use crate::router::locality::LocalityRow;
use crate::storage::{Scan, ScanCursor, ScanRow, StorageError};

/// A node, at one moment.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its name.
    pub name: NodeId,
    /// Its start.
    pub boot: BootId,
    /// Its failure zone, or empty.
    pub zone: String,
    /// What it is doing.
    pub phase: Phase,
    /// How long it runs.
    pub uptime: Duration,
    /// Its lanes.
    pub lanes: u16,
    /// Lanes that answered in time.
    pub lanes_answering: u16,
    /// The consensus leader, as far as it knows.
    pub leader: Option<NodeId>,
    /// Entities in memory.
    pub entities: u64,
    /// Bytes of their state.
    pub state_bytes: u64,
    /// Requests inside it.
    pub requests: u64,
    /// Shards that it serves.
    pub serving: usize,
    /// Shards that the map gives to this start of it and that it does not serve yet.
    pub starting: usize,
    /// Commands may come in: the journal runs and the disk is above its reserve.
    pub writable: bool,
    /// Bytes of journal that a start would replay.
    pub journal_bytes: u64,
}

/// One entity of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityRow {
    /// Its key.
    pub key: String,
    /// Its shard.
    pub shard: ShardId,
    /// The entry that last changed it.
    pub seq: Seq,
    /// Bytes of its encoded state.
    pub state_bytes: u64,
    /// It is in memory.
    pub active: bool,
}

/// One entity, looked at on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Its shard.
    pub shard: ShardId,
    /// Who serves the shard.
    pub primary: Option<NodeId>,
    /// The entry that last changed it; 0 when it was never written.
    pub seq: Seq,
    /// Its encoded state; `None` when it was never written, or is not on this node.
    pub state: Option<Bytes>,
    /// It is in memory.
    pub active: bool,
}

/// Why a question of an operator has no answer. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// It names something that does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What.
        what: String,
    },
    /// The cluster refused.
    #[error(transparent)]
    Refused(#[from] ProposeRefused),
    /// The member is down, and a member that is down hands nothing over. Nothing was changed.
    #[error(
        "member {node} is down and its {shards} shards are on its disk only: start it again, then \
         drain it"
    )]
    Down {
        /// The member.
        node: NodeId,
        /// How many shards it holds.
        shards: u32,
    },
    /// The tables could not be read.
    #[error("the stored state cannot be read")]
    Storage(#[from] StorageError),
    /// A lane did not answer in time: a handler holds it up.
    #[error("lane {lane} does not answer")]
    Busy {
        /// The lane.
        lane: u16,
    },
}

impl Cluster {
    /// This node, now.
    pub async fn view(&self) -> NodeView {
        let inner = &self.0;
        let views = peers::lane_views(inner.lanes.iter().map(|lane| &lane.inbox)).await;
        let sum = |part: fn(&LaneView) -> u64| views.iter().map(part).sum();
        let serving: usize = views.iter().map(|view| view.serving.len()).sum();
        let taking_over: usize = views.iter().map(|view| view.starting as usize).sum();
        let count = |lanes: usize| u16::try_from(lanes).unwrap_or(u16::MAX);
        NodeView {
            name: inner.me.node.clone(),
            boot: inner.me.boot,
            zone: inner.zone.clone(),
            phase: inner.phase.borrow().clone(),
            uptime: self.uptime(),
            lanes: count(inner.lanes.len()),
            lanes_answering: count(views.len()),
            leader: inner.control.leader(),
            entities: sum(|view| view.entities),
            state_bytes: sum(|view| view.state_bytes),
            requests: sum(|view| view.requests),
            serving: serving - taking_over,
            starting: (self.claims() + taking_over).saturating_sub(serving),
            writable: inner.journal.writable(),
            journal_bytes: inner.journal.journal_bytes(),
        }
    }

    /// Shards that the map gives to this start of the node.
    fn claims(&self) -> usize {
        let map = self.map();
        map.shards.iter().filter(|config| is_claimed(config, &self.0.me)).count()
    }

    /// Whether every shard has a primary and this node serves its own.
    pub(super) async fn serves(&self) -> bool {
        let map = self.map();
        let registered =
            map.members.get(&self.0.me.node).is_some_and(|member| member.boot == self.0.me.boot);
        let assigned = map.shards.iter().all(|config| config.primary.is_some());
        if !registered || map.shards.is_empty() || !assigned {
            return false;
        }
        let stale = map.shards.iter().any(|config| {
            config
                .primary
                .as_ref()
                .is_some_and(|claim| claim.node == self.0.me.node && claim.boot != self.0.me.boot)
        });
        let view = self.view().await;
        !stale && view.starting == 0 && view.lanes_answering == view.lanes
    }

    /// Lists entities of a kind on this node, in key order.
    ///
    /// # Errors
    /// [`AdminError::Busy`], or [`AdminError::Storage`].
    pub async fn entities(
        &self,
        kind: KindId,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<EntityRow>, AdminError> {
        let mut first = First { after, limit, rows: BTreeMap::new() };
        let after = after.map(str::to_owned);
        let listing = Listing { kind, prefix: prefix.to_owned(), after, limit };
        for lane in self.lanes() {
            // What is not in a snapshot yet is newer than what is.
            for listed in self.ask_lane(lane, |to| Inspect::List(listing.clone(), to)).await? {
                let ListedEntity { entity, shard, seq, bytes } = listed;
                first.offer(entity.key, shard, seq, bytes);
            }
        }
        // With standbys the tables hold what others serve as well.
        let map = self.map();
        let served = |shard: ShardId| {
            let config = map.shard(shard);
            map.standbys == 0 || config.is_some_and(|config| is_claimed(config, &self.0.me))
        };
        // Pages come by shard, so the first keys of all are known at the end only.
        let mut cursor: Option<ScanCursor> = None;
        loop {
            let after = cursor.take();
            let scan = Scan { kind, prefix: prefix.to_owned(), after, limit: SCAN_PAGE };
            let page = answered(|done| self.0.state.scan(scan, done)).await?;
            for ScanRow { shard, key, seq, bytes } in page.rows {
                if served(shard) {
                    first.offer(key, shard, seq, bytes);
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        self.with_active(kind, first.rows).await
    }

    /// The rows, once their lanes have said which of them are in memory.
    async fn with_active(
        &self,
        kind: KindId,
        mut rows: BTreeMap<Key, EntityRow>,
    ) -> Result<Vec<EntityRow>, AdminError> {
        for lane in self.lanes() {
            let lanes = self.lanes().end;
            let mine = |row: &EntityRow| lane_of(row.shard, lanes) == lane;
            let entity =
                |(key, row): (&Key, &EntityRow)| (row.shard, EntityId { kind, key: key.clone() });
            let asked = rows.iter().filter(|(_, row)| mine(row)).map(entity).collect();
            let active = self.ask_lane(lane, |to| Inspect::Active(asked, to)).await?;
            let rows = rows.values_mut().filter(|row| mine(row));
            rows.zip(active).for_each(|(row, active)| row.active = active);
        }
        Ok(rows.into_values().collect())
    }

    fn lanes(&self) -> std::ops::Range<u16> {
        0..u16::try_from(self.0.lanes.len()).unwrap_or(u16::MAX)
    }

    async fn ask_lane<T>(
        &self,
        lane: u16,
        question: impl FnOnce(oneshot::Sender<T>) -> Inspect,
    ) -> Result<T, AdminError> {
        let (tell, told) = oneshot::channel();
        let inbox = &self.0.lanes[usize::from(lane)].inbox;
        drop(inbox.push(Input::Inspect(question(tell))));
        let answer = tokio::time::timeout(LANE_PATIENCE, told).await;
        answer.ok().and_then(Result::ok).ok_or(AdminError::Busy { lane })
    }

    /// Looks at one entity, as this node knows it.
    ///
    /// # Errors
    /// [`AdminError`] when the kind is unknown, or the tables cannot be read.
    pub async fn inspect(&self, entity: EntityId) -> Result<Inspection, AdminError> {
        let kind =
            self.0.registry.kind(entity.kind).ok_or_else(|| AdminError::NotFound {
                what: format!("kind {:08x}", entity.kind.0),
            })?;
        let map = self.map();
        let total = u32::try_from(map.shards.len()).unwrap_or(u32::MAX);
        if total == 0 {
            return Err(ProposeRefused::NotInitialised.into());
        }
        let affinity = host::affinity(|key| kind.affinity(key), &entity.key);
        let affinity =
            affinity.map_err(|error| AdminError::NotFound { what: error.to_string() })?;
        let shard = ShardId::of(affinity, total);
        let config = &map.shards[shard.0 as usize];
        let primary = config.primary.as_ref().map(|claim| claim.node.clone());
        let lane = lane_of(shard, self.lanes().end);
        let view: EntityView =
            self.ask_lane(lane, |to| Inspect::Entity(shard, entity.clone(), to)).await?;
        let (seq, state) = if let Some((seq, bytes)) = view.dirty {
            (seq, Some(bytes))
        } else {
            let stored = answered(|done| self.0.state.load(shard, entity, done)).await?;
            stored.map_or((Seq(0), None), |stored| (stored.seq, Some(stored.bytes)))
        };
        Ok(Inspection { shard, primary, seq, state, active: view.active })
    }

    /// Begins to hand a member's shards over; it leaves the cluster when it holds none.
    ///
    /// # Errors
    /// [`AdminError::Down`], or [`AdminError::Refused`].
    pub async fn drain(&self, node: NodeId) -> Result<(), AdminError> {
        let map = self.map();
        let shards = map.held_by(&node);
        let down = map.members.get(&node).is_some_and(|m| m.state == MemberState::Down);
        if down && shards > 0 {
            return Err(AdminError::Down { node, shards });
        }
        self.settle(Command::Drain { node }).await
    }

    /// Lets a draining member take part again.
    ///
    /// # Errors
    /// [`AdminError::Refused`].
    pub async fn undrain(&self, node: NodeId) -> Result<(), AdminError> {
        self.settle(Command::Undrain { node }).await
    }

    /// Takes a member that holds nothing out of the cluster.
    ///
    /// # Errors
    /// [`AdminError::Refused`], while it holds shards for one.
    pub async fn remove(&self, node: NodeId) -> Result<(), AdminError> {
        self.settle(Command::Leave { node }).await
    }

    /// Proposes what does the same twice as once, and asks again while its outcome is not known: a
    /// leader that changes meanwhile is no reason to tell an operator so.
    async fn settle(&self, command: Command) -> Result<(), AdminError> {
        let end = clock::now() + SETTLE_WITHIN;
        let mut tries = 0;
        loop {
            let result = self.0.control.propose(command.clone()).await;
            match result {
                Err(ProposeRefused::NoLeader { .. }) if clock::now() < end => {
                    tries += 1;
                    tokio::time::sleep(SETTLE_AGAIN).await;
                }
                // an earlier try took it out
                Err(ProposeRefused::NoMember { .. })
                    if tries > 0 && matches!(command, Command::Leave { .. }) =>
                {
                    return Ok(());
                }
                settled => return Ok(settled.map(drop)?),
            }
        }
    }

    /// The pairs of kinds that cost most remote bytes from here, most costly first.
    pub fn locality(&self, count: usize) -> Vec<LocalityRow> {
        self.0.router.locality_top(count)
    }
}

/// How long an operator's command is proposed again when its outcome is not known.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);
const SETTLE_AGAIN: Duration = Duration::from_millis(200);

/// Rows that one read of the tables lists.
const SCAN_PAGE: usize = 1_000;

/// The first entities in key order of those that come after a key.
struct First<'k> {
    after: Option<&'k str>,
    limit: usize,
    rows: BTreeMap<Key, EntityRow>,
}

impl First<'_> {
    /// Notes an entity, unless it is known already or enough others come before it.
    fn offer(&mut self, key: Key, shard: ShardId, seq: Seq, state_bytes: u64) {
        if self.after.is_some_and(|after| key.as_str() <= after) {
            return;
        }
        let name = key.as_str().to_owned();
        let row = EntityRow { key: name, shard, seq, state_bytes, active: false };
        self.rows.entry(key).or_insert(row);
        if self.rows.len() > self.limit {
            self.rows.pop_last();
        }
    }
}
