//! What a standby shows to queries: states that are applied, committed, and all that was asked for.

use super::Standby;
use crate::mutants::Mutant;
use crate::replication::Position;
use crate::replication::freshness::Showing;

impl Standby {
    /// Whether a query that wants to see everything up to `wanted` is shown the states of this copy,
    /// which has applied everything up to `applied`.
    ///
    /// Both have to be reached, epoch and place. What was told of is committed and is never taken
    /// back, so that a place that is reached in a later epoch is the one meant. The epoch of a token
    /// is that of who told of it, and may be later than that of the entry: a copy that has not heard
    /// of that epoch yet waits until it has applied its first entry.
    pub fn shows(&self, wanted: Position, applied: Position) -> Showing {
        // A copy on its way here is whole at its end; what is given up, or was dropped, is no copy.
        let whole = self.copying.is_none() && !self.void;
        let committed =
            applied.seq <= self.committed || self.planted.has(Mutant::StandbyShowsUncommitted);
        let reached = applied.epoch >= wanted.epoch && applied.seq >= wanted.seq
            || self.planted.has(Mutant::StandbyIgnoresToken);
        if whole && committed && reached { Showing::Show } else { Showing::Wait }
    }

    /// The last entry that is known to be committed; `None` when this copy does not know who wrote
    /// it.
    pub fn committed_at(&self) -> Option<Position> {
        let seq = self.committed;
        self.history.epoch_at(seq).map(|epoch| Position { epoch, seq })
    }
}
