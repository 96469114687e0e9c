//! Replies are linearizable: an operation sees what was shown before it began, and what it shows is
//! a beginning of what is committed in the end.
//!
//! Lists only grow and values are unique, so that this is all there is to linearizability here:
//! every list shown is a prefix of one list, an append's ends with its own value, and nothing shown
//! after something else ended is shorter than that.

use super::{End, Invariant, Op, View};
use crate::sim::model::{Method, States};

#[derive(Debug, Default)]
pub(super) struct RealTime {
    shown: Vec<(usize, Vec<u64>)>,
}

impl Invariant for RealTime {
    fn name(&self) -> &'static str {
        "real_time"
    }

    fn ended(&mut self, op: &Op, end: &End, _view: &View<'_>) -> Result<(), String> {
        let End::Shown(list) = end else { return Ok(()) };
        if op.call.method == Method::Append && list.last() != Some(&op.call.value) {
            return Err(format!("{op:?} shows {list:?}"));
        }
        let more = usize::from(op.call.method == Method::Append);
        if list.len() < op.floor + more {
            return Err(format!("{op:?} shows {list:?}, {} were shown before it began", op.floor));
        }
        self.shown.push((op.call.entity, list.clone()));
        Ok(())
    }

    fn at_end(&mut self, view: &View<'_>) -> Result<(), String> {
        let mut states = States::default();
        states.apply(view.committed, view.committed.len())?;
        for (entity, list) in &self.shown {
            let all = states.list(*entity);
            if !all.starts_with(list) {
                return Err(format!("{list:?} was shown, {all:?} is committed"));
            }
        }
        Ok(())
    }
}
