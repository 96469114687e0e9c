//! When a learner is waited for, and when it is proposed.
//!
//! ```text
//!   watermark  ##########----      writes never end; each is acknowledged a little later by
//!   learner    ########------      a copy that is a little farther away
//! ```
//! Such a learner never holds the watermark while it runs ahead. So one that is near is waited for: then
//! the watermark stands until the learner holds it, and it is proposed. One that was waited for in vain
//! has its turn again once it holds everything by itself.

use super::{InSync, Standing};
use crate::mutants::Mutant;

/// Entries below the watermark that a learner may lack to be waited for: what is on its way to a copy
/// that is some milliseconds farther away. Writes wait for as long as it takes to bring them.
const NEAR_ENTRIES: u64 = 64;

/// What a learner is waited for with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Chance {
    /// It is when it is near.
    Near,
    /// It was, in vain: it is again once it holds all that it has to.
    Missed,
    /// It is joining, and held all that it has to when it was looked at last.
    Complete,
}

impl InSync {
    /// Learners that hold everything committed, or nearly, are waited for from now on; they are proposed
    /// when they hold it.
    pub(super) fn look_for_joining(&mut self) {
        let (watermark, waits) = (self.watermark, self.proposed_at.is_none());
        for at in 0..self.copies.len() {
            let complete = self.is_complete(&self.copies[at]);
            let is_begun = self.holds_noop(&self.copies[at]);
            let copy = &mut self.copies[at];
            let wanted = self.said.wanted.get(&copy.node) == Some(&copy.disk);
            let near = is_begun && copy.durable.0.saturating_add(NEAR_ENTRIES) >= watermark.0;
            let enough = complete || near && waits && copy.chance != Chance::Missed;
            if copy.standing == Standing::Learner && wanted && copy.acked && enough {
                copy.standing = Standing::Joining;
                self.wake.changed = true;
            }
            if copy.standing == Standing::Joining && complete && copy.chance != Chance::Complete {
                copy.chance = Chance::Complete;
                self.wake.changed = true;
            }
        }
    }

    /// It holds whatever is committed, in this epoch and in earlier ones.
    pub(super) fn is_complete(&self, copy: &super::Copy) -> bool {
        let complete = self.holds_noop(copy) && copy.durable >= self.watermark;
        complete || self.planted.has(Mutant::JoinBehind)
    }

    fn holds_noop(&self, copy: &super::Copy) -> bool {
        copy.durable >= self.noop || self.planted.has(Mutant::JoinBeforeNoop)
    }
}
