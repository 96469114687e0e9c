//! Recovery: what the tables and the journal together say, when a node starts.
//!
//! ```text
//!   state.redb     rows (each with its seq), dedup records, marks: every entry up to `applied`
//!   journal.redb   records cut_below ..= last, without a hole
//!   replay         for each segment, in order of commits: skip what lies at or below the mark, or
//!                  in an earlier stay of the shard; apply the rest to the row it changes, unless
//!                  the row holds it already
//! ```
//!
//! Replay never skips what it cannot read: a hole between records, a hole between entries, an epoch
//! that falls, a checksum or a delta that does not fit end the start with a typed error.
//!
//! What bounds the time: the journal is cut as checkpoints move, so replay reads at most what
//! `limits.dirty_bytes` and `storage.journal_bytes` let pile up. After a crash `state.redb` is
//! walked once by its own repair, about a second per GiB.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::entry::{Change, DedupRecord, Op, Segment};
use mainstay_protocol::id::{CommitNo, EntityId, Epoch, IdempotencyKey, Seq, ShardId};
use mainstay_protocol::replication::delta;
use mainstay_protocol::time::LogTime;
use metrics::gauge;
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableError};

use super::error::{OpenError, StorageError};
use super::journal::IndexedRecord;
use super::load::check_miss;
use super::tables::{
    self, ABOUT, ABOUT_CUT_BELOW, ABOUT_FORMAT, DEDUP, ENTITIES, JOURNAL_FILE, RECORDS, SHARDS,
    STATE_FILE, ShardMeta,
};
use super::{Disk, guarded};
use crate::clock;
use crate::metrics::float;

/// Memory for pages of the journal: it is written once and read at a start.
const JOURNAL_CACHE_BYTES: usize = 8 << 20;
/// Memory for pages of the state.
const STATE_CACHE_BYTES: usize = 64 << 20;

/// What a start found on disk.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The shards that have anything on this disk.
    pub shards: BTreeMap<ShardId, RecoveredShard>,
    /// The number that the next commit gets.
    pub next_commit: CommitNo,
    /// How long it took.
    pub took: Duration,
    /// Journal records that were read.
    pub replayed_records: u64,
}

/// What a start found of one shard.
#[derive(Debug, Default)]
pub struct RecoveredShard {
    /// The newest epoch that wrote an entry, or was checkpointed.
    pub epoch: Epoch,
    /// Every entry up to this one is in the tables.
    pub applied: Seq,
    /// The last entry.
    pub last: Seq,
    /// The shard's log time there.
    pub log_time: LogTime,
    /// The records that make keyed commands take effect once, oldest first.
    pub dedup: Vec<(EntityId, LogTime, DedupRecord)>,
    /// Entities whose latest state is in the journal only.
    pub dirty: Vec<DirtyRow>,
}

/// An entity whose latest state is in the journal only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyRow {
    /// The entity.
    pub entity: EntityId,
    /// Its latest encoded state.
    pub bytes: Bytes,
    /// The seq of the last entry that changed it.
    pub seq: Seq,
    /// The first commit that holds what the tables do not.
    pub commit: CommitNo,
}

/// Both databases, read.
pub(super) struct Recovery {
    pub(super) journal: Database,
    pub(super) state: Database,
    pub(super) index: VecDeque<IndexedRecord>,
    pub(super) cut_below: CommitNo,
    pub(super) shards: BTreeMap<ShardId, ShardMeta>,
    pub(super) recovered: Recovered,
}

