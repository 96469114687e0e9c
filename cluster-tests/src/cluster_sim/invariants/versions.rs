//! A version that was shown names the state that was shown with it, by the log that is committed in
//! the end; and a command under a condition went from the version that it names.

use std::collections::BTreeMap;

use mainstay_protocol::entry::{Change, Op as Entry};
use mainstay_protocol::id::Seq;

use super::{End, Invariant, Op, View};
use crate::sim::model::{self, States};

#[derive(Debug, Default)]
pub(super) struct Versions {
    /// What was shown: the entity, its version, its list.
    shown: Vec<(usize, Seq, Vec<u64>)>,
    /// The version that the append of a value names.
    conditions: BTreeMap<u64, Seq>,
}

impl Invariant for Versions {
    fn name(&self) -> &'static str {
        "versions"
    }

    fn ended(&mut self, op: &Op, end: &End, _view: &View<'_>) -> Result<(), String> {
        let condition = op.call.if_version.map(|version| (op.call.value, Seq(version)));
        self.conditions.extend(condition);
        if let (End::Shown(list), Some(version)) = (end, op.version) {
            self.shown.push((op.call.entity, version, list.clone()));
        }
        Ok(())
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        let (mut states, mut lists) = (States::default(), BTreeMap::new());
        for (at, stored) in view.committed.iter().enumerate() {
            let Entry::Turn { entity, change, .. } = &stored.entry.op else { continue };
            if *change == Change::None {
                continue;
            }
            let entity = model::number(entity);
            let before = states.version(entity);
            states.apply(view.committed, at + 1)?;
            let (version, list) = (states.version(entity), states.list(entity));
            let named = list.last().and_then(|value| self.conditions.get(value));
            if named.is_some_and(|named| *named != before) {
                return Err(format!(
                    "{version:?} of entity {entity} followed {before:?}: {named:?}"
                ));
            }
            lists.insert((entity, version), list);
        }
        let wrong = self.shown.iter().find(|(entity, version, list)| {
            lists.get(&(*entity, *version)).map_or(&[][..], |list| &list[..]) != &list[..]
        });
        wrong.map_or(Ok(()), |wrong| Err(format!("{wrong:?} was shown, and is another state")))
    }
}
