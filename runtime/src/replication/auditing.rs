//! The audit of the shards that this node is the primary of: slice after slice of its tables,
//! compared with those of every other copy in sync. What is compared when, and what a difference
//! means, is in the rules ([`mainstay_protocol::replication::audit`]).
//!
//! ```text
//!   Schedule: due --> a slice of the own tables --Compare--> each standby's node --Same | Rows-->
//!   Comparison: wrong rows --> log, event, metrics --Replace--> standby --> its next snapshot
//! ```
//! It runs beside everything else, one slice at a time with a pause after each, and reads through
//! the storage's reading threads: a page of rows each time, as a copy does. It shares no thread with
//! what other nodes wait for.

pub mod answers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{Claim, ClusterState, Event};
use mainstay_protocol::id::{EntityId, Epoch, NodeId, ShardId};
use mainstay_protocol::replication::audit::{
    Ask, Comparison, Cure, Findings, Question, Said, Schedule,
};
use mainstay_protocol::snapshot::Row;
use mainstay_protocol::time::Instant;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::sync::watch;

use super::copying::pages::{MESSAGE_TIMEOUT, PAGE_BYTES, answered};
use crate::chain::chain;
use crate::clock;
use crate::events::EventLog;
use crate::storage::{State, StorageError};
use crate::transport;
use crate::transport::handshake::{DialError, Identity};
use crate::transport::snapshots::{SendError, SnapshotLink};

