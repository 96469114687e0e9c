//! The states of a standby: its log, applied as far as it is committed.
//!
//! ```text
//!   hold --> held --commit--> due --its base is here--> dirty --save--> state.redb
//!     ^                                     ^
//!     | a newer primary replaces the end    | read from the tables, once per entity
//! ```
//! A patch needs the bytes that it was made for. They are in the dirty map, or in the tables: then
//! they are asked for, and what is due waits in order. What is held is not applied before it is
//! known to be committed, for it may be replaced; a standby that becomes primary takes it over as it
//! is: journalled, and not settled.

mod replacing;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mainstay_protocol::dedup::{self, Kept, Table};
use mainstay_protocol::entry::{Change, DedupRecord, Entry, Op, Segment, SegmentError};
use mainstay_protocol::id::{EntityId, Epoch, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::delta::{self, ApplyError};
use mainstay_protocol::time::LogTime;

use crate::shard::Records;
use crate::shard::commit::Saving;
use crate::shard::dirty::{Dirty, Journaled, Remembered, Row};
use crate::storage::{OpenedShard, ShardMark, StoredState};

/// Bytes of committed segments that a shard keeps for those whom it feeds once it is primary. Who
/// lacks more gets the states.
const RECENT_BYTES: u64 = 1 << 20;

/// Where a standby's states begin.
#[derive(Debug, Default)]
pub struct Start {
    /// Everything up to here is in the tables or in `dirty`.
    pub applied: Position,
    /// The log time there, or later.
    pub log_time: LogTime,
    /// All records that make commands take effect once.
    pub dedup: Vec<Remembered>,
    /// What no snapshot holds.
    pub dirty: Dirty,
}

impl From<OpenedShard> for Start {
    fn from(opened: OpenedShard) -> Self {
        let OpenedShard { applied, log_time, dedup, .. } = opened;
        let dirty = Dirty::recovered(applied, applied, [], Vec::new());
        Self { applied, log_time, dedup, dirty }
    }
}

/// Why entries cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Differs {
    /// This copy differs from its primary's.
    #[error("entry {seq:?} does not fit the state of its entity")]
    State {
        /// The entry.
        seq: Seq,
        /// What does not fit.
        source: ApplyError,
    },
    /// Entries are missing before it.
    #[error("entry {seq:?} comes after {applied:?}")]
    Hole {
        /// The entry.
        seq: Seq,
        /// The last one that was applied.
        applied: Seq,
    },
}

/// What a standby leaves to the primary that it becomes.
#[derive(Debug)]
pub(super) struct Heritage {
    /// What a primary goes on from.
    pub records: Records,
    /// The last segments of the log.
    pub tail: Vec<Segment>,
}

/// One entry and who wrote it.
#[derive(Debug)]
struct Written {
    epoch: Epoch,
    entry: Entry,
}

/// What is known of the bytes that a patch is made for.
#[derive(Debug)]
enum Base {
    /// They are being read, under this number.
    Asked(u64),
    /// The tables have this.
    Read(Option<StoredState>),
}

/// A read that is wanted: the entity, and the number to answer under.
pub(super) type Wanted = (EntityId, u64);

/// The states of a standby.
#[derive(Debug)]
pub(super) struct Shadow {
    shard: ShardId,
    held: VecDeque<Written>,
    due: VecDeque<Written>,
    bases: BTreeMap<EntityId, Base>,
    asked: u64,
    wanted: Vec<Wanted>,
    /// Rows that take the place of wrong ones, once it is known what the tables have.
    replacing: BTreeMap<EntityId, Row>,
    dirty: Dirty,
    dedup: Table,
    log_time: LogTime,
    applied: Position,
    /// The last segments of the log, the ends of which may not be committed.
    recent: VecDeque<Segment>,
    recent_bytes: u64,
}

