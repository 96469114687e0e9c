//! Turns: one at a time for each entity, round robin over entities, and what their end leads to.
//!
//! An entity's version is the seq of the newest entry that changed it. It comes with the state when
//! the entity is activated, and moves with what turns append.
//!
//! **A command under a condition** runs at the version that it names alone. That is compared when
//! its entity is in memory, right before the handler: what was queued before it may have changed
//! the entity, and while its turn runs nothing can. A refusal shows the version, so it waits like
//! a query's answer. It is no entry: versions only grow, so one that has passed does not come back.
//! Keys come first: a command that took effect is answered as it was, wherever its entity stands.

use crate::dedup::Kept;
use crate::entry::{Change, DedupRecord, Op, StoredReply};
use crate::id::{EntityId, IdempotencyKey, MethodId, Seq};
use crate::mailbox::Taken;
use crate::message::{Failure, Mode, Success};
use crate::mutants::Mutant;
use crate::replication::freshness::Freshness;
use crate::time::{Instant, Moment};

use super::primary::{Parcel, Primary};
use super::quarantine::Input;
use super::rows::Activity;
use super::{Committing, Done, Slot, StaleTurn, Turn, TurnId};

/// A turn that the lane runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) number: u64,
    pub(super) slot: u32,
    pub(super) mode: Mode,
    pub(super) freshness: Option<Freshness>,
    pub(super) method: MethodId,
    pub(super) payload_hash: u64,
    pub(super) key: Option<IdempotencyKey>,
    pub(super) if_version: Option<Seq>,
}

/// What a turn's end is for its caller and for the log.
struct Verdict {
    /// What to append, if anything.
    entry: Option<(Change, Option<StoredReply>)>,
    reply: Reply,
}

enum Reply {
    Value(bytes::Bytes),
    App(bytes::Bytes),
    Unmet,
    Failure(Failure),
}

impl<T> Primary<T> {
    /// The next turn to run. Entities with work take turns; `None` when none is ready, or too many
    /// bytes are uncommitted.
    ///
    /// # Panics
    /// When the machine is broken: an entity stood in line without work.
    pub fn next_turn(&mut self, at: Moment) -> Option<Turn<T>> {
        self.assert_invariants();
        self.handle_timeout(at.now);
        let turn = loop {
            let turn = self.begin_turn(at)?;
            if self.quarantine.is_empty() || !self.quarantine.contains(&turn.ask.input()) {
                break turn;
            }
            // It was queued before its input was quarantined: it ends without being run.
            let failure = Failure::Panicked { quarantined: true };
            let done =
                if turn.fresh { Done::NotActivated { failure } } else { Done::Failed { failure } };
            let ended = self.handle_turn_done(turn.id, done, turn.item, at);
            debug_assert!(ended.is_ok(), "the turn has just begun");
        };
        self.counters.turns += 1;
        self.assert_invariants();
        Some(turn)
    }

    /// Takes the first request of the first entity in line.
    fn begin_turn(&mut self, at: Moment) -> Option<Turn<T>> {
        if self.uncommitted_bytes() >= self.config.uncommitted_bytes_max {
            return None;
        }
        let slot = self.rows.pop_ready()?;
        let log_time = self.log.pass(at.wall);
        let row = self.rows.row_mut(slot);
        let now = if self.planted.has(Mutant::ExpiredRuns) { Instant::ZERO } else { at.now };
        let taken = self.mailboxes.take(&mut row.mailbox, now);
        let Some(Taken::Due(Parcel { ask, item })) = taken else {
            panic!("the ready have work, and what has expired was withdrawn");
        };
        row.activity = Activity::Running;
        let fresh = std::mem::replace(&mut row.fresh, false);
        if self.planted.has(Mutant::TwoTurns) && !row.mailbox.is_empty() {
            self.rows.make_ready(slot);
        }
        self.turn_number += 1;
        let running = Running {
            number: self.turn_number,
            slot,
            mode: ask.mode,
            freshness: ask.freshness.filter(|_| ask.mode == Mode::Query),
            method: ask.method,
            payload_hash: ask.payload_hash,
            key: ask.idempotency.clone().filter(|_| ask.mode == Mode::Command),
            if_version: ask.condition(),
        };
        let id = TurnId { at: self.turns.insert(running), number: self.turn_number };
        Some(Turn { id, slot: Slot(slot), fresh, log_time, ask, item })
    }

    /// The entity of a fresh turn is in memory, and this is its version: the place of the entry
    /// that made its state, 0 when none did.
    ///
    /// # Panics
    /// When no turn has begun in this slot, or the entity was of another version before.
    pub fn handle_activated(&mut self, slot: Slot, version: Seq) {
        let last = self.last();
        let row = self.rows.row_mut(slot.0);
        assert!(!row.fresh, "a state is activated for a turn");
        let stays = row.version == Seq(0) || row.version == version;
        debug_assert!(stays && version <= last, "{:?}, then {version:?} of {last:?}", row.version);
        row.version = version;
        self.assert_invariants();
    }

