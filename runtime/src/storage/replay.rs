//! Replay: the journal's entries over the tables, in two passes (see `recovery.rs`).

use std::collections::BTreeMap;

use bytes::Bytes;
use mainstay_protocol::entry::{Change, DedupRecord, Op};
use mainstay_protocol::id::{CommitNo, EntityId, Epoch, IdempotencyKey, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::delta;
use mainstay_protocol::replication::history::History;
use mainstay_protocol::time::LogTime;
use redb::{Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable};

use super::error::StorageError;
use super::index::{Index, Tail};
use super::journal::{Mark, Marks};
use super::load::check_miss;
use super::recovery::{DirtyRow, Recovered, RecoveredShard};
use super::tables::records::{Stored, read_kept, read_record};
use super::tables::{
    self, ABOUT, ABOUT_CUT_BELOW, DEDUP, ENTITIES, JOURNAL_FILE, PROMISES, RECORDS, SHARDS,
    STATE_FILE, ShardMeta,
};

type Dedup = BTreeMap<(EntityId, IdempotencyKey), (LogTime, DedupRecord)>;

/// A shard while it is replayed.
struct Replayed {
    meta: ShardMeta,
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
        Self { meta, log_time: meta.log_time, dedup: Dedup::new(), rows: BTreeMap::new() }
    }

    fn finish(self, history: History, promised: Epoch) -> RecoveredShard {
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
            epoch: self.meta.epoch.max(history.last().epoch),
            applied: history.base().seq,
            last: history.last().seq,
            log_time: self.log_time,
            dirty: dirty.collect(),
            dedup,
            promised,
            history,
            dropped: false,
        }
    }
}

/// The epochs of a shard's log from its mark on; otherwise what is wrong with the mark.
fn history(meta: &ShardMeta, tail: Option<&Tail>) -> Result<History, String> {
    let applied = meta.applied.seq;
    let here = tail.and_then(|tail| tail.epoch_at(meta.since, applied));
    let short = tail.is_some_and(|tail| tail.replaced && tail.last() < Some(applied));
    let old = meta.applied.epoch == Epoch(0) && applied > Seq(0);
    let other = !old && here.is_some_and(|here| here != meta.applied.epoch);
    if short || other {
        return Err(format!("entry {} is saved, and was replaced", applied.0));
    }
    let above: Vec<_> = tail
        .map_or_else(Vec::new, |tail| tail.places().filter(|place| place.last > applied).collect());
    let mut last = applied;
    for place in &above {
        if place.first > last.next() {
            return Err(format!("the entries after {} are missing", last.0));
        }
        last = place.last;
    }
    let first = above.first().map(|place| place.epoch);
    // A row of format 1 does not say who wrote the entry. There was one copy of the shard then, with
    // which no other was compared: any epoch will do that is not later than what follows.
    let old_epoch = || here.unwrap_or_else(|| first.unwrap_or(meta.epoch).min(meta.epoch));
    let epoch = if old { old_epoch() } else { meta.applied.epoch };
    if first.is_some_and(|first| first < epoch) {
        return Err(format!("what follows entry {} is of an earlier epoch", applied.0));
    }
    let mut history = History::new(Position { epoch, seq: applied });
    for place in above {
        history.append(place.epoch, place.last);
    }
    Ok(history)
}

/// Both databases, while they are read.
pub(super) struct Replay {
    entities: ReadOnlyTable<&'static [u8], &'static [u8]>,
    shards: BTreeMap<ShardId, Replayed>,
    histories: BTreeMap<ShardId, History>,
    pub(super) metas: BTreeMap<ShardId, ShardMeta>,
    pub(super) marks: Marks,
    pub(super) index: Index,
    pub(super) cut_below: CommitNo,
    pub(super) next: CommitNo,
}

