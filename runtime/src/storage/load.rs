//! The reading threads: loads in small groups, pages of exports and scans; short transactions.
//!
//! A read transaction that stays open keeps every page that a checkpoint replaces, so none lives
//! longer than one group or one page.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_protocol::id::{EntityId, Seq, ShardId};
use mainstay_protocol::replication::audit;
use redb::{Database, ReadOnlyTable, ReadableDatabase};
use xxhash_rust::xxh3::xxh3_64;

use super::error::StorageError;
use super::guarded;
use super::queue::Queue;
use super::state::{
    DedupKey, DedupPage, DedupRow, OpenedShard, ReadJob, Scan, ScanCursor, ScanPage, ScanRow,
    ShardMark, SliceRange, StatePage, StateRow, StoredState,
};
use super::stop::Stop;
use super::tables::{self, DEDUP, ENTITIES, Generation, SHARDS, STATE_FILE, ShardMeta};

/// Loads that share one transaction.
const GROUP_MAX: usize = 64;
/// Rows of one page of an export or a scan, whatever the caller asks.
const PAGE_ROWS_MAX: usize = 4_096;
/// Bytes of one page of an export, whatever the caller asks.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// Answers reads until the queue is closed and empty.
pub(super) fn run(queue: &Queue<ReadJob>, database: &Arc<Database>, stop: &Stop) {
    let mut jobs = Vec::with_capacity(GROUP_MAX);
    while queue.pop(GROUP_MAX, &mut jobs) {
        let view = guarded(STATE_FILE, || View::open(database));
        for job in jobs.drain(..) {
            answer(view.as_ref().map_err(Clone::clone), job, stop);
        }
    }
}

fn answer(view: Result<&View, StorageError>, job: ReadJob, stop: &Stop) {
    match job {
        ReadJob::Load { shard, entity, done } => {
            done(read(view, stop, |view| view.load(shard, &entity)));
        }
        ReadJob::Export { shard, after, limit_bytes, done } => {
            done(read(view, stop, |view| view.export(shard, after.as_ref(), limit_bytes)));
        }
        ReadJob::Dedup { shard, after, limit_bytes, done } => {
            done(read(view, stop, |view| view.export_dedup(shard, after.as_ref(), limit_bytes)));
        }
        ReadJob::Digest { shard, range, limit_bytes, done } => {
            done(read(view, stop, |view| view.digest(shard, range, limit_bytes)));
        }
        ReadJob::Open { shard, done } => done(read(view, stop, |view| view.open_shard(shard))),
        ReadJob::Scan { scan, done } => done(read(view, stop, |view| view.scan(&scan))),
    }
}

fn read<T>(
    view: Result<&View, StorageError>,
    stop: &Stop,
    action: impl FnOnce(&View) -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    stop.heed(view.and_then(|view| guarded(STATE_FILE, || action(view))))
}

/// Entities, or dedup records.
type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The tables at one moment.
struct View {
    entities: Rows,
    dedup: Rows,
    shards: ReadOnlyTable<u32, &'static [u8]>,
}

impl View {
    fn open(database: &Database) -> Result<Self, StorageError> {
        let txn = database.begin_read().map_err(on_read)?;
        Ok(Self {
            entities: txn.open_table(ENTITIES).map_err(on_read)?,
            dedup: txn.open_table(DEDUP).map_err(on_read)?,
            shards: txn.open_table(SHARDS).map_err(on_read)?,
        })
    }

    /// What is known of a shard; `None` when it was never saved.
    fn meta(&self, shard: ShardId) -> Result<Option<ShardMeta>, StorageError> {
        let Some(value) = self.shards.get(shard.0).map_err(on_read)? else { return Ok(None) };
        tables::read_shard(shard, value.value()).map(Some)
    }

    /// The live generation of a shard; `None` when it was dropped.
    fn generation(&self, shard: ShardId) -> Result<Option<Generation>, StorageError> {
        let meta = self.meta(shard)?.unwrap_or_default();
        Ok((!meta.dropped).then_some(meta.generation))
    }

