//! What is true of every state.

use std::sync::Arc;

use super::Broken;
use super::node::{Role, place};
use super::world::World;

impl World {
    /// What the primary on this node counts as committed is committed from now on.
    pub(super) fn count(&mut self, at: usize) -> Result<(), Broken> {
        let node = &self.nodes[at];
        let Some(leading) = node.leading() else { return Ok(()) };
        let (epoch, upto) = (leading.epoch, place(leading.in_sync.watermark()));
        let Some(counted) = node.seen.log.get(..upto) else {
            let told = format!("{} counts {upto} of {}", node.name, node.seen.log.len());
            return Err(Broken::new("only_what_exists", told));
        };
        let common = upto.min(self.committed.len());
        let same = counted[..common] == self.committed[..common];
        let newest = self.committed.last().copied().unwrap_or_default();
        if newest > epoch && (!same || upto > common) {
            let told = format!("{} of {epoch:?} commits {counted:?} after {newest:?}", node.name);
            return Err(Broken::new("fenced_commits_nothing", told));
        }
        if !same {
            let told = format!("{} commits {counted:?}, not {:?}", node.name, self.committed);
            return Err(Broken::new("committed_once", told));
        }
        self.committed.extend(&counted[common..]);
        if let Some(sent) = self.sent.get_mut(&epoch).filter(|it| it.committed < upto) {
            let sent = Arc::make_mut(sent);
            sent.committed = upto;
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), Broken> {
        self.held_by_members()?;
        self.known_is_committed()
    }

    /// Whoever is in the agreed set, under the disk that it has, holds everything committed.
    fn held_by_members(&self) -> Result<(), Broken> {
        let config = &self.plane.state.shards[0];
        for node in self.nodes.iter().filter(|it| config.is_in_sync(&it.name, it.disk)) {
            let held = node.synced.log.get(..self.committed.len());
            if held != Some(&self.committed) {
                let (name, log) = (&node.name, &node.synced.log);
                let told = format!("{name} has {log:?} on disk, committed is {:?}", self.committed);
                return Err(Broken::new("held_by_members", told));
            }
        }
        Ok(())
    }

    /// What a standby takes for committed is.
    fn known_is_committed(&self) -> Result<(), Broken> {
        for node in &self.nodes {
            let Role::Standby(standby) = &node.role else { continue };
            let upto = place(standby.committed());
            if self.committed.get(..upto) != node.seen.log.get(..upto) {
                let (name, log) = (&node.name, &node.seen.log);
                let told = format!("{name} takes {upto} of {log:?} for committed");
                return Err(Broken::new("known_is_committed", told));
            }
        }
        Ok(())
    }
}
