//! Checkpointed state: one writing thread, two reading threads, short transactions on both sides.
//!
//! ```text
//!   load, export, scan ---> [bounded queue] ---> mainstay-load-0, -1 ---+
//!   checkpoint, import,                                                  +--> state.redb
//!   activate, drop     ---> [bounded queue] ---> mainstay-state --------+
//! ```
//!
//! Every call returns at once and answers through its callback, on a storage thread. Writes are
//! carried out in the order of the calls, in key order and in bounded transactions; rows may run
//! ahead of their shard's mark, which is written last, and replay skips what a row holds already.
//!
//! What callers keep to: a row is checkpointed only when its last entry is durable in the journal;
//! a mark `applied` is given only when every entry up to it is in this batch or an earlier one,
//! the dedup records included.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_protocol::entry::DedupRecord;
use mainstay_protocol::id::{EntityId, Epoch, IdempotencyKey, Key, KindId, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::audit::Slice;
use mainstay_protocol::time::LogTime;

use super::error::StorageError;
use super::queue::Queue;
use super::tables::Generation;

/// Loads, exports and scans that wait, at most: as many as a node admits requests, twice.
pub(super) const READS_QUEUED_MAX: usize = 16_384;
/// Writes that wait, at most: each lane has one checkpoint under way, each handoff one page.
pub(super) const WRITES_QUEUED_MAX: usize = 4_096;

/// Where an answer goes. Called on a storage thread; must neither block nor panic.
pub type Done<T> = Box<dyn FnOnce(Result<T, StorageError>) + Send>;

/// A stored state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// The encoded state.
    pub bytes: Bytes,
    /// The seq of the last entry that changed it.
    pub seq: Seq,
}

/// One entity's state on its way to disk, or from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateRow {
    /// Its shard.
    pub shard: ShardId,
    /// The entity.
    pub entity: EntityId,
    /// The seq of the last entry that changed it.
    pub seq: Seq,
    /// The encoded state.
    pub bytes: Bytes,
}

/// A record that makes a keyed command take effect once, on its way to disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupRow {
    /// Its shard.
    pub shard: ShardId,
    /// The entity that the key is scoped to.
    pub entity: EntityId,
    /// The log time of its entry.
    pub log_time: LogTime,
    /// The record.
    pub record: DedupRecord,
}

/// What a dedup record is known by, within its shard.
pub type DedupKey = (EntityId, IdempotencyKey);

/// How far a shard's entries are in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardMark {
    /// The shard.
    pub shard: ShardId,
    /// Every entry up to this one is in the tables. Whoever makes a mark knows who wrote its entry:
    /// a copy that is told a wrong epoch keeps what it has to give up, or gives up what is committed.
    pub applied: Position,
    /// The shard's log time there, or later.
    pub log_time: LogTime,
    /// The shard's epoch.
    pub epoch: Epoch,
}

/// What a lane moves from memory and journal into the tables.
#[derive(Debug, Default)]
pub struct CheckpointBatch {
    /// The lane, for logs.
    pub lane: u16,
    /// States.
    pub rows: Vec<StateRow>,
    /// New dedup records.
    pub dedup: Vec<DedupRow>,
    /// Dedup records that expired.
    pub forget: Vec<(ShardId, EntityId, IdempotencyKey)>,
    /// How far the shards are with this batch.
    pub shards: Vec<ShardMark>,
}

/// What the tables say of a shard beside its states.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenedShard {
    /// The newest epoch at the last checkpoint; 0 when nothing is stored.
    pub epoch: Epoch,
    /// Every entry up to this one is in the tables.
    pub applied: Position,
    /// The shard's log time there, or later.
    pub log_time: LogTime,
    /// The records that make keyed commands take effect once.
    pub dedup: Vec<(EntityId, LogTime, DedupRecord)>,
}

/// A part of a shard's copy that arrives from another node.
#[derive(Debug, Default)]
pub struct ImportBatch {
    /// The shard.
    pub shard: ShardId,
    /// The generation that the copy becomes; another one than the live one. The epoch that it is
    /// made for serves well.
    pub generation: Generation,
    /// The first part: what an earlier attempt left of this generation is removed.
    pub begin: bool,
    /// States; their `shard` is this one.
    pub rows: Vec<StateRow>,
    /// Dedup records; their `shard` is this one.
    pub dedup: Vec<DedupRow>,
}

