//! A value that a caller was told is appended is in the log of every later primary, exactly once.

use super::{Event, Invariant, View};
use crate::sim::model::Method;

#[derive(Debug, Default)]
pub(super) struct NoAckedLoss {
    acked: Vec<(usize, u64)>,
}

impl NoAckedLoss {
    fn check(&self, view: &View<'_>) -> Result<(), String> {
        let Some(held) = view.held else {
            return Ok(());
        };
        for &(entity, value) in &self.acked {
            let times = held.list(entity).iter().filter(|&&item| item == value).count();
            if times != 1 {
                return Err(format!(
                    "acknowledged value {value} of e{entity} is there {times} times"
                ));
            }
        }
        Ok(())
    }
}

impl Invariant for NoAckedLoss {
    fn name(&self) -> &'static str {
        "no_acked_loss"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Replied(call, Ok(_)) if call.method == Method::Append => {
                self.acked.push((call.entity, call.value));
                Ok(())
            }
            Event::Promoted(_) => self.check(view),
            _ => Ok(()),
        }
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        self.check(view)
    }
}
