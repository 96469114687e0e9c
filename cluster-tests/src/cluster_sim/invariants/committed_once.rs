//! An entry that is committed is the same at its place for everybody, for ever (I1).

use super::{Invariant, View};

#[derive(Debug, Default)]
pub(super) struct CommittedOnce;

impl Invariant for CommittedOnce {
    fn name(&self) -> &'static str {
        "committed_once"
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        for node in view.nodes {
            let known = match (node.leading(), node.standby()) {
                (Some(leading), _) => leading.primary.watermark(),
                (None, Some(standby)) => standby.committed(),
                (None, None) => continue,
            };
            let Some(at) = usize::try_from(known.0).ok().and_then(|known| known.checked_sub(1))
            else {
                continue;
            };
            let (here, agreed) = (node.disk.seen.log.get(at), view.committed.get(at));
            if here.is_some() && here != agreed {
                return Err(format!("{} has {here:?} committed, agreed is {agreed:?}", node.name));
            }
        }
        Ok(())
    }
}
