//! What the copies say, and what that lets out: acknowledgements, leases, rounds, and the set.

use std::collections::BTreeMap;

use crate::id::{DiskId, NodeId, Seq, Token};
use crate::message::{Failure, Success};
use crate::mutants::Mutant;
use crate::replication::freshness::Freshness;
use crate::replication::in_sync::{AckError, Copies};
use crate::time::Instant;

use super::primary::{Pending, Primary, Unconfirmed};

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

    /// Whether a reply that is given now is certain to show what is newest, if it has to: by a lease,
    /// or because nobody else is asked. A strict query trusts no lease; one that wants a token's
    /// entry is content with that, and a deposed primary can show it as well as a standby.
    pub(super) fn is_confirmed(&self, freshness: Option<Freshness>, now: Instant) -> bool {
        match freshness {
            Some(Freshness::Strict) if !self.planted.has(Mutant::StrictTrustsLease) => {
                self.in_sync.is_confirmed_since(now)
            }
            Some(Freshness::AtLeast(_)) => true,
            None | Some(Freshness::Strict | Freshness::MaxStaleness(_)) => {
                self.in_sync.has_lease(now)
            }
        }
    }

    /// Lets replies go on that were given without a lease, once one is there or a round was made;
    /// the strict ones after a round only.
    pub(super) fn confirm(&mut self, now: Instant) {
        if self.unconfirmed.is_empty() {
            return;
        }
        let leased = self.in_sync.has_lease(now);
        while let Some(front) = self.unconfirmed.front()
            && self.in_sync.is_confirmed_since(front.since)
            && let Some(Unconfirmed { pending, .. }) = self.unconfirmed.pop_front()
        {
            self.held.hold(pending.gate, pending);
        }
        if leased {
            for waiting in std::mem::take(&mut self.unconfirmed) {
                if waiting.strict {
                    self.unconfirmed.push_back(waiting);
                } else {
                    self.held.hold(waiting.pending.gate, waiting.pending);
                }
            }
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

    /// Holds a caller until a lease or a round proves that nobody else was primary at `since`, and
    /// then until the watermark reaches `gate`.
    pub(super) fn hold_unconfirmed(
        &mut self,
        (gate, since): (Seq, Instant),
        freshness: Option<Freshness>,
        item: T,
        result: Result<Success, Failure>,
    ) {
        let pending = Pending { gate, item, result };
        let strict = freshness == Some(Freshness::Strict);
        self.unconfirmed.push_back(Unconfirmed { since, strict, pending });
    }

    /// Whether the log of this primary has the entry that a query wants to see. It does whenever the
    /// token was given to somebody, unless this primary is deposed.
    pub(super) fn has(&self, token: &Token) -> bool {
        token.epoch <= self.epoch() && token.seq <= self.last()
    }
}
