//! What was promised on a disk is never less later (I3).

use std::collections::BTreeMap;

use mainstay_protocol::id::{DiskId, Epoch};

use super::{Invariant, View};

#[derive(Debug, Default)]
pub(super) struct PromisesKept {
    promised: BTreeMap<DiskId, Epoch>,
}

impl Invariant for PromisesKept {
    fn name(&self) -> &'static str {
        "promises_kept"
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        for node in view.nodes {
            let synced = node.disk.synced.promised;
            let before = self.promised.insert(node.disk.id, synced).unwrap_or_default();
            if synced < before {
                return Err(format!("{} promised {before:?}, now {synced:?}", node.name));
            }
            if let Some(stale) = node.disk.synced.log.last().filter(|last| last.epoch > synced) {
                return Err(format!("{} has {stale:?}, its disk promised {synced:?}", node.name));
            }
        }
        Ok(())
    }
}
