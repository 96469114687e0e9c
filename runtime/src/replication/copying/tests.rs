//! Copies over real storage and a real connection, with standbys that a test plays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::entry::{DedupRecord, StoredReply};
use mainstay_protocol::id::{EntityId, Epoch, IdempotencyKey, Key, KindId, MethodId, Seq, ShardId};
use mainstay_protocol::message::Caller;
use mainstay_protocol::replication::Position;
use mainstay_protocol::snapshot::{Body, Head, Message, Reason, Remembered, Row};
use mainstay_protocol::time::LogTime;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::arrivals::{
    Arrived, COPIES_IN_MAX, COPY_IDLE_MAX, CopyIn, Offer, ReceiveError, Standbys,
};
use super::pages::{self, answered};
use super::*;
use crate::config;
use crate::storage::fault::{FaultDisk, Faults};
use crate::storage::{
    CheckpointBatch, DedupRow, Recovered, STATE_FILE, StateRow, Storage, StoredState, open_on,
};
use crate::transport::loopback::{Node, Plan, echo, identity, node, until};

mod arriving;
mod sending;

const SHARD: ShardId = ShardId(1);
const EPOCH: Epoch = Epoch(3);

/// A node's storage, which may be closed and opened again.
struct Rig {
    disk: FaultDisk,
    dir: TempDir,
    storage: Option<Storage>,
}

impl Rig {
    fn new() -> Self {
        let (disk, dir) = (FaultDisk::new(), tempfile::tempdir().unwrap());
        let mut rig = Self { disk, dir, storage: None };
        rig.restart();
        rig
    }

    /// Closes, and opens again; says what was found.
    fn restart(&mut self) -> Recovered {
        self.storage = None;
        let config = config::Storage { reserve_bytes: 0, ..config::Config::default().storage };
        let opened = open_on(&self.disk, &config, self.dir.path(), None).unwrap();
        let (storage, recovered) = opened.start(Arc::new(drop)).unwrap();
        self.storage = Some(storage);
        recovered
    }

    /// The shards that have more on disk than a promise.
    fn stored_after_restart(&mut self) -> Vec<ShardId> {
        let found = self.restart().shards.into_iter();
        found.filter(|(_, shard)| shard.is_stored()).map(|(shard, _)| shard).collect()
    }

    fn state(&self) -> State {
        self.storage.as_ref().unwrap().state().clone()
    }
}

/// The standbys of a node, as a test wants them.
#[derive(Debug)]
struct Room {
    /// What the next offers are answered; yes when it is empty.
    answers: Mutex<Vec<bool>>,
    /// How many offers may be answered.
    gate: Semaphore,
    offers: Mutex<Vec<Offer>>,
    arrived: Mutex<Vec<(Offer, Arrived)>>,
    broke_off: Mutex<Vec<Offer>>,
    wants_none_at_the_end: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            answers: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            offers: Mutex::default(),
            arrived: Mutex::default(),
            broke_off: Mutex::default(),
            wants_none_at_the_end: false,
        }
    }
}

impl Room {
    fn refusing() -> Self {
        Self { answers: Mutex::new(vec![false]), ..Self::default() }
    }

    /// Answers no offer before it is let.
    fn closed() -> Self {
        Self { gate: Semaphore::new(0), ..Self::default() }
    }

    fn offers(&self) -> usize {
        self.offers.lock().unwrap().len()
    }

    /// The numbers of the epochs of the copies that broke off.
    fn broken(&self) -> Vec<u64> {
        self.broke_off.lock().unwrap().iter().map(|offer| offer.epoch.0).collect()
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().iter().map(|(_, arrived)| arrived.clone()).collect()
    }
}

impl Standbys for Arc<Room> {
    type Copy = Offer;

    async fn begin(&self, offer: Offer) -> Option<Offer> {
        self.offers.lock().unwrap().push(offer.clone());
        self.gate.acquire().await.unwrap().forget();
        let takes = self.answers.lock().unwrap().pop().unwrap_or(true);
        takes.then_some(offer)
    }

    async fn end(&self, copy: Offer, arrived: Arrived) -> bool {
        self.arrived.lock().unwrap().push((copy, arrived));
        !self.wants_none_at_the_end
    }

    fn broke_off(&self, copy: Offer) {
        self.broke_off.lock().unwrap().push(copy);
    }
}

type Copies = CopyIn<Arc<Room>>;

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId(7), key: Key::new(key).unwrap() }
}

fn row(key: &str, seq: u64, bytes: &str) -> StateRow {
    let bytes = Bytes::copy_from_slice(bytes.as_bytes());
    StateRow { shard: SHARD, entity: entity(key), seq: Seq(seq), bytes }
}

fn remembered(key: &str, seq: u64) -> Remembered {
    let record = DedupRecord {
        key: IdempotencyKey::new(key).unwrap(),
        method: MethodId(1),
        payload_hash: seq,
        reply: StoredReply::Value(Bytes::from(vec![1; 30_000])),
        version: Seq(seq),
    };
    (entity("a"), LogTime(seq), record)
}

fn mark(applied: u64) -> ShardMark {
    ShardMark { shard: SHARD, applied: base(applied), log_time: LogTime(applied), epoch: EPOCH }
}

fn base(seq: u64) -> Position {
    Position { epoch: EPOCH, seq: Seq(seq) }
}

async fn save(state: &State, rows: Vec<StateRow>, dedup: &[Remembered], applied: u64) {
    let dedup = dedup.iter().cloned().map(|(entity, log_time, record)| DedupRow {
        shard: SHARD,
        entity,
        log_time,
        record,
    });
    let (dedup, shards) = (dedup.collect(), vec![mark(applied)]);
    let batch = CheckpointBatch { rows, dedup, shards, ..CheckpointBatch::default() };
    answered(|done| state.checkpoint(batch, done)).await.unwrap();
}

async fn load(state: &State, key: &str) -> Option<StoredState> {
    answered(|done| state.load(SHARD, entity(key), done)).await.unwrap()
}
