//! The writing thread of `state.redb`: bounded transactions in key order.
//!
//! It alone writes, so it alone knows each shard's generation without reading. After every
//! transaction that moved a mark it tells the journal, which may then cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use mainstay_protocol::id::ShardId;
use mainstay_protocol::replication::Position;
use metrics::{Histogram, histogram};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition};

use super::error::StorageError;
use super::guarded;
use super::journal::{Journal, Mark, Marks};
use super::queue::Queue;
use super::reserve::Reserve;
use super::state::{
    CheckpointBatch, CopyRows, DedupRow, ImportBatch, ShardMark, StateRow, WriteJob,
};
use super::stop::Stop;
use super::tables::{self, DEDUP, ENTITIES, Generation, SHARDS, STATE_FILE, ShardMeta};
use crate::clock;

/// Bytes of one transaction, the last row not counted.
const TXN_BYTES_MAX: usize = 4 << 20;
/// Disk space that one transaction may take.
pub(super) const TXN_SPACE: u64 = 2 * TXN_BYTES_MAX as u64;
/// Rows of one transaction.
pub(super) const TXN_ROWS_MAX: usize = 4_096;

type Bytes<'t> = Table<'t, &'static [u8], &'static [u8]>;

/// The writer of `state.redb`.
pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) shards: BTreeMap<ShardId, ShardMeta>,
    pub(super) marks: Arc<Marks>,
    pub(super) reserve: Arc<Reserve>,
    pub(super) stop: Arc<Stop>,
    pub(super) journal: Journal,
    /// Rows of one transaction: [`TXN_ROWS_MAX`].
    pub(super) txn_rows: usize,
    /// Copies under import, one per shard at most, and what of each is stored.
    pub(super) imports: BTreeMap<ShardId, (Generation, CopyRows)>,
}

