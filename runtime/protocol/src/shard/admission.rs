//! The door: which requests come in, where they wait, and how they leave without a turn.

use crate::dedup::{Flying, Found, Keyed};
use crate::entry::DedupRecord;
use crate::id::Seq;
use crate::mailbox::{Offer, Place, SourceId, Ticket};
use crate::message::{Failure, Mode, Outcome};
use crate::mutants::Mutant;
use crate::replication::freshness::Freshness;
use crate::time::Instant;

use super::primary::{Parcel, Primary};
use super::quarantine::Input;
use super::rows::Activity;
use super::{Admitted, Ask, Refused, reply_of};

/// Where an admitted request goes.
enum Way {
    Queue,
    Join,
    Replay(DedupRecord),
}

impl Ask {
    /// What a command with an idempotency key is known by.
    fn keyed(&self) -> Option<Keyed<'_>> {
        let key = self.idempotency.as_ref().filter(|_| self.mode == Mode::Command)?;
        let (method, payload_hash, if_version) = (self.method, self.payload_hash, self.if_version);
        Some(Keyed { key, method, payload_hash, if_version })
    }

    /// The version at which alone it may run.
    pub(super) fn condition(&self) -> Option<Seq> {
        self.if_version.filter(|_| self.mode == Mode::Command)
    }

    pub(super) fn input(&self) -> Input {
        let entity = self.entity.clone();
        Input { entity, method: self.method, payload_hash: self.payload_hash }
    }
}

impl<T> Primary<T> {
    /// A request for an entity of this shard.
    ///
    /// # Errors
    /// [`Refused`] with the reason for the caller; nothing was changed.
    pub fn handle_request(
        &mut self,
        mut ask: Ask,
        item: T,
        now: Instant,
    ) -> Result<Admitted, Refused<T>> {
        self.assert_invariants();
        if self.planted.has(Mutant::ShareOfAll) {
            ask.source = SourceId(0);
        }
        let slot = self.rows.find(&ask.entity);
        let admitted = match (self.decide(&ask, slot, now), slot) {
            (Err(failure), _) => Err(Refused { failure, item }),
            (Ok(Way::Replay(record)), slot) => {
                self.replay(&record, slot, item);
                Ok(Admitted::Replayed)
            }
            (Ok(Way::Join), Some(slot)) => self.join(slot, ask, item),
            (Ok(Way::Join | Way::Queue), slot) => self.enqueue(slot, ask, item),
        };
        let refused = admitted.as_ref().err().map(|refused| &refused.failure);
        self.counters.overloaded += u64::from(matches!(refused, Some(Failure::Overloaded { .. })));
        self.assert_invariants();
        admitted
    }

    /// A caller gives up. Gives it back when its request has not begun; otherwise it is released
    /// like every other, and nobody listens.
    pub fn handle_cancel(&mut self, ticket: Ticket) -> Option<T> {
        self.withdraw(ticket).map(|parcel| parcel.item)
    }