    /// Whether the entity of a turn is at the version that its command names, if it names one.
    /// Asked right before the handler runs; otherwise the turn ends as [`Done::Unmet`].
    pub fn meets_condition(&self, id: TurnId) -> bool {
        let turn = self.turns.get(id.at).filter(|turn| turn.number == id.number);
        turn.is_none_or(|turn| self.meets(turn))
    }

    fn meets(&self, turn: &Running) -> bool {
        let version = self.rows.row(turn.slot).version;
        turn.if_version.is_none_or(|wanted| wanted == version)
            || self.planted.has(Mutant::ConditionAtAdmission)
    }

    /// A turn has ended; its caller waits for the watermark from here on.
    ///
    /// # Errors
    /// [`StaleTurn`] when this turn ended before; nothing was changed.
    ///
    /// # Panics
    /// When a query is said to have ended as a command, or the other way round: a query that
    /// changed state must not pass. When a handler ran whose command's condition does not hold.
    /// When an entry would be larger than the limits allow.
    pub fn handle_turn_done(
        &mut self,
        id: TurnId,
        done: Done,
        item: T,
        at: Moment,
    ) -> Result<Committing, StaleTurn<T>> {
        self.assert_invariants();
        if self.turns.get(id.at).is_none_or(|turn| turn.number != id.number) {
            return Err(StaleTurn { item });
        }
        let turn = self.turns.remove(id.at);
        self.pass(at);
        self.commands -= u32::from(turn.mode == Mode::Command);
        let not_activated = matches!(done, Done::NotActivated { .. });
        let Verdict { entry, reply } = self.judge(&turn, done);
        let entry = entry.map(|(change, reply)| self.append_turn(&turn, change, reply));
        let gate = self.gate(self.rows.row(turn.slot).last);
        let planted = self.planted_gate(&turn, entry, gate);
        // What is logged is proven by being committed; what only shows state is not.
        let shows = entry.is_none() && !matches!(reply, Reply::Failure(_));
        let since = (shows && !self.is_confirmed(turn.freshness, at.now)).then_some(at.now);
        let result = self.result(&turn, gate, reply);
        self.answer(&turn, (planted, since), result, item);

        let row = self.rows.row_mut(turn.slot);
        row.fresh |= not_activated;
        if row.activity == Activity::Running {
            row.activity = Activity::Idle;
            if row.mailbox.is_empty() {
                self.remove_if_unused(turn.slot);
            } else {
                self.rows.make_ready(turn.slot);
            }
        }
        self.assert_invariants();
        Ok(Committing { entry, gate })
    }

    /// What a caller hears: with the entity's version and, for a query of some age, with where the
    /// whole shard stands, as far as this primary knows that it is committed once `gate` is.
    fn result(&self, turn: &Running, gate: Seq, reply: Reply) -> Result<Success, Failure> {
        let planted = self.planted.has(Mutant::VersionOfLastEntry);
        let token = self.token(if planted { gate } else { self.rows.row(turn.slot).version });
        let aged = matches!(turn.freshness, Some(Freshness::MaxStaleness(_)));
        let place = aged.then(|| gate.max(self.watermark()));
        match reply {
            Reply::Value(value) => Ok(Success { value, token, replayed: false, place }),
            Reply::App(error) => Err(Failure::App { error, token, replayed: false }),
            Reply::Unmet => Err(Failure::VersionMismatch { token }),
            Reply::Failure(failure) => Err(failure),
        }
    }

    /// Holds the caller, and those that joined it, until the gate opens; where `since` says when
    /// the reply was given without a lease, until that is confirmed, too.
    fn answer(
        &mut self,
        turn: &Running,
        (gate, since): (Seq, Option<Instant>),
        result: Result<Success, Failure>,
        item: T,
    ) {
        let joined = turn.key.as_ref().map(|key| self.flights.end(turn.slot, key));
        let joined = joined.unwrap_or_default();
        let again = (!joined.is_empty()).then(|| repeated(&result));
        self.hold_since((gate, since), turn.freshness, item, result);
        for (Parcel { ask, item }, again) in joined.into_iter().zip(again.into_iter().cycle()) {
            self.mailboxes.shares_mut().give_back(turn.slot, ask.source);
            self.hold_since((gate, since), turn.freshness, item, again);
        }
    }

    fn hold_since(
        &mut self,
        (gate, since): (Seq, Option<Instant>),
        freshness: Option<Freshness>,
        item: T,
        result: Result<Success, Failure>,
    ) {
        match since {
            Some(since) => self.hold_unconfirmed((gate, since), freshness, item, result),
            None => self.hold(gate, item, result),
        }
    }

