//! The commands under one idempotency key of one entity take effect once at most, and a command
//! without one takes effect once at most too.

use std::collections::BTreeMap;

use super::{Event, Invariant, States, View};

#[derive(Debug, Default)]
pub(super) struct EachKeyOnce {
    /// What stands for a value: its key, or itself.
    stands_for: BTreeMap<(usize, u64), (bool, u64)>,
}

impl EachKeyOnce {
    fn check(&self, view: &View<'_>) -> Result<(), String> {
        for (entity, list) in view.held.into_iter().flat_map(States::lists) {
            let mut seen = BTreeMap::new();
            for value in list {
                let Some(&name) = self.stands_for.get(&(entity, value)) else {
                    return Err(format!("value {value} of e{entity} was never sent"));
                };
                if let Some(before) = seen.insert(name, value) {
                    return Err(format!(
                        "{before} and {value} of e{entity} are one call: {name:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Invariant for EachKeyOnce {
    fn name(&self) -> &'static str {
        "each_key_once"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        match event {
            Event::Invoked(call) => {
                let name = call.key.map_or((false, call.value), |key| (true, key));
                self.stands_for.insert((call.entity, call.value), name);
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
