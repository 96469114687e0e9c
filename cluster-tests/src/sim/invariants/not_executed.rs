//! A value all of whose attempts "did not run" is in no state.

use std::collections::BTreeSet;

use mainstay_protocol::message::{Failure, Outcome};

use super::{Event, Invariant, View};

#[derive(Debug, Default)]
pub(super) struct NotExecuted {
    /// Calls that were told that they did not run.
    told: BTreeSet<u64>,
}

fn says_not_executed(failure: &Failure) -> bool {
    match failure {
        Failure::Deadline { outcome } | Failure::Unavailable { outcome, .. } => {
            *outcome == Outcome::NotExecuted
        }
        Failure::Overloaded { .. }
        | Failure::NotPrimary { .. }
        | Failure::KeyConflict
        | Failure::Stale { .. }
        | Failure::VersionMismatch { .. } => true,
        _ => false,
    }
}

impl Invariant for NotExecuted {
    fn name(&self) -> &'static str {
        "not_executed"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        match event {
            Event::NotExecuted(call) => {
                self.told.insert(call.id);
            }
            Event::Refused(call, failure) | Event::Replied(call, Err(failure))
                if says_not_executed(failure) =>
            {
                self.told.insert(call.id);
            }
            _ => {}
        }
        Ok(())
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        let calls = || view.clients.calls.values();
        for call in calls().filter(|call| self.told.contains(&call.id)) {
            let same = |other: &&_| {
                let other: &crate::sim::clients::Call = other;
                other.value == call.value && other.entity == call.entity
            };
            let all_told = calls().filter(same).all(|other| self.told.contains(&other.id));
            let held = view.held.map(|held| held.list(call.entity)).unwrap_or_default();
            if all_told && held.contains(&call.value) {
                return Err(format!("{call:?} did not run, and is in {held:?}"));
            }
        }
        Ok(())
    }
}
