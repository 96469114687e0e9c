//! No mailbox holds more than its bound, and no source has more waiters than its share.

use super::{Event, Invariant, View};
use crate::sim::model;

#[derive(Debug, Default)]
pub(super) struct MailboxBound;

impl Invariant for MailboxBound {
    fn name(&self) -> &'static str {
        "mailbox_bound"
    }

    fn observe(&mut self, _event: &Event, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let Some(primary) = view.primary else {
            return Ok(());
        };
        let habits = view.habits();
        let waiting_max = u64::from(habits.share) * habits.sources;
        for number in 0..habits.entities {
            let row = primary.slot_of(&model::entity(number)).and_then(|slot| primary.row(slot));
            let (queued, waiting) = row.map_or((0, 0), |(_, queued, waiting)| (queued, waiting));
            if queued > habits.mailbox || u64::from(waiting) > waiting_max {
                return Err(format!("e{number}: {queued} queued, {waiting} wait; {habits:?}"));
            }
        }
        Ok(())
    }
}
