//! An input panics three times at most in an epoch.

use std::collections::BTreeMap;

use super::{Event, Invariant, View};
use crate::sim::model::Method;

#[derive(Debug, Default)]
pub(super) struct Quarantine {
    /// Turns of each panicking input.
    turns: BTreeMap<(usize, u64), u32>,
}

impl Invariant for Quarantine {
    fn name(&self) -> &'static str {
        "quarantine"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Promoted(_) => self.turns.clear(),
            // Given-up turns and failed activations end without a panic, and are not counted.
            Event::Panicked(call) if call.method == Method::Panic => {
                let turns = self.turns.entry((call.entity, call.value)).or_default();
                *turns += 1;
                if *turns > 3 {
                    return Err(format!("{call:?} panicked {turns} times"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
