//! Reads entries back from the journal: for a standby that is behind, and for a new primary.
//!
//! A short read transaction on the caller's thread. What was replaced is never given, and nothing
//! that is not durable. What was cut is not here any more: a mark covers it.

use std::sync::atomic::Ordering;

use mainstay_protocol::entry::{Segment, SegmentWriter};
use mainstay_protocol::id::{CommitNo, Seq, ShardId};
use redb::{Database, ReadableDatabase};

use super::error::StorageError;
use super::guarded;
use super::index::Place;
use super::journal::{Journal, Shared};
use super::queue::lock;
use super::tables::records::{Stored, read_record};
use super::tables::{ABOUT, ABOUT_CUT_BELOW, JOURNAL_FILE, RECORDS};

impl Journal {
    /// The entries of a shard from `from` on, in order and without a hole: about `bytes_max` of
    /// them, and one segment at least. Empty when the entry at `from` is not in the journal: it was
    /// cut, or is not durable yet. Blocks for a read of the disk.
    ///
    /// # Errors
    /// [`StorageError`]; nothing was changed.
    pub fn read(
        &self,
        shard: ShardId,
        from: Seq,
        bytes_max: usize,
    ) -> Result<Vec<Segment>, StorageError> {
        let shared = self.shared();
        if let Some(error) = shared.failure.get() {
            return Err(error.clone());
        }
        let read = || {
            let database = shared.database.upgrade().ok_or(StorageError::Closed)?;
            shared.read(&database, (shard, from), bytes_max)
        };
        shared.stop.heed(guarded(JOURNAL_FILE, read))
    }
}

impl Shared {
    fn read(
        &self,
        database: &Database,
        (shard, from): (ShardId, Seq),
        bytes_max: usize,
    ) -> Result<Vec<Segment>, StorageError> {
        // first the number, then the snapshot, then the index: what is below the number is in the
        // snapshot, unless it was cut, and the index does not know what was replaced by then
        let durable = CommitNo(self.next.load(Ordering::Acquire));
        let txn = database.begin_read().map_err(on_read)?;
        let since = self.marks.get(shard).since;
        let places = lock(&self.index).places((shard, from), bytes_max, (since, durable));
        let records = txn.open_table(RECORDS).map_err(on_read)?;
        let mut segments = Vec::with_capacity(places.len());
        for of_one in places.chunk_by(|a, b| a.commit == b.commit) {
            let commit = of_one[0].commit;
            let Some(value) = records.get(commit.0).map_err(on_read)? else {
                let about = txn.open_table(ABOUT).map_err(on_read)?;
                let cut_below = about.get(ABOUT_CUT_BELOW).map_err(on_read)?;
                if cut_below.is_some_and(|below| commit.0 < below.value()) {
                    return Ok(Vec::new());
                }
                return Err(damaged(commit, "it is missing"));
            };
            let record = read_record(commit, value.value())?;
            for place in of_one {
                let stored = record.segments.get(place.nth).filter(|stored| stored.shard == shard);
                let stored = stored.ok_or_else(|| damaged(commit, "a segment is missing"))?;
                segments.extend(part(commit, stored, place, from)?);
            }
        }
        Ok(segments)
    }
}

/// What of a segment was not replaced, from an entry on.
fn part(
    commit: CommitNo,
    stored: &Stored<'_>,
    place: &Place,
    from: Seq,
) -> Result<Option<Segment>, StorageError> {
    let whole = stored.segment();
    let from = from.max(whole.first);
    if from == whole.first && place.last == whole.last {
        return Ok(Some(whole));
    }
    let entries = whole.entries().map_err(|error| damaged(commit, &error.to_string()))?;
    let mut writer = SegmentWriter::new(whole.shard, whole.epoch, Seq(from.0 - 1));
    for entry in entries.iter().filter(|entry| entry.seq >= from && entry.seq <= place.last) {
        writer.push(entry);
    }
    Ok(writer.take())
}

fn damaged(commit: CommitNo, what: &str) -> StorageError {
    StorageError::corrupt(JOURNAL_FILE, format!("record {}: {what}", commit.0))
}

fn on_read(error: impl Into<redb::Error>) -> StorageError {
    StorageError::from_redb(JOURNAL_FILE, "read", error)
}