    /// Time has passed: requests whose deadline passed in a queue are released as not executed. Ask
    /// [`Self::poll_proposal`] afterwards: somebody may be too slow now.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.pass_for_copies(now);
        if self.planted.has(Mutant::ExpiredRuns) {
            return;
        }
        let expired = |this: &mut Self| {
            let (_, ticket) = this.mailboxes.first_expired(now)?;
            this.withdraw(ticket)
        };
        while let Some(parcel) = expired(self) {
            self.counters.expired += 1;
            let failure = Failure::Deadline { outcome: Outcome::NotExecuted };
            self.hold(Seq(0), parcel.item, Err(failure));
        }
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let copies = self.in_sync.poll_timeout(self.log.taken());
        self.mailboxes.next_deadline().into_iter().chain(self.serves_at()).chain(copies).min()
    }

    /// The rules of the door, in the order in which they are asked; nothing is changed.
    fn decide(&self, ask: &Ask, slot: Option<u32>, now: Instant) -> Result<Way, Failure> {
        if let Some(failure) = &self.stopped {
            return Err(failure.clone());
        }
        if ask.deadline <= now {
            return Err(Failure::Deadline { outcome: Outcome::NotExecuted });
        }
        if self.requests() >= self.config.requests_max {
            return Err(self.overloaded("shard"));
        }
        self.check_planted(ask, slot, Mutant::ConditionBeforeDedup)?;
        if let Some(Freshness::AtLeast(token)) = &ask.freshness
            && !self.has(token)
        {
            let last = self.token(self.last());
            let reason = format!("the query wants {token}, the primary is at {last}");
            return Err(Failure::Stale { reason });
        }
        if let Some(keyed) = ask.keyed()
            && let Some(way) = self.decide_keyed(ask, slot, keyed)?
        {
            return Ok(way);
        }
        self.check_planted(ask, slot, Mutant::ConditionAtAdmission)?;
        if !self.quarantine.is_empty() && self.quarantine.contains(&ask.input()) {
            return Err(Failure::Panicked { quarantined: true });
        }
        if ask.mode == Mode::Command {
            let entries = self.commands + self.uncommitted();
            let bytes = self.uncommitted_bytes();
            if entries >= self.config.uncommitted_entries_max
                || bytes >= self.config.uncommitted_bytes_max
            {
                return Err(self.overloaded("uncommitted"));
            }
        }
        let evicts = self.planted.has(Mutant::DedupEvicts);
        if ask.keyed().is_some() && !self.dedup.has_room(self.flights.len()) && !evicts {
            return Err(self.overloaded("dedup"));
        }
        Ok(Way::Queue)
    }

    /// Compares versions at the door, where a fault is planted.
    fn check_planted(&self, ask: &Ask, slot: Option<u32>, mutant: Mutant) -> Result<(), Failure> {
        let slot = slot.filter(|_| self.planted.has(mutant));
        let row = slot.map(|slot| self.rows.row(slot)).filter(|row| !row.fresh);
        match (ask.condition(), row) {
            (Some(version), Some(row)) if version != row.version => {
                Err(Failure::VersionMismatch { token: self.token(row.version) })
            }
            _ => Ok(()),
        }
    }

    /// A key that is in flight, or took effect, needs no turn.
    fn decide_keyed(
        &self,
        ask: &Ask,
        slot: Option<u32>,
        keyed: Keyed<'_>,
    ) -> Result<Option<Way>, Failure> {
        let ignores_conflicts = self.planted.has(Mutant::KeyConflictIgnored);
        match slot.map_or(Flying::Absent, |slot| self.flights.find(slot, keyed)) {
            Flying::Same if !self.planted.has(Mutant::NoJoin) => return Ok(Some(Way::Join)),
            Flying::Conflict if ignores_conflicts => return Ok(Some(Way::Join)),
            Flying::Conflict => return Err(Failure::KeyConflict),
            Flying::Same | Flying::Absent => {}
        }
        match self.dedup.find(&ask.entity, keyed) {
            Found::Absent => Ok(None),
            Found::Same(record) => Ok(Some(Way::Replay(record.clone()))),
            Found::Conflict => Err(Failure::KeyConflict),
        }
    }

    /// The stored reply waits like every reply of its entity.
    fn replay(&mut self, record: &DedupRecord, slot: Option<u32>, item: T) {
        let last = slot.map_or(Seq(0), |slot| self.rows.row(slot).last);
        let gate = self.gate(last);
        let now = self.planted.has(Mutant::ReplayShowsNow);
        let version = if now { gate } else { record.version };
        self.counters.replayed += 1;
        self.hold(gate, item, reply_of(&record.reply, self.token(version)));
    }

    fn join(&mut self, slot: u32, ask: Ask, item: T) -> Result<Admitted, Refused<T>> {
        if !self.mailboxes.shares_mut().take(slot, ask.source, ask.source_share) {
            return Err(Refused { failure: self.overloaded("mailbox"), item });
        }
        self.counters.joined += 1;
        let key = ask.idempotency.clone().expect("only keyed calls join");
        self.flights.join(slot, &key, Parcel { ask, item });
        Ok(Admitted::Joined)
    }

    fn enqueue(&mut self, slot: Option<u32>, ask: Ask, item: T) -> Result<Admitted, Refused<T>> {
        let slot = slot.unwrap_or_else(|| self.rows.insert(ask.entity.clone()));
        let more = u32::from(self.planted.has(Mutant::MailboxOffByOne));
        let command = ask.mode == Mode::Command;
        let key = ask.idempotency.clone().filter(|_| command);
        let (method, payload_hash, if_version) = (ask.method, ask.payload_hash, ask.if_version);
        let offer = Offer {
            owner: slot,
            deadline: ask.deadline,
            pressure: ask.pressure,
            // A mailbox of none would serve nobody, so that an empty one always has room.
            bound: ask.mailbox.max(1) + more,
            source: ask.source,
            share: ask.source_share,
            body: Parcel { ask, item },
        };
        let row = self.rows.row_mut(slot);
        let (place, ticket) = match self.mailboxes.offer(&mut row.mailbox, offer) {
            Ok(put) => put,
            Err(parcel) => {
                return Err(Refused { failure: self.overloaded("mailbox"), item: parcel.item });
            }
        };
        if row.activity == Activity::Idle {
            self.rows.make_ready(slot);
        }
        self.commands += u32::from(command);
        if let Some(key) = &key {
            let keyed = Keyed { key, method, payload_hash, if_version };
            if self.flights.find(slot, keyed) == Flying::Absent {
                self.flights.begin(slot, keyed);
            }
        }
        Ok(match place {
            Place::Queued => Admitted::Queued(ticket),
            Place::Waiting => Admitted::Waiting(ticket),
        })
    }

    /// Takes a request out of its mailbox; one that joined it takes its place.
    fn withdraw(&mut self, ticket: Ticket) -> Option<Parcel<T>> {
        let (slot, parcel) = self.mailboxes.get(ticket)?;
        let key = parcel.ask.keyed().map(|keyed| keyed.key.clone());
        if let Some(key) = &key
            && let Some(next) = self.flights.take_joined(slot, key)
        {
            self.mailboxes.shares_mut().give_back(slot, next.ask.source);
            let replaced = self.mailboxes.replace(ticket, next.ask.deadline, next);
            let (_, before) = replaced.ok().expect("the letter was just there");
            return Some(before);
        }
        let row = self.rows.row_mut(slot);
        let parcel = self.mailboxes.remove(&mut row.mailbox, ticket)?;
        self.commands -= u32::from(parcel.ask.mode == Mode::Command);
        if let Some(key) = &key {
            let joined = self.flights.end(slot, key);
            debug_assert!(joined.is_empty(), "the first that joined would have taken its place");
        }
        if row.activity == Activity::Ready && row.mailbox.is_empty() {
            self.rows.leave_line(slot);
            self.remove_if_unused(slot);
        }
        Some(parcel)
    }

    fn overloaded(&self, bound: &str) -> Failure {
        let retry_after_ms = u64::try_from(self.config.retry_after.as_millis()).unwrap_or(u64::MAX);
        Failure::Overloaded { retry_after_ms, bound: bound.to_owned() }
    }
}
