//! What the journal holds and the snapshots do not: the bytes that activation looks at first.
//!
//! ```text
//!   turn --> journaled (durable here) --watermark--> rows (committed) --save--> state.redb
//! ```
//!
//! Nothing acknowledged lives only in an activation, so passivation may drop one at any time. A
//! save takes all rows of the shard and says up to which entry the snapshots are complete then;
//! the journal keeps every record above that.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mainstay_protocol::entry::DedupRecord;
use mainstay_protocol::id::{EntityId, Seq};
use mainstay_protocol::replication::Position;
use mainstay_protocol::time::LogTime;

/// A committed state that no snapshot holds yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The entry that made it.
    pub seq: Seq,
    /// The encoded state.
    pub bytes: Bytes,
}

/// A dedup record with its entity, as it is saved.
pub type Remembered = (EntityId, LogTime, DedupRecord);

/// What one journal commit brought for this shard.
#[derive(Debug, Default)]
pub struct Journaled {
    /// The last entry of the commit.
    pub last: Position,
    /// The states that it holds, the newest per entity.
    pub rows: Vec<(EntityId, Row)>,
    /// The dedup records that it holds.
    pub dedup: Vec<Remembered>,
}

/// What a save writes.
#[derive(Debug, PartialEq, Eq)]
pub struct Save {
    /// Everything up to this entry is in the snapshots when the save is done.
    pub upto: Position,
    /// The states, in key order.
    pub rows: Vec<(EntityId, Row)>,
    /// The dedup records.
    pub dedup: Vec<Remembered>,
}

/// The dirty map of one shard.
#[derive(Debug, Default)]
pub struct Dirty {
    rows: BTreeMap<EntityId, Row>,
    dedup: Vec<Remembered>,
    unsettled: VecDeque<Journaled>,
    bytes: u64,
    settled: Position,
    saved: Position,
    saving: bool,
    /// A row was replaced: there is something to save, though no entry came.
    replaced: bool,
}

impl Dirty {
    /// The dirty map after a recovery: snapshots are complete up to `saved`, the journal holds
    /// everything up to `last`.
    pub fn recovered(
        saved: Position,
        last: Position,
        rows: impl IntoIterator<Item = (EntityId, Row)>,
        dedup: Vec<Remembered>,
    ) -> Self {
        let mut dirty = Self { settled: last, saved, dedup, ..Self::default() };
        for (entity, row) in rows {
            dirty.keep(entity, row);
        }
        dirty
    }

    /// The committed bytes of an entity, if they are not in a snapshot.
    pub fn get(&self, entity: &EntityId) -> Option<&Row> {
        self.rows.get(entity)
    }