    /// What the tables say of a shard beside its states.
    fn open_shard(&self, shard: ShardId) -> Result<OpenedShard, StorageError> {
        let Some(meta) = self.meta(shard)?.filter(|meta| !meta.dropped) else {
            return Ok(OpenedShard::default());
        };
        let prefix = tables::generation_prefix(shard, meta.generation);
        let end = tables::prefix_end(prefix.clone());
        let mut dedup = Vec::new();
        for row in self.dedup.range::<&[u8]>(&*prefix..&*end).map_err(on_read)? {
            let (key, value) = row.map_err(on_read)?;
            dedup.push(tables::read_dedup(key.value(), value.value())?);
        }
        let (epoch, applied, log_time) = (meta.epoch, meta.applied, meta.log_time);
        Ok(OpenedShard { epoch, applied, log_time, dedup })
    }

    fn load(&self, shard: ShardId, entity: &EntityId) -> Result<Option<StoredState>, StorageError> {
        let Some(generation) = self.generation(shard)? else { return Ok(None) };
        let key = tables::entity_key(shard, generation, entity);
        let Some(value) = self.entities.get(key.as_slice()).map_err(on_read)? else {
            check_miss(&self.entities, &key)?;
            return Ok(None);
        };
        let (seq, state) = tables::read_entity(&key, value.value())?;
        Ok(Some(StoredState { bytes: Bytes::copy_from_slice(state), seq }))
    }

    fn export(
        &self,
        shard: ShardId,
        after: Option<&EntityId>,
        limit_bytes: usize,
    ) -> Result<StatePage, StorageError> {
        let Some(generation) = self.generation(shard)? else {
            return Ok(StatePage { rows: Vec::new(), last: true });
        };
        let prefix = tables::generation_prefix(shard, generation);
        let after = after.map(|entity| tables::entity_key(shard, generation, entity));
        let read = |key: &[u8], value: &[u8]| {
            let (seq, state) = tables::read_entity(key, value)?;
            let entity = tables::read_entity_key(key)?;
            Ok(StateRow { shard, entity, seq, bytes: Bytes::copy_from_slice(state) })
        };
        let (rows, last) = page(&self.entities, (&prefix, after, None), limit_bytes, read)?;
        Ok(StatePage { rows, last })
    }

    fn digest(
        &self,
        shard: ShardId,
        (after, upto): SliceRange,
        limit_bytes: usize,
    ) -> Result<audit::Slice, StorageError> {
        let meta = self.meta(shard)?.unwrap_or_default();
        if meta.dropped {
            return Ok(audit::Slice { upto, applied: Seq(0), rows: Vec::new() });
        }
        let prefix = tables::generation_prefix(shard, meta.generation);
        let key = |entity: &EntityId| tables::entity_key(shard, meta.generation, entity);
        let range = (&*prefix, after.as_ref().map(key), upto.as_ref().map(key));
        let read = |key: &[u8], value: &[u8]| {
            let entity = tables::read_entity_key(key)?;
            let (seq, hash) = match tables::read_entity(key, value) {
                Ok((seq, state)) => (seq, xxh3_64(state)),
                Err(StorageError::Corrupt { .. }) => (Seq(0), 0),
                Err(error) => return Err(error),
            };
            Ok(audit::Row { entity, seq, hash })
        };
        let (rows, last) = page(&self.entities, range, limit_bytes, read)?;
        let reached = rows.last().map(|row| row.entity.clone()).filter(|_| !last);
        Ok(audit::Slice { upto: reached.or(upto), applied: meta.applied.seq, rows })
    }

    fn export_dedup(
        &self,
        shard: ShardId,
        after: Option<&DedupKey>,
        limit_bytes: usize,
    ) -> Result<DedupPage, StorageError> {
        let meta = self.meta(shard)?;
        let live = meta.unwrap_or_default();
        if live.dropped {
            return Ok(DedupPage { rows: Vec::new(), last: true, mark: None });
        }
        let prefix = tables::generation_prefix(shard, live.generation);
        let after =
            after.map(|(entity, key)| tables::dedup_key(shard, live.generation, entity, key));
        let read = |key: &[u8], value: &[u8]| {
            let (entity, log_time, record) = tables::read_dedup(key, value)?;
            Ok(DedupRow { shard, entity, log_time, record })
        };
        let (rows, last) = page(&self.dedup, (&prefix, after, None), limit_bytes, read)?;
        let mark = meta.map(|meta| {
            let ShardMeta { applied, log_time, epoch, .. } = meta;
            ShardMark { shard, applied, log_time, epoch }
        });
        Ok(DedupPage { rows, last, mark })
    }

