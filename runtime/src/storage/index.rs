//! What the journal holds, in memory: one rule for what is written, replayed and read back.
//!
//! ```text
//!   journal     1: seq 1..4, under 5    2: promise 6    3: seq 3..4, under 6    4: seq 5, under 6
//!   tail        1: seq 1..2                             3: seq 3..4             4: seq 5
//!   promised    6
//! ```
//! A shard's *tail* is the places of its entries that were not replaced: no hole, no entry twice,
//! epochs that only grow. A segment replaces what is there from its first entry on, if it is written
//! under a newer epoch than that was; otherwise an entry that comes twice is damage.
//!
//! What is written under an older epoch than its shard's promise is fenced: not written at all. A
//! standby writes under the epoch that it promises in the same batch, a primary under its own.
//!
//! Whoever appends changes the index before the disk: if the disk fails, the journal is over. So
//! readers look only at places below the next commit.

use std::collections::{BTreeMap, VecDeque};

use mainstay_protocol::id::{CommitNo, Epoch, Seq, ShardId};

use super::journal::{Batch, Mark, Marks};
use super::tables::records::{Record, Stored, StoredRecord, Written};

/// Where entries of a shard lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) commit: CommitNo,
    /// Which of the record's segments.
    pub(super) nth: usize,
    pub(super) epoch: Epoch,
    pub(super) under: Epoch,
    /// The segment's first entry.
    pub(super) first: Seq,
    /// The last entry of the segment that was not replaced.
    pub(super) last: Seq,
    /// Bytes of the whole segment.
    pub(super) bytes: usize,
}

impl Place {
    fn of(commit: CommitNo, nth: usize, stored: &Stored<'_>) -> Self {
        let Stored { epoch, under, first, last, bytes, .. } = *stored;
        Self { commit, nth, epoch, under, first, last, bytes: bytes.len() }
    }
}

/// The places of one shard's entries, in order.
#[derive(Debug, Default)]
pub(super) struct Tail {
    places: VecDeque<Place>,
    /// The newest epoch under which anything of it was written.
    under: Epoch,
    /// Something of it was replaced.
    pub(super) replaced: bool,
}

impl Tail {
    /// The last entry, if there is any.
    pub(super) fn last(&self) -> Option<Seq> {
        self.places.back().map(|place| place.last)
    }

    /// All places, in order.
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.iter()
    }

    /// The place of a record's segment, if anything of it is left.
    pub(super) fn place_of(&self, commit: CommitNo, nth: usize) -> Option<&Place> {
        let key = (commit, nth);
        let found = self.places.binary_search_by_key(&key, |place| (place.commit, place.nth));
        found.ok().map(|at| &self.places[at])
    }

    /// The place that holds an entry, or the first one after it.
    fn from(&self, seq: Seq) -> usize {
        self.places.partition_point(|place| place.last < seq)
    }

    /// The epoch that wrote an entry, in a stay of the shard.
    pub(super) fn epoch_at(&self, since: CommitNo, seq: Seq) -> Option<Epoch> {
        let place = self.places.get(self.from(seq))?;
        (place.first <= seq && place.commit >= since).then_some(place.epoch)
    }

    /// Whether a new segment leaves a hole. One that is found may: what lay before it was replaced
    /// together with it, later on, and cut. `history` in replay.rs looks at what is left.
    fn check_new(&self, first: Seq, mark: Mark) -> Result<(), String> {
        let here = self.places.back().filter(|last| last.commit >= mark.since);
        let last = here.map_or(mark.applied, |last| last.last.max(mark.applied));
        if first <= mark.applied {
            return Err(format!("everything up to {} is saved", mark.applied.0));
        }
        if first > last.next() {
            return Err(format!("the entries after {} are missing", last.0));
        }
        Ok(())
    }

    /// Adds a segment; otherwise what is wrong with it.
    fn push(&mut self, place: Place, mark: Mark) -> Result<(), String> {
        if self.places.back().is_some_and(|last| last.commit < mark.since) {
            *self = Self::default(); // that was an earlier stay of the shard
        }
        let Place { epoch, under, first, .. } = place;
        if under < self.under {
            return Err(format!("epoch {} follows epoch {}", under.0, self.under.0));
        }
        if epoch > under || place.last < first {
            return Err("the segment is not what its writer could have".to_owned());
        }
        let last = self.last().unwrap_or(mark.applied);
        if first > last.next() && first <= mark.applied.next() {
            self.places.clear(); // what lies between is saved
        }
        if self.places.back().is_some_and(|last| first <= last.last) {
            if under == self.under {
                return Err("the entry is there already".to_owned());
            }
            self.truncate_from(first);
        }
        if let Some(before) = self.places.back().filter(|before| before.epoch > epoch) {
            return Err(format!("epoch {} follows epoch {}", epoch.0, before.epoch.0));
        }
        self.under = under;
        self.places.push_back(place);
        Ok(())
    }

    fn truncate_from(&mut self, first: Seq) {
        self.replaced = true;
        while self.places.back().is_some_and(|place| place.first >= first) {
            self.places.pop_back();
        }
        if let Some(place) = self.places.back_mut() {
            place.last = place.last.min(Seq(first.0 - 1));
        }
    }
}