    /// All of them, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&EntityId, &Row)> {
        self.rows.iter()
    }

    /// Where the committed entries end, as far as whole commits are.
    pub const fn settled(&self) -> Position {
        self.settled
    }

    /// The last entry that the journal holds here, committed or not.
    pub fn last(&self) -> Position {
        self.unsettled.back().map_or(self.settled, |journaled| journaled.last)
    }

    /// The newest bytes of an entity that the journal holds and no snapshot does, committed or not:
    /// what an activation begins from. Its replies wait for what is not committed of it. Not what is
    /// committed alone: the watermark may end within a journal commit, and a new primary's log may
    /// end with entries of an earlier epoch.
    pub fn newest(&self, entity: &EntityId) -> Option<&Row> {
        let commits = self.unsettled.iter().rev();
        let mut rows = commits.filter_map(|journaled| {
            let mut rows = journaled.rows.iter();
            rows.find(|(of, _)| of == entity).map(|(_, row)| row)
        });
        rows.next().or_else(|| self.rows.get(entity))
    }

    /// Bytes of state held here.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Everything that is committed is in the snapshots.
    pub fn clean(&self) -> bool {
        self.saved == self.settled && self.unsettled.is_empty() && !self.saving && !self.replaced
    }

    /// A save is under way.
    pub const fn is_saving(&self) -> bool {
        self.saving
    }

    /// Everything up to here is in the snapshots.
    pub const fn saved_upto(&self) -> Position {
        self.saved
    }

    /// Whatever is not settled is taken out: the journal has it, and whether it stays is not known.
    pub fn forget_unsettled(&mut self) {
        self.unsettled.clear();
    }

    /// A journal commit that holds entries of this shard is durable here.
    pub fn journaled(&mut self, journaled: Journaled) {
        self.unsettled.push_back(journaled);
    }

    /// The watermark moved: what it covers is committed.
    pub fn settle(&mut self, watermark: Seq) {
        while self.unsettled.front().is_some_and(|front| front.last.seq <= watermark)
            && let Some(settled) = self.unsettled.pop_front()
        {
            self.settled = settled.last;
            self.dedup.extend(settled.dedup);
            for (entity, row) in settled.rows {
                self.keep(entity, row);
            }
        }
    }

    fn keep(&mut self, entity: EntityId, row: Row) {
        self.bytes += row.bytes.len() as u64;
        if let Some(old) = self.rows.insert(entity, row) {
            self.bytes -= old.bytes.len() as u64;
        }
    }

    /// This row takes the place of what is here of its entity, in memory and, with the next save, in
    /// the snapshot.
    ///
    /// # Panics
    /// When a save is under way: it would take what it wrote for this row.
    pub fn replace(&mut self, entity: EntityId, row: Row) {
        assert!(!self.saving, "a save that is under way knows rows by their entries");
        self.keep(entity, row);
        self.replaced = true;
    }

    /// Whether a save would find something, and none is under way.
    pub fn wants_save(&self) -> bool {
        !self.saving && (self.saved != self.settled || self.replaced)
    }

    /// Begins a save of everything that is committed, which may be nothing; `None` when one is
    /// under way.
    pub fn begin_save(&mut self) -> Option<Save> {
        if self.saving {
            return None;
        }
        (self.saving, self.replaced) = (true, false);
        let rows = self.rows.iter().map(|(entity, row)| (entity.clone(), row.clone())).collect();
        Some(Save { upto: self.settled, rows, dedup: std::mem::take(&mut self.dedup) })
    }

    /// The save is durable: rows that did not change since leave.
    pub fn saved(&mut self, save: &Save) {
        debug_assert!(self.saving, "one save at a time, and it was begun");
        debug_assert!(self.saved <= save.upto, "a save does not go back");
        (self.saving, self.saved) = (false, save.upto);
        for (entity, saved) in &save.rows {
            if self.rows.get(entity).is_some_and(|row| row.seq == saved.seq) {
                self.rows.remove(entity);
                self.bytes -= saved.bytes.len() as u64;
            }
        }
    }

    /// The save failed, or is given up: everything is as dirty as before. `dedup` is what it took.
    pub fn save_failed(&mut self, dedup: Vec<Remembered>) {
        (self.saving, self.replaced) = (false, true);
        let newer = std::mem::replace(&mut self.dedup, dedup);
        self.dedup.extend(newer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_protocol::id::{Epoch, Key, KindId};

    fn entity(key: &str) -> EntityId {
        EntityId { kind: KindId(1), key: Key::new(key).unwrap() }
    }

    fn at(seq: u64) -> Position {
        Position { epoch: Epoch(4), seq: Seq(seq) }
    }

    fn row(seq: u64) -> Row {
        Row { seq: Seq(seq), bytes: Bytes::from(vec![0; 10]) }
    }

    fn commit(dirty: &mut Dirty, key: &str, seq: u64) {
        let rows = vec![(entity(key), row(seq))];
        dirty.journaled(Journaled { last: at(seq), rows, dedup: Vec::new() });
    }

    #[test]
    fn a_row_counts_once_the_watermark_covers_it() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, "a", 1);
        assert_eq!(dirty.get(&entity("a")), None);
        dirty.settle(Seq(1));
        assert_eq!(dirty.get(&entity("a")), Some(&row(1)));
        assert_eq!(dirty.bytes(), 10);
    }

    #[test]
    fn an_activation_begins_from_the_newest_row_and_a_save_takes_committed_ones() {
        let mut dirty = Dirty::default();
        for (key, seq) in [("a", 1), ("a", 2), ("a", 3), ("b", 4)] {
            commit(&mut dirty, key, seq);
        }
        dirty.settle(Seq(2));
        assert_eq!((dirty.settled(), dirty.last()), (at(2), at(4)));
        assert_eq!(dirty.newest(&entity("a")), Some(&row(3)));
        assert_eq!(dirty.newest(&entity("b")), Some(&row(4)));
        assert_eq!(dirty.begin_save().unwrap().rows, [(entity("a"), row(2))]);
        dirty.settle(Seq(4));
        assert_eq!(dirty.newest(&entity("a")), Some(&row(3)));
        assert_eq!(dirty.newest(&entity("c")), None);
    }

    #[test]
    fn a_hot_entity_that_changes_during_every_save_is_saved_all_the_same() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, "hot", 1);
        dirty.settle(Seq(1));
        let save = dirty.begin_save().unwrap();
        commit(&mut dirty, "hot", 2);
        dirty.settle(Seq(2));
        dirty.saved(&save);
        assert_eq!(save.upto, at(1));
        assert_eq!(dirty.get(&entity("hot")), Some(&row(2)));
        assert!(!dirty.clean());
    }

    #[test]
    fn a_save_takes_nothing_that_is_not_committed() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, "a", 1);
        dirty.settle(Seq(1));
        commit(&mut dirty, "a", 2);
        let save = dirty.begin_save().unwrap();
        assert_eq!(save.rows, [(entity("a"), row(1))]);
        dirty.saved(&save);
        assert!(!dirty.wants_save());
        dirty.settle(Seq(2));
        assert_eq!(dirty.begin_save().unwrap().upto, at(2));
    }

    #[test]
    fn a_row_that_is_replaced_is_saved_though_nothing_else_changed() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, "a", 1);
        dirty.settle(Seq(1));
        let save = dirty.begin_save().unwrap();
        dirty.saved(&save);
        assert!(!dirty.wants_save());
        let good = Row { seq: Seq(1), bytes: Bytes::from_static(b"good") };
        dirty.replace(entity("a"), good.clone());
        assert!(dirty.wants_save() && !dirty.clean());
        let save = dirty.begin_save().unwrap();
        assert_eq!((save.upto, &save.rows), (at(1), &vec![(entity("a"), good)]));
        dirty.save_failed(save.dedup);
        let save = dirty.begin_save().unwrap();
        dirty.saved(&save);
        assert!(dirty.clean());
        assert_eq!(dirty.bytes(), 0);
    }

    #[test]
    fn a_failed_save_loses_nothing_and_can_be_tried_again() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, "a", 1);
        dirty.settle(Seq(1));
        let save = dirty.begin_save().unwrap();
        assert_eq!(dirty.begin_save(), None);
        dirty.save_failed(save.dedup);
        let again = dirty.begin_save().unwrap();
        dirty.saved(&again);
        assert!(dirty.clean());
        assert_eq!(dirty.bytes(), 0);
    }
}
