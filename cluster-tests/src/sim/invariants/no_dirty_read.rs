//! Whatever a reply shows is on every member's disk when it leaves (invariant I6): a value, a
//! refusal and a query alike. Otherwise a lost primary could take back what was seen.

use super::{Event, Invariant, View, shown};

#[derive(Debug, Default)]
pub(super) struct NoDirtyRead;

impl Invariant for NoDirtyRead {
    fn name(&self) -> &'static str {
        "no_dirty_read"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        let Event::Replied(call, result) = event else {
            return Ok(());
        };
        let Some((list, _)) = shown(result) else {
            return Ok(());
        };
        let durable = view.durable.list(call.entity);
        if durable.starts_with(&list) {
            return Ok(());
        }
        Err(format!("{call:?} was shown {list:?}, committed is {durable:?}"))
    }
}