/// What the index knows of a record.
#[derive(Debug)]
pub(super) struct IndexedRecord {
    pub(super) commit: CommitNo,
    pub(super) bytes: u64,
    /// The shards of its segments, in order.
    segments: Vec<ShardId>,
    /// The shards of its promises.
    promises: Vec<ShardId>,
}

/// What of a batch is not written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fenced {
    /// The shards, and what each has promised.
    pub(super) shards: BTreeMap<ShardId, Epoch>,
    /// Nothing of the batch is.
    pub(super) whole: bool,
}

/// What the journal holds.
#[derive(Debug, Default)]
pub(super) struct Index {
    records: VecDeque<IndexedRecord>,
    tails: BTreeMap<ShardId, Tail>,
    promised: BTreeMap<ShardId, Epoch>,
    /// The promises that outlive the records that held them.
    kept: BTreeMap<ShardId, Epoch>,
}

impl Index {
    /// A promise that is kept apart from the records.
    pub(super) fn keep(&mut self, shard: ShardId, promised: Epoch) {
        self.kept.insert(shard, promised);
        self.promise(shard, promised);
    }

    /// Of a shard, what would be written under older epochs is refused from now on.
    pub(super) fn promise(&mut self, shard: ShardId, epoch: Epoch) {
        let promised = self.promised.entry(shard).or_default();
        *promised = epoch.max(*promised);
    }

    /// The newest promise of a shard.
    pub(super) fn promised(&self, shard: ShardId) -> Epoch {
        self.promised.get(&shard).copied().unwrap_or_default()
    }

    /// The newest promise of every shard that has any.
    pub(super) fn promises(&self) -> impl Iterator<Item = (ShardId, Epoch)> {
        self.promised.iter().map(|(shard, promised)| (*shard, *promised))
    }