impl Replay {
    pub(super) fn open(state: &Database) -> Result<Self, StorageError> {
        let txn = state.begin_read().map_err(on_state)?;
        let mut replay = Self {
            entities: txn.open_table(ENTITIES).map_err(on_state)?,
            shards: BTreeMap::new(),
            histories: BTreeMap::new(),
            metas: BTreeMap::new(),
            marks: Marks::default(),
            index: Index::default(),
            cut_below: CommitNo(1),
            next: CommitNo(1),
        };
        for row in txn.open_table(SHARDS).map_err(on_state)?.iter().map_err(on_state)? {
            let (shard, value) = row.map_err(on_state)?;
            let shard = ShardId(shard.value());
            let meta = tables::read_shard(shard, value.value())?;
            replay.metas.insert(shard, meta);
            replay.marks.set(shard, Mark { applied: meta.applied.seq, since: meta.since });
            replay.index.promise(shard, meta.epoch);
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

    /// Reads the journal, twice.
    pub(super) fn run(&mut self, journal: &Database) -> Result<(), StorageError> {
        let txn = journal.begin_read().map_err(on_journal)?;
        for row in txn.open_table(PROMISES).map_err(on_journal)?.iter().map_err(on_journal)? {
            let (shard, value) = row.map_err(on_journal)?;
            let shard = ShardId(shard.value());
            self.index.keep(shard, read_kept(shard, value.value())?);
        }
        let about = txn.open_table(ABOUT).map_err(on_journal)?;
        let cut_below = about.get(ABOUT_CUT_BELOW).map_err(on_journal)?;
        self.cut_below = CommitNo(cut_below.map_or(1, |commit| commit.value()));
        self.next = self.cut_below;
        let records = txn.open_table(RECORDS).map_err(on_journal)?;
        for row in records.iter().map_err(on_journal)? {
            let (commit, value) = row.map_err(on_journal)?;
            self.index_record(CommitNo(commit.value()), value.value())?;
        }
        self.look_at_tails()?;
        let index = std::mem::take(&mut self.index);
        for record in index.records() {
            if index.uncovered(record, &self.marks).next().is_none() {
                continue;
            }
            let commit = record.commit;
            let value = records.get(commit.0).map_err(on_journal)?;
            let value = value.ok_or_else(|| damaged(commit, "it is missing"))?;
            for (nth, stored) in read_record(commit, value.value())?.segments.iter().enumerate() {
                let tail = index.tail(stored.shard);
                if let Some(place) = tail.and_then(|tail| tail.place_of(commit, nth)) {
                    self.replay(commit, stored, place.last)?;
                }
            }
        }
        self.index = index;
        Ok(())
    }

    fn index_record(&mut self, commit: CommitNo, value: &[u8]) -> Result<(), StorageError> {
        if commit != self.next {
            return Err(damaged(commit, &format!("{} should be here", self.next.0)));
        }
        let record = read_record(commit, value)?;
        let found = self.index.found(commit, value.len(), &record, &self.marks);
        found.map_err(|what| damaged(commit, &what))?;
        self.next = CommitNo(commit.0 + 1);
        Ok(())
    }

    /// What is left of each shard's log, and whether its mark fits.
    fn look_at_tails(&mut self) -> Result<(), StorageError> {
        for shard in self.index.shards() {
            let meta = self.metas.get(&shard).copied().unwrap_or_default();
            self.shards.entry(shard).or_insert_with(|| Replayed::new(meta));
        }
        for (shard, replayed) in &self.shards {
            let history = history(&replayed.meta, self.index.tail(*shard)).map_err(|what| {
                StorageError::corrupt(JOURNAL_FILE, format!("shard {}: {what}", shard.0))
            })?;
            if let Some(meta) = self.metas.get_mut(shard) {
                meta.applied = history.base();
            }
            self.histories.insert(*shard, history);
        }
        Ok(())
    }

    /// Applies what of a segment was not replaced and lies above the mark.
    fn replay(
        &mut self,
        commit: CommitNo,
        stored: &Stored<'_>,
        last: Seq,
    ) -> Result<(), StorageError> {
        let Some(shard) = self.shards.get_mut(&stored.shard) else { return Ok(()) };
        let applied = shard.meta.applied.seq;
        if last <= applied {
            return Ok(());
        }
        let entries = stored.segment().entries().map_err(|error| {
            let (shard, first) = (stored.shard.0, stored.first.0);
            damaged(commit, &format!("shard {shard}, seq {first}: {error}"))
        })?;
        for entry in entries.into_iter().filter(|it| it.seq > applied && it.seq <= last) {
            shard.log_time = shard.log_time.max(entry.log_time);
            let Op::Turn { entity, change, dedup } = entry.op else { continue };
            if let Some(record) = dedup {
                let key = (entity.clone(), record.key.clone());
                shard.dedup.insert(key, (entry.log_time, record));
            }
            let at = (stored.shard, commit, entry.seq);
            apply(&self.entities, shard, at, (entity, &change))?;
        }
        Ok(())
    }

    /// What was found, for the node.
    pub(super) fn take_recovered(&mut self) -> Recovered {
        let (index, histories) = (&self.index, &mut self.histories);
        let shards = std::mem::take(&mut self.shards).into_iter().map(|(shard, replayed)| {
            let history = histories.remove(&shard).unwrap_or_default();
            (shard, replayed.finish(history, index.promised(shard)))
        });
        let mut shards: BTreeMap<_, _> = shards.collect();
        for (shard, promised) in index.promises() {
            let dropped = self.metas.get(&shard).is_some_and(|meta| meta.dropped);
            let only = RecoveredShard { promised, dropped, ..RecoveredShard::default() };
            shards.entry(shard).or_insert(only);
        }
        Recovered {
            shards,
            next_commit: self.next,
            replayed_records: self.next.0 - self.cut_below.0,
            ..Recovered::default()
        }
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