impl Recovery {
    /// Opens both databases and reads what they hold. Only a fresh directory may lack them.
    pub(super) fn run(disk: &dyn Disk, fresh: bool) -> Result<Self, OpenError> {
        let started = clock::now();
        let journal = open(disk, JOURNAL_FILE, JOURNAL_CACHE_BYTES, fresh)?;
        let state = open(disk, STATE_FILE, STATE_CACHE_BYTES, fresh)?;
        let mut replay = guarded(STATE_FILE, || Replay::open(&state))?;
        guarded(JOURNAL_FILE, || replay.run(&journal))?;
        let Replay { metas, shards, index, cut_below, next, replayed, .. } = replay;
        let recovered = Recovered {
            shards: shards.into_iter().map(|(id, shard)| (id, shard.finish())).collect(),
            next_commit: next,
            took: clock::now().saturating_since(started),
            replayed_records: replayed,
        };
        let empty = recovered.shards.is_empty() && next == CommitNo(1);
        if fresh && !empty {
            let what = "it holds data, but the identity of the directory is missing".to_owned();
            return Err(OpenError::Corrupt { file: STATE_FILE.to_owned(), what });
        }
        gauge!("mainstay_recovery_duration_seconds").set(recovered.took.as_secs_f64());
        gauge!("mainstay_recovery_replayed_records").set(float(replayed));
        Ok(Self { journal, state, index, cut_below, shards: metas, recovered })
    }
}

/// Opens a database, and makes its tables in a fresh directory.
fn open(
    disk: &dyn Disk,
    file: &'static str,
    cache_bytes: usize,
    fresh: bool,
) -> Result<Database, OpenError> {
    let corrupt = |what: &str| OpenError::Corrupt { file: file.to_owned(), what: what.to_owned() };
    if !fresh && !disk.exists(file) {
        return Err(corrupt("the file is missing, and the directory's identity is there"));
    }
    let opened = guarded(file, || Ok(disk.open(file, cache_bytes)))?;
    let database = opened.map_err(|error| OpenError::from_redb(PathBuf::from(file), error))?;
    match guarded(file, || format_of(file, &database))? {
        Some(format) if format > tables::FORMAT => {
            Err(OpenError::Newer { file: file.to_owned(), found: format, known: tables::FORMAT })
        }
        Some(_) => Ok(database),
        None if fresh => {
            guarded(file, || make_tables(file, &database))?;
            Ok(database)
        }
        None => Err(corrupt("the file names no format, and the directory's identity is there")),
    }
}

fn format_of(file: &'static str, database: &Database) -> Result<Option<u64>, StorageError> {
    let fail = |error: redb::Error| StorageError::from_redb(file, "read", error);
    let txn = database.begin_read().map_err(|error| fail(error.into()))?;
    let about = match txn.open_table(ABOUT) {
        Ok(about) => about,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(fail(error.into())),
    };
    let format = about.get(ABOUT_FORMAT).map_err(|error| fail(error.into()))?;
    Ok(format.map(|format| format.value()))
}

fn make_tables(file: &'static str, database: &Database) -> Result<(), StorageError> {
    let make = || -> Result<(), redb::Error> {
        let txn = database.begin_write()?;
        txn.open_table(ABOUT)?.insert(ABOUT_FORMAT, tables::FORMAT)?;
        if file == JOURNAL_FILE {
            txn.open_table(RECORDS)?;
        } else {
            txn.open_table(ENTITIES)?;
            txn.open_table(DEDUP)?;
            txn.open_table(SHARDS)?;
        }
        Ok(txn.commit()?)
    };
    make().map_err(|error| StorageError::from_redb(file, "write", error))
}

type Dedup = BTreeMap<(EntityId, IdempotencyKey), (LogTime, DedupRecord)>;

/// A shard while it is replayed.
struct Replayed {
    meta: ShardMeta,
    epoch: Epoch,
    /// The epoch of the last segment; a mark may be of a later one than what lies above it.
    written_in: Epoch,
    last: Seq,
    log_time: LogTime,
    dedup: Dedup,
    rows: BTreeMap<EntityId, Row>,
}

/// An entity that an entry above the mark changed.
struct Row {
    bytes: Option<Bytes>,
    /// The last entry that the bytes hold.
    seq: Seq,
    /// The first commit that holds what the tables do not.
    dirty: Option<CommitNo>,
}

