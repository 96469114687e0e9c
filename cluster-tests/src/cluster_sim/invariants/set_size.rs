//! The agreed set never has fewer members than the least, once it has any.

use super::{Invariant, View};

#[derive(Debug, Default)]
pub(super) struct SetSize;

impl Invariant for SetSize {
    fn name(&self) -> &'static str {
        "set_size"
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let config = view.plane.shard();
        let size = config.in_sync.len();
        if config.primary.is_some() && size < view.min_insync {
            return Err(format!("{size} members, {} are the least", view.min_insync));
        }
        Ok(())
    }
}
