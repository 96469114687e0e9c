//! No turn begins at or after its request's deadline.

use super::{Event, Invariant, View};

#[derive(Debug, Default)]
pub(super) struct ExpiredNeverRuns;

impl Invariant for ExpiredNeverRuns {
    fn name(&self) -> &'static str {
        "expired_never_runs"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        match event {
            Event::TurnBegan(call, _, now) if call.deadline <= *now => {
                Err(format!("{call:?} began at {now:?}"))
            }
            _ => Ok(()),
        }
    }
}
