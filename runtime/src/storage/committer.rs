//! The committer: the thread that makes what lanes appended durable, and cuts what is old.
//!
//! ```text
//!   take all that is queued -> wait for disk space -> one record, one fsync -> tell the lanes
//!        ^                                                |
//!        +-------- an idle second: look at the disk, cut <+ failed: stop for good, tell the lanes
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mainstay_protocol::id::{CommitNo, Epoch, ShardId};
use mainstay_protocol::time::Instant;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use redb::Database;

use super::error::StorageError;
use super::guarded;
use super::index::Fenced;
use super::journal::{Batch, JournalNews, News, Shared, batch_bytes};
use super::queue::lock;
use super::tables::records::{Record, write_kept};
use super::tables::{ABOUT, ABOUT_CUT_BELOW, JOURNAL_FILE, PROMISES, RECORDS};
use crate::clock;
use crate::metrics::float;

/// Bytes of one record; a batch that is larger by itself makes a larger one.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// Old records are removed at least this many at a time: each removal recycles pages, and removing
/// in every commit costs more than it recycles.
pub(super) const CUT_LEAST: u64 = 64;
/// Old records that one commit removes at most, so that a long pin does not become a long commit.
const CUT_MAX: u64 = 256;
/// Disk space that a cut by itself may take.
const CUT_SPACE: u64 = 4 << 20;
/// Records that one commit looks at, to learn whether they can go.
const LOOK_MAX: usize = 8;
/// How often an idle committer looks at the disk, and cuts what can be cut.
const IDLE: Duration = Duration::from_secs(1);
/// How often a commit that waits for disk space looks again.
const SPACE_RETRY: Duration = Duration::from_millis(200);

/// What is measured of commits.
pub(super) struct Meters {
    fsyncs: Counter,
    fsync_seconds: Histogram,
    written_bytes: Counter,
    batch_records: Histogram,
    size_bytes: Gauge,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            fsyncs: counter!("mainstay_wal_fsyncs_total"),
            fsync_seconds: histogram!("mainstay_wal_fsync_duration_seconds"),
            written_bytes: counter!("mainstay_wal_written_bytes_total"),
            batch_records: histogram!("mainstay_wal_batch_records"),
            size_bytes: gauge!("mainstay_wal_size_bytes"),
        }
    }
}

/// The thread that alone writes `journal.redb`.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) database: Arc<Database>,
    pub(super) next: CommitNo,
    /// The oldest record that is still there.
    pub(super) cut_below: CommitNo,
    /// Records below this one are known to be covered; that never changes back.
    pub(super) covered_below: CommitNo,
    /// Records that are cut at once, at least: [`CUT_LEAST`].
    pub(super) cut_least: u64,
    pub(super) meters: Meters,
}

impl Committer {
    /// Commits until the journal is closed and empty.
    pub(super) fn run(mut self) {
        let mut batches = Vec::new();
        while self.take(&mut batches) {
            if batches.is_empty() {
                self.idle();
            } else {
                self.serve(&mut batches);
            }
        }
    }

