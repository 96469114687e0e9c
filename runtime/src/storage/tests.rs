//! Journal, state and recovery together, on a disk that misbehaves on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::entry::{
    Change, DedupRecord, Entry, FORMAT, Op, Segment, SegmentWriter, StoredReply,
};
use mainstay_protocol::id::{
    CommitNo, EntityId, Epoch, IdempotencyKey, Key, KindId, MethodId, Seq, ShardId,
};
use mainstay_protocol::replication::{Position, delta};
use mainstay_protocol::time::LogTime;
use tempfile::TempDir;

use super::fault::{FaultDisk, Faults};
use super::tables::{ABOUT, ABOUT_FORMAT, ENTITIES};
use super::*;

mod crash;
mod damage;
mod directory;
mod journal;
mod overlap;
mod standby;
mod state;

/// A disk, the directory of its identity, and what comes with opening it.
struct Rig {
    disk: FaultDisk,
    dir: TempDir,
}

struct Running {
    storage: Storage,
    recovered: Recovered,
    news: Receiver<JournalNews>,
    other: Receiver<News>,
}

impl Rig {
    fn new() -> Self {
        Self { disk: FaultDisk::new(), dir: tempfile::tempdir().unwrap() }
    }

    fn try_open(&self) -> Result<Opened, OpenError> {
        let config = config::Storage { reserve_bytes: 0, ..config::Config::default().storage };
        open_on(&self.disk, &config, self.dir.path(), None)
    }

    fn open(&self) -> Running {
        start(self.try_open().unwrap())
    }

    /// Puts a record into the journal of a node that does not run.
    fn put_record(&self, commit: u64, value: &[u8]) {
        let database = self.disk.open(JOURNAL_FILE, 1 << 20).unwrap();
        let txn = database.begin_write().unwrap();
        txn.open_table(tables::RECORDS).unwrap().insert(commit, value).unwrap();
        txn.commit().unwrap();
    }

    /// Opens and recovers only.
    fn recover(&self) -> Result<Recovered, OpenError> {
        self.try_open().map(|opened| opened.recovery.recovered)
    }
}

fn start(opened: Opened) -> Running {
    let (send, news) = sync_channel(4096);
    let (send_other, other) = sync_channel(4096);
    // a test that has seen enough hangs up
    let notify = Arc::new(move |told| match told {
        News::Journal(told) => drop(send.send(told)),
        told => drop(send_other.send(told)),
    });
    let (storage, recovered) = opened.start(notify).unwrap();
    Running { storage, recovered, news, other }
}

impl Running {
    fn append(&self, ticket: u64, segments: Vec<Segment>) {
        let (writer, promises) = (Writer::Lane(3), BTreeMap::new());
        self.storage.journal().append(Batch { writer, ticket, segments, promises });
    }

    /// Appends what a standby of one shard persists.
    fn persist(&self, ticket: u64, (shard, promised): (u32, u64), segments: Vec<Segment>) {
        let promises = BTreeMap::from([(ShardId(shard), Epoch(promised))]);
        let writer = Writer::Standbys;
        self.storage.journal().append(Batch { writer, ticket, segments, promises });
    }

    /// The same, and waits until it is durable.
    fn persisted(&self, ticket: u64, by: (u32, u64), segments: Vec<Segment>) {
        self.persist(ticket, by, segments);
        let told = self.next_news();
        assert!(
            matches!(told, JournalNews::Committed { ticket: of, .. } if of == ticket),
            "{told:?}"
        );
    }

    fn next_news(&self) -> JournalNews {
        self.news.recv_timeout(Duration::from_secs(20)).expect("news of every batch")
    }

    /// Why a file stopped, which the node is told.
    fn stopped(&self) -> StorageError {
        match self.other.recv_timeout(Duration::from_secs(20)) {
            Ok(News::Stopped(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    /// Appends, and waits until it is durable.
    fn commit(&self, ticket: u64, segments: Vec<Segment>) -> CommitNo {
        self.append(ticket, segments);
        match self.next_news() {
            JournalNews::Committed { ticket: told, commit, .. } if told == ticket => commit,
            other => panic!("{other:?}"),
        }
    }

    fn checkpoint(&self, rows: Vec<StateRow>, marks: &[(u32, u64)]) -> Result<(), StorageError> {
        self.save(rows, marks.iter().map(|&(shard, applied)| mark(shard, applied)).collect())
    }

    fn save(&self, rows: Vec<StateRow>, shards: Vec<ShardMark>) -> Result<(), StorageError> {
        let batch = CheckpointBatch { rows, shards, ..CheckpointBatch::default() };
        wait(|done| self.storage.state().checkpoint(batch, done))
    }

    fn load(&self, shard: u32, key: &str) -> Result<Option<StoredState>, StorageError> {
        wait(|done| self.storage.state().load(ShardId(shard), entity(key), done))
    }
}

fn wait<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, StorageError> {
    let (send, answer) = sync_channel(1);
    ask(Box::new(move |result| drop(send.send(result))));
    answer.recv_timeout(Duration::from_secs(20)).expect("an answer to every call")
}

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId(7), key: Key::new(key).unwrap() }
}

/// A mark at an entry that epoch 1 wrote.
fn mark(shard: u32, applied: u64) -> ShardMark {
    mark_at(shard, (1, applied))
}

/// A mark at the entry that an epoch wrote.
fn mark_at(shard: u32, (epoch, seq): (u64, u64)) -> ShardMark {
    let (shard, epoch) = (ShardId(shard), Epoch(epoch));
    let applied = Position { epoch, seq: Seq(seq) };
    ShardMark { shard, applied, log_time: LogTime(seq), epoch }
}

fn row(shard: u32, key: &str, seq: u64, bytes: &str) -> StateRow {
    let bytes = Bytes::copy_from_slice(bytes.as_bytes());
    StateRow { shard: ShardId(shard), entity: entity(key), seq: Seq(seq), bytes }
}

fn put(seq: u64, key: &str, bytes: &str) -> Entry {
    let change = Change::Put(Bytes::copy_from_slice(bytes.as_bytes()));
    let op = Op::Turn { entity: entity(key), change, dedup: None };
    Entry { seq: Seq(seq), log_time: LogTime(seq), op }
}

fn keyed(seq: u64, key: &str, idempotency: &str) -> Entry {
    let record = DedupRecord {
        key: IdempotencyKey::new(idempotency).unwrap(),
        method: MethodId(1),
        payload_hash: seq,
        reply: StoredReply::Value(Bytes::from_static(b"ok")),
        version: Seq(seq),
    };
    let op = Op::Turn { entity: entity(key), change: Change::None, dedup: Some(record) };
    Entry { seq: Seq(seq), log_time: LogTime(seq), op }
}

fn segment(shard: u32, epoch: u64, entries: &[Entry]) -> Segment {
    let before = Seq(entries[0].seq.0 - 1);
    let mut writer = SegmentWriter::new(ShardId(shard), Epoch(epoch), before);
    for entry in entries {
        writer.push(entry);
    }
    writer.take().unwrap()
}

fn one(shard: u32, seq: u64, key: &str, bytes: &str) -> Vec<Segment> {
    vec![segment(shard, 1, &[put(seq, key, bytes)])]
}

fn eventually(what: &str, fact: impl Fn() -> bool) {
    for _ in 0..500 {
        if fact() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not in five seconds: {what}");
}