    /// The shards that have entries here.
    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.tails.keys().copied()
    }

    /// Where the entries of a shard lie.
    pub(super) fn tail(&self, shard: ShardId) -> Option<&Tail> {
        self.tails.get(&shard)
    }

    /// The oldest records, first one first.
    pub(super) fn records(&self) -> impl Iterator<Item = &IndexedRecord> {
        self.records.iter()
    }

    /// Moves what may be written of a batch into a record; says what may not.
    pub(super) fn admit(&mut self, batch: &mut Batch, record: &mut Record) -> Fenced {
        let promises = std::mem::take(&mut batch.promises);
        let under = |shard: ShardId, own: Epoch| promises.get(&shard).copied().unwrap_or(own);
        let mut fenced = Fenced::default();
        let mut left = false;
        let owns = batch.segments.iter().map(|segment| (segment.shard, segment.epoch));
        for (shard, own) in owns.chain(promises.iter().map(|(shard, epoch)| (*shard, *epoch))) {
            let promised = self.promised(shard);
            if under(shard, own) < promised {
                fenced.shards.insert(shard, promised);
            } else {
                left = true;
            }
        }
        fenced.whole = !left && !fenced.shards.is_empty();
        let may = |shard: &ShardId| !fenced.shards.contains_key(shard);
        for (shard, epoch) in promises.iter().filter(|(shard, _)| may(shard)) {
            if *epoch > self.promised(*shard) {
                self.promise(*shard, *epoch);
                record.promises.push((*shard, *epoch));
            }
        }
        for segment in batch.segments.drain(..).filter(|segment| may(&segment.shard)) {
            let under = under(segment.shard, segment.epoch);
            self.promise(segment.shard, under);
            record.segments.push(Written { under, segment });
        }
        fenced
    }

    /// Adds a record that is about to be written; otherwise what is wrong with it, and the journal
    /// must not go on.
    pub(super) fn append(
        &mut self,
        commit: CommitNo,
        record: &Record,
        marks: &Marks,
    ) -> Result<(), String> {
        let segments = record.segments.iter().enumerate();
        for (nth, Written { under, segment }) in segments {
            let mark = marks.get(segment.shard);
            let (shard, under) = (segment.shard, *under);
            let (epoch, first, last) = (segment.epoch, segment.first, segment.last);
            let stored = Stored { shard, epoch, under, first, last, bytes: &segment.bytes };
            let place = Place::of(commit, nth, &stored);
            let tail = self.tails.entry(shard).or_default();
            let pushed = tail.check_new(first, mark).and_then(|()| tail.push(place, mark));
            pushed.map_err(|what| format!("shard {}, seq {}: {what}", shard.0, first.0))?;
        }
        self.records.push_back(IndexedRecord {
            commit,
            bytes: record.len() as u64,
            segments: record.segments.iter().map(|part| part.segment.shard).collect(),
            promises: record.promises.iter().map(|promise| promise.0).collect(),
        });
        Ok(())
    }

    /// Adds a record that was found.
    pub(super) fn found(
        &mut self,
        commit: CommitNo,
        bytes: usize,
        StoredRecord { segments, promises }: &StoredRecord<'_>,
        marks: &Marks,
    ) -> Result<(), String> {
        for (nth, stored) in segments.iter().enumerate() {
            self.promise(stored.shard, stored.under);
            let mark = marks.get(stored.shard);
            if mark.since > commit {
                continue;
            }
            let tail = self.tails.entry(stored.shard).or_default();
            let pushed = tail.push(Place::of(commit, nth, stored), mark);
            let (shard, first) = (stored.shard.0, stored.first.0);
            pushed.map_err(|what| format!("shard {shard}, seq {first}: {what}"))?;
        }
        for (shard, epoch) in promises {
            self.promise(*shard, *epoch);
        }
        self.records.push_back(IndexedRecord {
            commit,
            bytes: bytes as u64,
            segments: segments.iter().map(|stored| stored.shard).collect(),
            promises: promises.iter().map(|promise| promise.0).collect(),
        });
        Ok(())
    }

    /// The shards of a record whose entries are in the journal only.
    pub(super) fn uncovered<'i>(
        &'i self,
        record: &'i IndexedRecord,
        marks: &'i Marks,
    ) -> impl Iterator<Item = ShardId> {
        let segments = record.segments.iter().enumerate();
        let needed = segments.filter(move |(nth, shard)| {
            let mark = marks.get(**shard);
            let tail = self.tails.get(*shard).filter(|_| mark.since <= record.commit);
            let place = tail.and_then(|tail| tail.place_of(record.commit, *nth));
            place.is_some_and(|place| place.last > mark.applied)
        });
        needed.map(|(_, shard)| *shard)
    }

    /// The promises to write down apart when all records below `cut` go.
    pub(super) fn to_keep(&self, cut: CommitNo) -> BTreeMap<ShardId, Epoch> {
        let gone = self.records.iter().take_while(|record| record.commit < cut);
        let shards = gone.flat_map(|record| record.segments.iter().chain(&record.promises));
        let promises = shards.map(|shard| (*shard, self.promised(*shard)));
        promises.filter(|(shard, promised)| self.kept.get(shard) != Some(promised)).collect()
    }

    /// Takes out what was cut, its promises being kept; says how many bytes that was.
    pub(super) fn forget(&mut self, cut: CommitNo, kept: BTreeMap<ShardId, Epoch>) -> u64 {
        self.kept.extend(kept);
        let mut bytes = 0;
        let gone = self.records.partition_point(|record| record.commit < cut);
        for record in self.records.drain(..gone) {
            bytes += record.bytes;
            for shard in record.segments {
                let Some(tail) = self.tails.get_mut(&shard) else { continue };
                let gone = tail.places.partition_point(|place| place.commit < cut);
                tail.places.drain(..gone);
            }
        }
        bytes
    }

    /// Where the entries of a shard from `from` on lie: about `bytes_max` of them, of this stay of
    /// the shard, in commits below `durable`. None when the one at `from` is not here.
    pub(super) fn places(
        &self,
        (shard, from): (ShardId, Seq),
        bytes_max: usize,
        (since, durable): (CommitNo, CommitNo),
    ) -> Vec<Place> {
        let Some(tail) = self.tails.get(&shard) else { return Vec::new() };
        let mut bytes = 0;
        let mut places = tail.places.iter().skip(tail.from(from)).peekable();
        if places.peek().is_none_or(|place| place.commit < since || place.first > from) {
            return Vec::new();
        }
        let durable = places.take_while(|place| place.commit < durable);
        let enough = durable.take_while(|place| {
            let fits = bytes == 0 || bytes + place.bytes <= bytes_max;
            bytes += place.bytes;
            fits
        });
        enough.copied().collect()
    }
}