impl Shadow {
    /// The states as they are at `start`; what the log has beyond is held with [`Self::hold`].
    pub(super) fn new(shard: ShardId, config: dedup::Config, start: Start) -> Self {
        let Start { applied, log_time, dedup, dirty } = start;
        let kept =
            dedup.into_iter().map(|(entity, log_time, record)| Kept { entity, log_time, record });
        Self {
            shard,
            held: VecDeque::new(),
            due: VecDeque::new(),
            bases: BTreeMap::new(),
            asked: 0,
            wanted: Vec::new(),
            replacing: BTreeMap::new(),
            dirty,
            dedup: Table::new(config, u64::from(shard.0), kept.collect(), log_time),
            log_time,
            applied,
            recent: VecDeque::new(),
            recent_bytes: 0,
        }
    }

    /// Segments and their entries, which follow what is held or replace its end.
    ///
    /// # Errors
    /// [`SegmentError`] when a segment that is cut does not decode; it did before.
    pub(super) fn hold(
        &mut self,
        segments: Vec<Segment>,
        entries: Vec<Entry>,
    ) -> Result<(), SegmentError> {
        let Some(first) = segments.first().map(|segment| segment.first) else { return Ok(()) };
        self.cut(first)?;
        let mut of = segments.iter();
        let mut segment = of.next();
        for entry in entries {
            while segment.is_some_and(|segment| segment.last < entry.seq) {
                segment = of.next();
            }
            let Some(segment) = segment.filter(|segment| segment.first <= entry.seq) else {
                continue;
            };
            self.held.push_back(Written { epoch: segment.epoch, entry });
        }
        for segment in segments {
            self.recent_bytes += segment.bytes.len() as u64;
            self.recent.push_back(segment);
        }
        Ok(())
    }

    /// Everything from `first` on goes: it is replaced.
    fn cut(&mut self, first: Seq) -> Result<(), SegmentError> {
        while self.held.back().is_some_and(|last| last.entry.seq >= first) {
            self.held.pop_back();
        }
        while self.recent.back().is_some_and(|segment| segment.last >= first)
            && let Some(segment) = self.recent.pop_back()
        {
            self.recent_bytes -= segment.bytes.len() as u64;
            if let Some(rest) = segment.until(Seq(first.0 - 1))? {
                self.recent_bytes += rest.bytes.len() as u64;
                self.recent.push_back(rest);
                break;
            }
        }
        Ok(())
    }

    /// Everything up to here is committed.
    ///
    /// # Errors
    /// [`Differs`]; nothing more is to be applied then.
    pub(super) fn commit(&mut self, upto: Seq) -> Result<(), Differs> {
        let count = self.held.partition_point(|written| written.entry.seq <= upto);
        for written in self.held.drain(..count) {
            // Asked for ahead, so that reads of many entities do not wait for each other.
            if needs_base(&written.entry) && self.dirty.get(entity_of(&written.entry)).is_none() {
                ask(&mut self.bases, &mut self.asked, &mut self.wanted, entity_of(&written.entry));
            }
            self.due.push_back(written);
        }
        self.advance()
    }

    /// A base that was wanted was read.
    ///
    /// # Errors
    /// [`Differs`]; nothing more is to be applied then.
    pub(super) fn handle_read(
        &mut self,
        (entity, number): Wanted,
        stored: Option<StoredState>,
    ) -> Result<(), Differs> {
        let base = self.bases.get_mut(&entity);
        if let Some(base) = base.filter(|base| matches!(base, Base::Asked(of) if *of == number)) {
            *base = Base::Read(stored);
        }
        self.replace_read(&entity);
        self.advance()
    }

    /// A base that was wanted could not be read: it is asked for again when it is needed.
    pub(super) fn handle_read_failed(&mut self, (entity, number): &Wanted) {
        if matches!(self.bases.get(entity), Some(Base::Asked(of)) if of == number) {
            self.bases.remove(entity);
            self.replacing.remove(entity);
        }
    }

    /// The next base to read from the tables.
    pub(super) fn poll_wanted(&mut self) -> Option<Wanted> {
        self.wanted.pop()
    }

    /// Applies what is due, in order, as far as its bases are here.
    fn advance(&mut self) -> Result<(), Differs> {
        while let Some(front) = self.due.front() {
            let entry = &front.entry;
            let (seq, applied) = (entry.seq, self.applied.seq);
            if seq != applied.next() {
                return Err(Differs::Hole { seq, applied });
            }
            let Some(row) = self.row_after(entry, None)? else {
                ask(&mut self.bases, &mut self.asked, &mut self.wanted, entity_of(entry));
                break;
            };
            let Some(Written { epoch, entry }) = self.due.pop_front() else { break };
            self.apply(epoch, entry, row);
        }
        self.forget_recent();
        Ok(())
    }

