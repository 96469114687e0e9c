//! What was said not to have happened did not happen.

use std::collections::BTreeSet;

use super::{End, Invariant, Op, View};
use crate::sim::model::{Method, States};

#[derive(Debug, Default)]
pub(super) struct NotExecuted {
    values: BTreeSet<u64>,
}

impl Invariant for NotExecuted {
    fn name(&self) -> &'static str {
        "not_executed"
    }

    fn ended(&mut self, op: &Op, end: &End, _view: &View<'_>) -> Result<(), String> {
        if *end == End::NotExecuted && op.call.method == Method::Append {
            self.values.insert(op.call.value);
        }
        Ok(())
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        let mut states = States::default();
        states.apply(view.committed, view.committed.len())?;
        for (entity, list) in states.lists() {
            if let Some(value) = list.iter().find(|value| self.values.contains(value)) {
                return Err(format!("entity {entity} has {value}, which did not happen: {list:?}"));
            }
        }
        Ok(())
    }
}