    /// Takes what is queued, at most a record's worth; nothing after an idle second; `false` when
    /// the journal is closed and empty.
    fn take(&self, batches: &mut Vec<Batch>) -> bool {
        let mut queue = lock(&self.shared.queue);
        if queue.batches.is_empty() && !queue.closing {
            let waited = self.shared.wake.wait_timeout(queue, IDLE);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let mut bytes = 0;
        while let Some(batch) = queue.batches.front() {
            let more = batch_bytes(batch);
            if bytes > 0 && bytes + more > RECORD_BYTES_MAX {
                break;
            }
            bytes += more;
            batches.extend(queue.batches.pop_front());
        }
        queue.bytes -= bytes;
        let had_room = self.shared.has_room();
        self.shared.queued_bytes.store(queue.bytes as u64, Ordering::Relaxed);
        let goes_on = !batches.is_empty() || !queue.closing;
        drop(queue);
        if !had_room && self.shared.has_room() {
            // a lane that waits for room has nothing in the journal that would wake it
            (self.shared.notify)(News::Room);
        }
        goes_on
    }

    fn serve(&mut self, batches: &mut Vec<Batch>) {
        let started = clock::now();
        self.shared.busy_since.store(started.as_nanos(), Ordering::Relaxed);
        let result = match self.shared.failure.get() {
            Some(error) => Err(error.clone()),
            None => self.commit(batches, started),
        };
        self.shared.busy_since.store(0, Ordering::Relaxed);
        match result {
            Ok((commit, fenced)) => {
                for (Batch { writer, ticket, .. }, fenced) in batches.drain(..).zip(fenced) {
                    let Fenced { shards, whole } = fenced;
                    for (shard, promised) in shards {
                        self.shared.tell(JournalNews::Fenced { writer, ticket, shard, promised });
                    }
                    if !whole {
                        self.shared.tell(JournalNews::Committed { writer, ticket, commit });
                    }
                }
            }
            Err(error) => {
                if self.shared.failure.get().is_none() {
                    self.shared.fail(error.clone());
                }
                for batch in batches.drain(..) {
                    self.shared.tell_failed(&batch, &error);
                }
            }
        }
    }

    /// Commits what is not fenced; says what of each batch was.
    fn commit(
        &mut self,
        batches: &mut [Batch],
        started: Instant,
    ) -> Result<(CommitNo, Vec<Fenced>), StorageError> {
        let bytes: usize = batches.iter().map(batch_bytes).sum();
        self.wait_for_space(bytes as u64)?;
        let commit = self.next;
        let mut record = Record::default();
        let fenced = self.admit(batches, &mut record);
        if fenced.iter().all(|fenced| fenced.whole) {
            return Ok((commit, fenced)); // nobody is told the number
        }
        let (cut, keep) = self.cut_point(LOOK_MAX, self.cut_least);
        let indexed = lock(&self.shared.index).append(commit, &record, &self.shared.marks);
        indexed.map_err(|what| StorageError::corrupt(JOURNAL_FILE, what))?;
        guarded(JOURNAL_FILE, || self.write(Some((commit, &record)), cut, &keep))?;
        self.next = CommitNo(commit.0 + 1);
        self.shared.next.store(self.next.0, Ordering::Release);
        let bytes = record.len();
        self.shared.journal_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.forget(cut, keep);
        self.measure(bytes, &record, started);
        Ok((commit, fenced))
    }

    /// Moves what is not fenced into a record.
    fn admit(&self, batches: &mut [Batch], record: &mut Record) -> Vec<Fenced> {
        let mut index = lock(&self.shared.index);
        batches.iter_mut().map(|batch| index.admit(batch, record)).collect()
    }

    fn measure(&self, bytes: usize, record: &Record, started: Instant) {
        let segments = record.segments.iter().map(|part| &part.segment);
        let entries = segments.map(|s| (s.last.0 + 1).saturating_sub(s.first.0)).sum();
        self.meters.fsyncs.increment(1);
        self.meters.fsync_seconds.record(clock::now().saturating_since(started).as_secs_f64());
        self.meters.written_bytes.increment(bytes as u64);
        self.meters.batch_records.record(float(entries));
    }

    /// One transaction: a record, if there is one, and the removal of what can go.
    fn write(
        &self,
        record: Option<(CommitNo, &Record)>,
        cut: CommitNo,
        keep: &BTreeMap<ShardId, Epoch>,
    ) -> Result<(), StorageError> {
        let txn = self.database.begin_write().map_err(on_write)?;
        {
            let mut records = txn.open_table(RECORDS).map_err(on_write)?;
            if let Some((commit, record)) = record {
                let mut place = records.insert_reserve(commit.0, record.len()).map_err(on_write)?;
                record.write(commit, place.as_mut());
            }
            for old in self.cut_below.0..cut.0 {
                records.remove(old).map_err(on_write)?;
            }
            if cut > self.cut_below {
                let mut about = txn.open_table(ABOUT).map_err(on_write)?;
                about.insert(ABOUT_CUT_BELOW, cut.0).map_err(on_write)?;
            }
            if !keep.is_empty() {
                let (mut kept, mut value) =
                    (txn.open_table(PROMISES).map_err(on_write)?, Vec::new());
                for (shard, promised) in keep {
                    write_kept(*shard, *promised, &mut value);
                    kept.insert(shard.0, value.as_slice()).map_err(on_write)?;
                }
            }
        }
        txn.commit().map_err(|error| StorageError::from_redb(JOURNAL_FILE, "fsync", error))
    }

    /// The record up to which the journal is cut now: none unless `least` records can go; and the
    /// promises to keep then. Looks at `look` further records at most.
    fn cut_point(&mut self, look: usize, least: u64) -> (CommitNo, BTreeMap<ShardId, Epoch>) {
        let index = lock(&self.shared.index);
        let known = usize::try_from(self.covered_below.0 - self.cut_below.0).unwrap_or(usize::MAX);
        let further = index.records().skip(known).take(look);
        let covered = |record: &&_| index.uncovered(record, &self.shared.marks).next().is_none();
        let more = further.take_while(covered).count();
        self.covered_below = CommitNo(self.covered_below.0 + more as u64);
        let cut = CommitNo(self.covered_below.0.min(self.cut_below.0 + CUT_MAX));
        if cut.0 < self.cut_below.0 + least {
            return (self.cut_below, BTreeMap::new());
        }
        (cut, index.to_keep(cut))
    }

    /// Takes what was cut out of the index.
    fn forget(&mut self, cut: CommitNo, kept: BTreeMap<ShardId, Epoch>) {
        let bytes = lock(&self.shared.index).forget(cut, kept);
        self.shared.journal_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.cut_below = cut;
        self.meters.size_bytes.set(float(self.shared.journal_bytes.load(Ordering::Relaxed)));
    }

    fn idle(&mut self) {
        // looks at the disk in any case; a cut that finds no page to write to stops the journal
        let no_space = self.shared.reserve.check_spare(CUT_SPACE).is_err();
        let (cut, keep) = self.cut_point(usize::MAX, 1);
        if no_space || cut == self.cut_below || self.shared.failure.get().is_some() {
            return;
        }
        match guarded(JOURNAL_FILE, || self.write(None, cut, &keep)) {
            Ok(()) => self.forget(cut, keep),
            Err(error) => self.shared.fail(error),
        }
    }

    /// Waits until the record fits above the reserve; gives up only when the journal is closed.
    fn wait_for_space(&self, bytes: u64) -> Result<(), StorageError> {
        loop {
            let Err(full) = self.shared.reserve.check(bytes) else { return Ok(()) };
            if let Some(error) = self.shared.failure.get() {
                return Err(error.clone());
            }
            let queue = lock(&self.shared.queue);
            if queue.closing {
                return Err(full);
            }
            let waited = self.shared.wake.wait_timeout(queue, SPACE_RETRY);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Drop for Committer {
    /// Also after a panic: whoever appended or will append is told.
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.gone = true;
        let left: Vec<_> = queue.batches.drain(..).collect();
        drop(queue);
        let error = self.shared.failure.get().cloned().unwrap_or(StorageError::Closed);
        for batch in left {
            self.shared.tell_failed(&batch, &error);
        }
    }
}

fn on_write(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(JOURNAL_FILE, "write", error)
}
