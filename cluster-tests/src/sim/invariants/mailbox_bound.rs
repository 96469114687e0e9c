//! No mailbox holds more than its bound, no source has more waiters than its share, and none is
//! turned away while it has less: another source's waiters are not its own.

use mainstay_protocol::mailbox::SourceId;
use mainstay_protocol::message::{Failure, Pressure};

use super::{Event, Invariant, View};
use crate::sim::model;

/// How many of a source wait before an entity.
fn waiters(view: &View<'_>, entity: usize, source: u64) -> u32 {
    let Some(primary) = view.primary else { return 0 };
    let slot = primary.slot_of(&model::entity(entity));
    slot.map_or(0, |slot| primary.waiting_of(slot, SourceId(source)))
}

#[derive(Debug, Default)]
pub(super) struct MailboxBound;

impl Invariant for MailboxBound {
    fn name(&self) -> &'static str {
        "mailbox_bound"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        let Event::Refused(call, Failure::Overloaded { bound, .. }) = event else {
            return Ok(());
        };
        let waits = waiters(view, call.entity, call.source);
        if bound == "mailbox" && call.pressure == Pressure::Wait && waits < view.habits().share {
            return Err(format!("{call:?} was turned away, and {waits} of its source wait"));
        }
        Ok(())
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let Some(primary) = view.primary else {
            return Ok(());
        };
        let habits = view.habits();
        for number in 0..habits.entities {
            let row = primary.slot_of(&model::entity(number)).and_then(|slot| primary.row(slot));
            let (queued, waiting) = row.map_or((0, 0), |(_, queued, waiting)| (queued, waiting));
            let of = |source| waiters(view, number, source);
            let shares: Vec<u32> = (0..habits.sources).map(of).collect();
            let fair = shares.iter().all(|waits| *waits <= habits.share);
            if queued > habits.mailbox || !fair || waiting > shares.iter().sum() {
                return Err(format!("e{number}: {queued} queued, {waiting} wait, {shares:?}"));
            }
        }
        Ok(())
    }
}
