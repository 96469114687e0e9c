//! An entity has one turn at a time.

use std::collections::BTreeMap;

use super::{Event, Invariant, View};

#[derive(Debug, Default)]
pub(super) struct OneTurnEach {
    running: BTreeMap<usize, u64>,
}

impl Invariant for OneTurnEach {
    fn name(&self) -> &'static str {
        "one_turn_each"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        match event {
            Event::TurnBegan(call, ..) => match self.running.insert(call.entity, call.id) {
                Some(other) => Err(format!("{call:?} began while call {other} ran")),
                None => Ok(()),
            },
            Event::TurnEnded(call, _) => {
                self.running.remove(&call.entity);
                Ok(())
            }
            Event::Promoted(_) => {
                self.running.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