/// How many rows a copy of a shard has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyRows {
    /// States.
    pub states: u64,
    /// Dedup records.
    pub dedup: u64,
}

/// A page of a shard's states, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatePage {
    /// The states.
    pub rows: Vec<StateRow>,
    /// Nothing comes after them.
    pub last: bool,
}

/// A page of a shard's dedup records, in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DedupPage {
    /// The records.
    pub rows: Vec<DedupRow>,
    /// Nothing comes after them.
    pub last: bool,
    /// How far the shard's entries were in the tables when the page was read; `None` when nothing
    /// was stored of it. A shard that was dropped begins at 0 again, and comes back in a later
    /// epoch: so whoever reads page after page sees that the shard was not replaced meanwhile.
    pub mark: Option<ShardMark>,
}

/// A range of a shard's entities: those after the first, up to the second, it included.
pub type SliceRange = (Option<EntityId>, Option<EntityId>);

/// Where a scan goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanCursor {
    /// The shard of the last entity seen.
    pub shard: ShardId,
    /// Its key.
    pub key: Key,
}

/// One entity that a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRow {
    /// Its shard.
    pub shard: ShardId,
    /// Its key.
    pub key: Key,
    /// The seq of the last entry that is in the tables.
    pub seq: Seq,
    /// Bytes of its encoded state.
    pub bytes: u64,
}

/// A page of a scan: shard by shard, in each in key order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanPage {
    /// What was found.
    pub rows: Vec<ScanRow>,
    /// Where to go on; `None` at the end.
    pub next: Option<ScanCursor>,
}

/// What a reading thread is asked for.
pub(super) enum ReadJob {
    Load { shard: ShardId, entity: EntityId, done: Done<Option<StoredState>> },
    Export { shard: ShardId, after: Option<EntityId>, limit_bytes: usize, done: Done<StatePage> },
    Dedup { shard: ShardId, after: Option<DedupKey>, limit_bytes: usize, done: Done<DedupPage> },
    Digest { shard: ShardId, range: SliceRange, limit_bytes: usize, done: Done<Slice> },
    Open { shard: ShardId, done: Done<OpenedShard> },
    Scan { scan: Scan, done: Done<ScanPage> },
}

/// What a scan looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The kind.
    pub kind: KindId,
    /// Only keys that begin so.
    pub prefix: String,
    /// Where an earlier page ended.
    pub after: Option<ScanCursor>,
    /// Rows, at most.
    pub limit: usize,
}

/// What the writing thread is asked for.
pub(super) enum WriteJob {
    Checkpoint(CheckpointBatch, Done<()>),
    Import(ImportBatch, Done<()>),
    Activate(ShardMark, Generation, CopyRows, Done<()>),
    Drop(ShardId, Done<()>),
    Sweep,
}

impl WriteJob {
    fn refuse(self, error: StorageError) {
        match self {
            Self::Checkpoint(_, done)
            | Self::Import(_, done)
            | Self::Activate(_, _, _, done)
            | Self::Drop(_, done) => done(Err(error)),
            Self::Sweep => {}
        }
    }
}

impl ReadJob {
    fn refuse(self, error: StorageError) {
        match self {
            Self::Load { done, .. } => done(Err(error)),
            Self::Export { done, .. } => done(Err(error)),
            Self::Dedup { done, .. } => done(Err(error)),
            Self::Digest { done, .. } => done(Err(error)),
            Self::Open { done, .. } => done(Err(error)),
            Self::Scan { done, .. } => done(Err(error)),
        }
    }
}

