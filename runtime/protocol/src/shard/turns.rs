//! Turns: one at a time for each entity, round robin over entities, and what their end leads to.

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
        };
        let id = TurnId { at: self.turns.insert(running), number: self.turn_number };
        Some(Turn { id, slot: Slot(slot), fresh, log_time, ask, item })
    }

    /// A turn has ended; its caller waits for the watermark from here on.
    ///
    /// # Errors
    /// [`StaleTurn`] when this turn ended before; nothing was changed.
    ///
    /// # Panics
    /// When a query is said to have ended as a command, or the other way round: a query that
    /// changed state must not pass. When an entry would be larger than the limits allow.
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
        let gate = self.gate_of_turn(&turn);
        let planted = self.planted_gate(&turn, entry, gate);
        // What is logged is proven by being committed; what only shows state is not.
        let shows = entry.is_none() && !matches!(reply, Reply::Failure(_));
        if shows && !self.is_confirmed(turn.freshness, at.now) {
            let result = self.result(gate, reply);
            self.hold_unconfirmed((planted, at.now), turn.freshness, item, result);
        } else {
            self.answer(&turn, planted, reply, item);
        }

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

    /// What a turn's reply waits for, and where its token says that the entity stands: its last
    /// entry. A query that wants a state of some age learns where the whole shard stands.
    fn gate_of_turn(&self, turn: &Running) -> Seq {
        let gate = self.gate(self.rows.row(turn.slot).last);
        match turn.freshness {
            Some(Freshness::MaxStaleness(_)) => gate.max(self.watermark()),
            None | Some(Freshness::Strict | Freshness::AtLeast(_)) => gate,
        }
    }

    fn result(&self, gate: Seq, reply: Reply) -> Result<Success, Failure> {
        let token = self.token(gate);
        match reply {
            Reply::Value(value) => Ok(Success { value, token, replayed: false }),
            Reply::App(error) => Err(Failure::App { error, token, replayed: false }),
            Reply::Failure(failure) => Err(failure),
        }
    }

    /// Holds the caller, and those that joined it, until the gate opens.
    fn answer(&mut self, turn: &Running, gate: Seq, reply: Reply, item: T) {
        let result = self.result(gate, reply);
        let joined = turn.key.as_ref().map(|key| self.flights.end(turn.slot, key));
        let joined = joined.unwrap_or_default();
        let again = (!joined.is_empty()).then(|| repeated(&result));
        self.hold(gate, item, result);
        for (Parcel { ask, item }, again) in joined.into_iter().zip(again.into_iter().cycle()) {
            self.mailboxes.shares_mut().give_back(turn.slot, ask.source);
            self.hold(gate, item, again);
        }
    }

    /// Which entry a turn becomes, if it becomes one, and what its caller hears.
    fn judge(&mut self, turn: &Running, done: Done) -> Verdict {
        let keyed = turn.key.is_some();
        if matches!(done, Done::Command { .. } | Done::Query { .. } | Done::Refused { .. }) {
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
        let entity = self.entity_of(turn);
        let record = reply.and_then(|reply| {
            let key = turn.key.clone()?;
            let (method, payload_hash) = (turn.method, turn.payload_hash);
            Some(DedupRecord { key, method, payload_hash, reply })
        });
        let volatile = self.planted.has(Mutant::DedupVolatile).then(|| record.clone()).flatten();
        let dedup = record.filter(|_| volatile.is_none());
        let (seq, op) = self.append(Op::Turn { entity, change, dedup });
        self.rows.row_mut(turn.slot).last = seq;
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