    /// Which entry a turn becomes, if it becomes one, and what its caller hears.
    fn judge(&mut self, turn: &Running, done: Done) -> Verdict {
        let keyed = turn.key.is_some();
        if matches!(done, Done::Command { .. } | Done::Query { .. } | Done::Refused { .. }) {
            assert!(self.meets(turn), "a handler runs at the version that its command names");
            self.handle_ran_through(turn);
        }
        match done {
            Done::Command { change, value } => {
                assert!(turn.mode == Mode::Command, "a query does not change state");
                let entry = (keyed || change != Change::None)
                    .then(|| (change, keyed.then(|| StoredReply::Value(value.clone()))));
                Verdict { entry, reply: Reply::Value(value) }
            }
            Done::Query { value } => {
                assert!(turn.mode == Mode::Query, "a command ends as a command");
                Verdict { entry: None, reply: Reply::Value(value) }
            }
            Done::Refused { error } => {
                let entry = keyed.then(|| (Change::None, Some(StoredReply::App(error.clone()))));
                Verdict { entry, reply: Reply::App(error) }
            }
            Done::Panicked => {
                self.counters.panics += 1;
                let counted = !self.planted.has(Mutant::NoQuarantine);
                let quarantined = counted && self.quarantine.handle_panic(self.input(turn));
                let entry = (keyed && quarantined)
                    .then_some((Change::None, Some(StoredReply::Quarantined)));
                Verdict { entry, reply: Reply::Failure(Failure::Panicked { quarantined }) }
            }
            Done::Unmet => Verdict { entry: None, reply: Reply::Unmet },
            Done::Failed { failure } | Done::NotActivated { failure } => {
                Verdict { entry: None, reply: Reply::Failure(failure) }
            }
        }
    }

    fn handle_ran_through(&mut self, turn: &Running) {
        if !self.quarantine.is_empty() {
            let input = self.input(turn);
            self.quarantine.handle_success(&input);
        }
    }

    fn append_turn(&mut self, turn: &Running, change: Change, reply: Option<StoredReply>) -> Seq {
        let (entity, next) = (self.entity_of(turn), self.last().next());
        let row = self.rows.row_mut(turn.slot);
        row.last = next;
        if change != Change::None {
            row.version = next;
        }
        let version = row.version;
        let record = reply.and_then(|reply| {
            let key = turn.key.clone()?;
            let (method, payload_hash) = (turn.method, turn.payload_hash);
            Some(DedupRecord { key, method, payload_hash, reply, version })
        });
        let volatile = self.planted.has(Mutant::DedupVolatile).then(|| record.clone()).flatten();
        let dedup = record.filter(|_| volatile.is_none());
        let (seq, op) = self.append(Op::Turn { entity, change, dedup });
        assert!(seq == next, "an entry follows the last one");
        let log_time = self.log.log_time();
        self.dedup.expire(log_time);
        if let Op::Turn { entity, dedup, .. } = op
            && let Some(record) = dedup.or(volatile)
            && !self.planted.has(Mutant::NoDedup)
        {
            if self.planted.has(Mutant::DedupEvicts) && !self.dedup.has_room(0) {
                self.dedup.forget_oldest();
            }
            self.dedup.insert(Kept { entity, log_time, record });
        }
        seq
    }

    fn pass(&mut self, at: Moment) {
        if self.planted.has(Mutant::LogTimeFollowsWall) {
            self.log.force_log_time(at.wall);
        } else {
            self.log.pass(at.wall);
        }
    }

    /// The gate of a turn's reply, unless a fault is planted there.
    fn planted_gate(&self, turn: &Running, entry: Option<Seq>, gate: Seq) -> Seq {
        let command = turn.mode == Mode::Command;
        let open = self.planted.has(Mutant::ReplyBeforeCommit) && command
            || self.planted.has(Mutant::QueryNotGated) && !command
            || self.planted.has(Mutant::UnchangedNotGated) && command && entry.is_none();
        if open { Seq(0) } else { gate }
    }

    fn entity_of(&self, turn: &Running) -> EntityId {
        self.rows.row(turn.slot).entity.clone()
    }

    fn input(&self, turn: &Running) -> Input {
        let (method, payload_hash) = (turn.method, turn.payload_hash);
        Input { entity: self.entity_of(turn), method, payload_hash }
    }
}

/// A reply as those hear it that joined the call.
fn repeated(result: &Result<Success, Failure>) -> Result<Success, Failure> {
    let mut result = result.clone();
    if let Ok(Success { replayed, .. }) | Err(Failure::App { replayed, .. }) = &mut result {
        *replayed = true;
    }
    result
}
