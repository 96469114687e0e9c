//! A caller hears of its own call: an append's value is the last of the list that it is shown, and
//! only what refuses is refused. A key used for something else is a conflict, not an answer.

use mainstay_protocol::message::Failure;

use super::{Event, Invariant, View, shown};
use crate::sim::model::Method;

#[derive(Debug, Default)]
pub(super) struct OwnAnswer;

impl Invariant for OwnAnswer {
    fn name(&self) -> &'static str {
        "own_answer"
    }

    fn observe(&mut self, event: &Event, _view: &View<'_>) -> Result<(), String> {
        let Event::Replied(call, result) = event else {
            return Ok(());
        };
        let fits = match (call.method, result) {
            (Method::Append, Ok(_)) => {
                shown(result).and_then(|(list, _)| list.last().copied()) == Some(call.value)
            }
            (method, Ok(_)) => matches!(method, Method::Touch | Method::Read),
            (method, Err(Failure::App { .. })) => method == Method::Refuse,
            (method, Err(Failure::Panicked { .. })) => method == Method::Panic,
            (_, Err(_)) => true,
        };
        if fits { Ok(()) } else { Err(format!("{call:?} was answered {result:?}")) }
    }
}