    fn apply(&mut self, epoch: Epoch, entry: Entry, row: After) {
        let Entry { seq, log_time, op } = entry;
        self.log_time = self.log_time.max(log_time);
        self.dedup.expire(self.log_time); // first: its primary may have used a key again
        let last = Position { epoch, seq };
        let mut journaled = Journaled { last, rows: Vec::new(), dedup: Vec::new() };
        if let Op::Turn { entity, change, dedup } = op {
            if !matches!(change, Change::None) {
                self.bases.remove(&entity);
                self.replacing.remove(&entity);
            }
            if let Some(record) = dedup {
                journaled.dedup.extend(self.remember(&entity, log_time, record));
            }
            if let After::Changed(bytes) = row {
                journaled.rows.push((entity, Row { seq, bytes }));
            }
        }
        self.dirty.journaled(journaled);
        self.dirty.settle(seq);
        self.applied = last;
    }

    /// Keeps a record, unless a copy of the states brought it along.
    fn remember(
        &mut self,
        entity: &EntityId,
        log_time: LogTime,
        record: DedupRecord,
    ) -> Option<Remembered> {
        let remembered = (entity.clone(), log_time, record.clone());
        let kept = Kept { entity: entity.clone(), log_time, record };
        self.dedup.restore(kept).then_some(remembered)
    }

    /// What an entry makes of its entity's state; `None` while the base is not here.
    fn row_after(
        &self,
        entry: &Entry,
        ahead: Option<&BTreeMap<EntityId, Row>>,
    ) -> Result<Option<After>, Differs> {
        let Op::Turn { entity, change, .. } = &entry.op else { return Ok(Some(After::AsBefore)) };
        let row = ahead.and_then(|ahead| ahead.get(entity)).or_else(|| self.dirty.get(entity));
        let base = match (row, self.bases.get(entity), change) {
            (_, _, Change::None) => return Ok(Some(After::AsBefore)),
            (Some(row), ..) => Some((row.seq, &row.bytes)),
            // It is to be replaced, as soon as a save is over.
            (None, Some(Base::Read(_)), Change::Delta { .. })
                if self.replacing.contains_key(entity) =>
            {
                return Ok(None);
            }
            (None, Some(Base::Read(stored)), _) => {
                stored.as_ref().map(|stored| (stored.seq, &stored.bytes))
            }
            (None, _, Change::Put(_)) => None,
            (None, _, Change::Delta { .. }) => return Ok(None),
        };
        // A copy of the states may hold entries beyond the place that it was begun for.
        if base.is_some_and(|(seq, _)| seq >= entry.seq) {
            return Ok(Some(After::AsBefore));
        }
        let next = delta::apply_change(base.map(|(_, bytes)| bytes), change)
            .map_err(|source| Differs::State { seq: entry.seq, source })?;
        Ok(Some(next.map_or(After::AsBefore, After::Changed)))
    }

    fn forget_recent(&mut self) {
        while self.recent_bytes > RECENT_BYTES
            && self.recent.front().is_some_and(|front| front.last <= self.applied.seq)
            && let Some(front) = self.recent.pop_front()
        {
            self.recent_bytes -= front.bytes.len() as u64;
        }
    }

