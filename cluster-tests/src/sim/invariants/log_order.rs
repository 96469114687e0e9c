//! Entries follow each other without a gap, and log time never runs backwards.

use super::{Event, Invariant, View};
use crate::sim::cluster::Stored;

#[derive(Debug, Default)]
pub(super) struct LogOrder {
    last: Option<Stored>,
}

impl Invariant for LogOrder {
    fn name(&self) -> &'static str {
        "log_order"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Promoted(_) => self.last = view.cluster.log().last().cloned(),
            Event::Appended(next) => {
                let (seq, log_time) = self
                    .last
                    .as_ref()
                    .map_or_else(Default::default, |last| (last.entry.seq, last.entry.log_time));
                if next.entry.seq != seq.next() || next.entry.log_time < log_time {
                    return Err(format!("{next:?} after {:?}", self.last));
                }
                self.last = Some(next.clone());
            }
            _ => {}
        }
        Ok(())
    }
}
