//! Every call ends, once: refused, replied, given back, or unknown after a crash.

use std::collections::BTreeMap;

use super::{Event, Invariant, View};

#[derive(Debug, Default)]
pub(super) struct AnsweredOnce {
    /// The calls made, and whether they have ended.
    calls: BTreeMap<u64, bool>,
}

impl Invariant for AnsweredOnce {
    fn name(&self) -> &'static str {
        "answered_once"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Invoked(call) => {
                self.calls.insert(call.id, false);
            }
            Event::Refused(call, _)
            | Event::Replied(call, _)
            | Event::NotExecuted(call)
            | Event::Unknown(call)
                if self.calls.insert(call.id, true) != Some(false) =>
            {
                return Err(format!("{call:?} ended again, or was never made"));
            }
            _ => {}
        }
        Ok(())
    }

    fn at_end(&mut self, _view: &View<'_>) -> Result<(), String> {
        let open: Vec<u64> =
            self.calls.iter().filter(|(_, ended)| !**ended).map(|(id, _)| *id).collect();
        if open.is_empty() { Ok(()) } else { Err(format!("calls {open:?} never ended")) }
    }
}
