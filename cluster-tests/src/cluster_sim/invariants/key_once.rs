//! No value is appended twice, whatever was repeated (I7).

use std::collections::BTreeSet;

use super::{Invariant, View};
use crate::sim::model::States;

#[derive(Debug, Default)]
pub(super) struct KeyOnce;

impl Invariant for KeyOnce {
    fn name(&self) -> &'static str {
        "key_once"
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        let mut states = States::default();
        states.apply(view.committed, view.committed.len())?;
        for (entity, list) in states.lists() {
            let distinct: BTreeSet<_> = list.iter().collect();
            if distinct.len() < list.len() {
                return Err(format!("entity {entity} has a value twice: {list:?}"));
            }
        }
        Ok(())
    }
}
