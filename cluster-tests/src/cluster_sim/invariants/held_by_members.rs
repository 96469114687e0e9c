//! Whoever is in the agreed set, under the disk that it has, holds everything committed (I4): any
//! of them may be promoted.

use super::{Invariant, View};

#[derive(Debug, Default)]
pub(super) struct HeldByMembers;

impl Invariant for HeldByMembers {
    fn name(&self) -> &'static str {
        "held_by_members"
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let Some(last) = view.committed.last() else { return Ok(()) };
        for node in view.nodes {
            if view.plane.shard().in_sync.get(&node.name) != Some(&node.disk.id) {
                continue;
            }
            let log = &node.disk.synced.log;
            if log.get(view.committed.len() - 1) != Some(last) {
                let (held, all) = (log.len(), view.committed.len());
                return Err(format!(
                    "{} is in sync and has {held} entries on disk, {all} are committed, the last is {last:?}",
                    node.name
                ));
            }
        }
        Ok(())
    }
}