/// Bytes of rows in one slice, the last one not counted.
const SLICE_BYTES: usize = 256 << 10;
/// The pause after each slice: so much of the storage's threads is left to others.
const PAUSE: Duration = Duration::from_millis(20);
/// How often the room looks at itself when nothing is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a slice was not compared. Nothing was changed; it is tried again.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    /// The tables could not be read.
    #[error("the tables could not be read")]
    Storage(#[from] StorageError),
    /// A standby's node was not reached.
    #[error("a standby's node was not reached")]
    Dial(#[from] DialError),
    /// A standby's node did not answer, or is about to do something else.
    #[error("a standby's node did not answer")]
    Send(#[from] SendError),
    /// A question cannot be encoded.
    #[error("a question cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
    /// An answer does not decode.
    #[error("an answer does not decode")]
    Decode(#[from] rmp_serde::decode::Error),
    /// An answer is none to the question, or its rows are in no order.
    #[error("an answer that does not fit the question")]
    Unfit,
    /// The map does not know the copy, or the shard.
    #[error("the map has changed")]
    Gone,
}

/// What an audit needs of its node.
#[derive(Debug)]
pub struct Audit {
    /// This start of this node.
    pub me: Claim,
    /// The tables.
    pub state: State,
    /// The map.
    pub map: watch::Receiver<Arc<ClusterState>>,
    /// Who this node is to peers.
    pub identity: Arc<Identity>,
    /// How it connects.
    pub transport: transport::Config,
    /// Where differences are told.
    pub events: EventLog,
    /// Every shard is compared once in so long.
    pub every: Duration,
}

/// What became of slices and of rows, counted from zero.
struct Meters {
    same: Counter,
    moving: Counter,
    wrong: Counter,
    failed: Counter,
    oldest: Gauge,
}

impl Meters {
    fn new() -> Self {
        let checks =
            |result: &'static str| counter!("mainstay_drift_checks_total", "result" => result);
        for outcome in ["replaced", "left", "extra", "outvoted"] {
            rows(outcome).increment(0);
        }
        let this = Self {
            same: checks("match"),
            moving: checks("moving"),
            wrong: checks("mismatch"),
            failed: checks("error"),
            oldest: gauge!("mainstay_drift_oldest_check_age_seconds"),
        };
        for counter in [&this.same, &this.moving, &this.wrong, &this.failed] {
            counter.increment(0);
        }
        this
    }
}

/// Rows that differed, by what was done about them.
fn rows(outcome: &'static str) -> Counter {
    counter!("mainstay_drift_rows_total", "outcome" => outcome)
}

impl Audit {
    /// Compares shards for as long as it is polled.
    pub async fn run(mut self) {
        let meters = Meters::new();
        let mut schedule = Schedule::new(self.every);
        let mut seen = None;
        loop {
            let (map, now) = (Arc::clone(&self.map.borrow_and_update()), clock::now());
            if seen.replace(map.version) != Some(map.version) {
                schedule.handle_shards(self.audited(&map), now);
            }
            meters.oldest.set(schedule.oldest(now).as_secs_f64());
            let Some((shard, after)) = schedule.poll_due(now) else {
                if self.wait(schedule.poll_timeout(), now).await {
                    continue;
                }
                return;
            };
            match self.compare(&map, (shard, after), &meters).await {
                Ok(upto) => schedule.handle_compared(shard, upto, clock::now()),
                Err(error) => {
                    meters.failed.increment(1);
                    tracing::debug!(%shard, error = chain(&error), "a slice is not compared");
                    schedule.handle_failed(shard, clock::now());
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until a slice is due, or it is time to look around; with nothing to compare, until the
    /// map changes. `false` when there will be no other map.
    async fn wait(&mut self, due: Option<Instant>, now: Instant) -> bool {
        let Some(due) = due else { return self.map.changed().await.is_ok() };
        tokio::time::sleep_until(clock::to_tokio(due.min(now + LOOK_EVERY))).await;
        true
    }

    /// The shards that this node is the primary of and that have other copies in sync.
    fn audited<'m>(&'m self, map: &'m ClusterState) -> impl Iterator<Item = ShardId> + 'm {
        let mine = map.shards().filter(|(_, config)| {
            config.primary.as_ref() == Some(&self.me) && config.in_sync.len() > 1
        });
        mine.map(|(shard, _)| shard)
    }

    /// Compares a slice with every other copy in sync; says how far it reached.
    async fn compare(
        &self,
        map: &ClusterState,
        (shard, after): (ShardId, Option<EntityId>),
        meters: &Meters,
    ) -> Result<Option<EntityId>, AuditError> {
        let config = map.shard(shard).ok_or(AuditError::Gone)?;
        let range = (after.clone(), None);
        let slice = answered(|done| self.state.digest(shard, range, SLICE_BYTES, done)).await?;
        let (upto, digest) = (slice.upto.clone(), slice.digest());
        let what = Ask::Compare { after, upto, digest };
        let question = Question { shard, epoch: config.epoch, what };
        let mut said = BTreeMap::new();
        for node in config.in_sync.keys().filter(|node| **node != self.me.node) {
            said.insert(node.clone(), self.ask(map, node, &question).await?);
        }
        let findings = Comparison::default().compare(&slice, &said);
        if !findings.wrong.is_empty() {
            meters.wrong.increment(1);
            self.handle_wrong(map, (shard, config.epoch), findings).await;
        } else if findings.moving > 0 {
            meters.moving.increment(1);
        } else {
            meters.same.increment(1);
        }
        Ok(slice.upto)
    }

    async fn ask(
        &self,
        map: &ClusterState,
        node: &NodeId,
        question: &Question,
    ) -> Result<Said, AuditError> {
        let addr = &map.members.get(node).ok_or(AuditError::Gone)?.peer_addr;
        let (identity, config, to) = (&self.identity, &self.transport, node.clone());
        let link = SnapshotLink::connect(identity, config, addr, to, MESSAGE_TIMEOUT);
        let answer = link.await?.send(question.encode()?).await?;
        let said: Said = rmp_serde::from_slice(&answer)?;
        let fits = match (&question.what, &said) {
            (Ask::Compare { .. }, Said::Same) | (Ask::Replace(_), Said::Replaced(_)) => true,
            (Ask::Compare { .. }, Said::Rows(slice)) => slice.is_in_order(),
            (Ask::Compare { .. } | Ask::Replace(_), _) => false,
        };
        if fits { Ok(said) } else { Err(AuditError::Unfit) }
    }

    /// Rows of other copies are wrong: tells, and replaces those that may be.
    async fn handle_wrong(
        &self,
        map: &ClusterState,
        (shard, epoch): (ShardId, Epoch),
        findings: Findings,
    ) {
        let mut by_node: BTreeMap<NodeId, Vec<(EntityId, Cure)>> = BTreeMap::new();
        for wrong in findings.wrong {
            by_node.entry(wrong.node).or_default().push((wrong.entity, wrong.cure));
        }
        for (node, wrong) in by_node {
            let mut replace = Vec::new();
            for (entity, cure) in &wrong {
                let (kind, key) = (entity.kind.0, entity.key.as_str());
                tracing::error!(%shard, copy = %node, kind, key, ?cure, "a copy differs");
                match cure {
                    Cure::Replace => replace.push(entity.clone()),
                    Cure::Extra => rows("extra").increment(1),
                    Cure::Outvoted => rows("outvoted").increment(1),
                }
            }
            let wanted = replace.len();
            let replaced = self.replace(map, (shard, epoch), &node, replace).await;
            let replaced = replaced.unwrap_or_else(|error| {
                tracing::warn!(%shard, copy = %node, error = chain(&error), "rows stay wrong");
                0
            });
            rows("replaced").increment(u64::from(replaced));
            let left = u64::try_from(wanted).unwrap_or(u64::MAX).saturating_sub(replaced.into());
            rows("left").increment(left);
            let rows = u32::try_from(wrong.len()).unwrap_or(u32::MAX);
            let event = Event::CopyDiffered { shard, node, rows, replaced };
            self.events.record(map.version, [event]);
        }
    }

    /// Sends rows to a copy where they are wrong; says how many it took.
    async fn replace(
        &self,
        map: &ClusterState,
        (shard, epoch): (ShardId, Epoch),
        node: &NodeId,
        entities: Vec<EntityId>,
    ) -> Result<u32, AuditError> {
        let (mut replaced, mut bytes, mut page) = (0, 0, Vec::new());
        let mut entities = entities.into_iter().peekable();
        while let Some(entity) = entities.next() {
            let asked = entity.clone();
            let stored = answered(|done| self.state.load(shard, asked, done)).await?;
            if let Some(stored) = stored {
                bytes += stored.bytes.len();
                page.push(Row { entity, seq: stored.seq, bytes: stored.bytes });
            }
            let full = bytes >= PAGE_BYTES || entities.peek().is_none();
            if full && !page.is_empty() {
                let what = Ask::Replace(std::mem::take(&mut page));
                bytes = 0;
                let question = Question { shard, epoch, what };
                if let Said::Replaced(taken) = self.ask(map, node, &question).await? {
                    replaced += taken;
                }
            }
        }
        Ok(replaced)
    }
}
