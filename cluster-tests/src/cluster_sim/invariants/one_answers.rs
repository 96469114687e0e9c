//! No two primaries may answer queries at one moment (I5).

use super::{Invariant, View};

#[derive(Debug, Default)]
pub(super) struct OneAnswers;

impl Invariant for OneAnswers {
    fn name(&self) -> &'static str {
        "one_answers"
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let answers = view.nodes.iter().filter(|node| {
            node.leading().is_some_and(|leading| {
                let now = node.clock(view.now);
                leading.primary.is_active() && leading.primary.in_sync().has_lease(now)
            })
        });
        let names: Vec<_> = answers.map(|node| node.name.as_str()).collect();
        if names.len() > 1 { Err(format!("{names:?} may all answer")) } else { Ok(()) }
    }
}