impl Replayed {
    fn new(meta: ShardMeta) -> Self {
        Self {
            meta,
            epoch: meta.epoch,
            written_in: Epoch(0),
            last: meta.applied,
            log_time: meta.log_time,
            dedup: Dedup::new(),
            rows: BTreeMap::new(),
        }
    }

    /// Whether a segment goes on where the shard stands; otherwise what is wrong.
    fn check(&self, segment: &Segment) -> Result<(), String> {
        if segment.epoch < self.written_in {
            let (old, new) = (segment.epoch.0, self.written_in.0);
            return Err(format!("epoch {old} follows epoch {new}"));
        }
        if segment.first > self.last.next() {
            return Err(format!("the entries after {} are missing", self.last.0));
        }
        if segment.first <= self.last && self.last > self.meta.applied {
            return Err("the entry is there already".to_owned());
        }
        Ok(())
    }

    fn finish(self) -> RecoveredShard {
        let mut dedup: Vec<_> = self
            .dedup
            .into_iter()
            .map(|((entity, _), (log_time, record))| (entity, log_time, record))
            .collect();
        dedup.sort_by_key(|(_, log_time, _)| *log_time);
        let dirty = self.rows.into_iter().filter_map(|(entity, row)| {
            let (bytes, commit) = (row.bytes?, row.dirty?);
            Some(DirtyRow { entity, bytes, seq: row.seq, commit })
        });
        RecoveredShard {
            epoch: self.epoch,
            applied: self.meta.applied,
            last: self.last,
            log_time: self.log_time,
            dirty: dirty.collect(),
            dedup,
        }
    }
}

struct Replay {
    entities: ReadOnlyTable<&'static [u8], &'static [u8]>,
    metas: BTreeMap<ShardId, ShardMeta>,
    shards: BTreeMap<ShardId, Replayed>,
    index: VecDeque<IndexedRecord>,
    cut_below: CommitNo,
    next: CommitNo,
    replayed: u64,
}

impl Replay {
    fn open(state: &Database) -> Result<Self, StorageError> {
        let txn = state.begin_read().map_err(on_state)?;
        let mut replay = Self {
            entities: txn.open_table(ENTITIES).map_err(on_state)?,
            metas: BTreeMap::new(),
            shards: BTreeMap::new(),
            index: VecDeque::new(),
            cut_below: CommitNo(1),
            next: CommitNo(1),
            replayed: 0,
        };
        for row in txn.open_table(SHARDS).map_err(on_state)?.iter().map_err(on_state)? {
            let (shard, value) = row.map_err(on_state)?;
            let shard = ShardId(shard.value());
            let meta = tables::read_shard(shard, value.value())?;
            replay.metas.insert(shard, meta);
            if !meta.dropped {
                replay.shards.insert(shard, Replayed::new(meta));
            }
        }
        replay.read_dedup(&txn)?;
        Ok(replay)
    }

    fn read_dedup(&mut self, txn: &ReadTransaction) -> Result<(), StorageError> {
        let table = txn.open_table(DEDUP).map_err(on_state)?;
        for row in table.iter().map_err(on_state)? {
            let (key, value) = row.map_err(on_state)?;
            let (shard, generation) = tables::read_owner(key.value())?;
            let meta = self.metas.get(&shard).copied().unwrap_or_default();
            if meta.dropped || meta.generation != generation {
                continue;
            }
            let (entity, at, record) = tables::read_dedup(key.value(), value.value())?;
            let replayed = self.shards.entry(shard).or_insert_with(|| Replayed::new(meta));
            replayed.dedup.insert((entity, record.key.clone()), (at, record));
        }
        Ok(())
    }