    fn scan(&self, scan: &Scan) -> Result<ScanPage, StorageError> {
        let limit = scan.limit.clamp(1, PAGE_ROWS_MAX);
        let mut page = ScanPage::default();
        let mut shard = scan.after.as_ref().map_or(ShardId(0), |after| after.shard);
        let mut after = scan.after.as_ref();
        while let Some(found) = self.shard_from(shard)? {
            let cursor = after.filter(|after| after.shard == found);
            let full = match self.generation(found)? {
                Some(live) => self.scan_shard((found, live), scan, cursor, (limit, &mut page))?,
                None => false,
            };
            if full {
                let last = page.rows.last().expect("a full page has rows");
                page.next = Some(ScanCursor { shard: found, key: last.key.clone() });
                return Ok(page);
            }
            after = None;
            shard = ShardId(found.0 + 1);
        }
        Ok(page)
    }

    /// The first shard, from `shard` on, that has rows.
    fn shard_from(&self, shard: ShardId) -> Result<Option<ShardId>, StorageError> {
        let from = shard.0.to_be_bytes();
        let mut rows = self.entities.range::<&[u8]>(from.as_slice()..).map_err(on_read)?;
        let Some(row) = rows.next() else { return Ok(None) };
        let (found, _) = tables::read_owner(row.map_err(on_read)?.0.value())?;
        Ok(Some(found))
    }

    /// Adds what a shard has; says whether the page is full.
    fn scan_shard(
        &self,
        (shard, generation): (ShardId, Generation),
        scan: &Scan,
        after: Option<&ScanCursor>,
        (limit, page): (usize, &mut ScanPage),
    ) -> Result<bool, StorageError> {
        let mut prefix = tables::kind_prefix(shard, generation, scan.kind);
        let entity = |key| EntityId { kind: scan.kind, key };
        let from =
            after.map(|after| tables::entity_key(shard, generation, &entity(after.key.clone())));
        prefix.extend_from_slice(scan.prefix.as_bytes());
        let end = tables::prefix_end(prefix.clone());
        let from = from.as_deref().filter(|from| *from >= &*prefix);
        let from = from.map_or(Bound::Included(&*prefix), Bound::Excluded);
        if matches!(from, Bound::Excluded(from) if from >= &*end) {
            return Ok(false);
        }
        for row in self.entities.range::<&[u8]>((from, Bound::Excluded(&*end))).map_err(on_read)? {
            let (key, value) = row.map_err(on_read)?;
            let (seq, state) = tables::read_entity(key.value(), value.value())?;
            let key = tables::read_entity_key(key.value())?.key;
            page.rows.push(ScanRow { shard, key, seq, bytes: state.len() as u64 });
            if page.rows.len() == limit {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Reads the rows below a prefix that come after a key, and not after another one, until there are
/// about so many bytes; says whether they are the last ones.
fn page<R>(
    table: &Rows,
    (prefix, after, upto): (&[u8], Option<Vec<u8>>, Option<Vec<u8>>),
    limit_bytes: usize,
    read: impl Fn(&[u8], &[u8]) -> Result<R, StorageError>,
) -> Result<(Vec<R>, bool), StorageError> {
    let end = tables::prefix_end(prefix.to_vec());
    let from = after.as_deref().map_or(Bound::Included(prefix), Bound::Excluded);
    let to = upto.as_deref().map_or(Bound::Excluded(&*end), Bound::Included);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    if matches!((from, to), (Bound::Excluded(from), Bound::Included(to)) if from >= to) {
        return Ok((rows, true));
    }
    for row in table.range::<&[u8]>((from, to)).map_err(on_read)? {
        if bytes >= limit_bytes.min(PAGE_BYTES_MAX) || rows.len() == PAGE_ROWS_MAX {
            return Ok((rows, false));
        }
        let (key, value) = row.map_err(on_read)?;
        rows.push(read(key.value(), value.value())?);
        bytes += key.value().len() + value.value().len();
    }
    Ok((rows, true))
}

/// Reads the rows beside a key that has none. A row whose key rotted is found under no name, but it
/// lies where its name would be and fails its own checksum there: it must not pass for a row that
/// never existed.
pub(super) fn check_miss(entities: &Rows, key: &[u8]) -> Result<(), StorageError> {
    let before = entities.range::<&[u8]>(..key).map_err(on_read)?.next_back();
    let after = entities.range::<&[u8]>(key..).map_err(on_read)?.next();
    for row in before.into_iter().chain(after) {
        let (key, value) = row.map_err(on_read)?;
        tables::read_entity(key.value(), value.value())?;
    }
    Ok(())
}

fn on_read(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(STATE_FILE, "read", error)
}
