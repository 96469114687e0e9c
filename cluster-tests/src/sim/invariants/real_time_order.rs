//! A reply shows at least what every reply showed that had left before its call was made. Stored
//! replies are exempt: they show the past on purpose.

use std::collections::BTreeMap;

use super::{Event, Invariant, View, shown};

#[derive(Debug, Default)]
pub(super) struct RealTimeOrder {
    /// The longest list shown of each entity.
    longest: BTreeMap<usize, usize>,
    /// The same, when each call was made.
    at_invocation: BTreeMap<u64, usize>,
}

impl Invariant for RealTimeOrder {
    fn name(&self) -> &'static str {
        "real_time_order"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Invoked(call) => {
                let longest = self.longest.get(&call.entity).copied().unwrap_or(0);
                self.at_invocation.insert(call.id, longest);
            }
            Event::Replied(call, result) => {
                let Some((list, replayed)) = shown(result) else {
                    return Ok(());
                };
                let least = self.at_invocation.get(&call.id).copied().unwrap_or(0);
                if list.len() < least && !replayed {
                    return Err(format!("{call:?} was shown {list:?}, {least} were known before"));
                }
                let longest = self.longest.entry(call.entity).or_default();
                *longest = list.len().max(*longest);
            }
            _ => {}
        }
        Ok(())
    }
}
