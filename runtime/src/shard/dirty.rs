//! What the journal holds and the snapshots do not: the bytes that activation looks at first.
//!
//! ```text
//!   turn --> journaled (durable here) --watermark--> rows (committed) --save--> state.redb
//! ```
//!
//! Nothing acknowledged lives only in an activation, so passivation may drop one at any time. A
//! save takes all rows of the shard up to the watermark; commits that bring later entries while
//! it runs are remembered, so that the journal is never cut above an entry that is in no snapshot.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mainstay_protocol::entry::DedupRecord;
use mainstay_protocol::id::{CommitNo, EntityId, Seq};
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
    pub last: Seq,
    /// The states that it holds, the newest per entity.
    pub rows: Vec<(EntityId, Row)>,
    /// The dedup records that it holds.
    pub dedup: Vec<Remembered>,
}

/// What a save writes.
#[derive(Debug, PartialEq, Eq)]
pub struct Save {
    /// Everything up to this entry is in the snapshots when the save is done.
    pub upto: Seq,
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
    unsettled: VecDeque<(CommitNo, Journaled)>,
    bytes: u64,
    unsaved_since: Option<CommitNo>,
    saving: Option<Saving>,
}

#[derive(Debug)]
struct Saving {
    upto: Seq,
    /// The first commit with entries above `upto`.
    after: Option<CommitNo>,
}

impl Dirty {
    /// The committed bytes of an entity, if they are not in a snapshot.
    pub fn get(&self, entity: &EntityId) -> Option<&Row> {
        self.rows.get(entity)
    }

    /// Bytes of state held here.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The oldest commit that holds something no snapshot holds: the journal may be cut below.
    pub const fn floor(&self) -> Option<CommitNo> {
        self.unsaved_since
    }

    /// A row found at recovery, already committed and settled.
    pub fn recovered(&mut self, entity: EntityId, row: Row, commit: CommitNo) {
        self.note(commit);
        self.keep(entity, row);
    }

    /// A journal commit that holds entries of this shard is durable here.
    pub fn journaled(&mut self, commit: CommitNo, journaled: Journaled) {
        self.note(commit);
        self.unsettled.push_back((commit, journaled));
    }

    fn note(&mut self, commit: CommitNo) {
        self.unsaved_since.get_or_insert(commit);
        if let Some(saving) = &mut self.saving {
            saving.after.get_or_insert(commit);
        }
    }

    /// The watermark moved: what it covers is committed.
    pub fn settle(&mut self, watermark: Seq) {
        while self.unsettled.front().is_some_and(|(_, front)| front.last <= watermark) {
            let (_, settled) = self.unsettled.pop_front().expect("the front was just seen");
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

    /// Begins a save of everything up to `watermark`; `None` when there is nothing to save or one
    /// is under way.
    pub fn begin_save(&mut self, watermark: Seq) -> Option<Save> {
        if self.saving.is_some() || self.unsaved_since.is_none() {
            return None;
        }
        let after = self.unsettled.front().map(|(commit, _)| *commit);
        self.saving = Some(Saving { upto: watermark, after });
        let rows = self.rows.iter().map(|(entity, row)| (entity.clone(), row.clone())).collect();
        Some(Save { upto: watermark, rows, dedup: std::mem::take(&mut self.dedup) })
    }

    /// The save is durable: rows that did not change since leave.
    pub fn saved(&mut self, save: &Save) {
        let Some(saving) = self.saving.take() else { return };
        debug_assert_eq!(saving.upto, save.upto, "one save at a time");
        self.unsaved_since = saving.after;
        for (entity, saved) in &save.rows {
            if self.rows.get(entity).is_some_and(|row| row.seq == saved.seq) {
                self.rows.remove(entity);
                self.bytes -= saved.bytes.len() as u64;
            }
        }
    }

    /// The save failed: everything is as dirty as before.
    pub fn save_failed(&mut self, save: Save) {
        self.saving = None;
        let newer = std::mem::replace(&mut self.dedup, save.dedup);
        self.dedup.extend(newer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_protocol::id::{Key, KindId};

    fn entity(key: &str) -> EntityId {
        EntityId { kind: KindId(1), key: Key::new(key).unwrap() }
    }

    fn row(seq: u64) -> Row {
        Row { seq: Seq(seq), bytes: Bytes::from(vec![0; 10]) }
    }

    fn commit(dirty: &mut Dirty, commit: u64, key: &str, seq: u64) {
        let rows = vec![(entity(key), row(seq))];
        dirty.journaled(CommitNo(commit), Journaled { last: Seq(seq), rows, dedup: Vec::new() });
    }

    #[test]
    fn a_row_counts_once_the_watermark_covers_it() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, 1, "a", 1);
        assert_eq!(dirty.get(&entity("a")), None);
        dirty.settle(Seq(1));
        assert_eq!(dirty.get(&entity("a")), Some(&row(1)));
        assert_eq!(dirty.bytes(), 10);
    }

    #[test]
    fn the_floor_passes_a_hot_entity_that_changes_during_every_save() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, 1, "hot", 1);
        dirty.settle(Seq(1));
        let save = dirty.begin_save(Seq(1)).unwrap();
        commit(&mut dirty, 2, "hot", 2);
        dirty.settle(Seq(2));
        dirty.saved(&save);
        assert_eq!(dirty.floor(), Some(CommitNo(2)));
        assert_eq!(dirty.get(&entity("hot")), Some(&row(2)));
    }

    #[test]
    fn the_floor_stays_below_entries_that_were_unsettled_when_the_save_began() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, 1, "a", 1);
        dirty.settle(Seq(1));
        commit(&mut dirty, 2, "b", 2);
        let save = dirty.begin_save(Seq(1)).unwrap();
        dirty.settle(Seq(2));
        dirty.saved(&save);
        assert_eq!(dirty.floor(), Some(CommitNo(2)));
        assert_eq!(dirty.get(&entity("a")), None);
        assert!(dirty.get(&entity("b")).is_some());
    }

    #[test]
    fn a_failed_save_loses_nothing_and_can_be_tried_again() {
        let mut dirty = Dirty::default();
        commit(&mut dirty, 1, "a", 1);
        dirty.settle(Seq(1));
        let save = dirty.begin_save(Seq(1)).unwrap();
        assert_eq!(dirty.begin_save(Seq(1)), None);
        dirty.save_failed(save);
        assert_eq!(dirty.floor(), Some(CommitNo(1)));
        let again = dirty.begin_save(Seq(1)).unwrap();
        dirty.saved(&again);
        assert_eq!(dirty.floor(), None);
        assert_eq!(dirty.bytes(), 0);
    }
}
