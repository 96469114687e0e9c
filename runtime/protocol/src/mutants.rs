//! Faults that the simulator plants, to prove that it would notice them.
//!
//! Without the feature `mutants` nothing can be planted and every check folds to `false`.

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A command's reply leaves before its entry is committed.
    ReplyBeforeCommit,
    /// A query's reply does not wait for its entity's uncommitted entries.
    QueryNotGated,
    /// A refusal, or a command that changed nothing, does not wait for uncommitted entries.
    UnchangedNotGated,
    /// Nothing waits for the noop of the epoch.
    NoopNotGated,
    /// The table of idempotency keys is never consulted.
    NoDedup,
    /// Entries carry no dedup record, so that the table is lost with its primary.
    DedupVolatile,
    /// A second call with a key in flight runs instead of joining.
    NoJoin,
    /// A key that comes back with another payload gets the stored reply.
    KeyConflictIgnored,
    /// A full dedup budget forgets the oldest record instead of refusing.
    DedupEvicts,
    /// A request whose deadline passed in the queue runs.
    ExpiredRuns,
    /// A mailbox takes one more than its bound.
    MailboxOffByOne,
    /// A share of a waiting room is everybody's instead of one source's.
    ShareOfAll,
    /// The watermark counts the fastest member instead of the slowest.
    WatermarkOfFastest,
    /// The watermark counts what this primary has written but not synced.
    WatermarkUnsynced,
    /// Log time follows the wall clock backwards.
    LogTimeFollowsWall,
    /// An entity with uncommitted entries may be passivated.
    PassivateUncommitted,
    /// An entity whose turn runs gets another one.
    TwoTurns,
    /// Panics are not counted.
    NoQuarantine,
    /// Queued requests are called executed-maybe and pending ones not-executed at step-down.
    StepDownSwapped,
}

/// What is planted, if anything.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Planted {
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl Planted {
    #[cfg(feature = "mutants")]
    pub(crate) const fn new(mutant: Mutant) -> Self {
        Self { mutant: Some(mutant) }
    }

    /// Whether this fault is planted.
    #[cfg(feature = "mutants")]
    pub(crate) fn has(self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Nothing can be planted in this build.
    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same shape as with the feature")]
    pub(crate) const fn has(self, _mutant: Mutant) -> bool {
        false
    }
}
