//! Moves shards: copies one that stands still to its target, and has the map say so.
//!
//! ```text
//!   lane: Departure --> copy, page by page --> CompleteHandoff --> the map names the target
//!                           | fails: again, for as long as the map plans this very move
//! ```
//! The copy is read from the snapshot tables, into which the lane has saved everything. Until the
//! map names the target the source keeps its own copy and can serve again; afterwards its epoch is
//! over. Nothing here decides where a shard goes: the director did.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::control::{Claim, Command, Expect, ProposeRefused};
use mainstay_protocol::id::ShardId;
use mainstay_protocol::message::Caller;
use mainstay_protocol::snapshot::{Body, Message, Row};
use metrics::{counter, histogram};
use tokio::sync::oneshot;

use crate::clock;
use crate::control::ControlHandle;
use crate::shard::handoff::Departure;
use crate::storage::{
    DedupRow, Done, Generation, ImportBatch, ShardMark, State, StatePage, StateRow, StorageError,
};
use crate::transport;
use crate::transport::handshake::Identity;
use crate::transport::snapshots::SnapshotLink;

/// Bytes of states per message.
const PAGE_BYTES: usize = 1 << 20;
/// Dedup records per message.
const PAGE_RECORDS: usize = 1_000;
/// How long a message of a copy may take.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before a copy that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// Why a copy did not arrive. The source serves on when the move is given up.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target is not in the map, or has another disk.
    #[error("the target is no member with that disk any more")]
    NoTarget,
    /// The target was not reached.
    #[error("the target was not reached")]
    Dial(#[from] transport::handshake::DialError),
    /// A message was not answered, or refused.
    #[error("the target did not take a message")]
    Send(#[from] transport::snapshots::SendError),
    /// The own tables could not be read.
    #[error("the tables could not be read")]
    Storage(#[from] StorageError),
    /// A message could not be encoded.
    #[error("a page cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
}

/// Copies shards out, and takes copies in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mover {
    state: State,
    identity: Arc<Identity>,
    config: transport::Config,
    control: ControlHandle,
    runtime: tokio::runtime::Handle,
    arriving: Arc<Mutex<BTreeMap<(ShardId, u64), Arrived>>>,
}

/// What of a copy has arrived.
#[derive(Debug, Clone, Copy, Default)]
struct Arrived {
    rows: u64,
    dedup: u64,
}

impl Mover {
    /// A mover whose copies run on `runtime`.
    pub fn new(
        state: State,
        identity: Arc<Identity>,
        config: transport::Config,
        control: ControlHandle,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self { state, identity, config, control, runtime, arriving: Arc::default() }
    }

    /// A shard is ready to go: the copy begins. The director bounds how many are under way.
    pub fn depart(&self, departure: Departure) {
        let this = self.clone();
        self.runtime.spawn(async move {
            this.carry(&departure).await;
            (departure.ended)();
        });
    }

    async fn carry(self, departure: &Departure) {
        let began = clock::now();
        let mut outcome = "aborted";
        while self.planned(departure).is_some() {
            match self.copy(departure).await {
                Ok(to) => match self.complete(departure, to).await {
                    Ok(()) => {
                        outcome = "ok";
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(shard = %departure.shard, %error, "a move waits");
                    }
                },
                Err(error) => {
                    tracing::debug!(
                        shard = %departure.shard,
                        error = &error as &dyn std::error::Error,
                        "a copy failed"
                    );
                }
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        let took = clock::now().saturating_since(began);
        counter!("mainstay_shard_moves_total", "cause" => "rebalance", "outcome" => outcome)
            .increment(1);
        histogram!("mainstay_shard_move_duration_seconds", "cause" => "rebalance").record(took);
    }

    /// What to expect of the shard's record, while the map still plans this very move. The shard
    /// stands still until the map changes its mind, so a copy stays good when the record changes
    /// otherwise.
    fn planned(&self, departure: &Departure) -> Option<Expect> {
        let map = self.control.current();
        let config = map.shards.get(departure.shard.0 as usize)?;
        let same =
            config.epoch == departure.epoch && config.handoff.as_ref() == Some(&departure.to);
        same.then(|| config.expect())
    }

    async fn copy(&self, departure: &Departure) -> Result<Claim, CopyError> {
        let map = self.control.current();
        let to = departure.to.to.clone();
        let target = map.members.get(&to).filter(|member| member.disk == departure.to.disk);
        let target = target.ok_or(CopyError::NoTarget)?;
        let claim = Claim { node: to.clone(), disk: target.disk, boot: target.boot };
        let (identity, addr) = (&self.identity, &target.peer_addr);
        let mut link =
            SnapshotLink::connect(identity, &self.config, addr, to, MESSAGE_TIMEOUT).await?;
        let (shard, epoch, copy) = (departure.shard, departure.epoch, clock::wall().0);
        let mut send = async |body| -> Result<(), CopyError> {
            let message = rmp_serde::to_vec(&Message { shard, copy, epoch, body })?;
            link.send(Bytes::from(message)).await?;
            Ok(())
        };
        send(Body::Begin).await?;
        let mut rows = 0;
        let mut after = None;
        loop {
            let page = self.page(shard, after).await?;
            let last = page.rows.last().map(|row| row.entity.clone());
            rows += page.rows.len() as u64;
            let (whole, sent) = (page.last, page.rows.into_iter().map(wire).collect());
            send(Body::Rows(sent)).await?;
            if whole || last.is_none() {
                break;
            }
            after = last;
        }
        for records in departure.dedup.chunks(PAGE_RECORDS) {
            send(Body::Dedup(records.to_vec())).await?;
        }
        let (last, log_time) = (departure.last, departure.log_time);
        let dedup = departure.dedup.len() as u64;
        send(Body::Finish { last, log_time, rows, dedup }).await?;
        Ok(claim)
    }

    async fn page(
        &self,
        shard: ShardId,
        after: Option<mainstay_protocol::id::EntityId>,
    ) -> Result<StatePage, StorageError> {
        answered(|done| self.state.export(shard, after, PAGE_BYTES, done)).await
    }

    async fn complete(&self, departure: &Departure, to: Claim) -> Result<(), ProposeRefused> {
        let shard = departure.shard;
        let Some(expect) = self.planned(departure) else { return Err(ProposeRefused::Stale) };
        self.control.propose(Command::CompleteHandoff { shard, expect, to }).await.map(drop)
    }

    /// A message of a copy that arrives here.
    ///
    /// # Errors
    /// Why it was not taken, for the source's eyes.
    pub async fn receive(self, from: Caller, message: Bytes) -> Result<Bytes, String> {
        if !matches!(from, Caller::Node { .. }) {
            return Err("only a member may copy a shard".to_owned());
        }
        let message: Message =
            rmp_serde::from_slice(&message).map_err(|error| error.to_string())?;
        let shard = message.shard;
        if !self.expected(shard) {
            return Err("the map does not plan this move".to_owned());
        }
        self.store(message).await.map_err(|error| error.to_string())?;
        Ok(Bytes::new())
    }

    fn expected(&self, shard: ShardId) -> bool {
        let map = self.control.current();
        let config = map.shards.get(shard.0 as usize);
        let planned = config.and_then(|config| config.handoff.as_ref());
        match self.identity.caller() {
            Caller::Node { node, .. } => planned.is_some_and(|handoff| handoff.to == *node),
            Caller::Client { .. } => false,
        }
    }

    async fn store(&self, message: Message) -> Result<(), ReceiveError> {
        let Message { shard, copy, epoch, body } = message;
        let generation = Generation(copy);
        let mut batch = ImportBatch { shard, generation, ..ImportBatch::default() };
        match body {
            Body::Begin => {
                self.arrived(shard, copy, |arrived| *arrived = Arrived::default());
                batch.begin = true;
            }
            Body::Rows(rows) => {
                self.arrived(shard, copy, |arrived| arrived.rows += rows.len() as u64);
                batch.rows = rows.into_iter().map(|row| stored(shard, row)).collect();
            }
            Body::Dedup(records) => {
                self.arrived(shard, copy, |arrived| arrived.dedup += records.len() as u64);
                let row = |(entity, log_time, record)| DedupRow { shard, entity, log_time, record };
                batch.dedup = records.into_iter().map(row).collect();
            }
            Body::Finish { last, log_time, rows, dedup } => {
                let arrived = self.arrived(shard, copy, |arrived| *arrived);
                if arrived.rows != rows || arrived.dedup != dedup {
                    return Err(ReceiveError::Incomplete { arrived: arrived.rows, sent: rows });
                }
                let mark = ShardMark { shard, applied: last, log_time, epoch };
                self.forget(shard, copy);
                let done = answered(|done| {
                    self.state.activate_generation(mark, generation, done);
                });
                return Ok(done.await?);
            }
        }
        Ok(answered(|done| self.state.import(batch, done)).await?)
    }

    fn arrived<R>(&self, shard: ShardId, copy: u64, act: impl FnOnce(&mut Arrived) -> R) -> R {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        // An older copy of the shard will not be finished.
        arriving.retain(|(other, of), _| *other != shard || *of == copy);
        act(arriving.entry((shard, copy)).or_default())
    }

    fn forget(&self, shard: ShardId, copy: u64) {
        let mut arriving = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        arriving.remove(&(shard, copy));
    }
}

/// Why a message of a copy was not taken.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("{arrived} of {sent} states arrived")]
    Incomplete { arrived: u64, sent: u64 },
    #[error("it could not be stored: {0}")]
    Storage(#[from] StorageError),
}

fn wire(row: StateRow) -> Row {
    Row { entity: row.entity, seq: row.seq, bytes: row.bytes }
}

fn stored(shard: ShardId, row: Row) -> StateRow {
    StateRow { shard, entity: row.entity, seq: row.seq, bytes: row.bytes }
}

/// Turns a storage callback into something to await.
///
/// # Errors
/// What storage answers; closed, when it never does.
pub async fn answered<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, StorageError> {
    let (done, answer) = oneshot::channel();
    ask(Box::new(move |result| drop(done.send(result))));
    answer.await.unwrap_or(Err(StorageError::Closed))
}