    fn run(&mut self, journal: &Database) -> Result<(), StorageError> {
        let txn = journal.begin_read().map_err(on_journal)?;
        let about = txn.open_table(ABOUT).map_err(on_journal)?;
        let cut_below = about.get(ABOUT_CUT_BELOW).map_err(on_journal)?;
        self.cut_below = CommitNo(cut_below.map_or(1, |commit| commit.value()));
        self.next = self.cut_below;
        for row in txn.open_table(RECORDS).map_err(on_journal)?.iter().map_err(on_journal)? {
            let (commit, value) = row.map_err(on_journal)?;
            let commit = CommitNo(commit.value());
            if commit != self.next {
                return Err(damaged(commit, &format!("{} should be here", self.next.0)));
            }
            let segments = tables::read_record(commit, value.value())?;
            for segment in &segments {
                self.replay(commit, segment)?;
            }
            self.index.push_back(IndexedRecord::new(commit, value.value().len(), &segments));
            self.next = CommitNo(commit.0 + 1);
            self.replayed += 1;
        }
        Ok(())
    }

    fn replay(&mut self, commit: CommitNo, segment: &Segment) -> Result<(), StorageError> {
        let meta = self.metas.get(&segment.shard).copied().unwrap_or_default();
        if meta.since > commit {
            return Ok(());
        }
        let shard = self.shards.entry(segment.shard).or_insert_with(|| Replayed::new(meta));
        let place = format!("shard {}, seq {}", segment.shard.0, segment.first.0);
        let wrong = |what: String| damaged(commit, &format!("{place}: {what}"));
        shard.check(segment).map_err(wrong)?;
        shard.written_in = segment.epoch;
        if segment.last <= shard.meta.applied {
            return Ok(());
        }
        for entry in segment.entries().map_err(|error| wrong(error.to_string()))? {
            if entry.seq <= shard.meta.applied {
                continue;
            }
            shard.log_time = shard.log_time.max(entry.log_time);
            let Op::Turn { entity, change, dedup } = entry.op else { continue };
            if let Some(record) = dedup {
                let key = (entity.clone(), record.key.clone());
                shard.dedup.insert(key, (entry.log_time, record));
            }
            let at = (segment.shard, commit, entry.seq);
            apply(&self.entities, shard, at, (entity, &change))?;
        }
        shard.last = segment.last;
        shard.epoch = shard.epoch.max(segment.epoch);
        Ok(())
    }
}

/// Applies one change to the row it is for.
fn apply(
    entities: &ReadOnlyTable<&'static [u8], &'static [u8]>,
    shard: &mut Replayed,
    (id, commit, seq): (ShardId, CommitNo, Seq),
    (entity, change): (EntityId, &Change),
) -> Result<(), StorageError> {
    if matches!(change, Change::None) {
        return Ok(());
    }
    if !shard.rows.contains_key(&entity) {
        let key = tables::entity_key(id, shard.meta.generation, &entity);
        // rows of a shard that was dropped may not be removed yet, and belong to its earlier stay
        let stored = if shard.meta.dropped {
            None
        } else {
            entities.get(key.as_slice()).map_err(on_state)?
        };
        if stored.is_none() && !shard.meta.dropped {
            check_miss(entities, &key)?;
        }
        let mut row = Row { bytes: None, seq: Seq(0), dirty: None };
        if let Some(value) = stored {
            let (seq, state) = tables::read_entity(&key, value.value())?;
            row = Row { bytes: Some(Bytes::copy_from_slice(state)), seq, dirty: None };
        }
        shard.rows.insert(entity.clone(), row);
    }
    let row = shard.rows.get_mut(&entity).expect("the row was just put there");
    if seq <= row.seq {
        return Ok(());
    }
    let next = delta::apply_change(row.bytes.as_ref(), change);
    row.bytes = next.map_err(|error| {
        damaged(commit, &format!("shard {}, seq {}, {}: {error}", id.0, seq.0, entity.key))
    })?;
    row.seq = seq;
    row.dirty.get_or_insert(commit);
    Ok(())
}

fn damaged(commit: CommitNo, what: &str) -> StorageError {
    StorageError::corrupt(JOURNAL_FILE, format!("record {}: {what}", commit.0))
}

fn on_state(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(STATE_FILE, "read", error)
}

fn on_journal(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(JOURNAL_FILE, "read", error)
}
