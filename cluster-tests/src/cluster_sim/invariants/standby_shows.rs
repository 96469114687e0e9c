//! What a standby shows to queries is committed, and includes what their tokens stand for.
//!
//! A scene hands in what it has applied; a wrong one hands in more. And the hardest token to serve is
//! that of the newest write that anybody was told of.

use mainstay_protocol::id::Epoch;
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::freshness::Showing;

use super::{Invariant, View};

#[derive(Debug, Default)]
pub(super) struct StandbyShows;

impl Invariant for StandbyShows {
    fn name(&self) -> &'static str {
        "standby_shows"
    }

    fn after_step(&mut self, view: &View<'_>) -> Result<(), String> {
        let newest = view.committed.last().map_or_else(Position::default, |stored| Position {
            epoch: stored.epoch,
            seq: stored.entry.seq,
        });
        for node in view.nodes {
            let Some(standby) = node.standby() else { continue };
            let copies = [Some(standby.last()), standby.committed_at()];
            for applied in copies.into_iter().flatten() {
                for wanted in [Position::default(), newest] {
                    if standby.shows(wanted, applied) == Showing::Show {
                        check(view, wanted, applied)
                            .map_err(|what| format!("{} shows {applied:?}: {what}", node.name))?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn check(view: &View<'_>, wanted: Position, applied: Position) -> Result<(), String> {
    if applied.seq < wanted.seq {
        return Err(format!("{wanted:?} is wanted"));
    }
    let at = usize::try_from(applied.seq.0).unwrap_or(usize::MAX);
    let agreed = match at.checked_sub(1) {
        None => Some(Epoch(0)),
        Some(at) => view.committed.get(at).map(|stored| stored.epoch),
    };
    if agreed == Some(applied.epoch) { Ok(()) } else { Err(format!("agreed is {agreed:?}")) }
}
