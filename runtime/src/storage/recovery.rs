//! Recovery: what the tables and the journal together say, when a node starts.
//!
//! ```text
//!   state.redb     rows (each with its seq), dedup records, marks: every entry up to `applied`
//!   journal.redb   records cut_below ..= last, without a hole
//!   index          for each segment, in order of commits: skip those of an earlier stay of the
//!                  shard; the others replace or go on, by the rule of index.rs
//!   replay         for each segment of which anything was not replaced: skip what lies at or below
//!                  the mark; apply the rest to the row it changes, unless the row holds it already
//! ```
//!
//! Two passes over the journal, so that what was replaced leaves no trace, and no more of it is in
//! memory than the index. Nothing that cannot be read is skipped: a hole between records, a hole
//! between entries, an epoch that falls, a mark on an entry that was replaced, a checksum or a delta
//! that does not fit end the start with a typed error.
//!
//! What bounds the time: the journal is cut as checkpoints move, so replay reads at most what
//! `limits.dirty_bytes` and `storage.journal_bytes` let pile up. After a crash `state.redb` is
//! walked once by its own repair, about a second per GiB.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::entry::DedupRecord;
use mainstay_protocol::id::{CommitNo, EntityId, Epoch, Seq, ShardId};
use mainstay_protocol::replication::history::History;
use mainstay_protocol::time::LogTime;
use metrics::gauge;
use redb::{Database, ReadableDatabase, TableError};

use super::error::{OpenError, StorageError};
use super::index::Index;
use super::journal::Marks;
use super::replay::Replay;
use super::tables::{
    self, ABOUT, ABOUT_FORMAT, DEDUP, ENTITIES, JOURNAL_FILE, PROMISES, RECORDS, SHARDS,
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
    /// The shards that have anything on this disk, be it a promise only.
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
    /// The newest epoch promised: nothing is written under an older one.
    pub promised: Epoch,
    /// The epochs of its log; its base is where the mark stands.
    pub history: History,
    /// It was here and was dropped, and nothing has come since.
    pub dropped: bool,
}

impl RecoveredShard {
    /// Whether anything of its state or log is here, and not only a promise.
    pub fn is_stored(&self) -> bool {
        self.epoch > Epoch(0)
    }
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
    pub(super) index: Index,
    pub(super) cut_below: CommitNo,
    pub(super) marks: Marks,
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
        let recovered = replay.take_recovered();
        let recovered = Recovered { took: clock::now().saturating_since(started), ..recovered };
        let Replay { metas: shards, marks, index, cut_below, next, .. } = replay;
        let empty = recovered.shards.is_empty() && next == CommitNo(1);
        if fresh && !empty {
            let what = "it holds data, but the identity of the directory is missing".to_owned();
            return Err(OpenError::Corrupt { file: STATE_FILE.to_owned(), what });
        }
        gauge!("mainstay_recovery_duration_seconds").set(recovered.took.as_secs_f64());
        gauge!("mainstay_recovery_replayed_records").set(float(recovered.replayed_records));
        Ok(Self { journal, state, index, cut_below, marks, shards, recovered })
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
    let known = tables::format(file);
    match guarded(file, || format_of(file, &database))? {
        Some(found) if found > known => {
            Err(OpenError::Newer { file: file.to_owned(), found, known })
        }
        Some(found) if found == known => Ok(database),
        None if !fresh => {
            Err(corrupt("the file names no format, and the directory's identity is there"))
        }
        // an older file lacks tables; none that it has is laid out otherwise
        Some(_) | None => {
            guarded(file, || make_tables(file, &database))?;
            Ok(database)
        }
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
        txn.open_table(ABOUT)?.insert(ABOUT_FORMAT, tables::format(file))?;
        if file == JOURNAL_FILE {
            txn.open_table(RECORDS)?;
            txn.open_table(PROMISES)?;
        } else {
            txn.open_table(ENTITIES)?;
            txn.open_table(DEDUP)?;
            txn.open_table(SHARDS)?;
        }
        Ok(txn.commit()?)
    };
    make().map_err(|error| StorageError::from_redb(file, "write", error))
}