    /// What the primary that this standby becomes goes on from; `None` while a base is being read.
    /// `last` is the end of the log.
    ///
    /// # Errors
    /// [`Differs`]; it must not become primary then.
    pub(super) fn poll_heritage(&mut self, last: Position) -> Result<Option<Heritage>, Differs> {
        self.advance()?;
        if !self.due.is_empty() {
            return Ok(None);
        }
        let mut ahead = BTreeMap::new();
        let mut missing = Vec::new();
        for (at, Written { entry, .. }) in self.held.iter().enumerate() {
            match self.row_after(entry, Some(&ahead))? {
                None => missing.push(at),
                Some(After::AsBefore) => {}
                Some(After::Changed(bytes)) => {
                    ahead.insert(entity_of(entry).clone(), Row { seq: entry.seq, bytes });
                }
            }
        }
        for at in &missing {
            let entity = entity_of(&self.held[*at].entry);
            ask(&mut self.bases, &mut self.asked, &mut self.wanted, entity);
        }
        if !missing.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.take_heritage(last, ahead)))
    }

    fn take_heritage(&mut self, last: Position, ahead: BTreeMap<EntityId, Row>) -> Heritage {
        let mut dedup: Vec<_> = self
            .dedup
            .iter()
            .map(|kept| (kept.entity.clone(), kept.log_time, kept.record.clone()))
            .collect();
        let mut log_time = self.log_time;
        let mut own = Vec::new();
        for Written { entry, .. } in self.held.drain(..) {
            log_time = log_time.max(entry.log_time);
            if let Op::Turn { entity, dedup: Some(record), .. } = entry.op {
                own.push((entity, entry.log_time, record));
            }
        }
        dedup.extend(own.iter().cloned());
        let mut dirty = std::mem::take(&mut self.dirty);
        if last.seq > self.applied.seq {
            let rows = ahead.into_iter().collect();
            dirty.journaled(Journaled { last, rows, dedup: own });
        }
        let records = Records { epoch: last.epoch, log_time, dedup, dirty };
        Heritage { records, tail: std::mem::take(&mut self.recent).into() }
    }

    /// Begins a save of everything that is applied, if there is something to save and none is under
    /// way. `epoch` is the newest that is promised.
    pub(super) fn begin_save(&mut self, epoch: Epoch) -> Option<Saving> {
        let forget = self.dedup.take_expired();
        if forget.is_empty() && !self.dirty.wants_save() {
            return None;
        }
        let Some(save) = self.dirty.begin_save() else {
            self.dedup.put_back_expired(forget);
            return None;
        };
        let (shard, applied, log_time) = (self.shard, save.upto, self.log_time);
        Some(Saving { mark: ShardMark { shard, applied, log_time, epoch }, save, forget })
    }

    /// A save is over.
    pub(super) fn handle_saved(&mut self, saving: &Saving, durable: bool) {
        if durable {
            self.dirty.saved(&saving.save);
        } else {
            self.dedup.put_back_expired(saving.forget.clone());
            self.dirty.save_failed(saving.save.dedup.clone());
        }
        self.replace_waiting();
    }

    /// Everything up to here is applied.
    pub(super) const fn applied(&self) -> Position {
        self.applied
    }

    /// The log time there, or later.
    pub(super) const fn log_time(&self) -> LogTime {
        self.log_time
    }

    /// The committed state of an entity, if it is applied and not in the tables.
    pub(super) fn unsaved(&self, entity: &EntityId) -> Option<&Row> {
        self.dirty.get(entity)
    }

    /// Bytes that a save would write, about.
    pub(super) const fn dirty_bytes(&self) -> u64 {
        self.dirty.bytes()
    }

    /// Entries that are committed and wait for reads.
    pub(super) fn due(&self) -> usize {
        self.due.len()
    }
}

/// What becomes of a state.
#[derive(Debug)]
enum After {
    AsBefore,
    Changed(Bytes),
}

fn needs_base(entry: &Entry) -> bool {
    matches!(&entry.op, Op::Turn { change: Change::Delta { .. }, .. })
}

fn entity_of(entry: &Entry) -> &EntityId {
    match &entry.op {
        Op::Turn { entity, .. } => entity,
        Op::Noop => unreachable!("only a turn has a state to change"),
    }
}

/// Asks for what the tables have of an entity, unless it was asked for.
fn ask(
    bases: &mut BTreeMap<EntityId, Base>,
    asked: &mut u64,
    wanted: &mut Vec<Wanted>,
    entity: &EntityId,
) {
    if bases.contains_key(entity) {
        return;
    }
    *asked += 1;
    bases.insert(entity.clone(), Base::Asked(*asked));
    wanted.push((entity.clone(), *asked));
}

#[cfg(test)]
mod tests;
