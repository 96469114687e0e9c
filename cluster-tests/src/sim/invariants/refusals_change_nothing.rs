//! What a refused or panicked turn did to its entity is in no log and in no reply.

use std::collections::BTreeSet;

use super::{Event, Invariant, States, View, shown};
use crate::sim::model::Method;

#[derive(Debug, Default)]
pub(super) struct RefusalsChangeNothing {
    forbidden: BTreeSet<u64>,
}

impl RefusalsChangeNothing {
    fn check(&self, view: &View<'_>) -> Result<(), String> {
        let mut lists = view.held.into_iter().flat_map(States::lists);
        lists.try_for_each(|(entity, list)| self.check_list(entity, &list))
    }

    fn check_list(&self, entity: usize, list: &[u64]) -> Result<(), String> {
        match list.iter().find(|value| self.forbidden.contains(value)) {
            Some(value) => {
                Err(format!("value {value} of a refused turn is in e{entity}: {list:?}"))
            }
            None => Ok(()),
        }
    }
}

impl Invariant for RefusalsChangeNothing {
    fn name(&self) -> &'static str {
        "refusals_change_nothing"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Invoked(call) if matches!(call.method, Method::Refuse | Method::Panic) => {
                self.forbidden.insert(call.value);
                Ok(())
            }
            Event::Replied(call, result) => {
                shown(result).map_or(Ok(()), |(list, _)| self.check_list(call.entity, &list))
            }
            Event::Promoted(_) => self.check(view),
            _ => Ok(()),
        }
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        self.check(view)
    }
}
