//! A dedup record is never forgotten before its time: no run lasts as long as the retention, so
//! that the table of an epoch only grows.

use mainstay_protocol::id::Epoch;

use super::{Event, Invariant, View};

#[derive(Debug, Default)]
pub(super) struct NothingEvicted {
    records: (Epoch, usize),
    newest: Option<mainstay_protocol::dedup::Kept>,
}

impl Invariant for NothingEvicted {
    fn name(&self) -> &'static str {
        "nothing_evicted"
    }

    fn observe(&mut self, _event: &Event, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let Some(primary) = view.primary else {
            return Ok(());
        };
        let (epoch, records) = self.records;
        let grown = (primary.epoch(), primary.dedup().len());
        if epoch == grown.0 {
            let still = primary.dedup().iter().nth(records.wrapping_sub(1)).cloned();
            if records > 0 && still != self.newest {
                return Err(format!("record {records} was {:?}, now {still:?}", self.newest));
            }
        }
        self.records = grown;
        self.newest = primary.dedup().iter().last().cloned();
        Ok(())
    }
}
