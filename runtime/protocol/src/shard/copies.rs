//! What the copies say, and what that lets out: acknowledgements, leases, rounds, and the set.

use std::collections::BTreeMap;

use crate::id::{DiskId, NodeId, Seq};
use crate::message::{Failure, Success};
use crate::mutants::Mutant;
use crate::replication::in_sync::{AckError, Copies};
use crate::time::Instant;

use super::primary::{Pending, Primary};

impl<T> Primary<T> {
    /// This node's own journal holds everything up to `upto`.
    ///
    /// # Panics
    /// When it acknowledges what it was never given.
    pub fn handle_durable(&mut self, upto: Seq) {
        assert!(upto <= self.log.taken(), "the journal commits only what it was given");
        self.count_own(upto);
        self.handle_commit();
    }

    pub(super) fn count_own(&mut self, upto: Seq) {
        let disk = self.in_sync.said().in_sync[&self.me];
        let counted =
            self.in_sync.handle_holds(&self.me, disk, (self.in_sync.said().version, upto));
        debug_assert!(counted.is_ok(), "a primary is in its in-sync set");
    }

    /// Another copy holds everything up to `upto` durably, in this epoch, and heard of this version of
    /// the shard's record by then.
    ///
    /// # Errors
    /// [`AckError`] for acknowledgements that do not count; nothing was changed.
    pub fn handle_holds(
        &mut self,
        node: &NodeId,
        disk: DiskId,
        (version, upto): (u64, Seq),
    ) -> Result<(), AckError> {
        let last = self.log.taken();
        if upto > last {
            return Err(AckError::BeyondLog { node: node.clone(), upto, last });
        }
        self.in_sync.handle_holds(node, disk, (version, upto))?;
        self.handle_commit();
        Ok(())
    }

    /// Another copy heard an append that this primary sent at `sent_at`.
    ///
    /// # Errors
    /// [`AckError`] when it does not count; nothing was changed.
    pub fn handle_heard(
        &mut self,
        node: &NodeId,
        disk: DiskId,
        (sent_at, promised): (Instant, bool),
        now: Instant,
    ) -> Result<(), AckError> {
        if sent_at > now {
            return Err(AckError::NotSent { node: node.clone() });
        }
        let late = self.planted.has(Mutant::LeaseFromReceipt);
        let sent_at = if late { now } else { sent_at };
        self.in_sync.handle_heard(node, disk, sent_at, promised)?;
        self.confirm(now);
        Ok(())
    }

    /// Another copy lost what it had acknowledged.
    pub fn handle_regressed(&mut self, node: &NodeId, disk: DiskId, upto: Seq) {
        self.in_sync.handle_regressed(node, disk, upto);
    }

    /// The control plane says something of the copies. Who was asked and did not answer may not be
    /// waited for any more.
    ///
    /// # Panics
    /// When this node is not in the set: it would be no primary any more.
    pub fn handle_copies(&mut self, copies: Copies, now: Instant) {
        self.in_sync.handle_copies(copies);
        self.handle_commit();
        self.confirm(now);
    }

    /// The in-sync set to propose to the control plane now, if one is to be proposed, and the
    /// version of the record that it is for.
    ///
    /// None before this primary may answer. Until then an earlier one may have a lease, by promises
    /// of the members that the set has; a copy that joined could be promoted, or be given the
    /// shard, and would know of no promise to wait for.
    pub fn poll_proposal(&mut self, now: Instant) -> Option<(u64, BTreeMap<NodeId, DiskId>)> {
        if !self.serves && !self.planted.has(Mutant::ProposesBeforeServing) {
            return None;
        }
        let set = self.in_sync.poll_proposal(now)?;
        Some((self.in_sync.said().version, set))
    }

    /// Replies wait for a round: ask every copy at once.
    pub fn wants_round(&self) -> bool {
        !self.unconfirmed.is_empty()
    }

    /// Lets replies go on that were given without a lease, once one is there or a round was made.
    pub(super) fn confirm(&mut self, now: Instant) {
        let leased = !self.unconfirmed.is_empty() && self.in_sync.has_lease(now);
        while let Some((since, _)) = self.unconfirmed.front()
            && (leased || self.in_sync.is_confirmed_since(*since))
            && let Some((_, pending)) = self.unconfirmed.pop_front()
        {
            self.held.hold(pending.gate, pending);
        }
    }

    /// Time passed, as far as copies and answers are concerned.
    pub(super) fn pass_for_copies(&mut self, now: Instant) {
        self.serves |= now >= self.serve_from;
        self.in_sync.handle_timeout(self.log.taken(), now);
        self.handle_commit();
        self.confirm(now);
    }

    /// When this primary may begin to answer, while it may not.
    pub(super) fn serves_at(&self) -> Option<Instant> {
        (!self.serves).then_some(self.serve_from)
    }

    /// Holds a caller until a lease or a round proves that nobody else was primary at `now`, and
    /// then until the watermark reaches `gate`.
    pub(super) fn hold_unconfirmed(
        &mut self,
        (gate, now): (Seq, Instant),
        item: T,
        result: Result<Success, Failure>,
    ) {
        self.unconfirmed.push_back((now, Pending { gate, item, result }));
    }
}