/// A handle to the checkpointed state; cheap to clone.
#[derive(Clone)]
pub struct State {
    pub(super) reads: Arc<Queue<ReadJob>>,
    pub(super) writes: Arc<Queue<WriteJob>>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            reads: Arc::new(Queue::new("load", READS_QUEUED_MAX)),
            writes: Arc::new(Queue::new("checkpoint", WRITES_QUEUED_MAX)),
        }
    }

    /// Reads one entity; `None` when it was never checkpointed.
    pub fn load(&self, shard: ShardId, entity: EntityId, done: Done<Option<StoredState>>) {
        self.read(ReadJob::Load { shard, entity, done });
    }

    /// Reads what a shard's new primary has to know, after the shard moved to this node.
    pub fn open_shard(&self, shard: ShardId, done: Done<OpenedShard>) {
        self.read(ReadJob::Open { shard, done });
    }

    /// Moves states, dedup records and marks into the tables. When it fails, rows of it may be in
    /// the tables and marks are not; the same batch, or a later one, may be tried again.
    pub fn checkpoint(&self, batch: CheckpointBatch, done: Done<()>) {
        self.write(WriteJob::Checkpoint(batch, done));
    }

    /// Reads a page of a shard's states that come after an entity, up to about `limit_bytes`. The
    /// tables hold only what was checkpointed: checkpoint the shard first.
    pub fn export(
        &self,
        shard: ShardId,
        after: Option<EntityId>,
        limit_bytes: usize,
        done: Done<StatePage>,
    ) {
        self.read(ReadJob::Export { shard, after, limit_bytes, done });
    }

    /// Reads a page of a shard's dedup records that come after one, up to about `limit_bytes`; for
    /// the rest as [`State::export`] does.
    pub fn export_dedup(
        &self,
        shard: ShardId,
        after: Option<DedupKey>,
        limit_bytes: usize,
        done: Done<DedupPage>,
    ) {
        self.read(ReadJob::Dedup { shard, after, limit_bytes, done });
    }

    /// Reads which entry made each row of a range, and hashes of what they hold, for about so many
    /// bytes of rows. A row that does not match its checksum is told as made by no entry.
    pub fn digest(&self, shard: ShardId, range: SliceRange, limit_bytes: usize, done: Done<Slice>) {
        self.read(ReadJob::Digest { shard, range, limit_bytes, done });
    }

    /// Stores a part of a copy beside the live state. Nobody sees it before
    /// [`State::activate_generation`]; a copy that never is activated is removed by the next
    /// start, activation or drop.
    pub fn import(&self, batch: ImportBatch, done: Done<()>) {
        self.write(WriteJob::Import(batch, done));
    }

    /// Makes an imported generation the live one, in one small transaction: from here on the shard
    /// stands where `mark` says. What the journal holds of the shard so far belongs to an earlier
    /// stay and is not replayed; so no segment of the shard may be on its way. `rows` is what was
    /// sent: a copy of which anything was lost, or removed since, is refused.
    pub fn activate_generation(
        &self,
        mark: ShardMark,
        generation: Generation,
        rows: CopyRows,
        done: Done<()>,
    ) {
        self.write(WriteJob::Activate(mark, generation, rows, done));
    }

    /// Removes all that is stored of a shard, in every generation, after it moved elsewhere. No
    /// segment of the shard may be on its way into the journal.
    pub fn drop_shard(&self, shard: ShardId, done: Done<()>) {
        self.write(WriteJob::Drop(shard, done));
    }

    /// Lists checkpointed entities of a kind whose keys begin with `prefix`, up to `limit` of them.
    /// Entities that were created since the last checkpoint are not in the tables yet.
    pub fn scan(&self, scan: Scan, done: Done<ScanPage>) {
        self.read(ReadJob::Scan { scan, done });
    }

    /// Removes, behind whatever is queued, what earlier runs left of copies that are not live.
    pub(super) fn sweep(&self) {
        self.write(WriteJob::Sweep);
    }

    fn read(&self, job: ReadJob) {
        if let Err((error, job)) = self.reads.push(job) {
            job.refuse(error);
        }
    }

    fn write(&self, job: WriteJob) {
        if let Err((error, job)) = self.writes.push(job) {
            job.refuse(error);
        }
    }

    /// Takes no more calls; the threads end when all that were taken are answered.
    pub(super) fn close(&self) {
        self.writes.close();
        self.reads.close();
    }
}
