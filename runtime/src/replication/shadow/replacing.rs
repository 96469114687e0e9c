//! Rows that an audit found wrong here, and the primary's in their place.
//!
//! What the tables have of the entity is read before: an entry may have changed it since the audit
//! looked, and a row is never replaced by an older one. A change that is applied meanwhile ends the
//! wait, as it ends that of a base. A save that is under way would take what it wrote for the row that
//! is put, so a row waits for its end.

use mainstay_protocol::id::EntityId;

use super::{Base, Shadow, ask};
use crate::shard::dirty::Row;

/// Rows that wait for the tables, at most. Their number in one message is bounded by its bytes.
const REPLACING_MAX: usize = 4_096;

impl Shadow {
    /// Takes the primary's row of an entity in place of the one here, at once or when it is known
    /// what the tables have. `false` when it is not taken: the entity was changed here since, or
    /// this copy is busy; the next audit tells whether it still is wrong.
    pub(in crate::replication) fn replace(&mut self, entity: EntityId, row: Row) -> bool {
        if self.replacing.len() >= REPLACING_MAX || row.seq > self.applied.seq {
            return false;
        }
        if let Some(here) = self.dirty.get(&entity) {
            let same_entry = here.seq == row.seq && !self.dirty.is_saving();
            if same_entry {
                self.dirty.replace(entity, row);
            }
            return same_entry;
        }
        ask(&mut self.bases, &mut self.asked, &mut self.wanted, &entity);
        self.replacing.insert(entity.clone(), row);
        self.replace_read(&entity);
        true
    }

    /// Whether this entity's row is to be replaced, whatever the tables have of it.
    pub(in crate::replication) fn is_replacing(&self, entity: &EntityId) -> bool {
        self.replacing.contains_key(entity)
    }

    /// Replaces what waited for a save, which is over.
    pub(super) fn replace_waiting(&mut self) {
        let waiting: Vec<_> = self.replacing.keys().cloned().collect();
        for entity in waiting {
            self.replace_read(&entity);
        }
    }

    /// Replaces a row, once it is known that the tables have no newer one, and no save is under way.
    pub(super) fn replace_read(&mut self, entity: &EntityId) {
        if self.dirty.is_saving() {
            return;
        }
        let Some(Base::Read(stored)) = self.bases.get(entity) else { return };
        let newer = stored.as_ref().map(|stored| stored.seq);
        let Some(row) = self.replacing.remove(entity) else { return };
        let stands = newer.is_some_and(|seq| seq > row.seq);
        if !stands && self.dirty.get(entity).is_none() {
            self.dirty.replace(entity.clone(), row);
        }
        // Whoever waits for a base has the row that was put, or asks again.
        self.bases.remove(entity);
    }
}
