//! Faults that the simulator plants, to prove that it would notice them.
//!
//! Without the feature `mutants` nothing can be planted and every check folds to `false`.

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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
    /// A version is compared when a command is admitted, and not when its turn begins.
    ConditionAtAdmission,
    /// A version is compared before a key is looked up.
    ConditionBeforeDedup,
    /// An entity's version is the place of its last entry, changed or not, or of the epoch's noop.
    VersionOfLastEntry,
    /// A stored reply says the entity's version of now.
    ReplayShowsNow,
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
    /// A standby takes entries of a deposed primary.
    NoFencing,
    /// A standby forgets its promises with its process.
    PromiseNotPersisted,
    /// A restarted standby does not keep the promise that it may have given.
    NoPromiseAfterStart,
    /// A new primary does not wait for the end of the promise that it gave to the one before.
    NoWaitAtPromotion,
    /// Logs are taken to agree where they have an entry, whatever its epoch.
    NoEpochInMatch,
    /// Entries that conflict with the primary's stay.
    AppendNoTruncate,
    /// A standby takes as committed what lies beyond the place where its log was matched.
    CommitBeyondMatch,
    /// A standby acknowledges before its disk does.
    HoldsBeforeDurable,
    /// An acknowledgement that was due before a newer epoch came is sent all the same.
    StaleDeferredAck,
    /// The watermark counts the middle copy.
    AckOfMajority,
    /// Acknowledgements count for a node, whatever its disk.
    IgnoreDisk,
    /// Copies join before the noop of the epoch is committed.
    JoinBeforeNoop,
    /// Copies join before they hold what is committed.
    JoinBehind,
    /// What a copy acknowledged counts for one that was dropped and made anew since.
    AckOutlivesCopy,
    /// A copy that was proposed is not waited for before the answer.
    JoiningNotRequired,
    /// A primary that may not answer yet lets copies join.
    ProposesBeforeServing,
    /// Members leave the set though too few acknowledged the epoch.
    SetBelowMinimum,
    /// Nobody is ever proposed away: neither who is gone or lost, nor who is slow.
    NeverLetsGo,
    /// A copy that is to leave is not waited for any more before the control plane agrees.
    LeavesBeforeConfirmed,
    /// Queries need no lease.
    NoLease,
    /// One copy's promise is a lease.
    LeaseOfOne,
    /// A lease counts from when the answer came.
    LeaseFromReceipt,
    /// A round counts appends that were sent before the query.
    RoundCountsOlder,
    /// An audit takes a row that an entry on its way changes for a wrong one.
    AuditIgnoresPlace,
    /// An audit believes the primary, whatever the other copies agree on.
    AuditBelievesPrimary,
    /// A strict query is answered under a lease.
    StrictTrustsLease,
    /// A standby shows entries that are not committed.
    StandbyShowsUncommitted,
    /// A standby shows what it has, whatever the query's token says.
    StandbyIgnoresToken,
    /// Staleness counts from when the primary's answer came.
    StalenessFromReceipt,
}

/// What is planted, if anything.
#[derive(Debug, Clone, Copy, Default, Hash)]
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
