//! The rows of a shard's entities: one hash look-up from a name to a stable place.

use crate::id::{EntityId, Seq};
use crate::index::{self, Index};
use crate::list::{List, Pool};
use crate::mailbox::Mailbox;

/// What a row's entity does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// Nothing is queued and nothing runs.
    Idle,
    /// It has letters and stands in the line of the ready.
    Ready,
    /// A turn runs.
    Running,
}

/// One entity.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) entity: EntityId,
    pub(super) mailbox: Mailbox,
    /// The entity's highest entry in this epoch, or 0.
    pub(super) last: Seq,
    /// The entity's version, known from its first activation in this slot on.
    pub(super) version: Seq,
    pub(super) activity: Activity,
    /// The scene has no activation in this slot.
    pub(super) fresh: bool,
}

#[derive(Debug)]
pub(super) struct Rows {
    pool: Pool<Row>,
    index: Index,
    seed: u64,
    /// Entities that have work and no running turn, first to last.
    ready: List,
}

impl Rows {
    pub(super) fn new(seed: u64) -> Self {
        Self { pool: Pool::new(), index: Index::default(), seed, ready: List::new() }
    }

    pub(super) fn find(&self, entity: &EntityId) -> Option<u32> {
        let same = |slot| self.pool.get(slot).is_some_and(|row| row.entity == *entity);
        self.index.find(self.hash(entity), same)
    }

    /// Adds a row for an entity that has none.
    pub(super) fn insert(&mut self, entity: EntityId) -> u32 {
        let hash = self.hash(&entity);
        let row = Row {
            entity,
            mailbox: Mailbox::new(),
            last: Seq::default(),
            version: Seq::default(),
            activity: Activity::Idle,
            fresh: true,
        };
        let slot = self.pool.insert(row);
        self.index.insert(hash, slot);
        slot
    }

    /// Removes a row that idles.
    pub(super) fn remove(&mut self, slot: u32) {
        let row = self.pool.remove(slot);
        debug_assert!(row.activity == Activity::Idle && row.mailbox.is_empty());
        self.index.remove(self.hash(&row.entity), slot);
    }

    pub(super) fn row(&self, slot: u32) -> &Row {
        self.pool.get(slot).expect("a slot in use has a row")
    }

    pub(super) fn row_mut(&mut self, slot: u32) -> &mut Row {
        self.pool.get_mut(slot).expect("a slot in use has a row")
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Row> {
        self.pool.get(slot)
    }

    /// An idle or running entity stands in line.
    pub(super) fn make_ready(&mut self, slot: u32) {
        self.row_mut(slot).activity = Activity::Ready;
        self.pool.push_back(&mut self.ready, slot);
    }

    /// The first in line leaves it.
    pub(super) fn pop_ready(&mut self) -> Option<u32> {
        let slot = self.pool.pop_front(&mut self.ready)?;
        self.row_mut(slot).activity = Activity::Idle;
        Some(slot)
    }

    /// An entity leaves the line from its middle.
    pub(super) fn leave_line(&mut self, slot: u32) {
        self.pool.unlink(&mut self.ready, slot);
        self.row_mut(slot).activity = Activity::Idle;
    }

    pub(super) const fn ready(&self) -> u32 {
        self.ready.len()
    }

    pub(super) fn len(&self) -> u32 {
        self.pool.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Row)> {
        self.pool.iter()
    }

    fn hash(&self, entity: &EntityId) -> u64 {
        index::hash(self.seed, entity.kind.0, entity.key.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_row_takes_56_bytes_beyond_its_name() {
        // The row and its list links; the index adds 11 to 21.
        assert_eq!(size_of::<Row>() + 8 - size_of::<EntityId>(), 56);
    }
}