/// One change of a row.
enum Change<'b> {
    Entity(Vec<u8>, &'b StateRow),
    Dedup(Vec<u8>, &'b DedupRow),
    Forget(Vec<u8>),
    Shard(ShardId, ShardMeta),
}

impl Writer {
    /// Carries out writes until the queue is closed and empty.
    pub(super) fn run(mut self, queue: &Queue<WriteJob>) {
        let seconds = histogram!("mainstay_snapshot_duration_seconds");
        let mut jobs = Vec::with_capacity(1);
        while queue.pop(1, &mut jobs) {
            for job in jobs.drain(..) {
                self.carry_out(job, &seconds);
            }
        }
    }

    fn carry_out(&mut self, job: WriteJob, seconds: &Histogram) {
        match job {
            WriteJob::Checkpoint(batch, done) => {
                let started = clock::now();
                done(self.attempt(|it| it.checkpoint(batch)));
                seconds.record(clock::now().saturating_since(started).as_secs_f64());
            }
            WriteJob::Import(batch, done) => done(self.attempt(|it| it.import(batch))),
            WriteJob::Activate(mark, generation, rows, done) => {
                done(self.attempt(|it| it.activate(mark, generation, rows)));
            }
            WriteJob::Drop(shard, done) => done(self.attempt(|it| it.drop_shard(shard))),
            WriteJob::Sweep => {
                if let Err(error) = self.attempt(Self::sweep) {
                    tracing::warn!(%error, "cannot remove what dead generations left");
                }
            }
        }
    }

    fn attempt(
        &mut self,
        action: impl FnOnce(&mut Self) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        let result = guarded(STATE_FILE, || action(self));
        self.stop.heed(result)
    }

    fn meta(&self, shard: ShardId) -> ShardMeta {
        self.shards.get(&shard).copied().unwrap_or_default()
    }

    fn checkpoint(&mut self, mut batch: CheckpointBatch) -> Result<(), StorageError> {
        // a shard that was dropped and begins anew must be live before its first row is there
        let reborn: Vec<_> = batch.rows.iter().map(|row| row.shard).collect();
        let reborn = reborn.into_iter().chain(batch.shards.iter().map(|mark| mark.shard));
        let reborn: BTreeMap<_, _> = reborn
            .map(|shard| (shard, self.meta(shard)))
            .filter(|(_, meta)| meta.dropped)
            .map(|(shard, meta)| (shard, ShardMeta { dropped: false, ..meta }))
            .collect();
        let reborn = reborn.into_iter().map(|(shard, meta)| Change::Shard(shard, meta)).collect();
        self.write(reborn)?;

        batch.rows.sort_by(|a, b| (a.shard, &a.entity).cmp(&(b.shard, &b.entity)));
        let mut changes = Vec::with_capacity(batch.rows.len() + batch.dedup.len() + 8);
        for row in &batch.rows {
            changes.push(entity_change(row, self.meta(row.shard).generation));
        }
        for row in &batch.dedup {
            changes.push(dedup_change(row, self.meta(row.shard).generation));
        }
        for mark in &batch.shards {
            let meta = self.meta(mark.shard);
            let stands = meta.applied;
            let moved = mark.applied.seq > stands.seq;
            debug_assert!(moved || mark.applied == stands, "a mark only moves on: {mark:?}");
            let applied = if moved { mark.applied } else { stands };
            let (log_time, epoch) = (mark.log_time, mark.epoch);
            let meta = ShardMeta { applied, log_time, epoch, ..meta };
            changes.push(Change::Shard(mark.shard, meta));
        }
        // after the mark: a record must not be gone while the stored log time says that it counts
        for (shard, entity, key) in &batch.forget {
            let generation = self.meta(*shard).generation;
            changes.push(Change::Forget(tables::dedup_key(*shard, generation, entity, key)));
        }
        self.write(changes)
    }

    fn import(&mut self, mut batch: ImportBatch) -> Result<(), StorageError> {
        let ImportBatch { shard, generation, .. } = batch;
        let meta = self.meta(shard);
        let live = self.shards.contains_key(&shard) && !meta.dropped;
        if live && meta.generation == generation {
            return Err(StorageError::GenerationLive { shard, generation });
        }
        if batch.begin {
            self.imports.remove(&shard);
            self.remove_generation(shard, generation)?;
            self.imports.insert(shard, (generation, CopyRows::default()));
        }
        let before = self.imported(shard, generation);
        let before = before.ok_or_else(|| incomplete(shard, generation, None))?;
        let more = CopyRows { states: batch.rows.len() as u64, dedup: batch.dedup.len() as u64 };
        batch.rows.sort_by(|a, b| a.entity.cmp(&b.entity));
        let rows = batch.rows.iter().map(|row| entity_change(row, generation));
        let dedup = batch.dedup.iter().map(|row| dedup_change(row, generation));
        self.write(rows.chain(dedup).collect())?;
        let stored =
            CopyRows { states: before.states + more.states, dedup: before.dedup + more.dedup };
        self.imports.insert(shard, (generation, stored));
        Ok(())
    }

    /// What is stored of a copy; `None` when it never began, or was removed since.
    fn imported(&self, shard: ShardId, generation: Generation) -> Option<CopyRows> {
        let (importing, rows) = self.imports.get(&shard)?;
        (*importing == generation).then_some(*rows)
    }

    fn activate(
        &mut self,
        mark: ShardMark,
        generation: Generation,
        rows: CopyRows,
    ) -> Result<(), StorageError> {
        let ShardMark { shard, applied, log_time, epoch } = mark;
        match self.imported(shard, generation) {
            Some(stored) if stored == rows => {}
            stored => return Err(incomplete(shard, generation, stored)),
        }
        let since = self.journal.next_commit();
        let meta = ShardMeta { dropped: false, generation, applied, log_time, epoch, since };
        self.write(vec![Change::Shard(shard, meta)])?;
        self.remove_dead(shard)
    }

    fn drop_shard(&mut self, shard: ShardId) -> Result<(), StorageError> {
        let meta = self.meta(shard);
        let since = self.journal.next_commit();
        let meta = ShardMeta { dropped: true, applied: Position::default(), since, ..meta };
        // into the reserve, if need be: it gives space back
        self.reserve.check_spare(TXN_SPACE)?;
        self.write_some(&mut std::iter::once(Change::Shard(shard, meta)))?;
        self.remove_dead(shard)
    }

    /// Removes the copies that earlier runs left unfinished or undeleted.
    fn sweep(&mut self) -> Result<(), StorageError> {
        for table in [ENTITIES, DEDUP] {
            let mut from = Vec::new();
            while let Some((shard, generation)) = self.owner_from(table, &from)? {
                if !self.live(shard, generation) {
                    self.remove_below(table, &tables::generation_prefix(shard, generation))?;
                }
                from = tables::prefix_end(tables::generation_prefix(shard, generation));
            }
        }
        Ok(())
    }

    fn live(&self, shard: ShardId, generation: Generation) -> bool {
        let meta = self.meta(shard);
        !meta.dropped && meta.generation == generation
    }

    /// Removes every generation of a shard but the live one, a copy under import included.
    fn remove_dead(&mut self, shard: ShardId) -> Result<(), StorageError> {
        self.imports.remove(&shard);
        for table in [ENTITIES, DEDUP] {
            let mut from = tables::generation_prefix(shard, Generation::default());
            while let Some((owner, generation)) = self.owner_from(table, &from)? {
                if owner != shard {
                    break;
                }
                if !self.live(shard, generation) {
                    self.remove_below(table, &tables::generation_prefix(shard, generation))?;
                }
                from = tables::prefix_end(tables::generation_prefix(shard, generation));
            }
        }
        Ok(())
    }

    fn remove_generation(
        &mut self,
        shard: ShardId,
        generation: Generation,
    ) -> Result<(), StorageError> {
        for table in [ENTITIES, DEDUP] {
            self.remove_below(table, &tables::generation_prefix(shard, generation))?;
        }
        Ok(())
    }

    /// The owner of the first row from a key on.
    fn owner_from(
        &self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        from: &[u8],
    ) -> Result<Option<(ShardId, Generation)>, StorageError> {
        let txn = self.database.begin_read().map_err(on_read)?;
        let rows = txn.open_table(table).map_err(on_read)?;
        let first = rows.range(from..).map_err(on_read)?.next();
        first.map(|row| tables::read_owner(row.map_err(on_read)?.0.value())).transpose()
    }

    /// Removes all rows below a prefix, a bounded number per transaction.
    fn remove_below(
        &self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        prefix: &[u8],
    ) -> Result<(), StorageError> {
        let end = tables::prefix_end(prefix.to_vec());
        loop {
            let txn = self.database.begin_write().map_err(on_write)?;
            let removed = {
                let mut rows = txn.open_table(table).map_err(on_write)?;
                let range = rows.range(prefix..&*end).map_err(on_write)?.take(self.txn_rows);
                let keys = range.map(|row| Ok(row.map_err(on_write)?.0.value().to_vec()));
                let keys = keys.collect::<Result<Vec<_>, StorageError>>()?;
                for key in &keys {
                    rows.remove(key.as_slice()).map_err(on_write)?;
                }
                keys.len()
            };
            if removed == 0 {
                return txn.abort().map_err(on_write);
            }
            txn.commit().map_err(on_fsync)?;
        }
    }

    /// Carries changes out in order, as many per transaction as its bounds allow.
    fn write(&mut self, changes: Vec<Change<'_>>) -> Result<(), StorageError> {
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            self.reserve.check(TXN_SPACE)?;
            self.write_some(&mut changes)?;
        }
        Ok(())
    }

    /// One transaction: as many of the changes as its bounds allow.
    fn write_some<'b>(
        &mut self,
        changes: &mut impl Iterator<Item = Change<'b>>,
    ) -> Result<(), StorageError> {
        let (mut value, mut moved) = (Vec::new(), Vec::new());
        let txn = self.database.begin_write().map_err(on_write)?;
        {
            let mut entities = txn.open_table(ENTITIES).map_err(on_write)?;
            let mut dedup = txn.open_table(DEDUP).map_err(on_write)?;
            let mut shards = txn.open_table(SHARDS).map_err(on_write)?;
            let (mut rows, mut bytes) = (0, 0);
            while rows < self.txn_rows && bytes < TXN_BYTES_MAX {
                let Some(change) = changes.next() else { break };
                match change {
                    Change::Entity(key, row) => {
                        tables::write_entity(&key, row.seq, &row.bytes, &mut value);
                        bytes += put(&mut entities, &key, &value)?;
                    }
                    Change::Dedup(key, row) => {
                        tables::write_dedup(&key, row.log_time, &row.record, &mut value);
                        bytes += put(&mut dedup, &key, &value)?;
                    }
                    Change::Forget(key) => {
                        dedup.remove(key.as_slice()).map_err(on_write)?;
                    }
                    Change::Shard(shard, meta) => {
                        tables::write_shard(shard, &meta, &mut value);
                        shards.insert(shard.0, value.as_slice()).map_err(on_write)?;
                        moved.push((shard, meta));
                    }
                }
                rows += 1;
            }
        }
        txn.commit().map_err(on_fsync)?;
        self.tell(&moved);
        Ok(())
    }

    /// Remembers marks that are durable, and lets the journal cut.
    fn tell(&mut self, moved: &[(ShardId, ShardMeta)]) {
        for (shard, meta) in moved {
            self.shards.insert(*shard, *meta);
            self.marks.set(*shard, Mark { applied: meta.applied.seq, since: meta.since });
        }
    }
}

fn put(table: &mut Bytes<'_>, key: &[u8], value: &[u8]) -> Result<usize, StorageError> {
    table.insert(key, value).map_err(on_write)?;
    Ok(key.len() + value.len())
}

fn entity_change(row: &StateRow, generation: Generation) -> Change<'_> {
    Change::Entity(tables::entity_key(row.shard, generation, &row.entity), row)
}

fn dedup_change(row: &DedupRow, generation: Generation) -> Change<'_> {
    let key = tables::dedup_key(row.shard, generation, &row.entity, &row.record.key);
    Change::Dedup(key, row)
}

fn incomplete(shard: ShardId, generation: Generation, stored: Option<CopyRows>) -> StorageError {
    StorageError::CopyIncomplete { shard, generation, stored: stored.unwrap_or_default() }
}

fn on_read(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(STATE_FILE, "read", error)
}

fn on_write(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(STATE_FILE, "write", error)
}

fn on_fsync(error: redb::CommitError) -> StorageError {
    StorageError::from_redb(STATE_FILE, "fsync", error)
}
